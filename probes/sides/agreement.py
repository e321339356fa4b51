"""How far the gradients of single samples agree, with those of their own data and of others.

Shapes: N sample of all data, S set of data, K element of a gradient, or dimension of its sketch.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Agreement(NamedTuple):
    """Inner products of the gradient of every sample."""

    square: Tensor
    """With itself: (N,)."""
    product: Tensor
    """With the mean gradient of every set, to which it may have added: (N, S)."""
    cosine: Tensor
    """Mean with the gradients of every set, itself left out: (N, S); 0 for a zero gradient."""


def agreement(gradient_NK: Tensor, sets: Sequence[slice]) -> Agreement:
    """Compare every sample with every set of data."""
    square_N = gradient_NK.square().sum(1)
    return Agreement(
        square_N, _products(gradient_NK, sets), _mean_cosines([gradient_NK], square_N, sets)
    )


def whole_agreement(
    gradients: Iterable[Tensor], parts: Sequence[Agreement], sets: Sequence[slice]
) -> Agreement:
    """Compare as :func:`agreement` does, over all layers together.

    Parameters
    ----------
    gradients : iterable of Tensor
        Of every layer, (N, K) each; read once.
    parts : sequence of Agreement
        Of the same layers.
    sets : sequence of slice
        Samples of every set.
    """
    square_N = torch.stack([part.square for part in parts]).sum(0)
    product_NS = torch.stack([part.product for part in parts]).sum(0)
    return Agreement(square_N, product_NS, _mean_cosines(gradients, square_N, sets))


def _products(gradient_NK: Tensor, sets: Sequence[slice]) -> Tensor:
    """Inner products with the mean over every set: (N, S)."""
    mean_SK = torch.stack([gradient_NK[some].mean(0) for some in sets])
    return gradient_NK @ mean_SK.t()


def _mean_cosines(gradients: Iterable[Tensor], square_N: Tensor, sets: Sequence[slice]) -> Tensor:
    """Mean cosine with the samples of every set: (N, S); the sum of unit vectors tells it."""
    norm_N1 = square_N.sqrt()[:, None]
    sum_NS = torch.zeros(len(square_N), len(sets), dtype=square_N.dtype, device=square_N.device)
    for gradient_NK in gradients:
        unit_NK = torch.where(norm_N1 > 0, gradient_NK / norm_N1, 0)
        sum_NS += unit_NK @ torch.stack([unit_NK[some].sum(0) for some in sets]).t()
    count_NS = torch.ones_like(sum_NS)
    for column, some in enumerate(sets):
        own_N = sum_NS[some, column]
        count_NS[:, column] = some.stop - some.start
        own_N -= (norm_N1[some, 0] > 0).to(own_N)
        count_NS[some, column] -= 1
    # One sample has no other one of its own data: 0 / 0.
    return sum_NS / count_NS
