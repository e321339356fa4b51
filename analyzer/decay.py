"""How a size decays with the lag: how fast, and by which law.

The logarithm of a product of Jacobians wanders about its law as a random walk does, so that two
neighbouring lags share nearly all of their error. Compared with the laws are therefore the
increments between a few lags, which are independent; on the values themselves the wrong law wins.

Shapes: sample, lag (those chosen), step (from one chosen lag to the next), resample.
"""

from dataclasses import dataclass
from math import inf, isnan, nan

import numpy as np
from numpy.typing import ArrayLike

from analyzer.statistics import COVERAGE, Values

EXPONENTIAL, POWER, STRETCHED = "exponential", "power law", "stretched exponential"
LAWS = (EXPONENTIAL, POWER, STRETCHED)
UNDECIDED = "undecided"

CHOSEN = 20
"""Lags, on a geometric scale, that are compared with the laws."""

FEWEST = 8
"""Lags below which no law is named."""

RESAMPLES = 400

FLOOR = 1e-3
"""Deviation from a law, per step, below which laws are not told apart."""

CONTRADICTED = 2.326
"""Standard deviations beyond which, one time in a hundred, a true law would deviate."""

_UNTESTED = 3
"""Samples that know both ends of an increment, up to which its error is too uncertain to test."""

_EXPONENTS = np.geomspace(0.1, 3, 137)
_PARAMETERS = np.array([1, 1, 2])


@dataclass(frozen=True)
class Decay:
    """How the typical sample decays, from the lag where it is largest on."""

    law: str = UNDECIDED
    """One of ``LAWS`` if it wins in nearly every resample and the samples do not contradict it,
    else ``UNDECIDED``."""
    tau: float = nan
    """Lags in which it falls by a factor of e, over all lags seen [timestep]; of an exponential
    its time constant; infinite where it does not fall."""
    low: float = nan
    """Of the 95 % interval of ``tau``."""
    high: float = nan
    """Likewise; infinite where it may not fall."""
    exponent: float = nan
    """Of the power law or the stretched exponential named."""
    support: float = nan
    """Share of resamples in which the law that fits best does so."""
    best: str = UNDECIDED
    """Law that fits best, clearly or not."""
    lags: tuple[int, ...] = ()
    """Lags compared with the laws."""
    fitted: tuple[float, ...] = ()
    """Law that fits best, at these lags [natural logarithm]."""
    samples: int = 0


