"""Samples drawn again, as weights: means over resamples are then one matrix product."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from analyzer.statistics import COVERAGE, RESAMPLES, Values


@lru_cache(maxsize=8)
def weights(samples: int) -> Values:
    """Share of each sample in every resample, drawn with a fixed seed: (resample, sample)."""
    random = np.random.default_rng(0)
    return random.multinomial(samples, np.full(samples, 1 / samples), RESAMPLES) / samples


def interval(statistic: Callable[[Values], Values], samples: int) -> tuple[Values, Values]:
    """Percentile interval of a statistic of weighted samples.

    Parameters
    ----------
    statistic : callable
        Of weights (resample, sample), one row of results for each; see :func:`weights`.
    samples : int
        How many there are; with fewer than two the interval is nan.

    Returns
    -------
    low, high : ndarray
        As one row of results is shaped.
    """
    found = statistic(weights(samples))
    if samples < 2:
        return np.full(found.shape[1:], np.nan), np.full(found.shape[1:], np.nan)
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(found, [tail, 1 - tail], axis=0)
    return low, high
