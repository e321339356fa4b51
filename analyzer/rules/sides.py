"""Estimates from what a network does on data that it was trained on, and on data that it was not.

All intervals are by the jackknife over the samples of both sides, 95 %.
"""

from collections.abc import Callable
from math import nan, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzer.rules.jackknife import jackknife_interval
from analyzer.rules.verdicts import Estimate

Values = npt.NDArray[np.float64]

TRAINED, HELD_OUT = "trained on", "held out"
WHOLE = "_all"
"""Ends the names of variables of all layers together."""

_NORMAL = 1.96


class Side(NamedTuple):
    """What is told of the samples of one side, for every layer: (sample, layer) each."""

    square: Values
    """Square norm of the gradient."""
    own: Values
    """Inner product with the mean gradient of this side."""
    other: Values
    """Inner product with the mean gradient of the other side."""
    cosine_own: Values
    """Mean cosine with the other samples of this side."""
    cosine_other: Values
    """Mean cosine with the samples of the other side."""

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.square)


def of_side(trace: xr.Dataset, name: str, side: str) -> Values:
    """Return a number of every sample of one side, known or not: (sample, ...)."""
    rows = np.flatnonzero(trace["side"].to_numpy().astype(str) == side)
    values = trace[name].transpose("sample", ...).to_numpy().astype(np.float64)
    return np.asarray(values[rows])


def sides(trace: xr.Dataset, suffix: str = "", null: bool = False) -> tuple[Side, Side]:
    """Return what was measured of both sides; with ``null``, held out with exchanged targets.

    Parameters
    ----------
    trace : Dataset
        With gradients.
    suffix : str
        ``""``, by layer, or ``WHOLE``: one layer, which is all of them.
    null : bool
        Whether the held-out samples have each other's targets; samples without are left out.
    """

    def read(side: str, ends: dict[str, str]) -> Side:
        values = [of_side(trace, name + ends.get(name, "") + suffix, side) for name in Side._fields]
        whole = [v[:, None] if v.ndim == 1 else v for v in values]
        known = ~np.isnan(whole[0]).any(1)
        return Side(*(v[known] for v in whole))

    if not null:
        return read(TRAINED, {}), read(HELD_OUT, {})
    toward = dict.fromkeys(("other", "cosine_other"), "_null")
    return read(TRAINED, toward), read(HELD_OUT, dict.fromkeys(Side._fields, "_null"))


def alignment(trained: Side, held: Side, dimensions: Values) -> list[Estimate]:
    """Cosine of the mean gradients of both sides, for every layer.

    Parameters
    ----------
    trained, held : Side
    dimensions : ndarray, shape (layer,)
        Of the projections that the gradients were measured in; 0 where they were not projected.
        What a projection may be off by is in the interval.
    """
    found = _two_sided(trained, held, lambda a, b: a.between / np.sqrt(a.size * b.size), _FISHER)
    return [_widened(one, width) for one, width in zip(found, dimensions, strict=True)]


def ceiling(trained: Side, held: Side) -> Values:
    """Cosine that mean gradients of the same direction would reach at these numbers of samples.

    The root of the product of what two draws of either side would reach with each other: of the
    share of the square of the mean gradient that is not noise. 0 where no more than noise is seen.
    Where noise is as large as the mean gradient, the estimate is up to a tenth too low.
    """
    shares = [np.clip(reliability(side), 0, 1) for side in (trained, held)]
    return np.asarray(np.sqrt(shares[0] * shares[1]))


def reliability(side: Side) -> Values:
    """Share of the square of the mean gradient that is not noise: (layer,); below 0 by chance."""
    count, mean = side.samples, side.own.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((count * mean - side.square.mean(0)) / ((count - 1) * mean))


def ratio(trained: Side, held: Side) -> list[Estimate]:
    """Gradient of held-out samples over that of samples trained on (rms norms), by layer."""
    return _two_sided(trained, held, lambda a, b: np.sqrt(b.square / a.square), _LOG)


def coherence(side: Side) -> list[Estimate]:
    """m-coherence of one side: how many samples an average one helps, itself included, by layer.

    References
    ----------
    .. [1] Chatterjee and Zielinski, Making Coherence Out of Nothing At All: Measuring the
       Evolution of Gradient Alignment, arXiv:2008.01217 (2020).
    """
    return _one_sided(side, lambda a: a.samples * a.size / a.square)


