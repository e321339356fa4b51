"""Decisions, drawn samples and places of inputs, by hand."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from probes.base import Batch, Subject
from probes.decision.flow import Part, parts_of
from probes.decision.places import PADDING, Anywhere, Grid, Timeline, by_place
from probes.decision.samples import Draw
from probes.decision.score import Decision, classifies, describe
from probes.decision.source import Source, means
from probes.errors import AnalyzerError, NotApplicable


def subject(*batches: Any, loss: Any = None, **rest: Any) -> Subject:
    return Subject(nn.Identity(), batches, loss, **rest)


# The decision


@pytest.mark.parametrize(
    ("loss", "classes"),
    [
        ("cross_entropy", True),
        ("nll_loss", True),
        (nn.CrossEntropyLoss(), True),
        (nn.NLLLoss(), True),
        ("mse_loss", False),
        (nn.MSELoss(), False),
        (None, False),
    ],
)
def test_which_losses_decide_between_classes(loss: Any, classes: bool) -> None:
    assert classifies(subject(loss=loss)) is classes
    assert describe(subject(loss=loss)).startswith("log-odds" if classes else "the output, along")


def test_the_decision_for_a_class_is_its_log_odds() -> None:
    now, later = torch.randn(2, 4, 3, dtype=torch.float64)
    decision = Decision.of(subject(loss="cross_entropy"), now, later)
    chance = later.softmax(1).gather(1, now.argmax(1)[:, None])[:, 0]
    torch.testing.assert_close(decision.score(later), (chance / (1 - chance)).log())


def test_any_other_decision_is_the_projection_on_the_change() -> None:
    now = torch.tensor([[3.0, 4.0], [1.0, 2.0], [-2.0, 0.0]], dtype=torch.float64)
    baseline = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    decision = Decision.of(subject(), now, baseline)
    assert decision.direction.tolist() == [[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0]]  # type: ignore[union-attr]
    other = torch.tensor([[5.0, -5.0], [1.0, 1.0], [2.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(
        decision.score(other), torch.tensor([-1.0, 0.0, -2.0], dtype=torch.float64)
    )


# Drawn samples


def drawn(found: Draw) -> list[list[float]]:
    return [piece.inputs[..., 0].tolist() for piece in found.pieces()]  # type: ignore[index]


def test_all_samples_are_drawn_where_there_are_few_and_in_pieces() -> None:
    batches = [torch.arange(start, stop)[:, None].float() for start, stop in ((0, 3), (3, 8))]
    found = Draw.of(subject(*batches), 100, 2)
    assert found.total == 8
    assert drawn(found) == [[0, 1], [2], [3, 4], [5, 6], [7]]


def test_some_samples_are_drawn_at_random_in_their_order() -> None:
    batches = [torch.arange(start, start + 10)[:, None].float() for start in range(0, 100, 10)]
    chosen = [number for piece in drawn(Draw.of(subject(*batches), 12, 4)) for number in piece]
    assert len(chosen) == len({*chosen}) == 12
    assert chosen == sorted(chosen)
    assert chosen != [*range(12)]
    order = torch.randperm(100, generator=subject().generator())
    assert chosen == sorted(order[:12].tolist())


def test_samples_are_cut_out_of_whatever_has_them() -> None:
    packed = pack_padded_sequence(torch.arange(12.0).view(3, 4, 1), torch.tensor([2, 4, 3]),
                                  batch_first=True, enforce_sorted=False)  # fmt: skip
    (piece,) = Draw(subject(packed), torch.tensor([0, 2]), 3, 5).pieces()
    padded, lengths = pad_packed_sequence(piece.inputs, batch_first=True)  # type: ignore[arg-type]
    assert lengths.tolist() == [2, 3]
    assert padded[..., 0].tolist() == [[0, 1, 0], [8, 9, 10]]
    x = torch.arange(6.0).view(2, 3)  # two timesteps of three samples
    inputs = {"x": x, "table": torch.arange(2.0), "other": torch.ones(2, 2), "name": "a"}
    batch = Batch(inputs, None, torch.tensor([1, 2, 2]))
    (piece,) = Draw(subject(batch, batch_axis=1), torch.tensor([0, 2]), 3, 5).pieces()
    assert piece.inputs["x"].tolist() == [[0, 2], [3, 5]]  # type: ignore[index, call-overload]
    assert piece.inputs["table"] is inputs["table"]  # type: ignore[index, call-overload]
    assert piece.inputs["other"].shape == (2, 2)  # type: ignore[index, call-overload]
    assert piece.lengths.tolist() == [1, 2]  # type: ignore[union-attr]


def test_nothing_can_be_drawn_from_nothing() -> None:
    with pytest.raises(AnalyzerError) as raised:
        Draw.of(subject(torch.empty(0, 2)), 4, 2)
    assert str(raised.value) == "there is no sample to measure on: the data is empty"


# Where samples and channels are in what a layer returns


def found(module: nn.Module, *inputs: Tensor, axis: int = 0) -> list[tuple[int, int]]:
    """Axes of samples and of channels in all that a layer returns for five samples."""
    parts = parts_of(module, module(*inputs), 5, axis)
    return [(part.samples, part.channels) for _, part in parts]  # type: ignore[union-attr]


@pytest.mark.parametrize(("first", "axis"), [(True, 0), (False, 1)])
def test_as_many_timesteps_and_layers_as_samples_are_told_apart(first: bool, axis: int) -> None:
    x = torch.randn(5, 5, 4)
    assert found(nn.LSTM(4, 3, 5, batch_first=first), x) == [(axis, 2), (1, 2), (1, 2)]
    attention = nn.MultiheadAttention(4, 1, batch_first=first)
    assert found(attention, x, x, x) == [(axis, 2), (0, 2)]
    assert found(nn.Linear(4, 3), x, axis=axis) == [(axis, 2)]


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_channels_of_convolutions_come_before_positions(axes: int) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    assert found(kind(2, 3, 1), torch.randn(5, 2, *[4] * axes)) == [(0, 1)]


def test_a_layer_that_mixes_the_samples_is_not_taken_apart() -> None:
    x = torch.randn(5, 3)
    both = parts_of(nn.Identity(), (x, torch.arange(5)), 5, 0)
    assert [values is x for values, _ in both] == [True]
    assert not parts_of(nn.Identity(), (x, x.mean(0)), 5, 0)


def test_numbers_are_ordered_by_sample_position_and_channel() -> None:
    values = torch.randn(4, 5, 3, 2)
    assert torch.equal(Part(1, 2).rows(values)[3, 5], values[2, 3, :, 1])
    assert torch.equal(Part(0, 0).rows(torch.arange(5)), torch.arange(5).view(5, 1, 1))
    padded, lengths = torch.randn(2, 3, 4), torch.tensor([1, 3])
    packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
    ((data, part),) = parts_of(nn.Identity(), packed, 2, 0)
    rows = part.rows(data)
    assert torch.equal(rows[1], padded[1])
    assert torch.equal(rows[0], torch.cat([padded[0, :1], torch.zeros(2, 4)]))


# Places


def test_lags_count_back_from_the_end_of_each_sample() -> None:
    batch = Batch(torch.randn(2, 4, 3), None, torch.tensor([2, 4]))
    place = Timeline(subject(batch, time_axis=1), 1)
    index = place.index(batch, batch.inputs, None)  # type: ignore[arg-type]
    assert index.tolist() == [[1, 0, PADDING, PADDING], [3, 2, 1, 0]]
    assert place.fits(torch.empty(2, 4), batch)
    assert place.fits(torch.empty(2, 4, 7), batch)
    assert not place.fits(torch.empty(2, 3), batch)
    assert not place.fits(torch.empty(4, 2), batch)
    summed = by_place(index, torch.tensor([[1.0, 2, 4, 8], [16, 32, 64, 128]]), 5)
    assert summed.tolist() == [[2, 1, 0, 0, 0], [128, 64, 32, 16, 0]]


def test_features_of_a_timestep_are_put_together_and_spread_again() -> None:
    place, value = Timeline(subject(), 1), torch.randn(2, 4, 3, 5)
    assert place.positions(value).shape == (2, 4, 15)
    assert place.positions(value[..., 0, 0]).shape == (2, 4, 1)
    numbers = torch.randn(2, 4)
    assert torch.equal(place.spread(numbers, value)[:, :, 2, 1], numbers)
    assert torch.equal(place.spread(numbers, value[..., 0, 0]), numbers)
    features = torch.randn(15)
    assert torch.equal(place.from_features(features, value)[1, 3], features.view(3, 5))


@pytest.mark.parametrize(
    ("size", "count", "rings"),
    [
        (5, None, [2, 1, 0, 1, 2]),
        (4, None, [1, 0, 0, 1]),
        (6, 3, [2, 1, 0, 0, 1, 2]),
        (6, 2, [4, 3, 2, 1, 0, 1]),
        (6, 6, [3, 2, 1, 0, 1, 2]),
    ],
)
def test_rings_about_what_the_central_output_is_centred_on(
    size: int, count: int | None, rings: list[int]
) -> None:
    batch = Batch(torch.randn(2, 3, 1, size))
    place = Grid(subject(batch), 2)
    outputs = torch.randn(2, 7) if count is None else torch.randn(2, 7, 1, count)
    index = place.index(batch, batch.inputs, outputs)  # type: ignore[arg-type]
    assert index.tolist() == [rings, rings]
    units = place.units(outputs, batch)
    expected = outputs if count is None else outputs[:, :, 0, count // 2]
    assert torch.equal(units, expected)


def test_rings_are_square() -> None:
    batch = Batch(torch.randn(1, 1, 3, 5))
    index = Grid(subject(batch), 2).index(batch, batch.inputs, torch.randn(1, 2))  # type: ignore[arg-type]
    assert index.view(3, 5).tolist() == [[2, 1, 1, 1, 2], [2, 1, 0, 1, 2], [2, 1, 1, 1, 2]]


def test_channels_of_a_position_are_put_together_and_spread_again() -> None:
    batch = Batch(torch.randn(2, 3, 4, 5))
    place, value = Grid(subject(batch), 2), batch.inputs
    assert isinstance(value, Tensor)
    assert torch.equal(place.positions(value)[1, 7], value[1, :, 1, 2])
    assert place.positions(value[:, 0]).shape == (2, 20, 1)
    numbers = torch.randn(2, 20)
    assert torch.equal(place.spread(numbers, value)[1, 2], numbers[1].view(4, 5))
    assert torch.equal(place.spread(numbers, value[:, 0])[1], numbers[1].view(4, 5))
    features = torch.randn(3)
    assert torch.equal(place.from_features(features, value)[1, :, 2, 3], features)
    assert place.fits(torch.empty(2, 4, 5), batch)
    assert not place.fits(torch.empty(4, 5), batch)
    assert not place.fits(torch.empty(2, 3, 5, 4), batch)
    with pytest.raises(NotApplicable):
        place.units(torch.randn(2, 3, 4), batch)


def test_inputs_without_places_are_one() -> None:
    place, value = Anywhere(subject()), torch.randn(2, 3, 4)
    batch = Batch(value)
    assert place.index(batch, value, None).tolist() == [[0], [0]]
    assert place.positions(value).shape == (2, 1, 12)
    numbers = torch.randn(2, 1)
    assert torch.equal(place.spread(numbers, value), numbers[:, :, None].expand(2, 3, 4))
    assert torch.equal(place.from_features(torch.arange(12), value)[1], torch.arange(12).view(3, 4))
    assert torch.equal(Anywhere(subject(batch)).units(value[:, 0], batch), value[:, 0])


# What is attributed to


def sources(*batches: Batch) -> Iterator[Source]:
    own = subject(*batches, time_axis=1)
    for batch in batches:
        yield Source.of(own, batch, Timeline(own, 1))


def test_a_baseline_is_the_mean_of_each_feature_over_all_that_is_no_padding() -> None:
    first, second = torch.randn(2, 4, 3), torch.randn(1, 2, 3)
    batches = Batch(first, None, torch.tensor([2, 4])), Batch(second)
    (mean,) = means(sources(*batches), "mean")
    valid = torch.cat([first[0, :2], first[1], second[0]]).double()
    torch.testing.assert_close(mean, valid.mean(0))
    (zero,) = means(sources(*batches), "zero")
    assert zero.tolist() == [0, 0, 0]


def test_samples_of_other_features_have_no_baseline_in_common() -> None:
    with pytest.raises(NotApplicable) as raised:
        means(sources(Batch(torch.randn(2, 4, 3)), Batch(torch.randn(2, 4, 5))), "mean")
    assert str(raised.value) == ("samples have 3 and 5 features: no baseline can stand in for both")


def test_a_baseline_fills_all_but_padding() -> None:
    batch = Batch(torch.randn(2, 3, 2), None, torch.tensor([1, 3]))
    (source,) = sources(batch)
    (filled,) = source.baselines([torch.tensor([7.0, 9.0])], source.index())
    assert filled[0, :1].tolist() == [[7, 9]]
    assert torch.equal(filled[0, 1:], source.leaves[0][0, 1:])
    assert filled[1].tolist() == [[7, 9]] * 3
