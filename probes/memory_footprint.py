"""What training and serving a model takes in memory, layer by layer, and how it grows.

Shapes: R pass, L layer (module), M module that runs operations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import xarray as xr
from torch import Tensor, nn

from probes.base import Progress, Subject, silent, variable
from probes.errors import AnalyzerError, NotApplicable
from probes.footprint.moments import moments_of
from probes.footprint.passes import nbytes
from probes.footprint.sweep import Pass, sweep
from probes.model.labels import WHOLE


@dataclass(frozen=True)
class MemoryFootprint:
    """Parameters, gradients, moments and activations, for batches of several sizes.

    Training is measured in train mode, with the parameters trained that require gradients (all
    where none does), serving in eval mode without gradients. One sample of the audit
    data, the longest of its batch, is repeated to batches of ``samples`` samples, half and a
    quarter of that, and cut to half and three quarters of its timesteps, where the model takes
    that. Counted are tensors, each storage once, and on a CPU what convolutions and oneDNN's LSTM
    hold within themselves (copies in layouts of their own, columns, states): not what other
    operations use within themselves, nor what the GPU's driver takes.

    Runs forward and backward with about ``2.5 * samples`` samples, and forward with as many; as
    every operation is followed, that takes small networks some 25 passes of ``samples``. Needs the
    memory of one training pass with ``samples``.

    Parameters
    ----------
    samples : int
        Largest batch that is measured, 4 or more.
    moments : int
        Values that the optimizer keeps for each parameter, where the checkpoint does not hold
        them: 2 with Adam, 1 with momentum, 0 with plain gradient descent.
    gib : float
        Memory of the device for which the largest batch and the longest sequence are worked out
        [GiB = 2^30 byte].

    References
    ----------
    .. [1] Chen et al., Training Deep Nets with Sublinear Memory Cost (2016).
    """

    name: ClassVar[str] = "memory_footprint"
    passes: ClassVar[float] = 25
    samples: int = 16
    moments: int = 2
    gib: float = 16.0

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        if self.samples < 4 or self.moments < 0 or not self.gib > 0:
            raise AnalyzerError(
                "memory_footprint needs samples >= 4, moments >= 0 and gib > 0: they are "
                f"{self.samples}, {self.moments} and {self.gib:g}"
            )
        if not any(weight.is_floating_point() for weight in subject.model.parameters()):
            raise NotApplicable("the model has no parameters: there is nothing to train")
        found = sweep(subject, self.samples, progress)
        gradients = found.passes[0].training.gradients
        moments = moments_of(subject, [*gradients], self.moments)
        trace = _trace(subject.model, found.passes, moments.sizes)
        return trace.assign_attrs(
            mode=found.mode,
            optimizer=moments.origin,
            step=moments.step,
            batch=subject.batch_size(next(iter(subject))),
            not_shortened=found.fixed,
            device=subject.device.type,
            dtype=str(subject.dtype).removeprefix("torch."),
            gib=self.gib,
        )


def _trace(model: nn.Module, passes: list[Pass], moments: dict[str, int]) -> xr.Dataset:
    """Label what was measured: rows are modules that hold or save something, in their order."""
    last = passes[2]
    held = {
        "parameters": {name: nbytes(weight) for name, weight in model.named_parameters()},
        "gradients": last.training.gradients,
        "moments": moments,
        "buffers": {name: nbytes(buffer) for name, buffer in model.named_buffers()},
    }
    by_layer = {kind: _by_module(sizes) for kind, sizes in held.items()}
    rows = [
        name
        for name in dict.fromkeys([*last.training.running.rows, *by_layer["parameters"]])
        if last.training.saved.get(name) or any(name in sizes for sizes in by_layer.values())
    ]
    kinds = {name or WHOLE: type(module).__name__ for name, module in model.named_modules()}
    variables = {
        kind: _variable(_row(sizes, rows), ("layer",), words)
        for (kind, sizes), words in zip(by_layer.items(), _HELD, strict=True)
    }
    ran = [*dict.fromkeys([*last.training.forward, *last.serving.peaks])]
    return xr.Dataset(
        variables | _by_pass(passes, rows) | _by_running(passes, ran),
        {
            "layer": rows,
            "kind": ("layer", [kinds.get(name, "loss") for name in rows]),
            "module": ran,
            "samples": ("pass", [one.samples for one in passes]),
            "timesteps": ("pass", [one.timesteps or math.nan for one in passes]),
        },
    )


_HELD = ("parameters", "gradients of the parameters", "moments of the optimizer", "buffers")


def _by_pass(passes: list[Pass], rows: list[str]) -> dict[str, xr.DataArray]:
    """Label what depends on the batch."""
    last = passes[2]
    saved_RL = torch.stack([_row(one.training.saved, rows) for one in passes])
    passing_RL = torch.stack([_row(one.training.running.passing, rows) for one in passes])
    steps_L = _row(last.training.running.timesteps, rows)
    numbers: list[tuple[str, Sequence[int | None], str]] = [
        ("inputs", [one.inputs for one in passes], "inputs of the batch"),
        ("training_live", [one.training.peak for one in passes], f"{_MOST} in a training pass"),
        ("training_allocated", [one.training.allocated for one in passes], _ALLOCATOR),
        ("serving_allocated", [one.serving.allocated for one in passes], _ALLOCATOR),
    ]
    layers = {
        "saved": _variable(saved_RL, ("pass", "layer"), "saved for backward"),
        "passing": _variable(
            passing_RL,
            ("pass", "layer"),
            "gradients of the output and of the input, and what backward holds within itself",
        ),
        "saved_per_timestep": _variable(
            saved_RL[2] / (last.samples * steps_L.where(steps_L > 0, steps_L.new_tensor(math.nan))),
            ("layer",),
            "saved for backward by each timestep of one sample",
        ),
    }
    return layers | {
        name: _variable(_numbers(values), ("pass",), words) for name, values, words in numbers
    }


def _by_running(passes: list[Pass], ran: list[str]) -> dict[str, xr.DataArray]:
    """Label what is alive while modules run."""
    sizes = {
        "forward_live": ([one.training.forward for one in passes], "runs forward in training"),
        "serving_live": ([one.serving.peaks for one in passes], "serves"),
    }
    return {
        name: _variable(
            torch.stack([_row(one, ran) for one in found]),
            ("pass", "module"),
            f"{_MOST} while a module {words}",
        )
        for name, (found, words) in sizes.items()
    }


_MOST = "most alive at once, beside parameters, moments, buffers and inputs,"
_ALLOCATOR = "the same by the allocator of the device"


def _numbers(values: Sequence[int | None]) -> Tensor:
    """Put sizes side by side, nan where one is not known: (R,)."""
    known = [math.nan if value is None else float(value) for value in values]
    return torch.tensor(known, dtype=torch.float64)


def _variable(values: Tensor, dims: tuple[str, ...], words: str) -> xr.DataArray:
    """Label sizes."""
    return variable(values, dims, words, "byte")


def _row(sizes: dict[str, int], rows: list[str]) -> Tensor:
    """Put sizes by name into the order of the rows: (L,)."""
    return torch.tensor([float(sizes.get(name, 0)) for name in rows], dtype=torch.float64)


def _by_module(sizes: dict[str, int]) -> dict[str, int]:
    """Add up the sizes of parameters or buffers by the module that holds them."""
    found: dict[str, int] = {}
    for name, size in sizes.items():
        owner = name.rpartition(".")[0] or WHOLE
        found[owner] = found.get(owner, 0) + size
    return found
