"""Small trained networks, healthy or with a fault planted into them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from benchmarks.tasks import (
    DELAY,
    SYMBOLS,
    Convolutional,
    Recurrent,
    audited,
    beats,
    convolutional,
    dense,
    fitted,
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
        The finding that has to alarm; empty for a healthy one.
    probes : tuple of str
        What measures it; all probes if empty.
    limits : dict
        What the user would have said of it.
    """

    name: str
    make: Callable[[int], Subject]
    code: str = ""
    probes: tuple[str, ...] = ()
    limits: dict[str, dict[str, float]] = field(default_factory=dict)


HEALTHY = (
    Planted("residual CNN", seeded(lambda: audited(convolutional()))),
    Planted("LSTM", seeded(lambda: audited(recurrent()))),
    Planted(
        "LSTM, delayed recall",
        seeded(lambda: audited(remembering(), recall(300))),
        limits={"memory_horizon": {"required": DELAY}},
    ),
    Planted("perceptron", seeded(lambda: audited(dense()))),
    Planted("perceptron, with its optimizer and training data", seeded(lambda: followed(0.001))),
    Planted(
        "two stacked LSTMs",
        seeded(lambda: audited(on_beats(Recurrent(nn.LSTM, 1, 24, 5, layers=2)))),
    ),
)
"""Networks that nothing is planted in."""


def _dead() -> Subject:
    """Keep six of ten units of a layer below zero for good."""
    model = dense()
    nn.init.constant_(model[1].bias[:15], -100.0)  # type: ignore[index]
    return audited(model)


def _blocked() -> Subject:
    """Keep all units of a layer below zero for good."""
    model = dense()
    nn.init.constant_(model[3].bias, -100.0)  # type: ignore[arg-type]
    return audited(model)


def _copied() -> Subject:
    """Copy half of the units of a layer to the other half."""
    model = dense()
    with torch.no_grad():
        for weight in model[1].parameters():
            weight[12:] = weight[:12]
    return audited(model)


def _narrow() -> Subject:
    """Leave three directions to the weights of each layer."""
    model = dense()
    with torch.no_grad():
        for layer in (model[1], model[3]):
            left, size, right = torch.linalg.svd(layer.weight)
            layer.weight.copy_(left[:, :3] * size[:3] @ right[:3])
    return audited(model)


def _constant() -> Subject:
    """Leave nothing but their bias to thirteen of the units of a layer."""
    model = dense()
    with torch.no_grad():
        model[1].weight[:13] = 0.0  # type: ignore[index, operator]
    return audited(model)


def _undefined() -> Subject:
    """Put a nan into the weights."""
    model = dense()
    with torch.no_grad():
        model[3].weight[0, 0] = torch.nan  # type: ignore[index, operator]
    return audited(model)


def _saturated() -> Subject:
    """Drive hyperbolic tangents to their ends."""
    model = on_beats(perceptron(act=nn.Tanh))
    with torch.no_grad():
        model[1].weight.mul_(1000)  # type: ignore[index]
        model[1].bias.mul_(1000)  # type: ignore[index]
    return audited(model)


def _idle() -> Subject:
    """Have a residual block add nothing."""
    model = convolutional()
    for weight in model.blocks[1].second.parameters():  # type: ignore[index]
        nn.init.zeros_(weight)
    return audited(model)


def _unproductive() -> Subject:
    """Have a residual block behind a layer that sees the whole input add nothing."""
    model = on_beats(Convolutional(stem=139))
    for weight in model.blocks[1].second.parameters():  # type: ignore[index, union-attr]
        nn.init.zeros_(weight)
    return audited(model)


def _stacked() -> Subject:
    """Put an LSTM onto a trained one that only passes on what it reads, scaled down."""
    scale, below = 0.05, recurrent()
    model = Recurrent(nn.LSTM, 1, 24, 5, layers=2)
    own = {f"rnn.{name}": weight for name, weight in below.rnn.named_parameters()}  # type: ignore[union-attr]
    closed, opened, zeros = -20 * torch.ones(24), 20 * torch.ones(24), torch.zeros(24, 24)
    own["rnn.weight_ih_l1"] = torch.cat([zeros, zeros, scale * torch.eye(24), zeros])
    own["rnn.weight_hh_l1"] = torch.zeros(96, 24)
    own["rnn.bias_ih_l1"] = torch.cat([opened, closed, torch.zeros(24), opened])
    own["rnn.bias_hh_l1"] = torch.zeros(96)
    own |= {"head.weight": below.head.weight / scale, "head.bias": below.head.bias}  # type: ignore[union-attr, operator]
    model.load_state_dict(own)
    return audited(model)


