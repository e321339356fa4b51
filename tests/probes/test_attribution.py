"""Attribution of linear networks in closed form, and of others against plain autograd."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from probes.attribution import Attribution
from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable

CLOSE = 1e-6
"""Captum holds the weights of its points in single precision."""


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def measured(model: nn.Module, batches: Any, loss: Any = None, **rest: Any) -> xr.Dataset:
    names = {"steps", "baseline", "windows", "samples", "chunk"} & {*rest}
    settings = {name: rest.pop(name) for name in names}
    return Attribution(**settings)(Subject(model, batches, loss, **rest))


class Weighted(nn.Module):
    """Weighted sum over time and features, (B, T, F) -> (B, 1)."""

    def __init__(self, weight_TF: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_TF)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(1, keepdim=True)


class Fir(nn.Module):
    """Causal convolution whose first tap is the latest input; (B, 1, T) -> (B, 1, T)."""

    def __init__(self, taps: list[float]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, len(taps), bias=False)
        self.conv.weight.data = torch.tensor(taps[::-1], dtype=torch.float64)[None, None]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(functional.pad(x, (self.conv.kernel_size[0] - 1, 0)))
        return y


class Classifier(nn.Module):
    """Recurrent classifier of the last valid timestep."""

    def __init__(self, features: int = 2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, 5, 2, batch_first=True)
        self.head = nn.Linear(5, 3)
        self.double()

    def forward(self, x: Tensor | PackedSequence) -> Tensor:
        _, (h, _) = self.lstm(x)
        logits: Tensor = self.head(h[-1])
        return logits


def log_odds(logits: Tensor, choice: Tensor) -> Tensor:
    odds = logits.softmax(1).gather(1, choice[:, None])[:, 0]
    return (odds / (1 - odds)).log()


def riemann(
    score: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor, steps: int = 250
) -> Tensor:
    """Integrated gradients by the midpoint rule."""
    total = torch.zeros_like(x)
    for step in range(steps):
        at = (baseline + (step + 0.5) / steps * (x - baseline)).requires_grad_()
        total += torch.autograd.grad(score(at).sum(), at)[0]
    return total / steps * (x - baseline)


@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_a_linear_model_is_attributed_weight_times_distance_from_the_baseline(
    baseline: str,
) -> None:
    x, weight = double(7, 6, 2) + 3, double(6, 2)
    trace = measured(Weighted(weight), [x[:4], x[4:]], time_axis=1, baseline=baseline, windows=6)
    start = x.mean((0, 1)) if baseline == "mean" else torch.zeros(2, dtype=torch.float64)
    parts = (x - start) * weight
    # The direction of a single output is its sign: the decision is what it moved by.
    sign = parts.sum((1, 2)).sign()[:, None, None]
    expected = (sign * parts).flip(1)
    contribution = trace["contribution"].to_numpy()
    assert contribution == pytest.approx(expected.sum(2).numpy(), rel=CLOSE)
    assert trace["magnitude"].to_numpy() == pytest.approx(expected.abs().sum(2).numpy(), rel=CLOSE)
    difference = trace["difference"].to_numpy()
    assert difference == pytest.approx(parts.sum((1, 2)).abs().numpy())
    assert trace["delta"].to_numpy() == pytest.approx(np.zeros(7), abs=1e-5)
    assert trace["start"].to_numpy().tolist() == list(range(6))
    assert trace["occlusion"].to_numpy() == pytest.approx(contribution, rel=1e-5)
    assert trace.attrs == {
        "decision": "the output, along its change from the baseline to the sample",
        "baseline": baseline,
        "steps": 64,
        "audit_samples": 7,
        "extent": 6,
    }


def test_a_causal_filter_draws_on_its_kernel_alone() -> None:
    x = double(5, 1, 12)
    trace = measured(Fir([1.0, -2.0, 0.0, 3.0]), [x], baseline="zero")
    expected = np.zeros((5, 12))
    expected[:, :4] = (x[:, 0, -4:].flip(1) * torch.tensor([1.0, -2.0, 0.0, 3.0])).abs().numpy()
    assert trace["magnitude"].to_numpy() == pytest.approx(expected, rel=CLOSE)


def test_windows_are_shorter_towards_the_end_and_cover_everything() -> None:
    trace = measured(Fir([1.0, 0.5]), [double(3, 1, 100)], windows=12)
    start, stop = trace["start"].to_numpy(), trace["stop"].to_numpy()
    assert start[0] == 0
    assert stop[-1] == 100
    assert (start[1:] == stop[:-1]).all()
    assert stop[0] == 1
    assert (stop - start).max() == 17
    assert 6 <= len(start) <= 12


def test_a_recurrent_classifier_agrees_with_plain_autograd() -> None:
    model, x = Classifier(), double(6, 9, 2)
    trace = measured(model, [x], "cross_entropy", windows=9)
    choice = model(x).argmax(1)
    start = x.mean((0, 1)).expand_as(x)
    found = riemann(lambda at: log_odds(model(at), choice), x, start).flip(1)
    assert trace["contribution"].to_numpy() == pytest.approx(
        found.sum(2).numpy(), abs=2e-5 * float(found.abs().max())
    )
    change = (log_odds(model(x), choice) - log_odds(model(start), choice)).detach().numpy()
    assert trace["difference"].to_numpy() == pytest.approx(change)
    assert trace["contribution"].sum("lag").to_numpy() == pytest.approx(
        change + trace["delta"].to_numpy()
    )
    assert abs(trace["delta"]).max() < 1e-6
    assert trace.attrs["decision"] == "log-odds of the model's own most probable class"


def test_occlusion_is_the_score_less_that_with_the_window_at_the_baseline() -> None:
    model, x = Classifier(), double(4, 11, 2)
    trace = measured(model, [x], "cross_entropy", windows=4, steps=2, baseline="zero")
    choice = model(x).argmax(1)
    intact = log_odds(model(x), choice)
    for window in range(trace.sizes["window"]):
        start, stop = int(trace["start"][window]), int(trace["stop"][window])
        changed = x.clone()
        changed[:, 11 - stop : 11 - start] = 0
        expected = (intact - log_odds(model(changed), choice)).detach().numpy()
        assert trace["occlusion"][:, window].to_numpy() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("steps", [2, 8, 32])
def test_the_delta_is_what_contributions_miss(steps: int) -> None:
    model, x = Classifier(), 4 * double(6, 9, 2)
    trace = measured(model, [x], "cross_entropy", steps=steps)
    missed = trace["contribution"].sum("lag") - trace["difference"]
    assert trace["delta"].to_numpy() == pytest.approx(missed.to_numpy(), abs=1e-9)


def test_more_steps_miss_less() -> None:
    model, x = Classifier(), 4 * double(6, 9, 2)
    missed = [
        float(abs(measured(model, [x], "cross_entropy", steps=steps)["delta"]).sum())
        for steps in (1, 4, 16)
    ]
    assert missed[0] > 10 * missed[1] > 100 * missed[2]


def test_lags_count_from_the_last_valid_timestep_and_padding_is_worth_nothing() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            valid = torch.arange(x.shape[1]) < lengths[:, None]
            return (x[..., 0] * valid * torch.arange(1.0, 7.0)).sum(1, keepdim=True)

    x, lengths = double(3, 6, 1), torch.tensor([6, 2, 4])
    x[1, 2:], x[2, 4:] = torch.nan, 1e6
    batch = Batch((x.nan_to_num(0), lengths), lengths=lengths)
    trace = measured(Mean(), [batch], time_axis=1, windows=6)
    valid = [x[row, :length, 0] for row, length in enumerate(lengths.tolist())]
    mean = torch.cat(valid).mean()
    for row, values in enumerate(valid):
        parts = ((values - mean) * torch.arange(1.0, len(values) + 1)).flip(0)
        expected = np.zeros(6)
        expected[: len(parts)] = (parts * parts.sum().sign()).numpy()
        assert trace["contribution"][row].to_numpy() == pytest.approx(expected, abs=1e-6)
        assert trace["positions"][row].sum() == len(values)
        occlusion = trace["occlusion"][row].to_numpy()
        assert np.isnan(occlusion).tolist() == [lag >= len(values) for lag in range(6)]


def test_padding_stays_as_it_is_where_the_model_reads_it() -> None:
    x, lengths = double(3, 6, 1) + 2, torch.tensor([6, 2, 4])
    trace = measured(
        Weighted(torch.ones(6, 1).double()), [Batch(x, lengths=lengths)], time_axis=1, windows=6
    )
    difference = trace["difference"].to_numpy()
    assert trace["contribution"].sum("lag").to_numpy() == pytest.approx(difference, rel=1e-5)
    occlusion = trace["occlusion"].sum("window").to_numpy()
    assert occlusion == pytest.approx(difference, rel=1e-5)


def test_a_model_may_change_its_inputs_in_place() -> None:
    class InPlace(Weighted):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(3))

    x, weight = double(4, 5, 1), double(5, 1)
    kept = x.clone()
    first = measured(InPlace(weight), [x], time_axis=1)
    assert torch.equal(x, kept)
    other = measured(Weighted(3 * weight), [x], time_axis=1)
    xr.testing.assert_allclose(first, other)


def test_packed_sequences_are_attributed_like_padded_ones() -> None:
    model, x, lengths = Classifier(), double(4, 7, 2), torch.tensor([3, 7, 1, 5])

    class Packing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            y: Tensor = self.inner(packed)
            return y

    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    first = measured(model, [packed], "cross_entropy")
    other = measured(
        Packing(), [Batch((x, lengths), lengths=lengths)], "cross_entropy", time_axis=1
    )
    for name in ("contribution", "occlusion", "difference"):
        assert first[name].to_numpy() == pytest.approx(other[name].to_numpy(), nan_ok=True)


def test_time_first_inputs_give_the_same() -> None:
    class TimeFirst(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x.transpose(0, 1))
            return y

    model, x = Classifier(), double(5, 8, 2)
    first = measured(model, [x], "cross_entropy")
    other = measured(
        TimeFirst(model), [x.transpose(0, 1)], "cross_entropy", batch_axis=1, time_axis=0
    )
    xr.testing.assert_allclose(first, other)


@pytest.mark.parametrize("axis", [0, 1])
def test_integer_inputs_are_attributed_to_at_the_embedding(axis: int) -> None:
    class Bag(nn.Module):
        def __init__(self, axis: int) -> None:
            super().__init__()
            self.axis = axis
            self.embed = nn.Embedding(9, 3)
            self.place = nn.Embedding(5, 3)
            self.weight = nn.Parameter(torch.randn(5, 3))
            self.double()

        def forward(self, tokens: Tensor) -> Tensor:
            vectors = self.embed(tokens).movedim(self.axis, 0) + self.place(torch.arange(5))
            return (vectors * self.weight).sum((1, 2))[:, None]

    model, tokens = Bag(axis), torch.randint(9, (6, 5))
    batches = [part.movedim(0, axis) for part in (tokens[:2], tokens[2:])]
    trace = measured(model, batches, batch_axis=axis)
    vectors = model.embed(tokens).detach()
    parts = ((vectors - vectors.mean((0, 1))) * model.weight.detach()).sum(2)
    expected = parts * parts.sum(1, keepdim=True).sign()
    assert trace["contribution"].to_numpy() == pytest.approx(expected.flip(1).numpy(), rel=1e-5)


class Flat(nn.Module):
    """Linear in all pixels; the convolution passes them on."""

    def __init__(self, weight_CYX: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1, bias=False).double()
        self.conv.weight.data = torch.eye(2, dtype=torch.float64)[:, :, None, None]
        self.weight = nn.Parameter(weight_CYX)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) * self.weight).flatten(1).sum(1, keepdim=True)


def test_images_are_attributed_by_distance_from_the_centre() -> None:
    x, weight = double(4, 2, 5, 8), double(2, 5, 8)
    trace = measured(Flat(weight), [x], windows=4)
    parts = (x - x.mean((0, 2, 3), keepdim=True)) * weight
    parts = parts * parts.sum((1, 2, 3), keepdim=True).sign()
    expected = np.zeros((4, 4))
    for row in range(5):
        for column in range(8):
            ring = int(max(abs(row - 2), abs(column - 3.5)))
            expected[:, ring] += parts[:, :, row, column].sum(1).numpy()
    assert trace["distance"].to_numpy().tolist() == [0, 1, 2, 3]
    assert trace["contribution"].to_numpy() == pytest.approx(expected, rel=1e-5)
    assert trace["occlusion"].to_numpy() == pytest.approx(expected, rel=1e-5)
    assert trace["positions"][0].to_numpy().tolist() == [2, 10, 18, 10]


def test_images_may_be_changed_in_place() -> None:
    class InPlace(Flat):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(3))

    x, weight = double(3, 2, 6, 6), double(2, 6, 6)
    xr.testing.assert_allclose(measured(InPlace(weight), [x]), measured(Flat(3 * weight), [x]))


def test_maps_are_attributed_around_their_central_unit() -> None:
    model = nn.Conv2d(1, 3, 3, stride=2, padding=1).double()
    x = double(3, 1, 9, 9)
    trace = measured(model, [x])
    magnitude = trace["magnitude"].to_numpy()
    # The central one of 5 x 5 units is at pixel 4 and sees one pixel around it.
    assert (magnitude[:, :2] > 0).all()
    assert (magnitude[:, 2:] == 0).all()
    assert trace["positions"][0].to_numpy().tolist() == [1, 8, 16, 24, 32]


def test_the_central_unit_of_an_even_map_is_not_the_centre_of_the_image() -> None:
    trace = measured(nn.Conv2d(1, 2, 4, stride=4).double(), [double(3, 1, 16, 16)])
    # The third of four units reads the pixels 8 to 11.
    assert (trace["magnitude"][:, :2] > 0).all()
    assert (trace["magnitude"][:, 2:] == 0).all()


def test_per_position_outputs_are_decided_at_the_last_valid_position() -> None:
    x, lengths = double(3, 1, 8), torch.tensor([8, 5, 3])
    trace = measured(Fir([1.0, 2.0]), [Batch(x, lengths=lengths)], baseline="zero")
    for row, length in enumerate(lengths.tolist()):
        expected = np.zeros(8)
        expected[:2] = abs(x[row, 0, [length - 1, length - 2]].numpy() * [1.0, 2.0])
        assert trace["magnitude"][row].to_numpy() == pytest.approx(expected, rel=CLOSE)


def test_samples_are_drawn_from_everywhere_and_do_not_depend_on_the_batches() -> None:
    x = double(50, 6, 1)
    model = Weighted(double(6, 1))
    first = measured(model, [x[:20], x[20:]], time_axis=1, samples=9, baseline="zero")
    other = measured(
        model, [x[:3], x[3:48], x[48:]], time_axis=1, samples=9, chunk=2, baseline="zero"
    )
    drawn = first["sample"].to_numpy()
    assert len({*drawn.tolist()}) == 9
    assert drawn.max() > 30
    assert first.attrs["audit_samples"] == 50
    expected = (x[drawn.tolist()] * model.weight).detach()[..., 0].flip(1)
    signs = expected.sum(1, keepdim=True).sign()
    assert first["contribution"].to_numpy() == pytest.approx((signs * expected).numpy(), rel=CLOSE)
    xr.testing.assert_allclose(first, other)


def test_a_hybrid_reads_from_the_recurrent_part_through_the_convolution() -> None:
    class Hybrid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 3, 3, padding=1)
            self.gru = nn.GRU(3, 4, batch_first=True, bidirectional=True)
            self.head = nn.Linear(8, 2)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            states = self.gru(self.conv(x).transpose(1, 2))[0]
            y: Tensor = self.head(states.mean(1))
            return y

    model, x = Hybrid(), double(3, 1, 10)
    trace = measured(model, [x], "cross_entropy")
    choice = model(x).argmax(1)
    found = riemann(lambda at: log_odds(model(at), choice), x, x.mean().expand_as(x))
    assert trace["contribution"].to_numpy() == pytest.approx(found[:, 0].flip(1).numpy(), abs=1e-6)


def test_an_input_without_time_keeps_its_value() -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return (x[..., 0] * gate).sum(1, keepdim=True)

    x, gate = double(4, 5, 1), double(4, 1)
    trace = measured(Gated(), [((x, gate), None)], time_axis=1, baseline="zero")
    parts = (x[..., 0] * gate).flip(1)
    expected = parts * parts.sum(1, keepdim=True).sign()
    assert trace["contribution"].to_numpy() == pytest.approx(expected.numpy(), rel=CLOSE)


def test_a_model_that_ignores_its_input_is_attributed_nothing() -> None:
    class Constant(Weighted):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_ones(len(x), 1) * self.weight.sum() + 0 * x.sum()

    trace = measured(Constant(double(3, 1)), [double(4, 3, 1)], time_axis=1)
    assert (trace["magnitude"] == 0).all()
    assert (trace["difference"] == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"samples": 0},
            "attribution needs samples, steps and chunk >= 1 and windows >= 2: they are 0, 64, 64 "
            "and 24",
        ),
        (
            {"windows": 1},
            "attribution needs samples, steps and chunk >= 1 and windows >= 2: they are 32, 64, 64 "
            "and 1",
        ),
        ({"baseline": "noise"}, "attribution has no baseline 'noise': use mean or zero"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AnalyzerError) as raised:
        measured(Fir([1.0]), [double(2, 1, 5)], **settings)
    assert str(raised.value) == message


def refused(model: nn.Module, x: Tensor, **rest: Any) -> str:
    with pytest.raises(NotApplicable) as raised:
        measured(model, [x], **rest)
    return str(raised.value)


def test_inputs_without_time_and_image_are_refused() -> None:
    assert refused(nn.Linear(5, 2), torch.randn(3, 5)) == (
        "the inputs (3, 5) have no time axis that can be told: the model has no recurrent, 1-D "
        "convolutional or attention layer; if time is there, set time_axis to the axis of the "
        "inputs along which time runs; nor are they images read by convolutions alone"
    )


def test_integers_without_an_embedding_are_refused() -> None:
    class Counting(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens.sum(1, keepdim=True).float()

    assert refused(Counting(), torch.randint(5, (3, 4))) == (
        "there is nothing to attribute a decision to: the inputs are integers, and no "
        "torch.nn.Embedding returns one entry for each of them"
    )


def test_outputs_that_are_no_map_of_the_image_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(2))
    assert refused(model, torch.randn(2, 1, 6, 6)) == (
        "which output belongs to which part of the image cannot be told: the outputs are "
        "(2, 4, 16), neither one for the image nor a map of it"
    )


def test_a_model_that_detaches_is_an_error() -> None:
    class Detached(Fir):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(AnalyzerError) as raised:
        measured(Detached([1.0]), [double(2, 1, 5)])
    assert str(raised.value) == (
        "the decision has no gradient with respect to the inputs: the model runs under "
        "torch.no_grad, or detaches its result"
    )


def test_a_single_sample_and_a_single_timestep_are_measured() -> None:
    trace = measured(Weighted(double(1, 2)), [double(1, 1, 2)], time_axis=1, baseline="zero")
    assert trace.sizes["window"] == 1
    assert trace["contribution"].to_numpy() == pytest.approx(
        trace["difference"].to_numpy()[:, None]
    )


def test_padding_of_packed_outputs_is_not_the_last_position() -> None:
    class Cumulative(nn.Module):
        def forward(self, packed: PackedSequence) -> PackedSequence:
            padded, lengths = pad_packed_sequence(packed, batch_first=True)
            return pack_padded_sequence(
                padded.cumsum(1), lengths, batch_first=True, enforce_sorted=False
            )

    x, lengths = double(2, 4, 1), torch.tensor([2, 4])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    trace = measured(Cumulative(), [packed], baseline="zero")
    expected = [float(x[row, :length, 0].sum().abs()) for row, length in enumerate([2, 4])]
    assert trace["difference"].to_numpy() == pytest.approx(expected)
