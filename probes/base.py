"""What a probe is given, and what it gives back."""

import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from probes.errors import AnalyzerError
from probes.structure import leaves

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any] | PackedSequence
"""What the model is called with: one tensor, positional arguments, or keyword arguments."""

Loss = Callable[[Any, Any], Tensor]
"""``loss(outputs, targets)``: one number for the batch, or one per sample (better)."""

Progress = Callable[[int, int], None]
"""``progress(done, total)``, called by long probes; only the command line draws it."""


def silent(done: int, total: int) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class Batch:
    """Samples that go through the model together.

    Parameters
    ----------
    inputs : Tensor, tuple, mapping or PackedSequence
        Passed to the model as ``model(x)``, ``model(*x)``, ``model(**x)`` or ``model(packed)``.
    targets : object, optional
        Passed to the loss. Without them the objective is the model's own output.
    lengths : Tensor, shape (batch,), optional
        Valid timesteps of each sample where the inputs are padded [timestep].
    """

    inputs: Inputs
    targets: Any = None
    lengths: Tensor | None = None

    @classmethod
    def of(cls, item: Any) -> "Batch":
        """Read what a data loader yields: a batch, inputs, (inputs, targets) or a mapping."""
        if isinstance(item, Batch):
            return item
        if isinstance(item, Tensor | PackedSequence):
            return cls(item)
        if isinstance(item, tuple | list) and len(item) == 2:
            return cls(*item)
        if isinstance(item, Mapping) and "inputs" in item and set(item) <= {*cls.__annotations__}:
            return cls(**item)
        if isinstance(item, Mapping):
            keywords = {key: value for key, value in item.items() if key != "labels"}
            return cls(keywords, item.get("labels"))
        raise AnalyzerError(
            f"a batch is a {type(item).__name__}: expected a tensor, (inputs, targets), a mapping "
            "of keyword arguments, or probes.base.Batch"
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """Move the batch to ``device``; floating inputs and targets become ``dtype``."""

        def move(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(device, dtype if leaf.is_floating_point() else None)

        if isinstance(self.inputs, PackedSequence):
            packed: PackedSequence = cast(Any, self.inputs).to(device)
            inputs: Inputs = packed._replace(data=move(packed.data))
        else:
            inputs = tree_map(move, self.inputs)
        return Batch(inputs, tree_map(move, self.targets), self.lengths)


@dataclass(frozen=True)
class Subject:
    """A trained model, the data it is probed with, its objective, and where time is.

    Parameters
    ----------
    model : Module
        Left exactly as it was found.
    batches : iterable of Batch
        Also whatever :meth:`Batch.of` reads. A one-shot iterator is read once and kept.
    loss : callable or str, optional
        ``loss(outputs, targets)``, or the name of a loss in :mod:`torch.nn.functional`.
        Without it the objective is the mean square of the model's own output.
    output : int or str, optional
        Which part of a tuple or mapping of outputs is the prediction; the first tensor if unset.
    held_out : iterable of Batch, optional
        Data that the model was not trained on. Without ``trained_on``, the batches are then taken
        for data that it was trained on.
    trained_on : iterable of Batch, optional
        Data that the model was trained on. Without ``held_out``, the batches are then taken for
        data that it was not trained on.
    batch_axis, time_axis : int
        Where samples and time are in the inputs; ``time_axis`` is inferred where it is unset.
    sample_rate : float, optional
        Timesteps per second [Hz]; figures then also show seconds.
    seed : int
        Of every random choice a probe makes.
    optimizer : mapping, optional
        State of the optimizer that trained the model, as its ``state_dict()`` returns it.
    """

    model: nn.Module
    batches: Iterable[Any]
    loss: Loss | str | None = None
    output: int | str | None = None
    held_out: Iterable[Any] | None = None
    trained_on: Iterable[Any] | None = None
    batch_axis: int = 0
    time_axis: int | None = None
    sample_rate: float | None = None
    seed: int = 0
    optimizer: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("batches", "held_out", "trained_on"):
            data = getattr(self, name)
            if isinstance(data, Tensor | Batch | PackedSequence):
                object.__setattr__(self, name, (data,))
            elif isinstance(data, Iterator):
                object.__setattr__(self, name, tuple(data))

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, on the device and in the precision of the model."""
        for item in self.batches:
            yield Batch.of(item).to(self.device, self.dtype)

    def sides(self) -> tuple["Subject", "Subject"] | None:
        """Return the subject on data it was trained on, and on others; None if it is not known."""
        if self.held_out is None and self.trained_on is None:
            return None
        sides = (self.trained_on, self.held_out)
        trained, held = (self.batches if side is None else side for side in sides)
        alone = replace(self, held_out=None, trained_on=None)
        return replace(alone, batches=trained), replace(alone, batches=held)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next((w.device for w in self.model.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model's floating-point parameters."""
        kinds = (w.dtype for w in self.model.parameters() if w.is_floating_point())
        return next(kinds, torch.float32)

    def generator(self) -> torch.Generator:
        """Return a fresh source of random numbers on the CPU, seeded."""
        return torch.Generator().manual_seed(self.seed)

    def batch_size(self, batch: Batch) -> int:
        """Count the samples of ``batch``: the size of the batch axis of its first tensor."""
        if isinstance(batch.inputs, PackedSequence):
            return int(batch.inputs.batch_sizes[0])
        return int(first_tensor(batch.inputs).shape[self.batch_axis])


class Probe(Protocol):
    """A frozen dataclass: its fields are its settings, calling it measures.

    Parameters
    ----------
    name : str
    passes : float
        About how many forward and backward passes of the samples measured it costs with the
        default settings; a time budget is shared out by it.
    """

    name: ClassVar[str]
    passes: ClassVar[float]

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset: ...


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call ``model`` with ``inputs`` as :class:`Batch` describes.

    A model that draws random numbers draws the same ones in every call, so that calls can be
    compared; :func:`probes.model.taps.untouched` restores the generators.
    """
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - that of the model's code
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list) and not isinstance(inputs, PackedSequence):
        return model(*inputs)
    return model(inputs)


def first_tensor(inputs: Inputs) -> Tensor:
    """Return the first tensor the model is called with (data of a packed sequence)."""
    for leaf in leaves(inputs):
        if isinstance(leaf, Tensor | PackedSequence):
            return leaf if isinstance(leaf, Tensor) else leaf.data
    raise AnalyzerError("the inputs of a batch hold no tensor")


def variable(
    values: Tensor,
    dims: tuple[Hashable, ...],
    name: str,
    unit: str,
    dtype: torch.dtype = torch.float64,
) -> xr.DataArray:
    """Move a measured tensor off the device and label it; ``unit`` "1" means a ratio."""
    array = values.detach().to("cpu", dtype).numpy()
    return xr.DataArray(array, dims=dims, attrs={"long_name": name, "units": unit})
