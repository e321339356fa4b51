"""Where samples and time are in what a model returns and in its targets.

Shapes: B sample, T position in time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from probes.base import Batch, Subject, first_tensor
from probes.errors import AnalyzerError
from probes.structure import mapped


class Layout(NamedTuple):
    """What the inputs of a batch say about the layout of outputs and targets."""

    samples: int
    """Samples in the batch."""
    axis: int
    """Batch axis of the inputs."""
    timesteps: int | None
    """Size of the inputs' time axis, where it is known."""
    lengths: Tensor | None
    """Valid timesteps of each sample, where they differ: (B,) [timestep]."""

    @classmethod
    def of(cls, subject: Subject, batch: Batch) -> "Layout":
        """Read the layout of the inputs of ``batch``."""
        samples, lengths = subject.batch_size(batch), batch.lengths
        if isinstance(batch.inputs, PackedSequence):
            lengths = pad_packed_sequence(batch.inputs)[1] if lengths is None else lengths
            return cls(samples, subject.batch_axis, int(lengths.max()), lengths)
        timesteps = None
        if subject.time_axis is not None:
            timesteps = first_tensor(batch.inputs).shape[subject.time_axis]
        return cls(samples, subject.batch_axis, timesteps, lengths)

    def batch_first(self, tensor: Tensor) -> Tensor:
        """Move the batch axis to the front."""
        return tensor.movedim(self.batch_dim(tensor), 0)

    def batch_dim(self, tensor: Tensor) -> int:
        """Find the batch axis.

        Raises
        ------
        AnalyzerError
            There is none.
        """
        dim = batch_dim(tensor, self.samples, self.axis)
        if dim is None:
            raise AnalyzerError(
                f"no batch axis of {self.samples} samples in shape {tuple(tensor.shape)}: the "
                "model or the targets do not keep the samples apart"
            )
        return dim

    def time_dim(self, first: Tensor) -> int:
        """Find the time axis of batch-first values by its size: 1 unless only another one fits."""
        fitting = [dim for dim in range(1, first.dim()) if first.shape[dim] == self.timesteps]
        return 1 if len(fitting) != 1 else fitting[0]

    def has_time(self, first: Tensor) -> bool:
        """Whether batch-first values have positions: two axes more, or the inputs' time axis."""
        return first.dim() > 2 or (first.dim() == 2 and first.shape[1] == self.timesteps)

    def along_time(self, values: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """Change what has the inputs' time axis, handed over as (B, T, ...); leave the rest."""

        def each(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.dim() < 2:
                return leaf
            first = self.batch_first(leaf)
            at = self.time_dim(first)
            if first.shape[at] != self.timesteps:
                return leaf
            changed = change(first.movedim(at, 1))
            return changed.movedim(1, at).movedim(0, self.batch_dim(leaf)).contiguous()

        return mapped(values, each)

    def valid(self, values_BT: Tensor) -> Tensor:
        """Which positions are no padding, as 0 and 1 of the type of ``values_BT``: (B, T)."""
        count = values_BT.shape[1]
        steps_T = torch.arange(count, device=values_BT.device)
        if self.lengths is None:
            return torch.ones_like(values_BT)
        length_B = self.lengths.to(values_BT.device)
        if self.timesteps is not None and self.timesteps != count:
            length_B = (length_B * count / self.timesteps).ceil()
        return (steps_T < length_B[:, None]).to(values_BT)


def last_index(valid_BT: Tensor) -> Tensor:
    """Index of the last valid position: (B,); 0 where there is none."""
    return (torch.arange(valid_BT.shape[1], device=valid_BT.device) * valid_BT).argmax(1)


def batch_dim(tensor: Tensor, samples: int, axis: int) -> int | None:
    """Find the axis with one entry per sample by its size: ``axis``, else the first or second."""
    for dim in (axis, 0, 1):
        if tensor.dim() > dim and tensor.shape[dim] == samples:
            return dim
    return None
