"""Intervals at their edges: two samples, resamples without a total, a share of everything."""

import numpy as np
import pytest

from analyzer.statistics import Horizon, bootstrap_interval, horizon_interval


def test_two_samples_have_an_interval() -> None:
    assert bootstrap_interval([0.0, 1.0], np.mean) == (0.0, 1.0)
    excess = [[1.0, 0.5, 0.0], [1.0, 0.0, 0.0]]
    assert horizon_interval(excess, [0, 1, 2], 0.1) == Horizon(1.0, 0.0, 2.0)


@pytest.mark.parametrize("resamples", [1, 7])
def test_as_many_resamples_are_drawn_as_asked_for(resamples: int) -> None:
    drawn = 0

    def counted(values: np.ndarray, axis: int) -> np.ndarray:
        nonlocal drawn
        drawn += len(values)
        return values.mean(axis)

    bootstrap_interval([0.0, 1.0, 5.0], counted, resamples=resamples)
    assert drawn == resamples


def test_where_some_resamples_have_no_total_every_horizon_is_possible() -> None:
    below_zero = [[3.0, 2.0, 0.0], [-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]
    assert horizon_interval(below_zero, [0, 4, 8], 0.1) == Horizon(4.0, 0.0, 8.0)
    zero = [[0.0, 0.5, 0.0], [1.0, 0.5, 0.0]]
    assert horizon_interval(zero, [0, 4, 8], 0.1) == Horizon(4.0, 0.0, 8.0)


def test_a_number_that_costs_exactly_the_share_is_enough() -> None:
    excess = [[1.0, 0.25, 0.0]] * 3
    assert horizon_interval(excess, [0, 4, 8], 0.25) == Horizon(0.0, 0.0, 4.0)
