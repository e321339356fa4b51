"""Time and samples, between the way a fused operation takes them and the way they are measured.

Shapes: T timestep, B sample, N element of packed data, ... features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


@dataclass(frozen=True, eq=False)
class Clock:
    """Where every timestep of every sample of one call is.

    Parameters
    ----------
    timesteps, samples : int
        T and B.
    batch_sizes : Tensor, optional
        Of packed data: samples that are still running at each timestep.
    order : Tensor, shape (B,), optional
        Where each sample is in the batch, which packing sorted by length.
    """

    timesteps: int
    samples: int
    batch_sizes: Tensor | None = None
    order: Tensor | None = None

    def lengths(self) -> Tensor:
        """Count the valid timesteps of each row of the batch, as sorted: (B,), on the CPU."""
        if self.batch_sizes is None:
            return torch.full((self.samples,), self.timesteps)
        return (self.batch_sizes[:, None] > torch.arange(self.samples)).sum(0)

    def padded(self, data: Tensor) -> Tensor:
        """Packed data (N, ...) as (T, B, ...), zero past the end of each sample."""
        if self.batch_sizes is None:
            return data
        return pad_packed_sequence(PackedSequence(data, self.batch_sizes))[0]

    def packed(self, values_TBI: Tensor) -> Tensor:
        """Undo :meth:`padded`."""
        if self.batch_sizes is None:
            return values_TBI
        return pack_padded_sequence(values_TBI, self.lengths()).data

    def valid(self, like: Tensor) -> Tensor | None:
        """1 within each sample and 0 past its end: (T, B, 1); None where nothing is padded."""
        if self.batch_sizes is None:
            return None
        steps_T = torch.arange(self.timesteps, device=like.device)
        return (steps_T[:, None] < self.lengths().to(like.device)).to(like).unsqueeze(-1)

    def turned(self, values: Tensor, reverse: bool) -> Tensor:
        """Reverse (T, B, ...) within each sample: between the order of the data and of reading."""
        if not reverse:
            return values
        if self.batch_sizes is None:
            return values.flip(0)
        steps_T1 = torch.arange(self.timesteps, device=values.device)[:, None]
        lengths_B = self.lengths().to(values.device)
        source_TB = torch.where(steps_T1 < lengths_B, lengths_B - 1 - steps_T1, steps_T1)
        rows_B = torch.arange(self.samples, device=values.device)
        return values[source_TB, rows_B]

    def by_sample(self, values: Tensor, axis: int) -> Tensor:
        """Undo the sorting of the batch along ``axis``."""
        if self.order is None:
            return values
        return values.index_select(axis, self.order.to(values.device))
