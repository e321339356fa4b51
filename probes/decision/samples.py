"""A few samples drawn from the audit set, in pieces that go through the model together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_map

from probes.base import Batch, Inputs, Subject
from probes.errors import AnalyzerError


@dataclass(frozen=True)
class Draw:
    """Which samples of the audit set are used.

    Parameters
    ----------
    subject : Subject
        Whose batches they are cut out of.
    rows : Tensor, shape (samples,)
        Their numbers in the audit set, ascending.
    total : int
        Samples in the audit set.
    chunk : int
        Samples in a piece, at most; a piece is never larger than its batch.
    """

    subject: Subject
    rows: Tensor
    total: int
    chunk: int

    @classmethod
    def of(cls, subject: Subject, count: int, chunk: int) -> "Draw":
        """Draw ``count`` samples at random, all if there are fewer: the data may be sorted."""
        total = sum(subject.batch_size(Batch.of(item)) for item in subject.batches)
        if not total:
            raise AnalyzerError("there is no sample to measure on: the data is empty")
        order = torch.randperm(total, generator=subject.generator())
        return cls(subject, order[:count].sort().values, total, chunk)

    def pieces(self) -> Iterator[Batch]:
        """Yield the samples, on the device and in the precision of the model, without targets."""
        start = 0
        for item in self.subject.batches:
            batch = Batch.of(item)
            stop = start + self.subject.batch_size(batch)
            inside = self.rows[(self.rows >= start) & (self.rows < stop)] - start
            for rows in torch.split(inside, self.chunk) if len(inside) else ():
                piece = _cut(batch, rows, self.subject.batch_axis, stop - start)
                yield piece.to(self.subject.device, self.subject.dtype)
            start = stop


def _cut(batch: Batch, rows: Tensor, axis: int, total: int) -> Batch:
    """Cut samples out of whatever has a batch axis in the inputs of ``batch``."""
    lengths = None if batch.lengths is None else torch.as_tensor(batch.lengths)[rows]
    return Batch(_rows(batch.inputs, rows, axis, total), lengths=lengths)


def _rows(inputs: Inputs, rows: Tensor, axis: int, total: int) -> Inputs:
    """Cut samples out of inputs."""
    if isinstance(inputs, PackedSequence):
        padded_BT, length_B = pad_packed_sequence(inputs, batch_first=True)
        return pack_padded_sequence(
            padded_BT[rows.to(padded_BT.device)],
            length_B[rows],
            batch_first=True,
            enforce_sorted=False,
        )

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() <= axis or leaf.shape[axis] != total:
            return leaf
        return leaf.index_select(axis, rows.to(leaf.device))

    cut_out: Inputs = tree_map(cut, dict(inputs) if isinstance(inputs, Mapping) else inputs)
    return cut_out
