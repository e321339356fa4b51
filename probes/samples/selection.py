"""Some samples out of all audit data, in pieces that fit into memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_map

from probes.base import Batch, Inputs, Subject
from probes.errors import AnalyzerError
from probes.samples.layout import batch_dim


def spread(count: int, most: int) -> list[int]:
    """Choose at most ``most`` of ``count`` places, evenly, so that sorted data are all seen."""
    chosen = min(count, most)
    return [place * count // chosen for place in range(chosen)]


def rows(subject: Subject, most: int) -> list[int]:
    """Choose samples of the audit data.

    Raises
    ------
    AnalyzerError
        There are none.
    """
    total = sum(subject.batch_size(batch) for batch in subject)
    if not total:
        raise AnalyzerError("there is no batch to measure on: the data is empty")
    return spread(total, most)


def pieces(subject: Subject, chosen: Sequence[int], size: int) -> Iterator[tuple[list[int], Batch]]:
    """Cut the chosen samples out of the audit data, at most ``size`` at a time.

    Parameters
    ----------
    subject : Subject
        Whose batches are read.
    chosen : sequence of int
        Places of samples, ascending.
    size : int
        Largest piece.

    Yields
    ------
    places : list of int
        Of the samples.
    batch : Batch
        With their targets and lengths.
    """
    start = 0
    for batch in subject:
        stop = start + subject.batch_size(batch)
        own = [place for place in chosen if start <= place < stop]
        for at in range(0, len(own), size):
            places = own[at : at + size]
            yield places, _cut(subject, batch, [place - start for place in places])
        start = stop


def _cut(subject: Subject, batch: Batch, own: list[int]) -> Batch:
    """Cut samples out of whatever has a batch axis."""
    total, axis = subject.batch_size(batch), subject.batch_axis
    if own == [*range(total)]:
        return batch
    at = torch.tensor(own)

    def cut(leaf: Any) -> Any:
        if isinstance(leaf, PackedSequence):
            return _packed(leaf, at)
        dim = batch_dim(leaf, total, axis) if isinstance(leaf, Tensor) else None
        return leaf if dim is None else leaf.index_select(dim, at.to(leaf.device))

    def cut_all(values: Any) -> Any:
        return tree_map(cut, values, is_leaf=lambda leaf: isinstance(leaf, PackedSequence))

    inputs: Inputs = cut_all(batch.inputs)
    lengths = None if batch.lengths is None else torch.as_tensor(batch.lengths)[at]
    return Batch(inputs, cut_all(batch.targets), lengths)


def _packed(packed: PackedSequence, at: Tensor) -> PackedSequence:
    """Cut samples out of a packed sequence."""
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    ordered = packed.sorted_indices is None
    chosen = padded.index_select(0, at.to(padded.device))
    return pack_padded_sequence(chosen, lengths[at], batch_first=True, enforce_sorted=ordered)
