import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.lag_profile import LagProfile, first_windows


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def measured(model: nn.Module, batches: Any, loss: Any = None, **rest: Any) -> xr.Dataset:
    points = rest.pop("points", 100)
    return LagProfile(points)(Subject(model, batches, loss, **rest))


class Fir(nn.Module):
    """Causal convolution whose taps are the weights of the lags; inputs (B, 1, T)."""

    def __init__(self, taps: list[float]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, len(taps), bias=False)
        self.conv.weight.data = torch.tensor(taps[::-1], dtype=torch.float64)[None, None]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(functional.pad(x, (self.conv.kernel_size[0] - 1, 0)))
        return y


class Leaky(nn.Module):
    """LSTM of one unit with constant gates, of which the input drives the candidate alone."""

    def __init__(self, forget: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 1, batch_first=True)
        for weight in self.lstm.parameters():
            nn.init.zeros_(weight)
        self.lstm.bias_ih_l0.data[1] = math.log(forget / (1 - forget))
        self.lstm.weight_ih_l0.data[2] = 1e-3

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lstm(x)[0][:, -1]
        return y


def test_only_the_lag_that_a_filter_picks_is_worth_anything() -> None:
    trace = measured(Fir([0.0] * 7 + [2.0]), [double(20, 1, 30)])
    worth = trace["excess_loss"].sum("sample").to_numpy()
    assert worth.nonzero()[0].tolist() == [7]
    assert (trace["width"] == 1).all()
    assert trace["lag"].to_numpy().tolist() == list(range(30))


def test_the_changes_are_those_of_sequences_with_one_input_exchanged() -> None:
    model, x, targets = Fir([1.0, 0.5, 0.25, 2.0]), double(6, 1, 9), double(6, 1, 9)
    trace = measured(model, [(x[:4], targets[:4]), (x[4:], targets[4:])], "mse_loss")
    donor = trace["donor"].to_numpy()
    with torch.no_grad():
        for sample in range(6):
            intact = model(x[sample][None])[0, 0, -1]
            for lag in range(9):
                mixed = x[sample].clone()
                mixed[0, 8 - lag] = x[donor[sample], 0, 8 - lag]
                moved = model(mixed[None])[0, 0, -1]
                target = targets[sample, 0, -1]
                excess = float((moved - target).square() - (intact - target).square())
                found = trace.isel(sample=sample, lag=lag)
                assert float(found["excess_loss"]) == pytest.approx(excess, abs=1e-12)
    assert trace.attrs["objective"] == "mse_loss, per sample"
    assert trace.attrs["sequence_length"] == 9


@pytest.mark.parametrize("forget", [0.8, 0.95])
def test_a_leaky_integrator_uses_lags_by_its_time_constant(forget: float) -> None:
    x = double(40, 90, 1)
    trace = measured(Leaky(forget).double(), [x])
    donor, lags = trace["donor"].to_numpy(), np.arange(90)
    step = (x[donor] - x).flip(1)[:, :, 0].numpy()
    expected = 0.5 * (0.5 * 0.5 * 1e-3 * forget**lags * step) ** 2
    found = trace["excess_loss"].to_numpy()
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_convolution_uses_the_lags_of_its_field_alone() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv1d(2, 2, 3, dilation=d) for d in (1, 4))

        def forward(self, x: Tensor) -> Tensor:
            for conv in self.convs:
                x = conv(functional.pad(x, (2 * conv.dilation[0], 0))).tanh()
            return x

    trace = measured(Causal().double(), [double(20, 2, 40)])
    worth = trace["excess_loss"].sum("sample").to_numpy()
    assert worth.nonzero()[0].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]