def _forgetful() -> Subject:
    """Train a forget gate that stays half open to recall three steps."""
    model = Recurrent(nn.LSTM, SYMBOLS, 32, SYMBOLS)
    for weight in model.rnn.parameters():
        kept = torch.ones_like(weight)
        kept[32:64] = 0
        weight.data.mul_(kept)
        weight.register_hook(kept.mul)
    fitted(model, lambda: recall(64, delay=3), 500, 0.02)
    return audited(model, recall(300, delay=3))


def _clenched() -> Subject:
    """Drive gates to their ends."""
    model = recurrent()
    with torch.no_grad():
        for weight in model.rnn.parameters():  # type: ignore[union-attr]
            weight.mul_(100)
    return audited(model)


def _scaled(radius: float) -> Subject:
    """Make the recurrent weights of a plain network a rotation times a factor."""
    model = on_beats(Recurrent(nn.RNN, 1, 32, 5), 60)
    nn.init.orthogonal_(model.rnn.weight_hh_l0, radius)
    with torch.no_grad():
        model.rnn.weight_ih_l0.mul_(0.1)
    return audited(model)


def _memorized() -> Subject:
    """Train a perceptron to know sixty shuffled labels by heart."""
    inputs, targets = (part[:60] for part in beats()[0])
    targets = targets[torch.randperm(60)]
    model = perceptron(256)
    fitted(model, lambda: (inputs, targets), 300)
    return audited(model, (inputs, targets), held_out=[beats()[1]])


FAULTS = (
    Planted("dead ReLUs", seeded(_dead), "dead-units", ("width",)),
    Planted("a layer dead as a whole", seeded(_blocked), "gradient-blocked", ("gradient_flow",)),
    Planted("copied units", seeded(_copied), "redundant-units", ("width",)),
    Planted("layers of rank 3", seeded(_narrow), "width-wasted", ("width",)),
    Planted("units that are constant", seeded(_constant), "constant-units", ("width",)),
    Planted("a weight that is nan", seeded(_undefined), "numerical-health", ("gradient_flow",)),
    Planted(
        "a last step of rate 3",
        seeded(lambda: followed(3.0)),
        "update-ratio",
        ("update_ratio",),
    ),
    Planted("tanh at its ends", seeded(_saturated), "saturated-units", ("width",)),
    Planted("a residual block of zeros", seeded(_idle), "idle-blocks", ("depth_contribution",)),
    Planted(
        "ten sigmoid layers",
        seeded(lambda: audited(on_beats(perceptron(32, 10, nn.Sigmoid), 100))),
        "gradient-over-depth",
        ("gradient_flow",),
    ),
    Planted(
        "a tail beyond the field",
        seeded(lambda: audited(on_beats(Convolutional(tail=6)))),
        "unproductive-layers",
        ("receptive_field",),
    ),
    Planted(
        "a block past the input that adds nothing",
        seeded(_unproductive),
        "unproductive-depth",
        ("receptive_field", "depth_contribution"),
    ),
    Planted(
        "a field smaller than asked",
        seeded(lambda: audited(convolutional())),
        "effective-field",
        ("effective_field",),
        {"effective_field": {"required": 70}},
    ),
    Planted(
        "an LSTM that passes on what it reads",
        seeded(_stacked),
        "stack-depth",
        ("stacked_layers",),
    ),
    Planted(
        "weights that learn from fewer steps than asked",
        seeded(_forgetful),
        "timestep-share",
        ("timestep_contribution",),
        {"timestep_contribution": {"required": DELAY}},
    ),
    Planted(
        "a forget gate of one half",
        seeded(_forgetful),
        "memory-horizon",
        ("memory_horizon",),
        {"memory_horizon": {"required": DELAY}},
    ),
    Planted(
        "truncation shorter than the delay",
        seeded(lambda: audited(remembering(), recall(300))),
        "truncation-loss",
        ("truncation",),
        {"truncation": {"trained_with": 4}},
    ),
    Planted("gates at their ends", seeded(_clenched), "gate-saturation", ("gates",)),
    Planted(
        "recurrent weights that shrink states",
        seeded(lambda: _scaled(0.5)),
        "gradient-over-time",
        ("timestep_gradient",),
    ),
    Planted(
        "recurrent weights that amplify states",
        seeded(lambda: _scaled(3.0)),
        "state-stability",
        ("lyapunov",),
    ),
    Planted(
        "shuffled labels known by heart",
        seeded(_memorized),
        "generalization-gap",
        ("generalization",),
    ),
)
"""One fault each, and the finding that has to tell it."""
