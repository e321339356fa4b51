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
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from analyzer.statistics import horizon, horizon_interval, relative_excess
from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.loss.replacement import donors_of, grid
from probes.memory_horizon import MemoryHorizon


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def measured(model: nn.Module, batches: Any, loss: Any = None, **rest: Any) -> xr.Dataset:
    return MemoryHorizon()(Subject(model, batches, loss, **rest))


def horizon_of(trace: xr.Dataset, share: float = 0.01) -> float:
    return horizon(trace["excess_loss"].to_numpy(), trace["kept"].to_numpy(), share)


class Fir(nn.Module):
    """Causal convolution that picks the input ``delay`` steps back; inputs (B, 1, T)."""

    def __init__(self, taps: list[float]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, len(taps), bias=False)
        self.conv.weight.data = torch.tensor(taps[::-1], dtype=torch.float64)[None, None]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(functional.pad(x, (self.conv.kernel_size[0] - 1, 0)))
        return y


def leaky(decay: float, gates: tuple[float, float] = (0.5, 0.5)) -> nn.LSTM:
    """LSTM of one unit whose gates are constants i, f = decay, o."""
    lstm = nn.LSTM(1, 1, batch_first=True).double()
    for weight in lstm.parameters():
        nn.init.zeros_(weight)
    levels = [gates[0], decay, 0.5, gates[1]]
    bias = [math.log(level / (1 - level)) for level in levels]
    bias[2] = 0.0
    lstm.bias_ih_l0.data = torch.tensor(bias, dtype=torch.float64)
    lstm.weight_ih_l0.data[2] = 1e-3
    return lstm