def decay(
    logs: ArrayLike,
    lags: ArrayLike,
    clear: float = 0.8,
    fewest: float = 16,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Decay:
    """Fit laws of decay to the mean logarithm over samples.

    Parameters
    ----------
    logs : array_like, shape (sample, lag)
        Natural logarithm of a size; nan where it is not known, minus infinity where it is zero.
    lags : array_like, shape (lag,)
        Ascending [timestep].
    clear : float
        Share of the resamples in which a law must fit best to be named.
    fewest : float
        Samples below which no law is named.
    seed, resamples : int
        Of the samples drawn again.

    Returns
    -------
    Decay
        All nan where fewer than two lags are known for half of the samples, or no sample knows two
        neighbours of those chosen.

    References
    ----------
    .. [1] Burnham & Anderson, Model Selection and Multimodel Inference (2002), chapter 2.
    .. [2] Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    values, steps = np.asarray(logs, np.float64), np.asarray(lags, np.float64)
    values = np.where(np.isfinite(values), values, nan)
    chosen = _chosen(values, steps)
    if len(chosen) < 2:
        return Decay(samples=len(values))
    values, steps = values[:, chosen], steps[chosen]
    increments = _increments(values, _weights(len(values), seed, resamples))
    rates = _rates(increments, np.diff(steps))
    if isnan(rates[0]):
        return Decay(samples=len(values))
    slowest, fastest = _interval(rates[1:])
    fit = _fitted(increments[:1], steps)
    best = int(fit.criterion[0].argmin())
    support = nan
    if len(values) > 1:
        criteria = _fitted(increments[1:], steps).criterion
        # A resample that knows no increment supports nothing.
        support = float(((criteria.argmin(1) == best) & ~np.isnan(criteria[:, best])).mean())
    enough = len(values) >= fewest and len(steps) >= FEWEST
    # A stretched exponential at the end of the grid is another law.
    odd = LAWS[best] == STRETCHED and fit.exponents[best] in (_EXPONENTS[0], _EXPONENTS[-1])
    clearly = enough and not odd and support >= clear and slowest > 0
    named = clearly and _holds(values, fit.curves[best], steps, int(_PARAMETERS[best]))
    level = np.nanmean(np.nanmean(values, 0) - fit.curves[best])
    return Decay(
        law=LAWS[best] if named else UNDECIDED,
        tau=_time(rates[0]),
        low=_time(fastest),
        high=_time(slowest),
        exponent=fit.exponents[best] if named else nan,
        support=support,
        best=LAWS[best],
        lags=tuple(int(step) for step in steps),
        fitted=tuple((fit.curves[best] + level).tolist()),
        samples=len(values),
    )


@dataclass(frozen=True)
class _Fit:
    """Laws fitted to increments."""

    criterion: Values
    """Akaike's, shape (resample, law)."""
    exponents: list[float]
    """Of every law, of the first resample."""
    curves: list[Values]
    """Every law at the lags, of the first resample, up to a constant."""


def _chosen(values: Values, steps: Values) -> list[int]:
    """Choose lags on a geometric scale, while half of the samples are known, from the peak on.

    From the first lag on where the peak lies in the second half: that is no decay.
    """
    enough = np.isfinite(values).sum(0) * 2 >= max(len(values), 1)
    positive = np.flatnonzero(steps > 0)
    known = positive[: int(np.argmin([*enough[positive], False]))]
    if not known.size:
        return []
    peak = int(np.nanmean(values[:, known], 0).argmax())
    first, last = known[peak if peak <= known.size // 2 else 0], known[-1]
    offsets = np.geomspace(1, steps[last] - steps[first] + 1, CHOSEN) - 1
    nearest = np.searchsorted(steps, np.round(steps[first] + offsets) - 0.5)
    return sorted({int(index) for index in nearest})


def _weights(count: int, seed: int, resamples: int) -> Values:
    """How often each sample is drawn: all once, then drawn again; (1 + resample, sample)."""
    once = np.ones((1, count))
    if count < 2:
        return once
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    return np.vstack([once, drawn])


def _increments(values: Values, weights: Values) -> Values:
    """Mean change from lag to lag over the samples that know both: (resample, step)."""
    changes = np.diff(values, axis=1)
    known = np.isfinite(changes)
    above, below = weights @ np.where(known, changes, 0.0), weights @ known.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, nan)


def _rates(increments: Values, widths: Values) -> Values:
    """Mean decay over the increments that are known; nan where none is: (resample,)."""
    spanned = np.isfinite(increments).astype(np.float64) @ widths
    with np.errstate(invalid="ignore"):
        return np.asarray(-np.nansum(increments, 1) / spanned)


def _fitted(increments: Values, steps: Values) -> _Fit:
    """Fit every law to increments by least squares, each weighted by its variance.

    Increments that no sample of a resample knows are left out of its fit; a resample that knows
    none has criteria of nan.
    """
    scale = 1 / np.sqrt(np.diff(steps))
    known = np.isfinite(increments)
    kept = known.astype(np.float64)
    observed = np.where(known, increments, 0.0) * scale
    powers = -np.diff(steps[None] ** _EXPONENTS[:, None], axis=1)
    laws = {
        EXPONENTIAL: -np.diff(steps)[None],
        POWER: -np.diff(np.log1p(steps))[None],
        STRETCHED: powers,
    }
    count = np.where(known.any(1), known.sum(1), nan)
    criteria: list[Values] = []
    exponents: list[float] = []
    curves: list[Values] = []
    for (name, shapes), parameters in zip(laws.items(), _PARAMETERS, strict=True):
        directions = shapes * scale
        sizes = np.sqrt(kept @ np.square(directions).T)
        with np.errstate(invalid="ignore"):
            along = observed @ directions.T / sizes
        rest = np.maximum(np.square(observed).sum(1, keepdims=True) - np.square(along), 0)
        finest = rest.argmin(1)[:, None]
        rest = np.take_along_axis(rest, finest, 1)[:, 0]
        criteria.append(count * np.log(rest / count + FLOOR**2) + 2 * parameters)
        form = finest[0, 0]
        slope = along[0, form] / sizes[0, form]
        curves.append(np.concatenate([[0.0], np.cumsum(shapes[form] * slope)]))
        shown = {EXPONENTIAL: nan, POWER: slope, STRETCHED: _EXPONENTS[form]}
        exponents.append(float(shown[name]))
    return _Fit(np.stack(criteria, 1), exponents, curves)


def _holds(values: Values, curve: Values, steps: Values, parameters: int) -> bool:
    """Whether a law deviates from the mean increments no more than samples differ by.

    The sum of squared deviations in units of their standard errors is held against the quantile of
    chi-squared (after Wilson and Hilferty), widened as the errors are estimated themselves.
    """
    changes = np.diff(values, axis=1)
    count = np.isfinite(changes).sum(0)
    if count.min() <= _UNTESTED:
        return False
    variance = np.nanvar(changes, axis=0, ddof=1) / count + FLOOR**2 * np.diff(steps)
    deviation = np.square(np.nanmean(changes, axis=0) - np.diff(curve)) / variance
    free = len(deviation) - parameters
    spread = 2 / (9 * free)
    quantile = free * (1 - spread + CONTRADICTED * np.sqrt(spread)) ** 3
    widened = (count.min() - 1) / (count.min() - 3)
    return bool(deviation.sum() <= quantile * widened)


def _interval(rates: Values) -> tuple[float, float]:
    """Percentile interval; nan without resamples."""
    if not rates.size:
        return nan, nan
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(rates, [tail, 1 - tail])
    return float(low), float(high)


def _time(rate: float) -> float:
    """Turn a rate of decay into a time; infinite where nothing decays."""
    if isnan(rate):
        return nan
    return float(1 / rate) if rate > 0 else inf
