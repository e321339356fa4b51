"""Samples out of batches, and where the positions are in them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from probes.base import Batch, Subject
from probes.errors import NotApplicable


@dataclass(frozen=True)
class Place:
    """Where the positions are in the inputs: which tensor, and which of its dimensions."""

    leaf: int
    dims: tuple[int, ...]


def flat_inputs(batch: Batch) -> tuple[list[Any], TreeSpec]:
    """Leaves of the inputs, and how they belong together.

    Raises
    ------
    NotApplicable
        The inputs are packed sequences.
    """
    if isinstance(batch.inputs, PackedSequence):
        raise NotApplicable("the inputs are packed sequences, which this probe does not read")
    inputs = batch.inputs
    return tree_flatten(dict(inputs) if isinstance(inputs, Mapping) else inputs)


def pieces(subject: Subject, count: int, size: int) -> Iterator[Batch]:
    """Yield the first ``count`` samples in batches of at most ``size``.

    Samples of another shape than the first are left out: their maps could not be averaged.
    """
    shapes = None
    for batch in subject:
        total = subject.batch_size(batch)
        for start in range(0, total, size):
            width = min(size, total - start, count)
            piece = part_of(batch, subject.batch_axis, total, start, width)
            now = _shapes(piece, subject.batch_axis)
            shapes = shapes or now
            if now == shapes:
                yield piece
                count -= width
            if not count:
                return


def part_of(batch: Batch, axis: int, total: int, start: int, width: int) -> Batch:
    """Cut samples out of what has a batch axis in the inputs of ``batch``."""

    def cut(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.dim() > axis and leaf.shape[axis] == total
        return leaf.narrow(axis, start, width) if batched else leaf

    leaves, structure = flat_inputs(batch)
    return Batch(tree_unflatten([cut(leaf) for leaf in leaves], structure))


def _shapes(batch: Batch, axis: int) -> list[tuple[int, ...]]:
    """Shapes of all inputs without their batch axis."""
    leaves, _ = flat_inputs(batch)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [(*leaf.shape[:axis], *leaf.shape[axis + 1 :]) for leaf in tensors]
