"""Batches of any number of samples and timesteps, out of one sample of the audit data."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils._pytree import tree_map

from probes.base import Batch, Subject
from probes.errors import AnalyzerError
from probes.samples.selection import pieces
from probes.samples.timeline import Sequences


def repeated(subject: Subject, count: int) -> Batch:
    """Repeat one sample of the first batch, its longest, ``count`` times.

    Memory depends on sizes, not on values: so a batch of any size is to be had.

    Raises
    ------
    AnalyzerError
        There are no data.
    """
    first = next(iter(subject), None)
    if first is None or not subject.batch_size(first):
        raise AnalyzerError("there is no batch to measure on: the data is empty")
    alone = replace(subject, batches=(first,))
    return next(pieces(alone, [_longest(first)] * count, count))[1]


def _longest(batch: Batch) -> int:
    """Find the longest sample; the first where no lengths are known."""
    lengths = batch.lengths
    if isinstance(batch.inputs, PackedSequence):
        lengths = pad_packed_sequence(batch.inputs)[1]
    return 0 if lengths is None else int(torch.as_tensor(lengths).argmax())


def shortened(subject: Subject, batch: Batch, axis: int, timesteps: int) -> Batch:
    """Keep the first timesteps of every sample.

    Targets are cut along the first axis, other than the samples', that is as long as the inputs.
    """
    whole = Sequences.of(subject, batch, axis)
    tensors = whole.tensors()
    full = tensors[0].shape[1]
    cut = replace(whole, lengths=whole.lengths.clamp_max(timesteps))
    inputs = cut.replaced([tensor[:, :timesteps].contiguous() for tensor in tensors])

    def cut_target(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or full not in leaf.shape[1:]:
            return leaf
        return leaf.narrow([*leaf.shape].index(full, 1), 0, timesteps)

    lengths = None if batch.lengths is None else cut.lengths
    return Batch(inputs, tree_map(cut_target, batch.targets), lengths)