class Last(nn.Module):
    """The last output of a recurrent module, (B, units)."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lstm(x)[0][:, -1]
        return y


@pytest.mark.parametrize("delay", [0, 1, 5, 20, 37, 98, 99])
def test_a_filter_that_picks_one_lag_has_that_horizon(delay: int) -> None:
    trace = measured(Fir([0.0] * delay + [2.0]), [double(30, 1, 100)])
    assert horizon_of(trace) == delay
    value, low, high = horizon_interval(trace["excess_loss"], trace["kept"], 0.01)
    assert (value, low, high) == (delay, delay, delay + 1)
    assert (trace["reach"] > 0).any("sample").to_numpy().nonzero()[0].tolist() == [delay]


def test_the_excess_loss_is_that_of_spliced_sequences() -> None:
    model, x = Fir([1.0, 0.5, 0.25, 2.0]), double(6, 1, 9)
    targets = double(6, 1, 9)
    trace = measured(model, [(x[:4], targets[:4]), (x[4:], targets[4:])], "mse_loss")
    donor = trace["donor"].to_numpy()
    assert trace["kept"].to_numpy().tolist() == list(range(10))
    for sample in range(6):
        for kept in range(10):
            mixed = torch.cat([x[donor[sample], :, : 9 - kept], x[sample, :, 9 - kept :]], 1)
            loss = (model(mixed[None])[0, 0, -1] - targets[sample, 0, -1]).square()
            intact = (model(x[sample][None])[0, 0, -1] - targets[sample, 0, -1]).square()
            found = trace["excess_loss"].sel(kept=kept).isel(sample=sample)
            assert float(found) == pytest.approx(float((loss - intact).detach()), abs=1e-12)
            assert float(trace["intact_loss"][sample]) == pytest.approx(float(intact.detach()))
    assert trace.attrs["intact_loss"] == pytest.approx(float(trace["intact_loss"].mean()))
    assert trace.attrs["objective"] == "mse_loss, per sample"


def test_without_a_loss_the_excess_is_the_distance_of_the_outputs() -> None:
    model, x = Fir([1.0, 0.5]), double(4, 1, 6)
    trace = measured(model, [x])
    donor = trace["donor"].to_numpy()
    kept_one = 0.5 * (x[donor, 0, -2] - x[:, 0, -2])
    found = trace["excess_loss"].sel(kept=1).to_numpy()
    assert found == pytest.approx((0.5 * kept_one.square()).numpy())
    assert (trace["intact_loss"] == 0).all()
    assert trace.attrs["objective"] == (
        "half the mean square distance of the last output from that to the intact inputs "
        "(no loss was given)"
    )


def test_without_targets_the_intact_choice_stays_the_target() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).double()
    x = double(10, 4, 2)
    trace = measured(model, [x], "cross_entropy", time_axis=1)
    donor = trace["donor"].to_numpy()
    scores = model(x).log_softmax(1)
    choice = scores.argmax(1)
    expected = scores[range(10), choice] - scores[donor, choice]
    found = trace["excess_loss"].sel(kept=0).to_numpy()
    assert found == pytest.approx(expected.detach().numpy())
    assert (trace["excess_loss"].sel(kept=4) == 0).all()


@pytest.mark.parametrize("decay", [0.8, 0.95])
def test_a_leaky_integrator_forgets_within_2_3_time_constants(decay: float) -> None:
    tau = -1 / math.log(decay)
    trace = measured(Last(leaky(decay)), [double(400, 180, 1)])
    _, low, high = horizon_interval(trace["excess_loss"], trace["kept"], 0.01)
    assert low - 1 <= 2.3 * tau <= high
    assert high - low < 0.6 * tau
    shares = relative_excess(trace["excess_loss"])
    assert shares == pytest.approx(decay ** (2 * trace["kept"].to_numpy()), rel=0.35, abs=1e-8)


def test_the_reach_of_constant_gates_is_their_product() -> None:
    decay = 0.9
    model = Last(leaky(decay, (0.3, 0.6)))
    trace = measured(model, [1e-3 * double(3, 30, 1)], lambda out, _: out[:, 0])
    expected = 0.6 * 0.3 * decay ** np.arange(30) * 1e-3
    assert trace["reach"].to_numpy() == pytest.approx(np.tile(expected, (3, 1)), rel=1e-4)


def test_a_causal_network_does_not_reach_past_its_field() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(
                nn.Conv1d(2, 2, 3, dilation=d, padding=2 * d) for d in (1, 2, 4)
            )

        def forward(self, x: Tensor) -> Tensor:
            for conv in self.convs:
                x = conv(x)[..., : x.shape[-1]].tanh()
            return x

    trace = measured(Causal().double(), [double(20, 2, 40)])
    assert horizon_of(trace, 0.0) <= 14
    assert (trace["excess_loss"].sel(kept=trace["kept"] >= 15) == 0).all()
    assert (trace["reach"].sel(lag=slice(15, None)) == 0).all()
    assert (trace["reach"].sel(lag=slice(0, 14)) > 0).all()


@given(st.integers(0, 11), st.integers(13, 60), st.integers(3, 30))
@settings(max_examples=25, deadline=None)
def test_one_needed_lag_is_found_in_any_length_and_grid(
    delay: int, length: int, points: int
) -> None:
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(12, 1, length, generator=generator, dtype=torch.float64)
    trace = MemoryHorizon(points)(Subject(Fir([0.0] * delay + [1.0]), [x]))
    excess = trace["excess_loss"].to_numpy()
    _, low, high = horizon_interval(excess, trace["kept"].to_numpy(), 0.01)
    assert low <= delay < high
    assert trace.sizes["kept"] <= points
    assert list(trace["kept"].to_numpy()[[0, -1]]) == [0, length]


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.gru = nn.GRU(3, 4, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.gru(self.embed(tokens))[0])
        return y


def test_tokens_are_spliced_and_reached_at_their_embedding() -> None:
    model, x = Tagger().double(), torch.randint(7, (5, 6))
    targets = torch.randint(5, (5, 6))
    trace = measured(model, [(x, targets)], "cross_entropy")
    donor = trace["donor"].to_numpy()
    model.eval()
    mixed = torch.cat([x[donor, :4], x[:, 4:]], 1)
    losses = [
        functional.cross_entropy(model(tokens)[:, -1], targets[:, -1], reduction="none")
        for tokens in (mixed, x)
    ]
    found = trace["excess_loss"].sel(kept=2).to_numpy()
    assert found == pytest.approx((losses[0] - losses[1]).detach().numpy())
    embedded = model.embed(x).detach().requires_grad_()
    last = model.head(model.gru(embedded)[0])[:, -1]
    (gradient,) = torch.autograd.grad(
        functional.cross_entropy(last, targets[:, -1], reduction="sum"), [embedded]
    )
    expected = gradient.square().mean(2).sqrt().flip(1)
    assert trace["reach"].to_numpy() == pytest.approx(expected.numpy())


def test_the_reach_agrees_with_finite_differences() -> None:
    model, x = Last(nn.LSTM(2, 3, 2, batch_first=True).double()), double(2, 5, 2)
    trace = measured(model, [x], lambda out, _: out.sin().sum(1))
    step = 1e-6
    for sample in range(2):
        for lag in range(5):
            slopes = []
            for feature in range(2):
                moved = [x[sample][None].clone() for _ in range(2)]
                moved[0][0, 4 - lag, feature] += step
                moved[1][0, 4 - lag, feature] -= step
                up, down = (float(model(m).detach().sin().sum()) for m in moved)
                slopes.append((up - down) / (2 * step))
            expected = math.sqrt(sum(slope**2 for slope in slopes) / 2)
            assert float(trace["reach"][sample, lag]) == pytest.approx(expected, rel=1e-6)


def test_ragged_batches_are_counted_back_from_the_end_of_each_sample() -> None:
    class Sum(nn.Module):
        """The last valid input and two thirds of that before it; without weights, in float32."""

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            rows = torch.arange(len(x))
            return x[rows, lengths - 1] + 2 / 3 * x[rows, lengths - 2]

    x, lengths = double(4, 8, 1), torch.tensor([8, 3, 5, 2])
    trace = measured(Sum().double(), [Batch((x, lengths), None, lengths)], time_axis=1)
    donor = trace["donor"].to_numpy()
    excess = trace["excess_loss"].to_numpy()
    for sample, length in enumerate(lengths.tolist()):
        assert np.isnan(excess[sample]).tolist() == [kept > length for kept in range(9)]
        older = x[donor[sample], lengths[donor[sample]] - 2, 0] - x[sample, length - 2, 0]
        assert excess[sample, 1] == pytest.approx(0.5 * float(2 / 3 * older) ** 2, rel=1e-4)
        assert excess[sample, min(2, length) : length + 1] == pytest.approx(0)
        reach = trace["reach"].to_numpy()[sample]
        assert np.isnan(reach).tolist() == [lag >= length for lag in range(8)]
        output = abs(float(x[sample, length - 1, 0] + 2 / 3 * x[sample, length - 2, 0]))
        assert reach[:2] == pytest.approx([output, 2 / 3 * output])
    assert trace.attrs["sequence_length"] == 8


def test_packed_inputs_are_spliced_and_packed_again() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(2, 3)
            self.sorted: list[bool] = []

        def forward(self, x: PackedSequence) -> Tensor:
            assert isinstance(x, PackedSequence)
            self.sorted.append(x.sorted_indices is None)
            y: Tensor = self.lstm(x)[1][0][-1]
            return y

    lengths = torch.tensor([4, 7, 2])
    padded = double(3, 7, 2)
    model = Packed().double()
    for order in (slice(None), lengths.argsort(descending=True)):
        own, x = lengths[order], padded[order]
        ordered = not isinstance(order, slice)
        model.sorted.clear()
        trace = measured(model, pack_padded_sequence(x, own, True, ordered))
        assert {*model.sorted} == {ordered}
        donor = trace["donor"].to_numpy()
        for sample, length in enumerate(own.tolist()):
            other = x[donor[sample], : own[donor[sample]]].repeat(4, 1)
            mixed = torch.cat(
                [other[len(other) - length : len(other) - 2], x[sample, length - 2 : length]]
            )
            outputs = [
                model(pack_padded_sequence(v[None], torch.tensor([length]), True))
                for v in (mixed, x[sample, :length])
            ]
            expected = 0.5 * (outputs[0] - outputs[1]).square().mean()
            found = trace["excess_loss"].sel(kept=2).isel(sample=sample)
            assert float(found) == pytest.approx(float(expected.detach()), abs=1e-14)
            valid = np.isfinite(trace["reach"].to_numpy()[sample])
            assert valid.tolist() == [lag < length for lag in range(7)]
        assert trace.attrs["time_axis"] == 1


def test_packed_outputs_are_judged_at_the_end_of_each_sample() -> None:
    class Same(nn.Module):
        def forward(self, x: PackedSequence) -> PackedSequence:
            return x

    lengths = torch.tensor([5, 3])
    packed = pack_padded_sequence(double(2, 5, 1), lengths, True)
    trace = measured(Same().double(), packed)
    x = pad_packed_sequence(packed, batch_first=True)[0]
    difference = float(x[0, 4, 0] - x[1, 2, 0])
    assert trace["excess_loss"].sel(kept=0).to_numpy() == pytest.approx([0.5 * difference**2] * 2)
    assert (trace["excess_loss"].sel(kept=1) == 0).all()


def test_everything_with_the_samples_and_timesteps_is_spliced_together() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
            return (x * mask[..., None]).sum(1) * scale[:, None]

    x, mask, scale = double(3, 4, 2), double(3, 4), double(3)
    inputs = {"x": x, "mask": mask, "scale": scale}
    trace = measured(Masked().double(), [Batch(inputs)], time_axis=1)
    donor = trace["donor"].to_numpy()
    change = (x[donor] * mask[donor, :, None] - x * mask[..., None])[:, :3].sum(1) * scale[:, None]
    found = trace["excess_loss"].sel(kept=1).to_numpy()
    assert found == pytest.approx((0.5 * change.square().mean(1)).numpy())


def test_time_first_inputs_are_spliced_along_their_first_axis() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.rnn(x)[0]
            return y

    model, x = TimeFirst().double(), double(6, 4, 2)
    trace = measured(model, [x], batch_axis=1)
    assert trace.attrs["time_axis"] == 0
    donor = trace["donor"].to_numpy()
    change = model(torch.cat([x[:5, donor], x[5:]])) - model(x)
    found = trace["excess_loss"].sel(kept=1).to_numpy()
    assert found == pytest.approx((0.5 * change[-1].square().mean(1)).detach().numpy())
    assert trace["reach"].shape == (4, 6)


@pytest.mark.parametrize(
    ("model", "shape", "axis"),
    [
        (nn.Conv1d(2, 3, 5), (4, 2, 9), 2),
        (nn.Conv1d(2, 3, 5, padding=2), (4, 2, 9), 2),
        (nn.LSTM(2, 3, batch_first=True), (4, 9, 2), 1),
        (nn.MultiheadAttention(2, 1, batch_first=True), (4, 9, 2), 1),
    ],
)
def test_the_time_axis_is_that_of_the_first_layer_with_a_sense_of_time(
    model: nn.Module, shape: tuple[int, ...], axis: int
) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Any:
            attention = isinstance(self.model, nn.MultiheadAttention)
            return self.model(x, x, x) if attention else self.model(x)

    assert measured(Model().double(), [double(*shape)]).attrs["time_axis"] == axis
    assert (
        measured(Model().double(), [double(*shape)], time_axis=axis - 3).attrs["time_axis"] == axis
    )


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x.transpose(1, 2))
        return y


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 3)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return h


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gru(pack_padded_sequence(x, torch.tensor([5, 7, 3]), True, False))[1][0]
        return y


@pytest.mark.parametrize("kind", [Transposed, Cells, Packing])
def test_the_time_axis_is_found_through_transposes_cells_and_packing(kind: Any) -> None:
    assert measured(kind().double(), [double(3, 7, 2)]).attrs["time_axis"] == 1


def reason(model: nn.Module, batches: Any, **rest: Any) -> str:
    with pytest.raises(NotApplicable) as caught:
        measured(model.double(), batches, **rest)
    return str(caught.value)


def test_models_without_time_are_not_measured() -> None:
    image = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    assert reason(image, [double(2, 1, 5, 5)]) == (
        "the inputs (2, 1, 5, 5) have no time axis that can be told: the model has no recurrent, "
        "1-D convolutional or attention layer; if time is there, set time_axis to the axis of the "
        "inputs along which time runs"
    )
    assert reason(nn.Conv1d(6, 2, 3), [double(2, 6, 6)]) == (
        "time runs along one of the axes [1, 2] of the inputs (2, 6, 6), as the model reads 6 "
        "timesteps: set time_axis to the axis of the inputs along which time runs"
    )
    strided = nn.Sequential(nn.Unflatten(1, (2, 6)), nn.Conv1d(2, 1, 3))
    assert reason(strided, [double(3, 12)]) == (
        "no axis of the inputs (3, 12) is as long as what the layers read: set time_axis to the "
        "axis of the inputs along which time runs"
    )


def test_one_sample_or_one_timestep_is_not_measured() -> None:
    assert reason(Fir([1.0]), [double(1, 1, 5)]) == (
        "the audit set is one sample: there is no other to replace it with"
    )
    assert reason(Fir([1.0]), [double(3, 2, 1)], time_axis=2) == (
        "the inputs have one timestep: there is nothing older to replace"
    )


def error(model: nn.Module, batches: Any, probe: MemoryHorizon, **rest: Any) -> str:
    with pytest.raises(AnalyzerError) as caught:
        probe(Subject(model, batches, **rest))
    return str(caught.value)


def test_settings_and_lengths_that_make_no_sense_are_refused() -> None:
    model, x = Fir([1.0]), double(2, 1, 5)
    assert error(model, [x], MemoryHorizon(points=2)) == (
        "memory_horizon needs points >= 3, donors >= 1 and samples >= 2: they are 2, 1 and 512"
    )
    assert error(model, [x], MemoryHorizon(donors=0)) == (
        "memory_horizon needs points >= 3, donors >= 1 and samples >= 2: they are 24, 0 and 512"
    )
    assert error(model, [x], MemoryHorizon(), time_axis=3) == (
        "time_axis is 3, but the inputs have 3 axes: (2, 1, 5)"
    )
    batch = Batch(x, None, torch.tensor([0, 6]))
    assert error(model, [batch], MemoryHorizon()) == (
        "lengths run from 0 to 6, but the time axis of the inputs (2, 1, 5) has 5 timesteps"
    )

    class Silent(Fir):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    assert error(Silent([1.0]), [x], MemoryHorizon()) == (
        "the loss has no gradient with respect to the inputs: the model runs under torch.no_grad, "
        "or it or the loss detaches its result"
    )


def test_every_sample_donates_once_and_never_to_itself() -> None:
    for count in (2, 3, 17):
        generator = torch.Generator().manual_seed(count)
        donor = donors_of(count, generator)
        assert sorted(donor.tolist()) == list(range(count))
        seen = {0}
        following = int(donor[0])
        while following:
            seen.add(following)
            following = int(donor[following])
        assert len(seen) == count


def test_several_donors_are_averaged() -> None:
    model, x = Fir([1.0, 1.0]), double(5, 1, 4)
    one = MemoryHorizon()(Subject(model, [x[:2], x[2:]]))
    two = MemoryHorizon(donors=2)(Subject(model, [x[:2], x[2:]]))
    donor = one["donor"].to_numpy()
    assert (two["donor"].to_numpy() == donor).all()
    change = [0.5 * (x[d, 0, -2] - x[:, 0, -2]).square() for d in (donor, donor[donor])]
    assert one["excess_loss"].sel(kept=1).to_numpy() == pytest.approx(change[0].numpy())
    assert two["excess_loss"].sel(kept=1).to_numpy() == pytest.approx(
        ((change[0] + change[1]) / 2).numpy()
    )


def test_batches_are_measured_until_there_are_enough_samples() -> None:
    x = double(20, 1, 5)
    batches = [x[:6], x[6:12], x[12:]]
    few = MemoryHorizon(samples=7)(Subject(Fir([1.0]), batches))
    alone = MemoryHorizon()(Subject(Fir([1.0]), batches[:2]))
    xr.testing.assert_identical(few, alone)
    assert few.sizes["sample"] == 12


def test_the_seed_chooses_the_donors() -> None:
    x = double(20, 1, 5)
    donors = [measured(Fir([1.0]), [x], seed=s)["donor"].to_numpy().tolist() for s in (0, 0, 1)]
    assert donors[0] == donors[1] != donors[2]


def test_batches_of_different_length_donate_to_each_other() -> None:
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, -1]

    batches = [double(1, 3, 1), double(1, 7, 1)]
    trace = measured(Last().double(), batches, time_axis=1)
    difference = float(batches[0][0, -1, 0] - batches[1][0, -1, 0])
    assert trace["excess_loss"].sel(kept=0).to_numpy() == pytest.approx([0.5 * difference**2] * 2)
    assert np.isnan(trace["reach"].to_numpy()[0]).tolist() == [False] * 3 + [True] * 4
    assert trace.attrs["sequence_length"] == 7


@pytest.mark.parametrize(("length", "points"), [(1, 5), (4, 5), (5, 5), (140, 16), (10000, 16)])
def test_the_grid_is_dense_at_first_and_ends_at_all(length: int, points: int) -> None:
    steps = grid(length, points)
    assert steps == sorted({*steps})
    assert (steps[0], steps[-1]) == (0, length)
    assert len(steps) <= points
    if length < points:
        assert steps == list(range(length + 1))
    elif length == 140:
        gaps = np.diff(steps)
        assert steps[:4] == [0, 1, 2, 3]
        assert (np.diff(gaps[:-1]) >= -1).all()
        assert len(steps) == points


def test_progress_is_reported_up_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    subject = Subject(Fir([0.0] * 30 + [1.0]), [double(5, 1, 200)])
    MemoryHorizon()(subject, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (24, 24)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 3
