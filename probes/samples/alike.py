"""Batches of one shape: which ones go together, and together as one."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_unflatten

from probes.base import Batch, Subject
from probes.samples.layout import batch_dim


def signature(values: Any, samples: int, axis: int) -> Hashable:
    """Say what inputs or targets have in common with others but for their number of samples.

    Structure, types and shapes; anything that is no tensor as text.
    """
    leaves, structure = tree_flatten(values)
    return str(structure), tuple(_shape(leaf, samples, axis) for leaf in leaves)


def _shape(leaf: Any, samples: int, axis: int) -> Hashable:
    """Type and shape of a leaf, without the number of samples."""
    if not isinstance(leaf, Tensor):
        return str(leaf)
    dim = batch_dim(leaf, samples, axis)
    return leaf.dtype, dim, tuple(size for at, size in enumerate(leaf.shape) if at != dim)


def joined(leaves: Sequence[Any], samples: int, axis: int) -> tuple[Any, int | None]:
    """Join one leaf of several batches, the first of ``samples``, and say along which axis.

    The first leaf itself, and None, where it has no axis of samples.
    """
    first = leaves[0]
    dim = batch_dim(first, samples, axis) if isinstance(first, Tensor) else None
    return (first, None) if dim is None else (torch.cat([*leaves], dim), dim)


def merged(subject: Subject, batches: Iterable[Batch], size: int) -> list[Batch]:
    """Put neighbouring batches of one shape together, up to ``size`` samples at most.

    Packed sequences, and batches that hold tensors without an axis of samples, stay alone.
    """
    found: list[Batch] = []
    keys: list[Hashable] = []
    for batch in batches:
        key = _key(subject, batch)
        room = size - subject.batch_size(batch)
        if found and key and key == keys[-1] and subject.batch_size(found[-1]) <= room:
            found[-1] = _together(subject, found[-1], batch)
        else:
            found.append(batch)
            keys.append(key)
    return found


def _key(subject: Subject, batch: Batch) -> Hashable:
    """Say what has to be alike; None for a batch that stays alone."""
    samples, axis = subject.batch_size(batch), subject.batch_axis
    tensors = [leaf for leaf in _leaves(batch) if isinstance(leaf, Tensor)]
    if any(batch_dim(leaf, samples, axis) is None for leaf in tensors):
        return None
    if any(isinstance(leaf, PackedSequence) for leaf in (batch.inputs, *_leaves(batch))):
        return None
    return signature((batch.inputs, batch.targets), samples, axis), batch.lengths is None


def _leaves(batch: Batch) -> Iterator[Any]:
    """List what inputs and targets are made of."""
    yield from tree_flatten((batch.inputs, batch.targets))[0]


def _together(subject: Subject, *batches: Batch) -> Batch:
    """Put batches of one shape together."""
    samples, axis = subject.batch_size(batches[0]), subject.batch_axis
    columns = zip(*(_leaves(batch) for batch in batches), strict=True)
    leaves = [joined(column, samples, axis)[0] for column in columns]
    structure = tree_flatten((batches[0].inputs, batches[0].targets))[1]
    inputs, targets = tree_unflatten(leaves, structure)
    lengths = [torch.as_tensor(b.lengths) for b in batches if b.lengths is not None]
    return replace(
        batches[0], inputs=inputs, targets=targets, lengths=torch.cat(lengths) if lengths else None
    )
