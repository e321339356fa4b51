"""Intervals of statistics of weighted samples, against drawing rows one by one."""

import numpy as np
import pytest

from analyzer.rules.resampling import interval, weights
from analyzer.statistics import COVERAGE, RESAMPLES

VALUES = np.random.default_rng(1).gamma(2, size=(30, 2))


def test_the_interval_is_that_of_the_resampled_means() -> None:
    random = np.random.default_rng(0)
    counts = random.multinomial(30, np.full(30, 1 / 30), RESAMPLES)
    means = np.sort([np.repeat(VALUES, count, 0).mean(0) for count in counts], 0)
    found = interval(lambda shares: shares @ VALUES, 30)
    inside = (means >= found[0]) & (means <= found[1])
    assert inside.mean(0) == pytest.approx([COVERAGE] * 2, abs=1 / RESAMPLES)
    below = (means < found[0]).mean(0)
    assert below == pytest.approx([(1 - COVERAGE) / 2] * 2, abs=1 / RESAMPLES)


def test_shares_add_up() -> None:
    assert weights(7).shape == (RESAMPLES, 7)
    assert weights(7).sum(1) == pytest.approx(np.ones(RESAMPLES))


def test_two_samples_have_an_interval_and_one_has_none() -> None:
    two = interval(lambda shares: shares @ VALUES[:2], 2)
    assert np.isfinite(two).all()
    one = interval(lambda shares: shares @ VALUES[:1], 1)
    assert np.isnan(one).all()
    assert one[0].shape == (2,)
