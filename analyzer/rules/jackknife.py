"""Intervals of numbers that were measured again without each sample, or each group of samples."""

from math import nan

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

Values = NDArray[np.float64]


def jackknife_interval(
    value: ArrayLike,
    without: ArrayLike,
    sizes: ArrayLike | None = None,
    coverage: float = 0.95,
) -> tuple[Values, Values]:
    """Interval of a number from what it is without each group.

    Parameters
    ----------
    value : array_like, shape (...)
        From all samples.
    without : array_like, shape (group, ...)
        From all samples but those of one group.
    sizes : array_like, shape (group,), optional
        Samples of every group; all alike if unset.
    coverage : float
        Of the interval, in (0, 1).

    Returns
    -------
    low, high : ndarray, shape (...)
        Symmetric about the value; nan with fewer than two groups, or where something is nan.

    References
    ----------
    .. [1] Busing, Meijer and van der Leeden, Delete-m Jackknife for Unequal m (1999).
    """
    values, others = np.asarray(value, np.float64), np.asarray(without, np.float64)
    groups = len(others)
    if groups < 2:
        return np.full(values.shape, nan), np.full(values.shape, nan)
    counts = np.ones(groups) if sizes is None else np.asarray(sizes, np.float64)
    weight = (counts.sum() / counts).reshape(-1, *[1] * values.ndim)
    pseudo = weight * values - (weight - 1) * others
    center = groups * values - ((1 - 1 / weight) * others).sum(0)
    variance = ((pseudo - center) ** 2 / (weight - 1)).mean(0)
    half = student.ppf((1 + coverage) / 2, groups - 1) * np.sqrt(variance)
    return values - half, values + half
