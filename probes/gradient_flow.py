"""How large the gradient of the loss is in every layer and in every parameter.

Shapes: B sample, T timestep, L layer.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor, nn

from probes.base import Batch, Progress, Subject, call, silent, variable
from probes.errors import AnalyzerError, NotApplicable
from probes.layout import batch_dim
from probes.objective import describe, sample_losses
from probes.recurrent.naming import recurrent_modules
from probes.recurrent.record import Recordings, StateGradients
from probes.recurrent.split import recorded
from probes.taps import first_float, leaf_modules, untouched, with_leaves

WHOLE = "(model)"
"""Name of the row of a model that is one single layer."""

_SMALL = 1e-12
"""Below this, squares of float32 elements may have underflowed."""

_SCALE = 2.0**66
"""Times this, they do not."""


@dataclass(frozen=True)
class GradientFlow:
    """Size of the gradient in every layer for every sample, and in every parameter.

    A layer is measured at what it returns, before anything overwrites it in place. Recurrent
    layers are measured at their hidden states over all timesteps, which is not the gradient of
    what they return. Outputs without one entry per sample are nan. Parameters that were frozen
    are measured like the others. Costs about 1.1 forward and backward passes, 2.2 in recurrent
    layers; keeps three numbers per layer and sample, and two copies of the weights.

    Parameters
    ----------
    calls : int
        A layer called more often than this in one pass has one row for all its calls together.
    """

    name: ClassVar[str] = "gradient_flow"
    calls: int = 16

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        parameters, aliases = _parameters(subject.model)
        if not parameters:
            raise NotApplicable("the model has no trainable parameters")
        gradients: dict[str, Tensor] = {}
        passes: list[_Pass] = []
        with untouched(subject.model, weights=True):
            for batch in subject:
                passes.append(_measured(subject, batch, parameters, gradients))
                progress(len(passes), max(length_hint(subject.batches), len(passes)))
            samples = sum(one.samples for one in passes)
            rows = _table(passes, self.calls)
            known = {
                n for one in passes for n, row in one.rows.items() if row.activation is not None
            }
            layers = _layers(subject.model, rows, known)
            trace = layers.merge(_weights(parameters, gradients, samples))
        called = {name for one in passes for name in one.calls}
        idle = [name for name in leaf_modules(subject.model) if name not in called]
        return trace.assign_attrs(
            objective=describe(subject),
            not_called=", ".join(name or WHOLE for name in idle),
            without_gradient=", ".join(name for name in parameters if name not in gradients),
            aliases=", ".join(aliases),
        )


@dataclass
class _Row:
    """One layer, for each sample in float64: rms of its output and gradient, size of the output."""

    module: str
    activation: Tensor | None = None
    gradient: Tensor | None = None
    elements: Tensor | None = None


@dataclass
class _Pass:
    """What one batch leaves behind; hooks fill it while the batch runs.

    Parameters
    ----------
    samples, axis : int
        Size and place of the batch axis of the inputs.
    """

    samples: int
    axis: int
    rows: dict[str, _Row] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Watch the layers of ``model`` while the block runs."""
        modules = dict(model.named_modules())
        with ExitStack() as stack:
            for name in leaf_modules(model):

                def watch(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                    self._see(name, output)

                stack.callback(modules[name].register_forward_hook(watch).remove)
            yield

    def _see(self, name: str, output: Any) -> None:
        """Measure what a layer returned now, and the gradient there when it comes."""
        count = self.calls[name] = self.calls.get(name, 0) + 1
        label = name or WHOLE
        row = self.rows[label if count == 1 else f"{label}#{count}"] = _Row(name)
        value = first_float(output)
        dim = None if value is None else batch_dim(value, self.samples, self.axis)
        if value is None or dim is None:
            return
        row.activation = _rms(value.detach(), dim)
        row.elements = torch.full_like(row.activation, value.numel() // value.shape[dim])

        def arrive(gradient: Tensor) -> None:
            row.gradient = _gradient_rms(gradient.detach(), dim)

        if value.requires_grad:
            value.register_hook(arrive)  # type: ignore[no-untyped-call]

    def place(self, states: tuple[StateGradients, ...]) -> None:
        """Put the layers of recurrent modules where the modules ran, in place of their outputs."""
        inner: dict[str, dict[str, _Row]] = {}
        for state in states:
            elements = state.lengths.to(state.measured.hidden) * state.units
            norms = (state.measured.state, state.measured.hidden)
            activation, gradient = (
                torch.linalg.vector_norm(norm_TB, dim=0) / elements.sqrt() for norm_TB in norms
            )
            row = _Row(state.site.module, activation, gradient, elements)
            if not state.reached:
                returned = [r.activation for r in self.rows.values() if r.module == row.module]
                row.activation = _together(returned)
            inner.setdefault(state.site.module, {})[state.site.label] = row
        placed: dict[str, _Row] = {}
        for label, row in self.rows.items():
            placed |= inner.get(row.module, {label: row})
        for rows in inner.values():
            placed |= rows
        self.rows = placed
        self.calls |= dict.fromkeys(inner, 1)

    def merge(self, crowded: set[str]) -> None:
        """Put all calls of each module in ``crowded`` into one row."""
        merged: dict[str, _Row] = {}
        for label, row in self.rows.items():
            if row.module not in crowded:
                merged[label] = row
            elif (row.module or WHOLE) not in merged:
                same = [other for other in self.rows.values() if other.module == row.module]
                merged[row.module or WHOLE] = _Row(
                    row.module,
                    _together([other.activation for other in same]),
                    _together([other.gradient for other in same]),
                    _sum([other.elements for other in same]),
                )
        self.rows = merged


def _measured(
    subject: Subject, batch: Batch, parameters: Mapping[str, Tensor], total: dict[str, Tensor]
) -> _Pass:
    """Run one batch forward and backward; add the gradients of the parameters to ``total``."""
    one = _Pass(subject.batch_size(batch), subject.batch_axis)
    inputs, leaves = with_leaves(batch.inputs)
    with _engine(subject.model) as recordings, one.watching(subject.model):
        outputs = call(subject.model, inputs)
    loss = sample_losses(subject, outputs, batch).sum()
    if not loss.requires_grad:
        raise AnalyzerError(
            "the loss has no gradient: the model runs under torch.no_grad, or it or the loss "
            "detaches its result"
        )
    found = torch.autograd.grad(loss, [*parameters.values(), *leaves], allow_unused=True)
    for name, gradient in zip(parameters, found, strict=False):
        if gradient is not None:
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            total[name] = total[name].add_(gradient) if name in total else gradient.clone()
    if recordings is not None:
        one.place(recordings.take())
    return one


@contextmanager
def _engine(model: nn.Module) -> Iterator[Recordings | None]:
    """Record the states of recurrent layers, where there are any."""
    if not recurrent_modules(model):
        yield None
        return
    with recorded(model, weights=True, required=False) as recordings:
        yield recordings


def _rms(values: Tensor, dim: int) -> Tensor:
    """Root mean square of each sample, whose axis is ``dim``, in float64: (B,)."""
    dims = [axis for axis in range(values.dim()) if axis != dim]
    if not dims:
        return values.double().abs()
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    elements = values.numel() // values.shape[dim]
    norm_B: Tensor = torch.linalg.vector_norm(values, dim=dims)
    return norm_B.double() / math.sqrt(elements)


def _gradient_rms(values: Tensor, dim: int) -> Tensor:
    """As :func:`_rms`, also where the squares of a vanishing gradient underflow."""
    rms_B = _rms(values, dim)
    if values.dtype == torch.float64:
        return rms_B
    return torch.where(rms_B < _SMALL, _rms(values * _SCALE, dim) / _SCALE, rms_B)


def _together(values: list[Tensor | None]) -> Tensor | None:
    """Root mean square of several calls of one size; None where none was measured."""
    known = [value for value in values if value is not None]
    return torch.stack(known).square().mean(0).sqrt() if known else None


def _sum(values: list[Tensor | None]) -> Tensor | None:
    """Sum over several calls; None where none was measured."""
    known = [value for value in values if value is not None]
    return torch.stack(known).sum(0) if known else None


def _parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], list[str]]:
    """Return the floating-point parameters, each once, and "alias = name" for every other name."""
    first = {id(weight): name for name, weight in reversed([*model.named_parameters()])}
    everywhere = model.named_parameters(remove_duplicate=False)
    aliases = [f"{name} = {first[id(w)]}" for name, w in everywhere if first[id(w)] != name]
    return {n: w for n, w in model.named_parameters() if w.is_floating_point()}, aliases


