"""Some samples of the audit set, in batches of a size that fits into memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_map

from probes.base import Batch, Inputs, Subject
from probes.samples.layout import batch_dim


def pieces(subject: Subject, count: int, size: int) -> Iterator[Batch]:
    """Yield the first ``count`` samples in batches of at most ``size``, without targets."""
    for batch in subject:
        total = subject.batch_size(batch)
        for start in range(0, total, size):
            width = min(size, total - start, count)
            yield part_of(subject, batch, start, width)
            count -= width
            if not count:
                return


def part_of(subject: Subject, batch: Batch, start: int, width: int) -> Batch:
    """Cut samples out of all inputs that have a batch axis; targets are dropped."""
    return cut(subject, replace(batch, targets=None), start, width)


def cut(subject: Subject, batch: Batch, start: int, width: int) -> Batch:
    """Cut samples out of all inputs and targets that have a batch axis."""
    total = subject.batch_size(batch)
    if width == total:
        return batch

    def rows(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        dim = batch_dim(leaf, total, subject.batch_axis)
        return leaf if dim is None else leaf.narrow(dim, start, width)

    lengths = None if batch.lengths is None else batch.lengths[start : start + width]
    targets = tree_map(rows, batch.targets)
    if isinstance(batch.inputs, PackedSequence):
        padded, valid = pad_packed_sequence(batch.inputs, batch_first=True)
        ordered = batch.inputs.sorted_indices is None
        chosen = slice(start, start + width)
        packed = pack_padded_sequence(padded[chosen], valid[chosen], True, ordered)
        return Batch(packed, targets, lengths)
    inputs: Inputs = tree_map(rows, batch.inputs)
    return Batch(inputs, targets, lengths)


@dataclass(frozen=True)
class Excerpt:
    """The batches of a subject, each with its first samples only, in smaller ones.

    Parameters
    ----------
    subject : Subject
        Its batches stay where the user has them.
    share : float
        Of the samples of every batch that is kept, rounded up.
    size : int, optional
        Samples in a batch, at most.
    """

    subject: Subject
    share: float = 1.0
    size: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        for item in self.subject.batches:
            batch = Batch.of(item)
            kept = math.ceil(self.share * self.subject.batch_size(batch))
            for start in range(0, kept, self.size or max(kept, 1)):
                width = min(self.size or kept, kept - start)
                yield cut(self.subject, batch, start, width)
