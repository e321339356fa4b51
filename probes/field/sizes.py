"""How large an effective field is: one number, or one per axis, out of a map.

All sizes take a map that is nowhere negative, in input positions. The amplitude map (the root of
the energy map) is what the literature calls the effective receptive field; its sizes exceed those
of the energy by the square root of two where the field is Gaussian.

Shapes: R map, P position (all axes flattened), A axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Floats = NDArray[np.floating]

LUO_SHARE = 0.0455
"""Share of the maximum above which Luo et al. count a position: two sigma of a Gaussian."""

_GRID = 48
"""Largest number of points per axis that a Gaussian is fitted to."""


def deviations(maps: Floats, axes: int) -> Floats:
    """Measure the deviation along each axis about the centroid, from second moments.

    Parameters
    ----------
    maps : ndarray, shape (..., *axes)
        One map or several.
    axes : int
        How many of the last dimensions are axes.

    Returns
    -------
    ndarray, shape (..., A)
        Deviation [position]; nan where the map is zero everywhere.
    """
    result = []
    for axis in range(axes):
        others = tuple(-1 - other for other in range(axes) if axes - 1 - other != axis)
        marginal = maps.sum(axis=others, dtype=np.float64)
        positions = np.arange(marginal.shape[-1], dtype=np.float64)
        total = marginal.sum(axis=-1, keepdims=True)
        share = np.divide(marginal, total, where=total > 0, out=np.full(marginal.shape, nan))
        centre = (share * positions).sum(axis=-1, keepdims=True)
        result.append(np.sqrt((share * (positions - centre) ** 2).sum(axis=-1)))
    return np.stack(result, axis=-1)


def diameter(sigma: Floats) -> Floats:
    """Two-sigma diameter: four times the root mean square of the deviations along the axes.

    Parameters
    ----------
    sigma : ndarray, shape (..., A)
        Deviations [position].

    Returns
    -------
    ndarray, shape (...,)
        Diameter [position].
    """
    mean: Floats = 4 * np.sqrt(np.square(sigma).mean(axis=-1))
    return mean


def elongation(sigma: Floats, resampled: Floats) -> Floats:
    """How many times longer a field is along its longest axis than along its shortest.

    Parameters
    ----------
    sigma : ndarray, shape (A,)
        Deviations [position].
    resampled : ndarray, shape (R, A)
        Those of samples drawn again.

    Returns
    -------
    ndarray, shape (3,)
        Ratio and the ends of its 95 % interval; nan for one axis, or no map.
    """
    if len(sigma) < 2 or not (sigma > 0).all():
        return np.full(3, nan)
    longest, shortest = int(sigma.argmax()), int(sigma.argmin())
    value = sigma[longest] / sigma[shortest]
    if not len(resampled):
        return np.array([value, nan, nan])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = resampled[:, longest] / resampled[:, shortest]
        return np.array([value, *np.quantile(ratios, (0.025, 0.975))])


def outside(share: Floats, start: Floats, stop: Floats) -> float:
    """Share of a map outside of a box.

    Parameters
    ----------
    share : ndarray, shape (*axes)
        Of sum one.
    start, stop : ndarray, shape (A,)
        First and last position inside, along each axis; nan where there is none.

    Returns
    -------
    float
        nan where the map or the box is undefined.
    """
    if np.isnan(start).any() or np.isnan(stop).any():
        return nan
    box = tuple(slice(int(first), int(last) + 1) for first, last in zip(start, stop, strict=True))
    rest = share.astype(np.float64)
    rest[box] = np.where(np.isnan(rest[box]), nan, 0.0)
    return float(rest.sum())


def luo_size(field: Floats) -> float:
    """Side of the cube of as many positions as are above 4.55 % of the maximum.

    Parameters
    ----------
    field : ndarray, shape (*axes)
        Amplitude map.

    Returns
    -------
    float
        Side [position]; nan where the map is zero everywhere.

    References
    ----------
    .. [1] Luo et al., Understanding the Effective Receptive Field in Deep CNNs (2016), section 3.
    """
    peak = field.max()
    if not peak > 0:
        return nan
    return float(np.count_nonzero(field > LUO_SHARE * peak) ** (1 / field.ndim))


def rings(shape: Sequence[int], centre: Sequence[float]) -> Floats:
    """Side of the smallest cube about ``centre`` that holds each position.

    Parameters
    ----------
    shape : sequence of int
        Positions along each axis.
    centre : sequence of float
        May lie between two positions: sides are then even.

    Returns
    -------
    ndarray, shape (P,)
        Side [position].
    """
    distance = np.zeros(tuple(shape))
    for axis, (size, middle) in enumerate(zip(shape, centre, strict=True)):
        along = np.abs(np.arange(size) - middle)
        sizes = [-1 if other == axis else 1 for other in range(len(shape))]
        distance = np.maximum(distance, along.reshape(sizes))
    sides: Floats = 2 * distance.ravel() + 1
    return sides


def enclosing_sides(maps_RP: Floats, sides_P: Floats, share: float) -> Floats:
    """Side of the smallest centred cube that holds a share of each map.

    Parameters
    ----------
    maps_RP : ndarray, shape (R, P)
        Flattened maps.
    sides_P : ndarray, shape (P,)
        What :func:`rings` returns.
    share : float
        Of the sum of the map, in (0, 1].

    Returns
    -------
    ndarray, shape (R,)
        Side [position]; nan where a map is zero everywhere.

    References
    ----------
    .. [1] Ding et al., Scaling Up Your Kernels to 31x31 (2022), whose script takes the logarithm
       of the map first, so that its numbers depend on the scale of the map; these do not.
    """
    order = np.argsort(sides_P, kind="stable")
    found, starts = np.unique(sides_P[order], return_index=True)
    mass = np.add.reduceat(maps_RP[:, order], starts, axis=1, dtype=np.float64).cumsum(axis=1)
    total = mass[:, -1:]
    # Rounding must not push the last ring out of reach of a share of one.
    inside = mass >= share * total * (1 - 1e-12)
    return np.where(total[:, 0] > 0, found[inside.argmax(axis=1)], nan)


@dataclass(frozen=True)
class Gaussian:
    """Gaussian fitted to a map of one or two axes.

    Parameters
    ----------
    major, minor : float
        Deviations along the principal axes; equal for one axis [position].
    angle : float
        Of the major axis, from x towards y, in (-90, 90] [degree].
    r2 : float
        Share of the variance of the map that is explained; trained networks have heavy tails.
    """

    major: float = nan
    minor: float = nan
    angle: float = nan
    r2: float = nan


def fitted_gaussian(field: Floats) -> Gaussian:
    """Fit a Gaussian of free position, size, anisotropy and orientation by least squares.

    Parameters
    ----------
    field : ndarray, shape (x,) or (y, x)
        Amplitude map; more axes are not fitted.

    Returns
    -------
    Gaussian
        All nan where the map is zero everywhere or has more than two axes.
    """
    if field.ndim > 2 or not field.max() > 0:
        return Gaussian()
    y_P, x_P, value_P = _grid(np.atleast_2d(field).astype(np.float64))
    weight_P = value_P / value_P.sum()
    centre = np.array([(weight_P * y_P).sum(), (weight_P * x_P).sum()])
    spread = [
        np.sqrt((weight_P * (along_P - middle) ** 2).sum()) + 0.3
        for along_P, middle in zip((y_P, x_P), centre, strict=True)
    ]
    # Inverse square root of the covariance, lower triangular: any ellipse, no angle to wrap.
    start = [1.0, *centre, 1 / spread[0], 0.0, 1 / spread[1]]

    def error(q: Floats) -> Floats:
        u_P, v_P = q[3] * (y_P - q[1]), q[4] * (y_P - q[1]) + q[5] * (x_P - q[2])
        residual: Floats = q[0] * np.exp(-0.5 * (u_P**2 + v_P**2)) - value_P
        return residual

    fit = least_squares(error, start, max_nfev=60)
    r2 = 1 - float((fit.fun**2).sum() / ((value_P - value_P.mean()) ** 2).sum())
    return _ellipse(fit.x, field.ndim, r2)


def _grid(field: Floats) -> tuple[Floats, Floats, Floats]:
    """Coordinates and values, relative to the peak, of a window about the mass of the map."""
    sigma = deviations(field, 2)
    parts = []
    for axis, size in enumerate(field.shape):
        marginal = field.sum(axis=1 - axis)
        middle = float((marginal * np.arange(size)).sum() / marginal.sum())
        half = max(4 * float(sigma[axis]), 4.0)
        first, last = max(int(middle - half), 0), min(int(middle + half) + 1, size)
        parts.append(np.arange(first, last, max((last - first) // _GRID, 1)))
    y, x = np.meshgrid(*parts, indexing="ij")
    values = field[np.ix_(*parts)] / field.max()
    return y.ravel().astype(float), x.ravel().astype(float), values.ravel()


def _ellipse(q: Floats, axes: int, r2: float) -> Gaussian:
    """Principal axes of the fitted covariance."""
    if axes == 1:
        return Gaussian(abs(1 / q[5]), abs(1 / q[5]), 0.0, r2)
    root = np.array([[q[3], 0.0], [q[4], q[5]]])
    sizes, vectors = np.linalg.eigh(root.T @ root)
    y, x = vectors[:, 0]
    angle = float(np.degrees(np.arctan2(y, x)))
    angle -= 180 * np.ceil((angle - 90) / 180)
    return Gaussian(float(sizes[0] ** -0.5), float(sizes[1] ** -0.5), angle, r2)
