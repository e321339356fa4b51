"""How much of a decision flows through each layer.

Shapes: B sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from probes.base import Progress, Subject, silent, variable
from probes.decision.depth import owner_of
from probes.decision.flow import CARRIED, Flow, Path, calls, parts_of, tapped
from probes.decision.places import place_or_anywhere
from probes.decision.samples import Draw
from probes.decision.score import describe
from probes.decision.source import BASELINES, Source, means
from probes.errors import AnalyzerError, NotApplicable
from probes.model.labels import module_of
from probes.model.taps import differentiable_recurrence, leaf_modules, untouched

BUDGET = 2**28
"""Numbers kept of the layers' outputs and gradients at a time."""

_COPIES = 6
"""Outputs and gradients at three points of the path."""

INPUT = "(input)"
"""Label of what the decision is attributed to, through which all of it flows."""


@dataclass(frozen=True)
class LayerConductance:
    """Conductance of every layer with weights: the part of a decision that flows through it.

    The decision is that of :class:`probes.attribution.Attribution`. While the input moves from
    the baseline to the sample, every change of a layer's output is worth its gradient. Over a
    layer that nothing goes around these worths add up to all of the decision; of a layer in a
    branch, the rest takes the other branches. All tensors that a layer returns count. Layers are
    measured at what they return, before anything overwrites it in place; each call of a module is a
    layer of its own.

    The layers of a stacked recurrent module are rows of their own, named as "rnn.l0": what counts
    of each is its output at every timestep, in both directions, and its final states. A recurrent
    layer's way from timestep to timestep is inside of it. A final state of a lower layer that the
    model reads goes around the layers above.

    Captum's LayerConductance runs the path once per layer, takes gradients at the start of each
    step only, and cannot read nested outputs; here all layers share one path and gradients are
    averaged over both ends of a step, so that the error falls with the square of ``steps``.

    Costs ``steps + 1`` forward and backward passes of ``samples`` samples and reads the layers'
    outputs as often, whatever the size of the audit set: 1 to 3 of an audit set of 1,000. Memory:
    six times the outputs of the layers measured and the graph, of ``chunk`` samples, fewer where
    that would be more than 2^28 numbers.

    Parameters
    ----------
    samples : int
        Samples drawn from the audit set at random, all if there are fewer.
    steps : int
        Steps from the baseline to the sample, even: every second point gives a coarser result,
        whose difference shows the error.
    max_layers : int
        Layers measured, evenly spaced over depth, first and last included.
    max_calls : int
        Modules called more often in one pass are not measured.
    baseline : str
        "mean": each feature at its mean over these samples and positions; "zero".
    chunk : int
        Samples that go through the model together, at most; never more than in a batch.

    References
    ----------
    .. [1] Dhamdhere, Sundararajan and Yan, How Important Is a Neuron? (2018).
    """

    name: ClassVar[str] = "layer_conductance"
    passes: ClassVar[float] = 40
    samples: int = 32
    steps: int = 32
    max_layers: int = 48
    max_calls: int = 16
    baseline: str = "mean"
    chunk: int = 64

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        self._check()
        place, draw = place_or_anywhere(subject), Draw.of(subject, self.samples, self.chunk)
        with untouched(subject.model), differentiable_recurrence(subject.model):
            layers = self._layers(subject, Source.of(subject, next(draw.pieces()), place))
            draw = Draw.of(subject, self.samples, min(self.chunk, layers.room))
            values = means((Source.of(subject, p, place) for p in draw.pieces()), self.baseline)
            found: list[_Piece] = []
            for batch in draw.pieces():
                source = Source.of(subject, batch, place)
                found.append(self._piece(subject, source, values, layers.chosen))
                progress(sum(len(one.difference) for one in found), len(draw.rows))
        return self._trace(subject, draw, layers, found)

    def _check(self) -> None:
        """Refuse settings that mean nothing."""
        if min(self.samples, self.chunk, self.max_layers, self.max_calls) < 1:
            raise AnalyzerError(
                "layer_conductance needs samples, chunk, max_layers and max_calls >= 1"
            )
        if self.steps < 2 or self.steps % 2:
            raise AnalyzerError(
                f"layer_conductance needs an even number of steps: it is {self.steps}"
            )
        if self.baseline not in BASELINES:
            raise AnalyzerError(
                f"layer_conductance has no baseline {self.baseline!r}: use {' or '.join(BASELINES)}"
            )

    def _layers(self, subject: Subject, source: Source) -> "_Layers":
        """Run the model once to see which layers can be measured, and why others cannot."""
        names = layers_of(subject.model)
        samples, seen, size = len(source.leaves[0]), {}, {}

        def look(label: str, module: nn.Module, output: Any) -> None:
            found = parts_of(module, output, samples, subject.batch_axis)
            seen[label] = type(module).__name__
            size[label] = sum(value.numel() for value, _ in found) // samples

        with calls(subject.model, set(names), look) as count, torch.no_grad():
            source.run(source.leaves)
        reasons = {name: "not called with these data" for name in names if name not in count}
        owners = {label: module_of(owner_of(label, count), count) for label in seen}
        for label, name in owners.items():
            if count[name] > self.max_calls:
                reasons[name] = f"called {count[name]} times in one pass, more than max_calls"
            elif not size[label]:
                reasons[label] = "what it returns does not keep the samples apart"
        ready = [label for label in seen if label not in reasons and owners[label] not in reasons]
        if not ready:
            raise NotApplicable(
                "no layer with weights is a module that runs and keeps the samples apart"
            )
        chosen = [ready[place] for place in _evenly(len(ready), self.max_layers)]
        kinds = {label: seen[label] for label in chosen}
        room = max(1, BUDGET // (_COPIES * sum(size[label] for label in chosen)))
        return _Layers(chosen, kinds, reasons, len(ready), room)

    def _piece(
        self, subject: Subject, source: Source, values: list[Tensor], chosen: Sequence[str]
    ) -> "_Piece":
        """Follow a few samples along the path."""
        baselines = source.baselines(values, source.index())
        decision, difference_B = source.decision(subject, baselines)
        score, samples = source.scorer(decision), len(source.leaves[0])
        path, ends = Path(), [*zip(baselines, source.leaves, strict=True)]
        for step in range(self.steps + 1):
            share = step / self.steps
            leaves = [(start + share * (stop - start)).requires_grad_() for start, stop in ends]
            with tapped(subject.model, chosen, samples, subject.batch_axis) as point:
                total = score(*leaves).sum()
            found = torch.autograd.grad(total, leaves)
            point.put(INPUT, leaves, found)
            path.add(point)
        return _Piece(path.flows(), difference_B.cpu())

    def _trace(
        self, subject: Subject, draw: Draw, layers: "_Layers", found: list["_Piece"]
    ) -> xr.Dataset:
        """Label what was measured."""
        labels = [*layers.chosen, *layers.reasons]
        measured = {
            label: _joined([piece.flows[label] for piece in found]) for label in layers.chosen
        }
        absent = Flow(*3 * (torch.full((len(draw.rows),), torch.nan),), 0)
        rows = [measured.get(label, absent) for label in labels]
        by_layer = ("sample", "layer")
        difference_B = torch.cat([piece.difference for piece in found])
        whole_B = torch.cat([piece.flows[INPUT].total for piece in found])
        trace = xr.Dataset(
            {
                "conductance": variable(
                    torch.stack([row.total for row in rows], 1), by_layer, "conductance", "score"
                ),
                "coarse": variable(
                    torch.stack([row.coarse for row in rows], 1),
                    by_layer,
                    "conductance from every second point of the path",
                    "score",
                ),
                "carriers": variable(
                    torch.stack([row.carriers for row in rows], 1),
                    by_layer,
                    f"share of the channels that hold {CARRIED:.0%} of the conductance",
                    "1",
                ),
                "difference": variable(
                    difference_B, ("sample",), "score less that at the baseline", "score"
                ),
                "delta": variable(
                    whole_B - difference_B,
                    ("sample",),
                    "conductance of the input less the difference",
                    "score",
                ),
            },
            {
                "sample": draw.rows.numpy(),
                "layer": labels,
                "kind": ("layer", [layers.kinds.get(label, "") for label in labels]),
                "channels": ("layer", [row.channels for row in rows]),
                "reason": ("layer", [layers.reasons.get(label, "") for label in labels]),
            },
        )
        return trace.assign_attrs(
            decision=describe(subject),
            baseline=self.baseline,
            steps=self.steps,
            audit_samples=draw.total,
            layers_total=layers.total,
        )


class _Layers(NamedTuple):
    """Which layers are measured, and why others are not."""

    chosen: list[str]
    kinds: dict[str, str]
    reasons: dict[str, str]
    total: int
    """Layers that could be measured."""
    room: int
    """Samples whose outputs fit into the budget."""


class _Piece(NamedTuple):
    """What was measured on a few samples."""

    flows: dict[str, Flow]
    difference: Tensor


def layers_of(model: nn.Module) -> list[str]:
    """Name the modules that compute with weights of their own; normalization is none of them."""
    modules = dict(model.named_modules())
    return [
        name
        for name in leaf_modules(model)
        if any(True for _ in modules[name].parameters())
        and not isinstance(modules[name], nn.Embedding)
        and "Norm" not in type(modules[name]).__name__
    ]


def _evenly(count: int, most: int) -> list[int]:
    """Choose at most ``most`` of ``count`` places, evenly spaced, the last among them."""
    places = np.linspace(count - 1, 0, min(most, count)).round().astype(int)
    return sorted({int(place) for place in places})


def _joined(flows: Sequence[Flow]) -> Flow:
    """Join what was measured on several pieces."""
    return Flow(
        torch.cat([flow.total for flow in flows]),
        torch.cat([flow.coarse for flow in flows]),
        torch.cat([flow.carriers for flow in flows]),
        flows[0].channels,
    )