@given(st.integers(1, 300), st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_windows_leave_no_lag_out_and_begin_with_single_ones(timesteps: int, points: int) -> None:
    windows = first_windows(timesteps, points)
    assert [lag for window in windows for lag in window] == list(range(timesteps))
    assert len(windows) <= points
    assert len(windows[0]) == 1
    if timesteps <= points:
        assert all(len(window) == 1 for window in windows)


@pytest.mark.parametrize("delay", [0, 37, 150, 199])
def test_windows_are_halved_down_to_the_lag_that_is_used(delay: int) -> None:
    trace = measured(Fir([0.0] * delay + [1.0]), [double(20, 1, 200)], points=40)
    worth = trace["excess_loss"].sum("sample").to_numpy()
    (at,) = worth.nonzero()[0]
    assert (int(trace["lag"][at]), int(trace["width"][at])) == (delay, 1)
    assert int(trace["width"].sum()) == 200
    assert trace.sizes["lag"] < 40


def test_windows_are_halved_where_other_inputs_lower_the_loss_too() -> None:
    model, x = Fir([0.0] * 37 + [1.0]), double(20, 1, 200)

    def closeness(outputs: Tensor, targets: Tensor) -> Tensor:
        return -(outputs[:, 0, -1] - targets[:, 0, -1]).square()

    trace = measured(model, [(x, model(x).detach())], closeness, points=32)
    worth = trace["excess_loss"].sum("sample").to_numpy()
    (at,) = worth.nonzero()[0]
    assert worth[at] < 0
    assert (int(trace["lag"][at]), int(trace["width"][at])) == (37, 1)


def test_a_window_is_replaced_as_a_whole() -> None:
    x = double(5, 1, 12)
    trace = measured(Fir([0.0, 0.0, 1.0, -1.0, 3.0]), [x], points=5)
    donor = trace["donor"].to_numpy()
    found = trace.sel(lag=2)
    assert int(found["width"]) == 3
    step = (x[donor] - x).flip(2)[:, 0]
    expected = 0.5 * (step[:, 2] - step[:, 3] + 3 * step[:, 4]).square()
    assert found["excess_loss"].to_numpy() == pytest.approx(expected.numpy())


def test_ragged_samples_have_the_lags_they_have() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            rows = torch.arange(len(x))
            return x[rows, lengths - 1] + 3 * x[rows, lengths - 2]

    x, lengths = double(3, 8, 1), torch.tensor([8, 3, 5])
    trace = measured(Sum().double(), [Batch((x, lengths), None, lengths)], time_axis=1)
    donor, found = trace["donor"].to_numpy(), trace["excess_loss"].to_numpy()
    for sample, length in enumerate(lengths.tolist()):
        assert np.isnan(found[sample]).tolist() == [lag >= length for lag in range(8)]
        other = x[donor[sample], lengths[donor[sample]] - 2, 0]
        step = float(other - x[sample, length - 2, 0])
        assert found[sample, 1] == pytest.approx(0.5 * (3 * step) ** 2, rel=1e-4)
        assert (found[sample, 2:length] == 0).all()


def test_packed_inputs_are_packed_again() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(2, 3)

        def forward(self, x: PackedSequence) -> Tensor:
            y: Tensor = self.gru(x)[1][-1]
            return y

    lengths, x = torch.tensor([6, 4, 6]), double(3, 6, 2)
    model = Packed().double()
    trace = measured(model, pack_padded_sequence(x, lengths, True, False))
    donor = trace["donor"].to_numpy()
    for sample, length in enumerate(lengths.tolist()):
        mixed = x[sample, :length].clone()
        mixed[-3] = x[donor[sample], lengths[donor[sample]] - 3]
        alone = [
            model(pack_padded_sequence(v[None], torch.tensor([length]), True))
            for v in (mixed, x[sample, :length])
        ]
        expected = 0.5 * (alone[0] - alone[1]).square().mean()
        found = float(trace["excess_loss"][sample, 2])
        assert found == pytest.approx(float(expected.detach()), rel=1e-9)


def test_without_targets_the_intact_choice_stays_the_target() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).double()
    x = double(10, 4, 2)
    trace = measured(model, [x], "cross_entropy", time_axis=1)
    donor = trace["donor"].to_numpy()
    mixed = x.clone()
    mixed[:, 1] = x[donor, 1]
    scores, moved = model(x).log_softmax(1), model(mixed).log_softmax(1)
    choice = scores.argmax(1)
    expected = scores[range(10), choice] - moved[range(10), choice]
    found = trace["excess_loss"].sel(lag=2).to_numpy()
    assert found == pytest.approx(expected.detach().numpy())


def test_several_donors_are_averaged() -> None:
    x = double(7, 1, 3)
    one, two = (LagProfile(donors=d)(Subject(Fir([1.0]), [x])) for d in (1, 2))
    donor = one["donor"].to_numpy()
    steps = [0.5 * (x[d, 0, -1] - x[:, 0, -1]).square() for d in (donor, donor[donor])]
    assert one["excess_loss"].sel(lag=0).to_numpy() == pytest.approx(steps[0].numpy())
    mean = (steps[0] + steps[1]) / 2
    assert two["excess_loss"].sel(lag=0).to_numpy() == pytest.approx(mean.numpy())


def test_batches_are_measured_until_there_are_enough_samples() -> None:
    x = double(20, 1, 5)
    few = LagProfile(samples=7)(Subject(Fir([1.0]), [x[:6], x[6:12], x[12:]]))
    assert few.sizes["sample"] == 12


def test_settings_and_data_that_make_no_sense_are_refused() -> None:
    for wrong, told in (((1, 1, 9), "1, 1 and 9"), ((5, 0, 9), "5, 0 and 9")):
        with pytest.raises(AnalyzerError) as caught:
            LagProfile(*wrong)(Subject(Fir([1.0]), [double(3, 1, 5)]))
        assert str(caught.value) == (
            f"lag_profile needs points >= 2, donors >= 1 and samples >= 2: they are {told}"
        )
    with pytest.raises(NotApplicable) as absent:
        measured(Fir([1.0]), [double(1, 1, 5)])
    assert str(absent.value) == (
        "the audit set is one sample: there is no other to replace it with"
    )


def test_progress_is_reported_up_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    subject = Subject(Fir([0.0] * 30 + [1.0]), [double(5, 1, 200)])
    LagProfile()(subject, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (16, 16)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 3
