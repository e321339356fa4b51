"""Where each number of the inputs is: how far back in time, or how far from the centre.

Shapes: B sample, T timestep, P position, K output unit.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from probes.base import Batch, Subject, first_tensor
from probes.errors import NotApplicable
from probes.loss.objective import final_outputs, prediction
from probes.recurrent.watching.naming import recurrent_modules
from probes.samples.timeline import Sequences, time_axis

PADDING = -1
"""Place of what is no part of a sample."""

_GRIDS: dict[type[nn.Module], int] = {nn.Conv2d: 2, nn.Conv3d: 3}


class Place(Protocol):
    """What is needed to add up over the inputs by place, and to read the decision."""

    dim: ClassVar[str]

    def fits(self, value: Tensor, batch: Batch) -> bool:
        """Whether a tensor of the inputs, samples first, has places."""
        ...

    def index(self, batch: Batch, value: Tensor, outputs: Any) -> Tensor:
        """Place of every position: (B, P)."""
        ...

    def positions(self, value: Tensor) -> Tensor:
        """Split off features: (B, P, feature)."""
        ...

    def spread(self, values_BP: Tensor, value: Tensor) -> Tensor:
        """Repeat numbers of positions over the features, in the shape of ``value``."""
        ...

    def from_features(self, values_F: Tensor, value: Tensor) -> Tensor:
        """Repeat numbers of features over samples and positions, in the shape of ``value``."""
        ...

    def units(self, outputs: Any, batch: Batch) -> Tensor:
        """Pick the outputs that are the decision: (B, K)."""
        ...


@dataclass(frozen=True)
class Timeline:
    """Lags: timesteps before the last valid one of each sample. Decided at the last position."""

    dim: ClassVar[str] = "lag"
    subject: Subject
    axis: int

    def sequences(self, batch: Batch) -> Sequences:
        """Read the sequences of a batch."""
        return Sequences.of(self.subject, batch, self.axis)

    def fits(self, value: Tensor, batch: Batch) -> bool:
        """Whether samples and timesteps come first."""
        return value.shape[:2] == self.sequences(batch).tensors()[0].shape[:2]

    def index(self, batch: Batch, value: Tensor, outputs: Any) -> Tensor:
        """Lag of each timestep: (B, T)."""
        lengths = self.sequences(batch).lengths.to(value.device)
        lag_BT = lengths[:, None] - 1 - torch.arange(value.shape[1], device=value.device)
        return lag_BT.clamp_min(PADDING)

    def positions(self, value: Tensor) -> Tensor:
        """Features last: (B, T, feature)."""
        return value[..., None] if value.dim() == 2 else value.flatten(2)

    def spread(self, values_BP: Tensor, value: Tensor) -> Tensor:
        """Repeat along all axes after time."""
        return values_BP.reshape(values_BP.shape + (1,) * (value.dim() - 2)).expand_as(value)

    def from_features(self, values_F: Tensor, value: Tensor) -> Tensor:
        """Repeat along samples and time."""
        return values_F.reshape(value.shape[2:]).expand_as(value)

    def units(self, outputs: Any, batch: Batch) -> Tensor:
        """Pick those at the last valid position."""
        unit_B: Tensor = final_outputs(self.subject, outputs, batch)
        return unit_B.reshape(len(unit_B), -1)


@dataclass(frozen=True)
class Grid:
    """Rings of positions around the centre of the input, or of the central output unit.

    The distance is the largest along any axis, rounded down: rings are square.
    """

    dim: ClassVar[str] = "distance"
    subject: Subject
    axes: int

    def fits(self, value: Tensor, batch: Batch) -> bool:
        """Whether it has the positions of the first input."""
        first = first_tensor(batch.inputs)
        return value.dim() > self.axes and value.shape[-self.axes :] == first.shape[-self.axes :]

    def index(self, batch: Batch, value: Tensor, outputs: Any) -> Tensor:
        """Distance of each position: (B, P)."""
        sizes = value.shape[-self.axes :]
        output = prediction(self.subject, outputs)
        maps = output.shape[-self.axes :] if output.dim() == self.axes + 2 else (1,) * self.axes
        distance = torch.zeros(sizes, device=value.device)
        for axis, (size, count) in enumerate(zip(sizes, maps, strict=True)):
            centre = (count // 2 + 0.5) * size / count - 0.5
            along = (torch.arange(size, device=value.device) - centre).abs()
            shape = [-1 if other == axis else 1 for other in range(self.axes)]
            distance = torch.maximum(distance, along.reshape(shape))
        return distance.floor().long().flatten().expand(len(value), -1)

    def positions(self, value: Tensor) -> Tensor:
        """Channels last: (B, P, channel)."""
        flat = value.flatten(-self.axes)
        return flat.reshape(len(value), -1, flat.shape[-1]).transpose(1, 2)

    def spread(self, values_BP: Tensor, value: Tensor) -> Tensor:
        """Repeat along the channels."""
        between = (1,) * (value.dim() - 1 - self.axes)
        return values_BP.reshape(len(value), *between, *value.shape[-self.axes :]).expand_as(value)

    def from_features(self, values_F: Tensor, value: Tensor) -> Tensor:
        """Repeat along samples and positions."""
        return values_F.reshape(*value.shape[1 : -self.axes], *(1,) * self.axes).expand_as(value)

    def units(self, outputs: Any, batch: Batch) -> Tensor:
        """Take all outputs, or the channels of the central unit of a map."""
        output_B = prediction(self.subject, outputs).movedim(self.subject.batch_axis, 0)
        if output_B.dim() == self.axes + 2:
            for _ in range(self.axes):
                output_B = output_B.select(-1, output_B.shape[-1] // 2)
        elif output_B.dim() > 2:
            raise NotApplicable(
                f"which output belongs to which part of the image cannot be told: the outputs are "
                f"{tuple(output_B.shape)}, neither one for the image nor a map of it"
            )
        return output_B.reshape(len(output_B), -1)


@dataclass(frozen=True)
class Anywhere:
    """Inputs without places: every floating-point input is attributed to as a whole."""

    dim: ClassVar[str] = "input"
    subject: Subject

    def fits(self, value: Tensor, batch: Batch) -> bool:
        """Everything with one entry per sample."""
        return True

    def index(self, batch: Batch, value: Tensor, outputs: Any) -> Tensor:
        """All in one place: (B, 1)."""
        return torch.zeros(len(value), 1, dtype=torch.long, device=value.device)

    def positions(self, value: Tensor) -> Tensor:
        """All of it features of one position: (B, 1, feature)."""
        return value.reshape(len(value), 1, -1)

    def spread(self, values_BP: Tensor, value: Tensor) -> Tensor:
        """Repeat along all axes."""
        return values_BP.reshape(len(value), *(1,) * (value.dim() - 1)).expand_as(value)

    def from_features(self, values_F: Tensor, value: Tensor) -> Tensor:
        """Repeat along samples."""
        return values_F.reshape(value.shape[1:]).expand_as(value)

    def units(self, outputs: Any, batch: Batch) -> Tensor:
        """Take all outputs of each sample; of several positions the last."""
        unit_B: Tensor = final_outputs(self.subject, outputs, batch)
        return unit_B.reshape(len(unit_B), -1)


def place_of(subject: Subject) -> Place:
    """Find where time, or else the positions of an image, are in the inputs.

    Raises
    ------
    NotApplicable
        The inputs have neither, or which axis is time cannot be told.
    """
    batch = next(iter(subject))
    try:
        axis = time_axis(subject, batch)
    except NotApplicable as reason:
        axes = max((_GRIDS.get(type(module), 0) for module in subject.model.modules()), default=0)
        if not axes or recurrent_modules(subject.model):
            raise NotApplicable(
                f"{reason}; nor are they images read by convolutions alone"
            ) from reason
        first = first_tensor(batch.inputs)
        if first.dim() <= axes or not first.is_floating_point():
            raise NotApplicable(
                f"the inputs {tuple(first.shape)} are no images of {axes} axes"
            ) from reason
        return Grid(subject, axes)
    return Timeline(replace(subject, time_axis=axis), axis)


def place_or_anywhere(subject: Subject) -> Place:
    """As :func:`place_of`, where any input will do."""
    try:
        return place_of(subject)
    except NotApplicable:
        return Anywhere(subject)


def by_place(index_BP: Tensor, values_BP: Tensor, places: int) -> Tensor:
    """Add up positions of the same place, padding left out: (B, places), float64."""
    total = values_BP.new_zeros(len(values_BP), places + 1, dtype=torch.float64)
    target_BP = torch.where(index_BP == PADDING, places, index_BP)
    return total.scatter_add_(1, target_BP, values_BP.double())[:, :places]
