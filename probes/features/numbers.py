"""Numbers of a covariance matrix: how many directions, which units say the same, which nothing.

Shapes: C unit, J direction, in falling order of variance.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

CONSTANT = 1e-6
"""Deviation of a unit below this share of its mean square with the layer's deviation is rounding:
float32 has seven digits."""

NOISE = 1e-10
"""Variance below this share of the largest is rounding: the square of 1e-5."""


class Spectrum(NamedTuple):
    """Variance along the principal directions of a layer."""

    variances: Tensor
    """Shape (J,), falling."""
    directions: Tensor
    """Columns of unit length: (C, J)."""


def spectrum(covariance_CC: Tensor) -> Spectrum:
    """Find the principal directions."""
    variances_J, directions_CJ = torch.linalg.eigh(covariance_CC)
    return Spectrum(variances_J.clamp_min(0).flip(0), directions_CJ.flip(1))


def along(covariance_CC: Tensor, directions_CJ: Tensor) -> Tensor:
    """Variance of other data along given directions: (J,), falling.

    To first order these are its own eigenvalues, at the price of a product.
    """
    variances_J = ((covariance_CC @ directions_CJ) * directions_CJ).sum(0)
    return variances_J.clamp_min(0).sort(descending=True).values


def directions(variances_J: Tensor, level: float) -> float:
    """Count the fewest directions that hold ``level`` of the variance; nan if nothing varies."""
    total = variances_J.sum()
    if not total > 0:
        return torch.nan
    held_J = variances_J.cumsum(0) / total
    # At a level of 1 rounding decides: without a tolerance there may be no such direction.
    return float((held_J < level - 1e-12).sum() + 1)


def effective_rank(variances_J: Tensor) -> float:
    """Exponential of the entropy of the shares of variance; nan if nothing varies."""
    total = variances_J.sum()
    if not total > 0:
        return torch.nan
    return float(torch.special.entr(variances_J / total).sum().exp())


def participation(variances_J: Tensor) -> float:
    """Square of the sum of the variances over the sum of their squares; nan if nothing varies."""
    total = variances_J.sum()
    if not total > 0:
        return torch.nan
    shares_J = variances_J / total
    return float(1 / shares_J.square().sum())


def constant(mean_C: Tensor, covariance_CC: Tensor) -> Tensor:
    """Which units do not vary: (C,)."""
    variance_C = covariance_CC.diagonal()
    scale_C = mean_C.square() + variance_C.mean()
    return variance_C <= CONSTANT**2 * scale_C


def correlation(covariance_CC: Tensor, still_C: Tensor) -> Tensor:
    """Correlations, 0 on the diagonal and with units that do not vary: (C, C)."""
    deviation_C = covariance_CC.diagonal().clamp_min(0).sqrt()
    scale_C = torch.where(still_C | (deviation_C == 0), torch.inf, deviation_C)
    return (covariance_CC / torch.outer(scale_C, scale_C)).fill_diagonal_(0)


def twins(correlation_CC: Tensor, limit: float) -> Tensor:
    """First unit of the group of each unit: (C,); units beyond the limit form a group."""
    order, width = torch.arange(len(correlation_CC)), len(correlation_CC)
    row, column = (correlation_CC.abs() > limit).nonzero().cpu().T.numpy()
    if not len(row):
        return order
    links = coo_array((np.ones(len(row)), (row, column)), shape=(width, width))
    label_C = torch.as_tensor(connected_components(links, directed=False)[1]).long()
    first = torch.full((width,), width).scatter_reduce(0, label_C, order, "amin")
    return first[label_C]


def copies(first_C: Tensor) -> int:
    """Count the units beyond the first one of every group."""
    return int((first_C != torch.arange(len(first_C))).sum())


def rank(variances_J: Tensor) -> int:
    """Count the directions with more variance than rounding leaves."""
    return int((variances_J > NOISE * variances_J[0]).sum()) if variances_J[0] > 0 else 0
