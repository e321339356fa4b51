"""Numbers of covariances and sums of positions, by hand and against numpy."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from probes.features.flow import owners
from probes.features.labels import Found
from probes.features.layers import Seen, by_sample, largest, recurrent
from probes.features.moments import Moments, independent
from probes.features.numbers import (
    CONSTANT,
    along,
    constant,
    copies,
    copies_of,
    correlation,
    directions,
    rank,
    spectrum,
    spread,
    twins,
    variances,
)
from probes.features.observation import _at_ends
from probes.recurrent.backward.cells import CLOSED, OPEN
from probes.recurrent.states.features import Draw
from probes.samples.layout import Layout


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def exact(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Directions


def test_variances_fall_and_their_directions_are_orthogonal() -> None:
    turn = torch.linalg.qr(double(4, 4))[0]
    matrix = turn @ torch.diag(exact(1, 9, 0, 4)) @ turn.T
    torch.testing.assert_close(variances(matrix), exact(9, 4, 1, 0), atol=1e-12, rtol=0)
    found = spectrum(matrix)
    torch.testing.assert_close(found.variances, exact(9, 4, 1, 0), atol=1e-12, rtol=0)
    rebuilt = found.directions @ torch.diag(found.variances) @ found.directions.T
    torch.testing.assert_close(rebuilt, matrix, atol=1e-12, rtol=0)
    others = torch.stack([2 * matrix, turn @ torch.diag(exact(5, 1, 7, 2)) @ turn.T])
    expected = torch.stack([2 * found.variances, exact(7, 5, 2, 1)])
    torch.testing.assert_close(along(others, found.directions), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("level", "count"), [(0.5, 1), (0.6, 2), (0.8, 2), (0.81, 3), (0.95, 3), (0.951, 4), (1.0, 4)]
)
def test_as_few_directions_as_hold_a_level(level: float, count: int) -> None:
    shares = exact(0.5, 0.3, 0.15, 0.05)
    assert directions(7 * shares, level).item() == count
    measures = spread(torch.stack([7 * shares, exact(0, 0, 0, 0)]), level)
    entropy = -float((shares * shares.log()).sum())
    expected = [count, math.exp(entropy), 1 / float(shares.square().sum())]
    assert measures[0].tolist() == pytest.approx(expected)
    assert measures[1].isnan().all()


@pytest.mark.parametrize(
    ("values", "count"),
    [([2, 1, 0], 2), ([0, 0], 0), ([1, 2e-10, 0.5e-10], 2), ([3], 1), ([0.5, 0.25], 2)],
)
def test_directions_beyond_rounding_are_counted(values: list[float], count: int) -> None:
    assert rank(exact(*values)) == count


# Units


def test_units_whose_deviation_is_rounding_beside_the_layer_are_constant() -> None:
    mean = exact(3, 0, 4)
    covariance = torch.diag(exact(1, 0, 2))
    scale = mean.square() + 1  # variances are 1 on average
    limit = CONSTANT**2 * scale
    still = torch.stack([torch.diag(exact(1, 0, 2)), torch.diag(exact(1, float(limit[1]) / 2, 2))])
    assert constant(mean, still).tolist() == [[False, True, False]] * 2
    covariance[1, 1] = 2 * limit[1]
    assert not constant(mean, covariance[None]).any()


def test_correlations_are_those_of_numpy_and_zero_for_what_does_not_vary() -> None:
    values = double(40, 4)
    values[:, 3] = 1
    covariance = torch.cov(values.T, correction=0)[None]
    still = torch.tensor([[False, False, True, False]])
    found = correlation(covariance, still)[0].numpy()
    expected = np.corrcoef(values[:, :2].numpy().T)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(found[:2, :2], expected, atol=1e-12)
    assert not found[2:].any()
    assert not found[:, 2:].any()


def linked(*pairs: tuple[int, int, float], units: int = 6) -> Tensor:
    """Correlations of some pairs of units."""
    matrix = torch.zeros(units, units, dtype=torch.float64)
    for one, other, value in pairs:
        matrix[one, other] = matrix[other, one] = value
    return matrix


def test_copies_of_copies_are_one_group_whatever_their_sign() -> None:
    matrix = linked((1, 4, -0.99), (4, 2, 0.98), (0, 5, 0.95), (3, 5, 0.5))
    assert twins(matrix, 0.95).tolist() == [0, 1, 1, 3, 1, 5]
    assert twins(matrix, 0.949).tolist() == [0, 1, 1, 3, 1, 0]
    assert twins(matrix, 0.999).tolist() == [*range(6)]
    assert copies(twins(matrix, 0.949)) == 3
    only = linked((0, 1, -0.99))
    matrices = torch.stack([matrix, only, linked(), linked((2, 3, 0.9))])
    assert copies_of(matrices, 0.9).tolist() == [3, 1, 0, 0]


# Sums of positions


def test_covariances_by_groups_are_those_of_numpy() -> None:
    """Seven samples in two calls, of three positions each, some of them padding; three groups."""
    values = double(7, 3, 2) + 5
    valid = torch.ones(7, 3, dtype=torch.bool)
    valid[2, 1:] = valid[5, 2] = False
    moments = Moments(3)
    moments.add(Seen(values[:4], valid[:4]), 0)
    moments.close()
    moments.add(Seen(values[4:], valid[4:]), 4)
    moments.close()
    groups = [at % 3 for at in range(7)]
    rows = [
        torch.cat([values[at][valid[at]] for at in range(7) if groups[at] == group])
        for group in range(3)
    ]

    def covariance(rows: list[Tensor]) -> Tensor:
        return torch.cov(torch.cat(rows).T, correction=0)

    pooled = moments.pooled()
    torch.testing.assert_close(pooled.mean, torch.cat(rows).mean(0))
    torch.testing.assert_close(pooled.whole, covariance(rows))
    without = [matrix for _, part in pooled.without() for matrix in part]
    for group, matrix in enumerate(without):
        torch.testing.assert_close(matrix, covariance(rows[:group] + rows[group + 1 :]))
    assert len(without) == 3
    torch.testing.assert_close(moments.pooled(slice(1, None)).whole, covariance(rows[1:]))
    assert moments.rows() == int(valid.sum())
    means = torch.stack([values[at][valid[at]].mean(0) for at in range(7)])
    assert moments.samples == 7
    assert moments.between() == pytest.approx(float(means.var(0).sum()))


def test_groups_and_samples_without_positions_are_left_out() -> None:
    values = double(4, 2, 3)
    valid = torch.tensor([[True, True], [False, False], [True, False], [True, True]])
    moments = Moments(4)
    moments.add(Seen(values, valid), 0)
    moments.close()
    assert moments.samples == 3
    assert moments.pooled().sums.counts.tolist() == [2, 1, 2]
    alone = Moments(1)
    alone.add(Seen(values), 0)
    assert not [*alone.pooled().without()]
    nothing = Moments(2)
    nothing.add(Seen(values, torch.zeros(4, 2, dtype=torch.bool)), 0)
    nothing.close()
    assert (nothing.rows(), nothing.samples) == (0, 0)
    with pytest.raises(ValueError, match=r"^a covariance of no positions$"):
        nothing.pooled()


def test_calls_of_one_pass_make_one_mean_of_a_sample() -> None:
    values = double(3, 4, 2)
    moments = Moments(1)
    moments.add(Seen(values[:, :1]), 0)
    moments.add(Seen(values[:, 1:]), 0)
    moments.close()
    assert moments.samples == 3
    assert moments.between() == pytest.approx(float(values.mean(1).var(0).sum()))


@pytest.mark.parametrize(
    ("means", "variance", "count"),
    [
        ([1.0, 1.0, 1.0], 4.0, 12),  # all samples alike: every position counts
        ([0.0, 1.0, 2.0], 2.0, 6),  # a mean varies by 1, a position by 2: two of a sample count
        ([0.0, 1.0, 2.0], 100.0, 12),
    ],
)
def test_positions_of_one_sample_count_as_few(
    means: list[float], variance: float, count: float
) -> None:
    values = exact(*means)[:, None, None] + exact(-1, 1, 1, -1)[None, :, None]
    moments = Moments(1)
    moments.add(Seen(values), 0)
    moments.close()
    assert independent(moments, variance) == pytest.approx(count)


def test_one_sample_counts_once() -> None:
    moments = Moments(1)
    assert independent(moments, 1.0) == 0
    moments.add(Seen(double(1, 5, 2)), 0)
    moments.close()
    assert independent(moments, 1.0) == 1


# Where samples and positions are


def test_samples_come_first_and_channels_last() -> None:
    output = torch.randn(4, 3, 5)
    first = by_sample(output, 1, Layout(4, 0, None, None))
    assert first is not None
    assert torch.equal(first, output.movedim(1, -1))
    second = by_sample(output, -1, Layout(3, 1, None, None))
    assert second is not None
    assert torch.equal(second, output.transpose(0, 1))
    elsewhere = by_sample(output, -1, Layout(3, 0, None, None))
    assert elsewhere is not None
    assert torch.equal(elsewhere, output.transpose(0, 1))
    assert by_sample(output, -1, Layout(7, 0, None, None)) is None
    first = by_sample(output, 1, Layout(4, 1, None, None))
    assert first is not None
    assert torch.equal(first, output.movedim(1, -1))
    # Channels are not samples.
    assert by_sample(torch.randn(4, 3), -1, Layout(3, 0, None, None)) is None
    assert by_sample(torch.randn(3), -1, Layout(3, 0, None, None)) is None


def test_positions_that_were_folded_into_the_batch_are_unfolded() -> None:
    values = torch.randn(3, 2, 5)  # sample, timestep, channel
    first = by_sample(values.flatten(0, 1), -1, Layout(3, 0, None, None))
    assert first is not None
    assert torch.equal(first, values)
    turned = by_sample(values.transpose(0, 1).flatten(0, 1), -1, Layout(3, 1, None, None))
    assert turned is not None
    assert torch.equal(turned, values)


def test_the_largest_value_leaves_padding_out() -> None:
    values = torch.tensor([[[1.0, 5.0], [3.0, 2.0]], [[4.0, 4.0], [9.0, 9.0]]])
    padded = Layout(2, 0, 2, torch.tensor([2, 1]))
    assert largest(values, padded).tolist() == [[3, 5], [4, 4]]
    assert largest(values, Layout(2, 0, 2, None)).tolist() == [[3, 5], [9, 9]]
    assert largest(values[:, 0], padded).tolist() == [[1, 5], [4, 4]]
    maps = values[:, :, None]
    assert largest(maps, padded).tolist() == [[3, 5], [9, 9]]


@pytest.mark.parametrize(("most", "positions"), [(4, 4), (9, 4), (3, 3)])
def test_timesteps_of_a_recurrent_layer_are_drawn_only_where_there_are_more(
    most: int, positions: int
) -> None:
    y = torch.arange(4.0)[:, None, None] + 10 * torch.arange(2.0)[:, None]
    draw = Draw.of(2, most, torch.Generator().manual_seed(0))
    seen = recurrent(y, torch.tensor([4, 2]), draw)
    assert seen.values.shape == (2, positions, 1)
    assert seen.valid is not None
    at = seen.values[..., 0] % 10
    assert torch.equal(seen.valid, at < torch.tensor([4, 2])[:, None])
    assert (seen.values[..., 0] // 10).tolist() == [[0] * positions, [1] * positions]
    assert recurrent(y, torch.tensor([4, 4]), draw).valid is None


# What is told of a layer


def test_weights_belong_to_layers_and_cells_have_one() -> None:
    model = nn.ModuleDict(
        {
            "cell": nn.LSTMCell(2, 3),
            "rnn": nn.LSTM(2, 3, 2, bidirectional=True),
            "fc": nn.Linear(3, 2),
        }
    )
    found = owners(model)
    names = {name: found.get(id(weight)) for name, weight in model.named_parameters()}
    assert names["cell.weight_ih"] == names["cell.weight_hh"] == "cell.l0"
    assert names["rnn.weight_hh_l0"] == names["rnn.weight_ih_l0_reverse"] == "rnn.l0"
    assert names["rnn.weight_ih_l1"] == names["rnn.weight_hh_l1_reverse"] == "rnn.l1"
    assert names["fc.weight"] == "fc"


@pytest.mark.parametrize(("low", "closed"), [(0.0, CLOSED), (-1.0, -OPEN)])
def test_the_time_at_either_end_is_a_share_of_what_is_no_padding(low: float, closed: float) -> None:
    below, above = closed - 0.01, OPEN + 0.01
    values = torch.tensor([[[below, 0.4], [above, above], [above, 0.4], [below, below]]])
    padded = _at_ends(Seen(values, torch.tensor([[True, True, True, False]])), low)
    torch.testing.assert_close(padded, torch.tensor([[[1.0, 0.0], [2.0, 1.0]]]) / 3)
    whole = _at_ends(Seen(values), low)
    torch.testing.assert_close(whole, torch.tensor([[[2.0, 1.0], [2.0, 1.0]]]) / 4)


def test_a_layer_ran_that_was_summed_up_kept_apart_or_read() -> None:
    observed: Any = SimpleNamespace(apart={"b"}, reads={"c": {"a"}})
    summaries: Any = {"a": None}
    assert Found(observed, summaries, {}, 9, 3).seen == {"a", "b", "c"}
