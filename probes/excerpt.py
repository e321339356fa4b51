"""The first samples of the audit set, in batches of a size that fits into memory."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_map

from probes.base import Batch, Inputs, Subject
from probes.layout import batch_dim


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
    total = subject.batch_size(batch)
    if width == total:
        return replace(batch, targets=None)
    lengths = None if batch.lengths is None else batch.lengths[start : start + width]
    if isinstance(batch.inputs, PackedSequence):
        padded, valid = pad_packed_sequence(batch.inputs, batch_first=True)
        ordered = batch.inputs.sorted_indices is None
        chosen = slice(start, start + width)
        return Batch(
            pack_padded_sequence(padded[chosen], valid[chosen], True, ordered), lengths=lengths
        )

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        dim = batch_dim(leaf, total, subject.batch_axis)
        return leaf if dim is None else leaf.narrow(dim, start, width)

    inputs: Inputs = tree_map(cut, batch.inputs)
    return Batch(inputs, lengths=lengths)
