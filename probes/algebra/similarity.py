"""How alike two sets of features of the same samples are.

Shapes: N sample, F feature.
"""

from typing import NamedTuple

import torch
from torch import Tensor

GROUPS = 10
"""Parts of the samples that are left out in turn for the interval."""

CONSTANT = 1e-13
"""Deviations below this share of the largest value are rounding errors."""

NORMAL = 1.96
"""Standard errors on each side of a 95 % interval."""


class Similarity(NamedTuple):
    """Centred kernel alignment with its 95 % interval; nan where undefined."""

    value: float
    low: float
    high: float


UNDEFINED = Similarity(torch.nan, torch.nan, torch.nan)


def linear_cka(x_NF: Tensor, y_NF: Tensor) -> Similarity:
    """Linear centred kernel alignment, debiased for few samples, with a jackknife interval.

    Parameters
    ----------
    x_NF, y_NF : Tensor, shape (N, F)
        Features of the same samples; their numbers may differ.

    Returns
    -------
    Similarity
        1 for features that are the same but for rotation, shift and one common scale; 0 on average
        for independent ones (it can be slightly negative). Undefined for fewer than four samples,
        or where one side does not differ between samples.

    References
    ----------
    .. [1] Kornblith et al., Similarity of Neural Network Representations Revisited (2019).
    .. [2] Nguyen, Raghu and Kornblith, Do Wide and Deep Networks Learn the Same Things? (2021),
       for the unbiased estimator.
    .. [3] Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 11, for the
       jackknife, here by groups.
    """
    count = len(x_NF)
    if count < 4:
        return UNDEFINED
    left, right = (_gram(values) for values in (x_NF, y_NF))
    value = _aligned(left, right)
    if count < 4 * GROUPS:
        return Similarity(value, torch.nan, torch.nan)
    group_N = torch.arange(count, device=left.device) % GROUPS
    kept = [torch.nonzero(group_N != group)[:, 0] for group in range(GROUPS)]
    drawn = torch.tensor([_aligned(left[at][:, at], right[at][:, at]) for at in kept])
    error = float(((GROUPS - 1) * drawn.var(correction=0)).sqrt())
    return Similarity(value, value - NORMAL * error, min(value + NORMAL * error, 1.0))


def _gram(values_NF: Tensor) -> Tensor:
    """Inner products of all samples in float64, centred first against cancellation: (N, N)."""
    values_NF = values_NF.double()
    centred_NF = values_NF - values_NF.mean(0)
    # What is constant up to the rounding of its mean is constant.
    rounding = CONSTANT * values_NF.abs().amax() if values_NF.numel() else 0.0
    centred_NF = torch.where(centred_NF.abs() <= rounding, 0.0, centred_NF)
    return centred_NF @ centred_NF.T


def _aligned(left_NN: Tensor, right_NN: Tensor) -> float:
    """Centred kernel alignment of two Gram matrices; nan where one is constant."""
    spread = _dependence(left_NN, left_NN) * _dependence(right_NN, right_NN)
    tiny = torch.finfo(spread.dtype).tiny
    if not spread > tiny:
        return torch.nan
    return float(_dependence(left_NN, right_NN) / spread.sqrt())


def _dependence(left_NN: Tensor, right_NN: Tensor) -> Tensor:
    """Unbiased Hilbert-Schmidt independence criterion of two Gram matrices: a scalar.

    Times N (N - 3), which cancels in the alignment.
    """
    count = len(left_NN)
    left_NN, right_NN = (gram - torch.diag(gram.diagonal()) for gram in (left_NN, right_NN))
    left_N, right_N = left_NN.sum(0), right_NN.sum(0)
    whole = left_N.sum() * right_N.sum() / ((count - 1) * (count - 2))
    crossed = 2 * (left_N * right_N).sum() / (count - 2)
    return (left_NN * right_NN).sum() + whole - crossed
