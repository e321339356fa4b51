"""The best linear map from some features to others, from their joint covariance.

Shapes: I feature that is read, E feature that is returned.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probes.algebra.spectrum import Covariance

NOISE = 1e-10
"""Directions with less than this share of the largest variance are not used."""


@dataclass(frozen=True, eq=False)
class LinearMap:
    """``x @ weight + bias``.

    Parameters
    ----------
    weight : Tensor, shape (I, E)
    bias : Tensor, shape (E,)
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Map features along the last axis, in their own precision."""
        mapped: Tensor = x @ self.weight.to(x) + self.bias.to(x)
        return mapped


def fitted(joint: Covariance, reads: int) -> LinearMap:
    """Least squares with a constant.

    Parameters
    ----------
    joint : Covariance
        Of the ``reads`` features that are read and, behind them, those that are returned.
    reads : int
        I.
    """
    covariance, mean = joint.matrix(), joint.mean()
    inverse_II = torch.linalg.pinv(covariance[:reads, :reads], rtol=NOISE, hermitian=True)
    weight_IE = inverse_II @ covariance[:reads, reads:]
    return LinearMap(weight_IE, mean[reads:] - mean[:reads] @ weight_IE)


def explained(linear: LinearMap, joint: Covariance) -> float:
    """Share of the variance of the returned features that a map explains on other data.

    Parameters
    ----------
    linear : LinearMap
        Fitted elsewhere.
    joint : Covariance
        As for :func:`fitted`.

    Returns
    -------
    float
        1 if it is exact, below 0 if it is worse than the mean; nan where nothing varies.
    """
    covariance, mean = joint.matrix(), joint.mean()
    weight_IE, bias_E = linear.weight, linear.bias
    reads = len(weight_IE)
    total = covariance[reads:, reads:].trace()
    if not total > 0:
        return torch.nan
    crossed = (weight_IE * covariance[:reads, reads:]).sum()
    kept = (weight_IE * (covariance[:reads, :reads] @ weight_IE)).sum()
    offset_E = mean[reads:] - mean[:reads] @ weight_IE - bias_E
    return float((2 * crossed - kept - offset_E.square().sum()) / total)
