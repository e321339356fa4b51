"""From the maps of all samples to the sizes of one field, with intervals.

Shapes: S sample, P position (all axes flattened), R row of weights, A axis.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from probes.field import sizes
from probes.field.sizes import Floats, Gaussian

NORMALIZED_FROM = 4
"""Samples from which on each has the same weight, whatever the size of its gradient."""

BLOCK = 4_000_000
"""Numbers in the maps that are resampled at the same time."""

SHARE = 0.5
"""Of the amplitude, that the side of the high-contribution area encloses."""

INTERVAL = (0.025, 0.975)
"""Quantiles of the resampled sizes: 95 %."""


@dataclass
class Energies:
    """Energy maps of one layer, sample by sample; those that are no map are only counted.

    Parameters
    ----------
    shape : tuple of int
        Positions along each axis.
    """

    shape: tuple[int, ...]
    totals: list[float] = field(default_factory=list)
    shares: list[Floats] = field(default_factory=list)

    def add(self, energy_P: Floats) -> None:
        """Keep a map in single precision, and apart from it its sum, which may be tiny."""
        total = float(energy_P.sum())
        if np.isfinite(total) and total > 0:
            self.totals.append(total)
            self.shares.append((energy_P / total).astype(np.float32))

    @property
    def count(self) -> int:
        """Samples with a map."""
        return len(self.totals)

    def averages(self, weights_RS: Floats) -> Iterator[Floats]:
        """Weighted means of the energy, each of sum one, in blocks of rows: (some of R, P).

        From :data:`NORMALIZED_FROM` samples on each sample's map counts the same; fewer are
        weighted by their sums, which is the plain mean.
        """
        shares_SP = np.stack(self.shares)
        totals_S = np.array(self.totals) / max(self.totals)
        if self.count < NORMALIZED_FROM:
            weights_RS = weights_RS * totals_S
        # Single precision halves the time; sums over positions are in double precision.
        weights_RS = (weights_RS / weights_RS.sum(axis=1, keepdims=True)).astype(np.float32)
        rows = max(BLOCK // shares_SP.shape[1], 1)
        for start in range(0, len(weights_RS), rows):
            yield weights_RS[start : start + rows] @ shares_SP


@dataclass(frozen=True)
class Average:
    """Effective field of one layer; sizes are of the amplitude unless they say energy.

    Parameters
    ----------
    live_samples : int
        With a gradient that is finite and not zero.
    total_energy : float
        Mean over them of the energy summed over positions [unit^2 / input^2].
    share : ndarray, shape (*axes)
        Energy of each position, of sum one.
    sigma, sigma_low, sigma_high, half_sample_sigma, sigma_energy : ndarray, shape (A,)
        Deviation along each axis; of the first half of the samples; of the energy.
    diameter, side50 : ndarray, shape (3,)
        Size, and the ends of its interval.
    resampled : ndarray, shape (resamples, A)
        Deviation of each resample; the same samples are drawn for every layer of as many samples.
    luo_size : float
        Side of as many positions as exceed 4.55 % of the maximum.
    gaussian : Gaussian
        Fit to the amplitude.
    """

    live_samples: int
    total_energy: float
    share: Floats
    sigma: Floats
    sigma_low: Floats
    sigma_high: Floats
    half_sample_sigma: Floats
    sigma_energy: Floats
    diameter: Floats
    side50: Floats
    resampled: Floats
    luo_size: float
    gaussian: Gaussian


def average(energies: Energies, centre: Floats, resamples: int, seed: int) -> Average:
    """Average the maps of all samples and measure the result.

    Parameters
    ----------
    energies : Energies
        Of one layer.
    centre : ndarray, shape (A,)
        Where the unit is [input position].
    resamples, seed : int
        Of the bootstrap over samples; the same resamples for every layer.

    Returns
    -------
    Average
        All nan without a sample; intervals and half-sample values nan with one, and intervals
        without resamples.
    """
    axes, count = len(energies.shape), energies.count
    if not count:
        return _undefined(energies.shape, resamples)
    resampled = np.random.default_rng(seed).multinomial(count, [1 / count] * count, resamples)
    half = np.arange(count) < max(count // 2, 1)
    weights_RS = np.vstack([np.ones(count), half, resampled])
    sides_P = sizes.rings(energies.shape, [float(middle) for middle in centre])
    sigmas, sides = [], []
    share_P = np.zeros(0)
    for energy_RP in energies.averages(weights_RS):
        share_P = share_P if len(share_P) else energy_RP[0].copy()
        amplitude_RP = np.sqrt(energy_RP, out=energy_RP)
        sigmas.append(sizes.deviations(amplitude_RP.reshape(-1, *energies.shape), axes))
        sides.append(sizes.enclosing_sides(amplitude_RP, sides_P, SHARE))
    sigma_RA, side_R = np.concatenate(sigmas), np.concatenate(sides)
    share = share_P.reshape(energies.shape)
    low, high = _interval(sigma_RA, count)
    return Average(
        live_samples=count,
        total_energy=float(np.mean(energies.totals)),
        share=share,
        sigma=sigma_RA[0],
        sigma_low=low,
        sigma_high=high,
        half_sample_sigma=sigma_RA[1] if count > 1 else np.full(axes, np.nan),
        sigma_energy=sizes.deviations(share, axes),
        diameter=_with_interval(sizes.diameter(sigma_RA), count),
        side50=_with_interval(side_R, count),
        resampled=sigma_RA[2:] if count > 1 else np.full((resamples, axes), np.nan),
        luo_size=sizes.luo_size(np.sqrt(share)),
        gaussian=sizes.fitted_gaussian(np.sqrt(share)),
    )


def plain_sigma(energies: Energies) -> Floats:
    """Deviation of the amplitude along each axis, without intervals.

    Parameters
    ----------
    energies : Energies
        Of one layer.

    Returns
    -------
    ndarray, shape (A,)
        Deviation [input position]; nan without a sample.
    """
    axes = len(energies.shape)
    if not energies.count:
        return np.full(axes, np.nan)
    (energy_1P,) = energies.averages(np.ones((1, energies.count)))
    return sizes.deviations(np.sqrt(energy_1P).reshape(energies.shape), axes)


def _interval(values: Floats, count: int) -> tuple[Floats, Floats]:
    """Quantiles over the resampled rows, those behind the first two."""
    if count < 2 or len(values) == 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    low, high = np.quantile(values[2:], INTERVAL, axis=0)
    return low, high


def _with_interval(values: Floats, count: int) -> Floats:
    """Value of all samples, and its interval: (3,)."""
    return np.array([values[0], *_interval(values, count)])


def _undefined(shape: tuple[int, ...], resamples: int) -> Average:
    """Nothing was measured."""
    none, three = np.full(len(shape), np.nan), np.full(3, np.nan)
    blank, rows = np.full(shape, np.nan), np.full((resamples, len(shape)), np.nan)
    return Average(
        *(0, np.nan, blank, none, none, none, none, none, three, three, rows, np.nan, Gaussian())
    )
