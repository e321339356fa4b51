"""Jackknife intervals against the formulas of a mean, and against their coverage."""

import numpy as np
import pytest
from scipy.stats import t as student

from analyzer.rules.jackknife import jackknife_interval

RNG = np.random.default_rng(4)


def test_the_interval_of_a_mean_is_that_of_student():
    values = RNG.normal(3, 2, 12)
    without = (values.sum() - values) / 11
    low, high = jackknife_interval(values.mean(), without)
    half = student.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert float(low) == pytest.approx(values.mean() - half)
    assert float(high) == pytest.approx(values.mean() + half)


def test_groups_of_unequal_size_cover_as_they_should():
    sizes, hits = np.array([1, 2, 2, 3, 4, 4, 6, 8]), 0
    for _ in range(400):
        groups = [RNG.normal(0, 1, size) for size in sizes]
        total, count = sum(group.sum() for group in groups), sizes.sum()
        without = [(total - g.sum()) / (count - len(g)) for g in groups]
        low, high = jackknife_interval(total / count, without, sizes)
        hits += bool(low <= 0 <= high)
    assert 0.9 < hits / 400 < 0.985


def test_pseudo_values_of_a_mean_are_the_means_of_the_groups():
    sizes = np.array([1, 2, 5, 9])
    groups = [RNG.normal(0, 1, size) for size in sizes]
    total, count = sum(group.sum() for group in groups), sizes.sum()
    without = np.array([(total - g.sum()) / (count - len(g)) for g in groups])
    low, high = jackknife_interval(total / count, without, sizes)
    center = 4 * total / count - ((1 - sizes / count) * without).sum()
    means = np.array([group.mean() for group in groups])
    variance = ((means - center) ** 2 / (count / sizes - 1)).mean()
    assert float(high - low) == pytest.approx(2 * student.ppf(0.975, 3) * variance**0.5)


def test_many_numbers_at_once():
    values = RNG.normal(0, 1, (6, 3))
    without = (values.sum(0) - values) / 5
    lows, highs = jackknife_interval(values.mean(0), without)
    for column in range(3):
        low, high = jackknife_interval(values[:, column].mean(), without[:, column])
        assert (lows[column], highs[column]) == (pytest.approx(low), pytest.approx(high))


def test_one_group_says_nothing():
    low, high = jackknife_interval([1.0, 2.0], [[1.5, 2.5]])
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_two_groups_have_an_interval():
    low, high = jackknife_interval(2.0, [1.0, 3.0])
    half = student.ppf(0.975, 1) * 1.0
    assert (low, high) == pytest.approx((2 - half, 2 + half))


def test_arrays_of_values_with_groups_of_unequal_size():
    values, without = np.array([[1.0, 2.0]]), np.array([[[1.0, 1.0]], [[1.5, 3.0]], [[0.0, 2.5]]])
    low, high = jackknife_interval(values, without, sizes=[1, 2, 4])
    assert low.shape == (1, 2)
    for column in range(2):
        one = jackknife_interval(values[0, column], without[:, 0, column], sizes=[1, 2, 4])
        assert (low[0, column], high[0, column]) == pytest.approx(one)
