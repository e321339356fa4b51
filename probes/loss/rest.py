"""Run a model on the rest of its inputs alone, where nothing but known states remembers more.

Shapes: B sample, T timestep.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from probes.base import Inputs, Subject
from probes.errors import REFUSALS
from probes.loss import objective
from probes.samples.layout import Layout
from probes.samples.timeline import Sequences
from probes.structure import tensors


class Unlike(Exception):
    """A model does not do with the rest of its inputs what it does with all of them."""


class Run(Protocol):
    """How a model is run on inputs that may begin like earlier ones."""

    def __call__(self, inputs: Inputs, *, like: Hashable = None, keep: Hashable = None) -> Any:
        """Return what the model does of ``inputs``.

        They may begin like those of the run named ``like``; what is known of this one may be kept
        by the name ``keep``.
        """

    def starts(self, like: Hashable) -> Sequence[int]:
        """List the timesteps, in order, from which the states of a kept run are known."""

    def rest(self, inputs: Inputs, *, like: Hashable, start: int) -> Any:
        """Return what the model does of later timesteps alone, from the states of a kept run.

        Raises
        ------
        Unlike
            The model calls its recurrent layers in another way than in that run.
        """

    def release(self, name: Hashable) -> None:
        """Keep no more of a run than :meth:`rest` needs."""


def since(subject: Subject, own: Sequences, start: int) -> Sequences:
    """Leave out the first timesteps of sequences of one length: inputs, as views, and targets."""
    if not start:
        return own
    layout = Layout.of(subject, own.batch)
    inputs = own.replaced([tensor[:, start:] for tensor in own.tensors()])
    targets = layout.along_time(own.batch.targets, lambda values: values[:, start:])
    # All are of one length.
    batch = replace(own.batch, inputs=inputs, targets=targets, lengths=None)
    return replace(own, batch=batch, lengths=own.lengths - start)


def usable_starts(
    subject: Subject, run: Run, like: Hashable, own: Sequences, outputs: Any, intact: Tensor
) -> list[int]:
    """List the timesteps from which on a batch can be run alone; none if that changes its end.

    It is tried with the shortest rest, on the data: a layer that reads past timesteps, or positions
    in time, makes another output of the last one then.

    Parameters
    ----------
    subject : Subject
        Its time axis is known.
    run : Run
        Has run the batch.
    like : hashable
        Name of that run.
    own : Sequences
        The batch, where the model is.
    outputs : object
        What the model returned.
    intact : Tensor
        Its losses, or outputs, of the last position.
    """
    known, timesteps = run.starts(like), int(own.lengths.max())
    if not known or int(own.lengths.min()) < timesteps:
        return []
    # As long as another axis, a rest could be mistaken for that.
    taken = _sizes((own.batch.inputs, own.batch.targets, outputs)) | {1}
    usable = [start for start in known if timesteps - start not in taken]
    if not usable:
        return []
    start = usable[-1]
    part = since(subject, own, start)
    inputs = part.replaced([tensor.clone() for tensor in part.tensors()])
    try:
        found = run.rest(inputs, like=like, start=start)
        losses = objective.final_results(subject, found, part.batch)
    except (Unlike, *REFUSALS):
        return []
    pairs = [tensors(outputs), tensors(found)]
    alike = len(pairs[0]) == len(pairs[1]) and all(
        _end_alike(whole, rest, start) for whole, rest in zip(*pairs, strict=True)
    )
    return usable if alike and _close(intact, losses) else []


def _sizes(value: Any) -> set[int]:
    """Collect the sizes of all axes of tensors."""
    return {size for tensor in tensors(value) for size in tensor.shape}


def _end_alike(whole: Tensor, rest: Tensor, start: int) -> bool:
    """Whether two outputs are the same at the last timestep, or as a whole if they have no time."""
    if whole.dim() != rest.dim():
        return False
    sizes = enumerate(zip(whole.shape, rest.shape, strict=True))
    other = [dim for dim, (size, shorter) in sizes if size != shorter]
    if not other:
        return _close(whole, rest)
    dim = other[0]
    if len(other) > 1 or whole.shape[dim] - rest.shape[dim] != start:
        return False
    return _close(whole.select(dim, -1), rest.select(dim, -1))


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether numbers differ by no more than rounding."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point() or not one.numel():
        return torch.equal(one, other)
    allowed = torch.finfo(one.dtype).eps ** 0.75 * one.abs().amax()
    return bool((one - other).abs().amax() <= allowed)
