"""Estimates over samples with their bootstrap intervals, and horizons read off excess losses."""

from collections.abc import Callable
from math import nan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]

RESAMPLES = 1000
COVERAGE = 0.95

_CHUNK = 2**24
"""Resampled numbers held at a time."""


class Horizon(NamedTuple):
    """Lag of the oldest input that is needed, counted from the last [timestep]."""

    value: float
    """Largest number of inputs kept with which the loss is still too high."""
    low: float
    """Largest number that is surely not enough: the horizon is at least this."""
    high: float
    """Number from which on it is surely enough: the horizon is below this. Where it is all the
    inputs there are, the data are too short to see the horizon end."""


def bootstrap_interval(
    values_by_sample: ArrayLike,
    statistic: Callable[..., Any] = np.median,
    seed: int = 0,
    resamples: int = RESAMPLES,
    coverage: float = COVERAGE,
) -> tuple[Any, Any]:
    """Percentile interval of a statistic over samples drawn again with replacement.

    Parameters
    ----------
    values_by_sample : array_like, shape (sample, ...)
        Rows are drawn whole, so that what belongs to one sample stays together.
    statistic : callable
        ``statistic(values, axis=...)``, such as :func:`numpy.median` or :func:`numpy.nanmedian`.
    seed : int
        The same seed draws the same samples.
    resamples : int
        How often to draw.
    coverage : float
        Share of the resampled statistics within the interval, in (0, 1).

    Returns
    -------
    low, high : float or ndarray
        As the statistic of one resample is shaped; nan where nan takes part, and for fewer than
        two samples, which say nothing about how much samples differ.

    References
    ----------
    .. [1] Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    values = np.asarray(values_by_sample, np.float64)
    if len(values) < 2:
        nothing = np.full(values.shape[1:], nan)[()]
        return nothing, nothing
    random = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(values.size, 1))
    drawn = []
    for start in range(0, resamples, step):
        rows = random.integers(len(values), size=(min(step, resamples - start), len(values)))
        drawn.append(statistic(values[rows], axis=1))
    low, high = _percentiles(np.concatenate(drawn), coverage)
    return low, high


def relative_excess(excess: ArrayLike) -> Values:
    """Mean excess loss at every number of inputs kept, as a share of that with none kept.

    Parameters
    ----------
    excess : array_like, shape (sample, kept)
        Excess loss; the first column is that with nothing kept. A sample takes part where its
        excess is known, in the numerator and in the denominator.

    Returns
    -------
    ndarray, shape (kept,)
        nan where no sample is left, or replacing everything does not raise the loss.
    """
    values = np.asarray(excess, np.float64)
    shares: Values = _shares(values, np.ones((1, len(values))))[0]
    return shares


def horizon(excess: ArrayLike, kept: ArrayLike, share: float) -> float:
    """Lag of the oldest input that is needed, counted from the last.

    It is the largest number of inputs kept with which the loss is still too high.

    Parameters
    ----------
    excess : array_like, shape (sample, kept)
        Loss when everything older than the last ``kept`` inputs is replaced, minus the intact one.
    kept : array_like, shape (kept,)
        Ascending, from 0.
    share : float
        Excess, as a share of that with nothing kept, that is small enough.

    Returns
    -------
    float
        Timesteps; nan if replacing all inputs does not raise the loss, so that none is needed,
        or the excess is undefined.

    References
    ----------
    .. [1] Khandelwal et al., Sharp Nearby, Fuzzy Far Away: How Neural Language Models Use Context
       (2018).
    """
    shares = relative_excess(excess)
    above = np.flatnonzero(shares > share)
    return float(np.asarray(kept, np.float64)[above[-1]]) if above.size else nan


def horizon_interval(
    excess: ArrayLike,
    kept: ArrayLike,
    share: float,
    seed: int = 0,
    resamples: int = RESAMPLES,
    coverage: float = COVERAGE,
) -> Horizon:
    """Estimate the horizon with what is surely needed and what is surely enough.

    Samples are drawn again as pairs of intact and perturbed losses. A number of inputs is surely
    not enough where the interval of the relative excess lies above ``share``, and surely enough
    from where on it lies below.

    Parameters
    ----------
    excess, kept, share : array_like, array_like, float
        As for :func:`horizon`.
    seed, resamples, coverage : int, int, float
        As for :func:`bootstrap_interval`.

    Returns
    -------
    Horizon
        Its members are nan where the horizon is; ``low`` and ``high`` also for a single sample.
    """
    values, steps = np.asarray(excess, np.float64), np.asarray(kept, np.float64)
    value = horizon(values, steps, share)
    if np.isnan(value) or len(values) < 2:
        return Horizon(value, nan, nan)
    random = np.random.default_rng(seed)
    counts = random.multinomial(len(values), np.full(len(values), 1 / len(values)), resamples)
    low, high = _percentiles(_shares(values, counts.astype(np.float64)), coverage)
    needed = np.flatnonzero(low > share)
    doubtful = np.flatnonzero(~(high <= share))
    after = min(doubtful[-1] + 1, len(steps) - 1) if doubtful.size else 0
    return Horizon(value, float(steps[needed[-1]]) if needed.size else 0.0, float(steps[after]))


def _shares(values: Values, weights: Values) -> Values:
    """Weighted mean excess over weighted mean total excess: (resample, kept)."""
    known = ~np.isnan(values)
    above = weights @ np.where(known, values, 0.0)
    below = weights @ np.where(known, values[:, :1], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, nan)


def _percentiles(drawn: Values, coverage: float) -> Values:
    """Lower and upper percentile over resamples; nan where a resample is nan."""
    tail = (1 - coverage) / 2
    # Between two infinities it is undefined.
    with np.errstate(invalid="ignore"):
        return np.asarray(np.quantile(drawn, [tail, 1 - tail], axis=0), np.float64)