def _table(passes: list[_Pass], calls: int) -> dict[str, _Row]:
    """Join the passes over their samples, on the CPU; what a pass did not measure is nan."""
    crowded = {name for one in passes for name, count in one.calls.items() if count > calls}
    for one in passes:
        one.merge(crowded)
    modules = {label: row.module for one in passes for label, row in one.rows.items()}
    return {
        label: _Row(module, *(_column(passes, label, kind) for kind in _MEASURED))
        for label, module in modules.items()
    }


_MEASURED = ("activation", "gradient", "elements")
"""What a row holds for each sample."""


def _column(passes: list[_Pass], label: str, kind: str) -> Tensor:
    """Join one measurement of one row over the samples of all passes: (B,)."""
    parts = [getattr(one.rows.get(label), kind, None) for one in passes]
    unknown = torch.tensor(torch.nan, dtype=torch.float64)
    device = next((part.device for part in parts if part is not None), unknown.device)
    return torch.cat(
        [
            unknown.to(device).expand(one.samples) if part is None else part.to(device)
            for one, part in zip(passes, parts, strict=True)
        ]
    )


def _layers(model: nn.Module, rows: dict[str, _Row], known: set[str]) -> xr.Dataset:
    """Label what was measured of the layers."""
    modules = dict(model.named_modules())
    kinds, weighted = [], []
    for row in rows.values():
        owner = modules.get(row.module)
        name = row.module if owner is None else type(owner).__name__
        kinds.append(name.removeprefix("Parametrized"))
        weighted.append(int(owner is not None and any(True for _ in owner.parameters())))
    measured = {
        "activation_gradient": (
            [row.gradient for row in rows.values() if row.gradient is not None],
            "rms gradient of the sample's loss at the output of the layer",
            "loss / activation",
        ),
        "activation": (
            [row.activation for row in rows.values() if row.activation is not None],
            "rms output of the layer",
            "activation",
        ),
        "elements": (
            [row.elements for row in rows.values() if row.elements is not None],
            "size of the output of the layer",
            "element",
        ),
    }
    dims = ("sample", "layer")
    return xr.Dataset(
        {
            name: variable(torch.stack(columns, 1), dims, long_name, unit)
            for name, (columns, long_name, unit) in measured.items()
        },
        {
            "layer": list(rows),
            "kind": ("layer", kinds),
            "weighted": ("layer", weighted),
            "per_sample": ("layer", [int(label in known) for label in rows]),
        },
    )


def _weights(
    parameters: dict[str, nn.Parameter], gradients: dict[str, Tensor], samples: int
) -> xr.Dataset:
    """Label the norms of the parameters and of the gradients of their mean loss."""
    unknown = torch.tensor(torch.nan, dtype=torch.float64)
    norms = {name: torch.linalg.vector_norm(gradients[name].double()) for name in gradients}
    gradient_P = [norms[name].cpu() / samples if name in norms else unknown for name in parameters]
    norm_P = [torch.linalg.vector_norm(w.detach().double()).cpu() for w in parameters.values()]
    return xr.Dataset(
        {
            "parameter_gradient": variable(
                torch.stack(gradient_P),
                ("parameter",),
                "norm of the gradient of the mean loss",
                "loss / weight",
            ),
            "parameter_norm": variable(
                torch.stack(norm_P), ("parameter",), "norm of the parameter", "weight"
            ),
        },
        {"parameter": list(parameters)},
    )
