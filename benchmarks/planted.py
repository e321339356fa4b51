"""Kinds of small trained networks: healthy, or with a fault planted into them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from benchmarks import faults
from benchmarks.faulty import Signed, Spread
from benchmarks.tasks import (
    DELAY,
    TIMESTEPS,
    Convolutional,
    Recurrent,
    audited,
    convolutional,
    dense,
    followed,
    on_beats,
    perceptron,
    recall,
    recurrent,
    remembering,
    seeded,
)
from probes.base import Subject


@dataclass(frozen=True)
class Planted:
    """A kind of network, and what should be found in it.

    Parameters
    ----------
    name : str
    make : callable
        Trains one, given a seed.
    code : str
        The finding that has to alarm; of a healthy one, the only one that is counted. Empty for
        all findings of a healthy network.
    beyond : tuple of str
        Limits that the fault lies beyond.
    probes : tuple of str
        What measures it; all probes if empty.
    limits : dict
        What the user would have said of it.
    """

    name: str
    make: Callable[[int], Subject]
    code: str = ""
    beyond: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    limits: dict[str, dict[str, float]] = field(default_factory=dict)


_OTHER_LENGTHS = {
    "sequence_length": {"shortest": TIMESTEPS // 2, "longest": 2 * TIMESTEPS},
}

HEALTHY = (
    Planted(
        "residual CNN",
        seeded(lambda: audited(convolutional())),
        limits={"effective_field": {"required": 20}, "memory_footprint": {"budget_gib": 0.1}},
    ),
    Planted("LSTM", seeded(lambda: audited(recurrent()))),
    Planted(
        "LSTM, delayed recall",
        seeded(lambda: audited(remembering(), recall(300))),
        limits={
            "memory_horizon": {"required": DELAY},
            "timestep_contribution": {"required": DELAY},
        },
    ),
    Planted("perceptron", seeded(lambda: audited(dense()))),
    Planted("perceptron, with its optimizer and training data", seeded(lambda: followed(0.001))),
    Planted(
        "two stacked LSTMs",
        seeded(lambda: audited(on_beats(Recurrent(nn.LSTM, 1, 24, 5, layers=2)))),
    ),
    Planted(
        "perceptron of tanh",
        seeded(lambda: audited(on_beats(perceptron(act=nn.Tanh)))),
        probes=("width",),
    ),
    Planted(
        "blocks past the input that are at work",
        seeded(lambda: audited(on_beats(Convolutional(stem=139)))),
        "unproductive-depth",
        probes=("receptive_field", "depth_contribution"),
    ),
    Planted(
        "truncation longer than the delay",
        seeded(lambda: audited(remembering(3), recall(300, 3))),
        "truncation-loss",
        probes=("truncation",),
        limits={"truncation": {"trained_with": 16}},
    ),
    Planted(
        "LSTM, recall on other lengths",
        seeded(lambda: audited(remembering(3), recall(300, 3))),
        probes=("sequence_length",),
        limits=_OTHER_LENGTHS,
    ),
)
"""Networks that nothing is planted in; the last ones for what the others never face."""

_BUDGET = {"memory_footprint": {"budget_gib": 1e-4}}

FAULTS = (
    Planted("dead ReLUs", seeded(faults.dead), "dead-units", ("width.dead",), ("width",)),
    Planted(
        "a layer dead as a whole",
        seeded(faults.blocked),
        "gradient-blocked",
        (),
        ("gradient_flow",),
    ),
    Planted(
        "copied units", seeded(faults.copied), "redundant-units", ("width.redundant",), ("width",)
    ),
    Planted(
        "layers of rank 3",
        seeded(faults.narrow),
        "width-wasted",
        ("width.layers", "width.idle"),
        ("width",),
    ),
    Planted("units that are constant", seeded(faults.constant), "constant-units", (), ("width",)),
    Planted(
        "a weight that is nan", seeded(faults.undefined), "numerical-health", (), ("gradient_flow",)
    ),
    Planted(
        "a last step of rate 3",
        seeded(lambda: followed(3.0)),
        "update-ratio",
        ("update_ratio.high",),
        ("update_ratio",),
    ),
    Planted(
        "a last step of rate 1e-7",
        seeded(lambda: followed(1e-7)),
        "update-ratio",
        ("update_ratio.low",),
        ("update_ratio",),
    ),
    Planted(
        "tanh at its ends",
        seeded(faults.saturated),
        "saturated-units",
        ("width.stuck_units",),
        ("width",),
    ),
    Planted(
        "a residual block of zeros",
        seeded(faults.idle),
        "idle-blocks",
        ("depth_contribution.idle",),
        ("depth_contribution",),
    ),
    Planted(
        "ten sigmoid layers",
        seeded(lambda: audited(on_beats(perceptron(32, 10, nn.Sigmoid), 100))),
        "gradient-over-depth",
        ("gradient_flow.warn_decades",),
        ("gradient_flow",),
    ),
    Planted(
        "a tail beyond the field",
        seeded(lambda: audited(on_beats(Convolutional(tail=6)))),
        "unproductive-layers",
        (),
        ("receptive_field",),
    ),
    Planted(
        "a block past the input that adds nothing",
        seeded(faults.unproductive),
        "unproductive-depth",
        ("unproductive_depth.similar",),
        ("receptive_field", "depth_contribution"),
    ),
    Planted(
        "a field smaller than asked",
        seeded(lambda: audited(convolutional())),
        "effective-field",
        (),
        ("effective_field",),
        {"effective_field": {"required": 70}},
    ),
    Planted(
        "gradients wider than the field",
        seeded(lambda: audited(on_beats(Spread()))),
        "field-mismatch",
        ("effective_field.outside",),
        ("effective_field",),
    ),
    Planted(
        "signs that gradients pass straight through",
        seeded(lambda: audited(on_beats(Signed()))),
        "attribution-unreliable",
        ("attribution.tolerance",),
        ("attribution",),
    ),
    Planted(
        "signs of a class that speak against it together",
        seeded(faults.contested),
        "attribution-unreliable",
        ("attribution.agreement",),
        ("attribution",),
    ),
    Planted(
        "an LSTM that passes on what it reads",
        seeded(faults.stacked),
        "stack-depth",
        ("stacked_layers.idle",),
        ("stacked_layers",),
    ),
    Planted(
        "weights that learn from fewer steps than asked",
        seeded(faults.forgetful),
        "timestep-share",
        (),
        ("timestep_contribution",),
        {"timestep_contribution": {"required": DELAY}},
    ),
    Planted(
        "late timesteps that ask the opposite",
        seeded(faults.contradicted),
        "timestep-conflict",
        ("timestep_contribution.conflict",),
        ("timestep_contribution",),
    ),
    Planted(
        "a forget gate of one half",
        seeded(faults.forgetful),
        "memory-horizon",
        (),
        ("memory_horizon",),
        {"memory_horizon": {"required": DELAY}},
    ),
    Planted(
        "inputs left out at the start",
        seeded(faults.sluggish),
        "shorter-sequences",
        (),
        ("sequence_length",),
        _OTHER_LENGTHS,
    ),
    Planted(
        "positions that training never saw",
        seeded(faults.untold),
        "longer-sequences",
        ("sequence_length.lost",),
        ("sequence_length",),
        _OTHER_LENGTHS,
    ),
    Planted(
        "truncation shorter than the delay",
        seeded(lambda: audited(remembering(), recall(300))),
        "truncation-loss",
        ("truncation.cosine",),
        ("truncation",),
        {"truncation": {"trained_with": 4}},
    ),
    Planted(
        "gates at their ends",
        seeded(faults.clenched),
        "gate-saturation",
        ("gates.stuck_units",),
        ("gates",),
    ),
    Planted(
        "recurrent weights that shrink states",
        seeded(lambda: faults.scaled(0.5)),
        "gradient-over-time",
        ("timestep_gradient.warn_decades",),
        ("timestep_gradient",),
    ),
    Planted(
        "recurrent weights that amplify states",
        seeded(lambda: faults.scaled(3.0)),
        "state-stability",
        ("lyapunov.growth",),
        ("lyapunov",),
    ),
    Planted(
        "shuffled labels known by heart",
        seeded(faults.memorized),
        "generalization-gap",
        ("generalization.warn_lost", "generalization.fail_lost"),
        ("generalization",),
    ),
    Planted(
        "wide layers, a hundred samples known by heart",
        seeded(faults.oversized),
        "spare-capacity",
        ("generalization.warn_lost", "width.layers", "width.idle"),
        ("width", "generalization"),
    ),
    Planted(
        "training that does not fit",
        seeded(lambda: audited(convolutional())),
        "training-memory",
        (),
        ("memory_footprint",),
        _BUDGET,
    ),
    Planted(
        "serving that does not fit",
        seeded(lambda: audited(convolutional())),
        "serving-memory",
        (),
        ("memory_footprint",),
        _BUDGET,
    ),
)
"""One fault each, and the finding that has to tell it."""
