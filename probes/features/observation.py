"""Passes over the samples that keep what the units of every layer do, and nothing else.

Shapes: B sample, C unit, G group.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from probes.base import Batch, Subject, call
from probes.features.flow import BOUNDED, RELU, Activation, Flow
from probes.features.layers import Layer, Seen, by_sample, largest, looked_at, recurrent
from probes.features.moments import Moments
from probes.model.taps import first_float
from probes.recurrent.backward.cells import CLOSED, OPEN
from probes.recurrent.states.features import Draw, read
from probes.recurrent.watching.bypass import Reading
from probes.recurrent.watching.naming import recurrent_modules
from probes.samples.layout import Layout
from probes.samples.selection import pieces


@dataclass(eq=False)
class Response:
    """What the units of a layer do behind an activation function, by groups of samples.

    Parameters
    ----------
    groups, width : int
        G, as for :class:`Moments`, and C.
    """

    groups: int
    width: int
    active: Tensor | None = None
    """Samples in which a unit is above zero at any position: (G, C); of ReLU-like functions."""
    ends: Tensor | None = None
    """Share of its time that a unit is at the lower and upper end of a bounded function, summed
    over the samples: (G, 2, C)."""
    samples: Tensor = field(init=False)
    """Shape (G,)."""
    _largest: Tensor | None = None
    _latest: Tensor | None = None

    def __post_init__(self) -> None:
        self.samples = torch.zeros(self.groups, dtype=torch.float64)

    def peak(self, largest_BC: Tensor) -> None:
        """Note the largest value of every unit in one call."""
        before = self._largest
        self._largest = largest_BC if before is None else torch.maximum(before, largest_BC)

    def extent(self, share_B2C: Tensor) -> None:
        """Note the share of time at either end in one call; the latest of several counts."""
        self._latest = share_B2C

    def close(self, start: int) -> None:
        """Add the samples of one pass."""
        if self._largest is not None:
            self.active = self._added(self.active, self._largest > 0, start)
        if self._latest is not None:
            self.ends = self._added(self.ends, self._latest, start)
        self._largest = self._latest = None

    def _added(self, total: Tensor | None, values: Tensor, start: int) -> Tensor:
        """Add values of samples to the sums of their groups."""
        group_B = (torch.arange(len(values)) + start) % self.groups
        self.samples += torch.bincount(group_B, minlength=self.groups)
        values = values.double().cpu()
        if total is None:
            total = values.new_zeros(self.groups, *values.shape[1:])
        return total.index_add(0, group_B, values)


@dataclass(eq=False)
class Observed:
    """What was seen of the layers and activation functions of a model.

    Parameters
    ----------
    layers : dict of str to Moments
        By label, in the order in which they first ran.
    responses : dict of (str, str) to Response
        By the label of the layer and the name of the function behind it.
    reads : dict of str to frozenset of str
        Sources of every layer.
    apart : set of str
        Layers whose samples cannot be told apart.
    """

    layers: dict[str, Moments] = field(default_factory=dict)
    responses: dict[tuple[str, str], Response] = field(default_factory=dict)
    reads: dict[str, frozenset[str]] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Plan:
    """What to look at.

    Parameters
    ----------
    layers : mapping of str to Layer
        Of the model, by label.
    groups : mapping of str to int
        Groups of samples that the covariance of a layer is kept for; of others none is kept.
    positions : int
        Positions of each sample, at most.
    together : int
        Samples that run at the same time.
    parts : int
        Groups of samples for activation functions; 0 leaves them, and who reads whom, out.
    rough : bool
        Whether float32 will do, as of :class:`probes.features.moments.Sums`.
    """

    layers: Mapping[str, Layer]
    groups: Mapping[str, int]
    positions: int
    together: int
    parts: int
    rough: bool = False


def observe(
    subject: Subject,
    chosen: Sequence[int],
    plan: Plan,
    step: Callable[[int], None],
    model: nn.Module | None = None,
) -> Observed:
    """Run a model over the chosen samples; that of the subject, unless another one is given."""
    model = model or subject.model
    found, generator, start = Observed(), subject.generator(), 0
    for places, batch in pieces(subject, chosen, plan.together):
        layout = Layout.of(subject, batch)
        drawn = Draw.of(len(places), plan.positions, generator)
        _Pass(found, plan, layout, drawn, start).run(model, batch)
        start += len(places)
        step(len(places))
    return found


@dataclass(eq=False)
class _Pass:
    """One forward pass."""

    found: Observed
    plan: Plan
    layout: Layout
    drawn: Draw
    start: int

    def run(self, model: nn.Module, batch: Batch) -> None:
        """Run the model, and close what was opened."""
        flow = Flow(model, batch.inputs, self._respond) if self.plan.parts else None
        with torch.no_grad(), flow or nullcontext(), self._watching(model):
            if recurrent_modules(model):
                for reading in read(model, batch, self.layout):
                    self._add(reading)
            else:
                call(model, batch.inputs)
        for moments in self.found.layers.values():
            moments.close()
        for response in self.found.responses.values():
            response.close(self.start)
        for layer, sources in (flow.reads if flow else {}).items():
            self.found.reads[layer] = self.found.reads.get(layer, frozenset()) | sources

    @contextmanager
    def _watching(self, model: nn.Module) -> Iterator[None]:
        """Look at what convolutions and linear layers return."""
        modules = dict(model.named_modules())
        with ExitStack() as stack:
            for label, layer in self.plan.layers.items():
                if layer.recurrent or label not in self.plan.groups:
                    continue

                def see(
                    _module: nn.Module,
                    _args: Any,
                    output: Any,
                    label: str = label,
                    channel: int = layer.channel,
                ) -> None:
                    with torch._C.DisableTorchFunction():
                        self._see(label, channel, first_float(output))

                stack.callback(modules[layer.module].register_forward_hook(see).remove)
            yield

    def _see(self, label: str, channel: int, output: Tensor | None) -> None:
        """Add what a layer returned in one call."""
        first = None if output is None else by_sample(output, channel, self.layout)
        if first is None:
            self.found.apart.add(label)
            return
        self._moments(label).add(looked_at(first, self.layout, self.drawn), self.start)

    def _add(self, reading: Reading) -> None:
        """Add the states of a recurrent layer."""
        if reading.label not in self.plan.groups:
            return
        if len(reading.lengths) != self.layout.samples:
            self.found.apart.add(reading.label)
            return
        seen = recurrent(reading.y, reading.lengths, self.drawn)
        self._moments(reading.label).add(seen, self.start)

    def _moments(self, label: str) -> Moments:
        """Open the record of a layer, if need be."""
        known = self.found.layers.get(label)
        if known is None:
            known = Moments(self.plan.groups[label], self.plan.rough)
            self.found.layers[label] = known
        return known

    def _respond(self, activation: Activation) -> None:
        """Add what an activation function returned in one call."""
        with torch._C.DisableTorchFunction():
            self._activated(activation)

    def _activated(self, activation: Activation) -> None:
        """As :meth:`_respond`."""
        layer, function, values, channel = activation
        known = self.plan.layers.get(layer)
        if known is None or values.dim() < 2 or values.shape[channel] != known.width:
            return
        first = by_sample(values, channel, self.layout)
        if first is None:
            return
        key = layer, function
        response = self.found.responses.setdefault(key, Response(self.plan.parts, known.width))
        if function in RELU:
            response.peak(largest(first, self.layout))
        else:
            seen = looked_at(first, self.layout, self.drawn)
            response.extent(_at_ends(seen, BOUNDED[function]))


def _at_ends(seen: Seen, low: float) -> Tensor:
    """Share of the positions at which every unit is near either end: (B, 2, C)."""
    values_BSC, valid_BS = seen
    if valid_BS is None:
        valid_BS = values_BSC.new_ones(values_BSC.shape[:2])
    weight_BS1 = valid_BS[..., None] / valid_BS.sum(1)[:, None, None]
    ends = low + (1 - low) * torch.tensor([CLOSED, OPEN])
    if low < 0:
        ends = torch.tensor([-OPEN, OPEN])
    below, above = values_BSC < ends[0], values_BSC > ends[1]
    return torch.stack([(below * weight_BS1).sum(1), (above * weight_BS1).sum(1)], 1)
