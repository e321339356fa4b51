"""Size of what every layer returns, and of the gradient there, for every sample.

Shapes: B sample, T timestep, L layer.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from probes.algebra.norms import by_sample
from probes.model.labels import WHOLE, label_of
from probes.model.taps import first_float, leaf_modules
from probes.recurrent.backward.record import StateGradients
from probes.samples.layout import batch_dim
from probes.weight_gradient.ledger import Call


@dataclass
class Row:
    """One layer, for each sample in float64."""

    module: str
    activation: Tensor | None = None
    """Root mean square of the output."""
    gradient: Tensor | None = None
    """Root mean square of the gradient of the output."""
    elements: Tensor | int | None = None
    """Size of the output; one number where it is that of every sample."""
    gain: Tensor | None = None
    """Norm of the gradient that the layer passes back, over that of its output's."""


@dataclass
class Pass:
    """What one batch leaves behind; hooks fill it while the batch runs.

    Parameters
    ----------
    samples, axis : int
        Size and place of the batch axis of the inputs.
    latest : dict of str to Call
        Where calls with the weights of a module show up while it runs.
    """

    samples: int
    axis: int
    latest: dict[str, Call] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    _weighted: list[tuple[Row, Call]] = field(default_factory=list)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Watch the layers of ``model`` while the block runs."""
        modules = dict(model.named_modules())
        with ExitStack() as stack:
            for name in leaf_modules(model):

                def watch(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                    # What measures is none of the business of modes that watch the model.
                    with torch._C.DisableTorchFunction():
                        self._see(name, output)

                stack.callback(modules[name].register_forward_hook(watch).remove)
            yield

    def _see(self, name: str, output: Any) -> None:
        """Measure what a layer returned now, and the gradient there when it comes."""
        count = self.calls[name] = self.calls.get(name, 0) + 1
        label = name or WHOLE
        row = self.rows[label_of(label, count)] = Row(name)
        value = first_float(output)
        dim = None if value is None else batch_dim(value, self.samples, self.axis)
        if value is None or dim is None:
            return
        row.activation = _rms(value.detach(), dim)
        row.elements = value.numel() // value.shape[dim]
        if name in self.latest:
            self._weighted.append((row, self.latest.pop(name)))

        def arrive(gradient: Tensor) -> None:
            with torch._C.DisableTorchFunction():
                row.gradient = _rms(gradient.detach(), dim)

        if value.requires_grad:
            value.register_hook(arrive)  # type: ignore[no-untyped-call]

    def weigh(self) -> None:
        """Set what the layers with weights passed back against what arrived."""
        for row, call in self._weighted:
            if call.x_gradient is None or row.gradient is None or row.elements is None:
                continue
            row.gain = call.x_gradient / (row.gradient * row.elements**0.5)

    def place(self, states: tuple[StateGradients, ...]) -> None:
        """Put the layers of recurrent modules where the modules ran, in place of their outputs."""
        inner: dict[str, dict[str, Row]] = {}
        for state in states:
            elements = state.lengths.to(state.measured.hidden) * state.units
            norms = (state.measured.state, state.measured.hidden)
            activation, gradient = (
                torch.linalg.vector_norm(norm_TB, dim=0) / elements.sqrt() for norm_TB in norms
            )
            row = Row(state.site.module, activation, gradient, elements)
            if not state.reached:
                returned = [r.activation for r in self.rows.values() if r.module == row.module]
                row.activation = _together(returned)
            inner.setdefault(state.site.module, {})[state.site.label] = row
        placed: dict[str, Row] = {}
        for label, row in self.rows.items():
            placed |= inner.get(row.module, {label: row})
        for rows in inner.values():
            placed |= rows
        self.rows = placed
        self.calls |= dict.fromkeys(inner, 1)

    def merge(self, crowded: set[str]) -> None:
        """Put all calls of each module in ``crowded`` into one row."""
        merged: dict[str, Row] = {}
        for label, row in self.rows.items():
            if row.module not in crowded:
                merged[label] = row
            elif (row.module or WHOLE) not in merged:
                same = [other for other in self.rows.values() if other.module == row.module]
                merged[row.module or WHOLE] = Row(
                    row.module,
                    _together([other.activation for other in same]),
                    _together([other.gradient for other in same]),
                    _sum([other.elements for other in same]),
                    _together([other.gain for other in same]),
                )
        self.rows = merged


def _rms(values: Tensor, dim: int) -> Tensor:
    """Root mean square of each sample, whose axis is ``dim``, in float64: (B,)."""
    return by_sample(values, dim) / math.sqrt(values.numel() // values.shape[dim])


def _together(values: list[Tensor | None]) -> Tensor | None:
    """Root mean square of several calls of one size; None where none was measured."""
    known = [value for value in values if value is not None]
    return torch.stack(known).square().mean(0).sqrt() if known else None


def _sum(values: list[Tensor | int | None]) -> Tensor | int | None:
    """Sum over several calls; None where none was measured."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def table(passes: list[Pass], calls: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Join the passes over their samples, on the CPU; what a pass did not measure is nan.

    Parameters
    ----------
    passes : list of Pass
        One per batch.
    calls : int
        A module called more often than this in one pass has one row.

    Returns
    -------
    modules : dict of str to str
        Module of each row.
    measured : dict of str to Tensor
        Every quantity of a row, shape (B, L).
    """
    crowded = {name for one in passes for name, count in one.calls.items() if count > calls}
    for one in passes:
        one.merge(crowded)
    modules = {label: row.module for one in passes for label, row in one.rows.items()}
    measured = {
        kind: torch.stack([_column(passes, label, kind) for label in modules], 1)
        for kind in ("activation", "gradient", "elements", "gain")
    }
    return modules, measured


def _column(passes: list[Pass], label: str, kind: str) -> Tensor:
    """Join one measurement of one row over the samples of all passes: (B,)."""
    parts = []
    found = [getattr(one.rows.get(label), kind, None) for one in passes]
    place = next((part.device for part in found if isinstance(part, Tensor)), None)
    for one, part in zip(passes, found, strict=True):
        number = torch.nan if part is None else part
        if not isinstance(number, Tensor):
            number = torch.full((one.samples,), number, dtype=torch.float64, device=place)
        parts.append(number)
    return torch.cat(parts).cpu()
