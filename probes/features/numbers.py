"""Numbers of a covariance matrix: how many directions, which units say the same, which nothing.

Shapes: C unit, J direction, in falling order of variance, K covariance matrix; a single matrix has
no K.
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


def variances(covariance_CC: Tensor) -> Tensor:
    """Variance along the principal directions: (J,), falling."""
    values_J: Tensor = torch.linalg.eigvalsh(covariance_CC)
    return values_J.clamp_min(0).flip(0)


def spectrum(covariance_CC: Tensor) -> Spectrum:
    """Find the principal directions."""
    variances_J, directions_CJ = torch.linalg.eigh(covariance_CC)
    return Spectrum(variances_J.clamp_min(0).flip(0), directions_CJ.flip(1))


def along(covariance_KCC: Tensor, directions_CJ: Tensor) -> Tensor:
    """Variance of other data along given directions: (K, J), falling.

    To first order these are its own eigenvalues, at the price of a product.
    """
    variances_KJ = ((covariance_KCC @ directions_CJ) * directions_CJ).sum(-2)
    return variances_KJ.clamp_min(0).sort(descending=True).values


def spread(variances_KJ: Tensor, level: float) -> Tensor:
    """Directions, effective rank and participation ratio: (K, 3); nan where nothing varies."""
    measures = directions(variances_KJ, level), _rank(variances_KJ), _participation(variances_KJ)
    return torch.stack(measures, -1).cpu()


def _shares(variances_KJ: Tensor) -> Tensor:
    """Share of every direction in all variance; nan where nothing varies."""
    total_K1 = variances_KJ.sum(-1, keepdim=True)
    return variances_KJ / torch.where(total_K1 > 0, total_K1, torch.nan)


def directions(variances_KJ: Tensor, level: float) -> Tensor:
    """Count the fewest directions that hold ``level`` of the variance: (K,)."""
    held_KJ = _shares(variances_KJ).cumsum(-1)
    # At a level of 1 rounding decides: without a tolerance there may be no such direction.
    count_K = (held_KJ < level - 1e-12).sum(-1) + 1.0
    return torch.where(held_KJ[..., -1].isnan(), torch.nan, count_K).to(variances_KJ)


def _rank(variances_KJ: Tensor) -> Tensor:
    """Exponential of the entropy of the shares of variance: (K,)."""
    entropy_K: Tensor = torch.special.entr(_shares(variances_KJ)).sum(-1)
    return entropy_K.exp()


def _participation(variances_KJ: Tensor) -> Tensor:
    """Square of the sum of the variances over the sum of their squares: (K,)."""
    return 1 / _shares(variances_KJ).square().sum(-1)


def constant(mean_C: Tensor, covariance_KCC: Tensor) -> Tensor:
    """Which units do not vary: (K, C)."""
    variance_KC = covariance_KCC.diagonal(dim1=-2, dim2=-1)
    scale_KC = mean_C.square() + variance_KC.mean(-1, keepdim=True)
    return variance_KC <= CONSTANT**2 * scale_KC


def correlation(covariance_KCC: Tensor, still_KC: Tensor) -> Tensor:
    """Correlations, 0 on the diagonal and with units that do not vary: (K, C, C)."""
    deviation_KC = covariance_KCC.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    scale_KC = torch.where(still_KC | (deviation_KC == 0), torch.inf, deviation_KC)
    found_KCC = (covariance_KCC / scale_KC[..., None]).div_(scale_KC[..., None, :])
    found_KCC.diagonal(dim1=-2, dim2=-1).zero_()
    return found_KCC


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


def copies_of(correlation_KCC: Tensor, limit: float) -> Tensor:
    """Count the units beyond the first one of every group, of each matrix: (K,)."""
    flat_KX = correlation_KCC.flatten(1)
    largest_K = torch.maximum(flat_KX.amax(1), -flat_KX.amin(1)).cpu()
    found_K = torch.zeros_like(largest_K)
    for at in (largest_K > limit).nonzero()[:, 0].tolist():
        found_K[at] = copies(twins(correlation_KCC[at], limit))
    return found_K


def rank(variances_J: Tensor) -> int:
    """Count the directions with more variance than rounding leaves."""
    return int((variances_J > NOISE * variances_J[0]).sum()) if variances_J[0] > 0 else 0