def noise_scale(side: Side) -> Values:
    """Batch size whose mean gradient is as much noise as signal, by layer; infinite without signal.

    References
    ----------
    .. [1] McCandlish, Kaplan, Amodei and the OpenAI Dota Team, An Empirical Model of Large-Batch
       Training, arXiv:1812.06162 (2018): their simple noise scale, appendix A.1, from batches of
       one sample and of all.
    """
    square, signal = side.square.mean(0), reliability(side) * side.own.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(signal > 0, (square - signal) / signal, np.inf))


def stiffness_within(side: Side) -> list[Estimate]:
    """Mean cosine of the gradients of two samples of one side, by layer.

    References
    ----------
    .. [1] Fort, Nowak, Jastrzebski and Narayanan, Stiffness: A New Perspective on Generalization
       in Neural Networks, arXiv:1901.09491 (2019).
    """
    count, means = side.samples, side.cosine_own
    value = means.mean(0)
    without = (count * value - 2 * means) / (count - 2) if count > 2 else np.full_like(means, nan)
    return _estimates(value, *jackknife_interval(value, without), count)


def stiffness_across(trained: Side, held: Side) -> list[Estimate]:
    """Mean cosine of the gradients of two samples, one of each side, by layer."""
    value = trained.cosine_other.mean(0)
    halves = []
    for side in (trained, held):
        count, means = side.samples, side.cosine_other
        low, high = jackknife_interval(value, (count * value - means) / max(count - 1, 1))
        halves.append((high - low) / 2)
    half = np.hypot(*halves)
    return _estimates(value, value - half, value + half, trained.samples + held.samples)


class _Sums(NamedTuple):
    """Of one side, with all samples (layer,) or without each of them (sample, layer)."""

    samples: int
    square: Values
    """Mean square norm."""
    size: Values
    """Square norm of the mean gradient."""
    between: Values
    """Inner product of the mean gradient with that of the other side."""


def _sums(side: Side) -> tuple[_Sums, _Sums]:
    """With all samples, and without each."""
    count = side.samples
    square, size, between = side.square.mean(0), side.own.mean(0), side.other.mean(0)
    rest = max(count - 1, 1)
    without = _Sums(
        count - 1,
        (count * square - side.square) / rest,
        (count**2 * size - 2 * count * side.own + side.square) / rest**2,
        (count * between - side.other) / rest,
    )
    return _Sums(count, square, size, between), without


Change = Callable[[Values], Values]
_LOG: tuple[Change, Change] = np.log, np.exp
_FISHER: tuple[Change, Change] = np.arctanh, np.tanh
"""On which scale a number has a symmetric interval, and back."""


def _one_sided(side: Side, number: Callable[[_Sums], Values]) -> list[Estimate]:
    """Estimate a positive number of one side."""
    every, without = _sums(side)
    with np.errstate(all="ignore"):
        value = np.log(number(every))
        low, high = jackknife_interval(value, np.log(number(without)))
        return _estimates(np.exp(value), np.exp(low), np.exp(high), side.samples)


def _two_sided(
    trained: Side,
    held: Side,
    number: Callable[[_Sums, _Sums], Values],
    scale: tuple[Change, Change],
) -> list[Estimate]:
    """Estimate a number of both sides: samples are left out of one, then of the other."""
    (a, a_without), (b, b_without) = _sums(trained), _sums(held)
    there, back = scale
    with np.errstate(all="ignore"):
        value = there(number(a, b))
        # Without a sample held out, only that side's inner products are known.
        others = number(a_without, b), number(a._replace(between=b_without.between), b_without)
        halves = []
        for without in others:
            low, high = jackknife_interval(value, there(without))
            halves.append((high - low) / 2)
        half = np.hypot(*halves)
        ends = back(value), back(value - half), back(value + half)
    return _estimates(*ends, trained.samples + held.samples)


def _estimates(value: Values, low: Values, high: Values, samples: int) -> list[Estimate]:
    """Put numbers of layers together."""
    rows = zip(value, low, high, strict=True)
    return [Estimate(float(v), float(least), float(most), samples) for v, least, most in rows]


def _widened(found: Estimate, dimensions: float) -> Estimate:
    """Widen the interval of a cosine by what a projection may be off by."""
    if not dimensions:
        return found
    error = _NORMAL * max(1 - found.value**2, 0) / sqrt(dimensions)
    low = found.value - np.hypot(found.value - found.low, error)
    high = found.value + np.hypot(found.high - found.value, error)
    return Estimate(found.value, max(float(low), -1), min(float(high), 1), found.samples)
