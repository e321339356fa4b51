"""Where time is: networks that read their inputs step by step."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from probes.base import Batch, Subject
from probes.errors import NotApplicable
from probes.samples.timeline import time_axis


class Unshared(nn.Module):
    """One cell per timestep."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.GRUCell(1, 3) for _ in range(steps))

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 3)
        for cell, step in zip(self.cells, x.unbind(1), strict=True):
            h = cell(step, h)
        return h


class Stepwise(nn.Module):
    """A layer that is called with one timestep after the other."""

    def __init__(self, timesteps: int = 7) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.lstm = nn.LSTM(1, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(x.shape[1]):
            y, state = self.lstm(x[:, step : step + 1], state)
        return y


class Decoder(nn.Module):
    """Reads its input at once, writes step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(1, 3, batch_first=True)
        self.decoder = nn.GRU(3, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, h = self.encoder(x)
        y = y[:, -1:]
        for _ in range(4):
            y, h = self.decoder(y, h)
        return y


@pytest.mark.parametrize("make", [lambda: Unshared(7), Stepwise, Decoder])
def test_steps_are_counted_where_a_call_reads_only_one(make: Callable[[], nn.Module]) -> None:
    # The last axis has one entry, as every call has timesteps.
    inputs = torch.randn(4, 7, 1)
    assert time_axis(Subject(make(), [inputs]), Batch(inputs)) == 1


def test_a_layer_that_is_called_once_with_one_timestep_reads_one() -> None:
    inputs = torch.randn(4, 1, 5)
    model = nn.LSTM(5, 3, batch_first=True)
    assert time_axis(Subject(model, [inputs]), Batch(inputs)) == 1


def test_layers_are_named_where_the_axes_do_not_tell() -> None:
    inputs = torch.randn(4, 7, 7)

    class Square(Unshared):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, :, :1])

    with pytest.raises(NotApplicable) as caught:
        time_axis(Subject(Square(7), [inputs]), Batch(inputs))
    assert str(caught.value) == (
        "time runs along one of the axes [1, 2] of the inputs (4, 7, 7), as cells reads 7 "
        "timesteps: set time_axis to the axis of the inputs along which time runs"
    )


def test_modules_that_are_called_without_arguments_are_passed_over() -> None:
    inputs = torch.randn(4, 3, 9)
    model = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 5, 3))
    assert time_axis(Subject(model, [inputs]), Batch(inputs)) == 2
