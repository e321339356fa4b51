"""Covariance of features that come in pieces, and how many directions it fills.

Shapes: N position, F feature.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Covariance:
    """Sums for a covariance matrix, in float64, shifted by the mean of the first piece.

    Parameters
    ----------
    count : int
        Positions added so far.
    """

    count: int = 0
    _shift: Tensor | None = None
    _sum: Tensor | None = None
    _products: Tensor | None = None

    def add(self, values_NF: Tensor) -> None:
        """Add positions; they may be none."""
        values_NF = values_NF.detach().double()
        if not len(values_NF):
            return
        if self._shift is None or self._sum is None or self._products is None:
            self._shift = values_NF.mean(0)
            self._sum = torch.zeros_like(self._shift)
            self._products = values_NF.new_zeros(len(self._shift), len(self._shift))
        values_NF = values_NF - self._shift
        self._sum += values_NF.sum(0)
        self._products += values_NF.T @ values_NF
        self.count += len(values_NF)

    def mean(self) -> Tensor:
        """Mean of what was added: (F,).

        Raises
        ------
        ValueError
            Nothing was added.
        """
        if self._sum is None or self._shift is None:
            raise ValueError("a covariance of no positions")
        return self._shift + self._sum / self.count

    def matrix(self) -> Tensor:
        """Covariance of what was added: (F, F); raises as :meth:`mean`."""
        if self._sum is None or self._products is None:
            raise ValueError("a covariance of no positions")
        mean_F = self._sum / self.count
        return self._products / self.count - torch.outer(mean_F, mean_F)


def effective_rank(covariance_FF: Tensor) -> float:
    """Directions that features fill: the exponential of the entropy of their variance shares.

    Parameters
    ----------
    covariance_FF : Tensor, shape (F, F)
        Symmetric, positive semi-definite but for rounding.

    Returns
    -------
    float
        From 1 (one direction) to F (all alike); nan where nothing varies.

    References
    ----------
    .. [1] Roy and Vetterli, The Effective Rank: A Measure of Effective Dimensionality, EUSIPCO
       (2007); here of the eigenvalues of the covariance.
    """
    variances_F = torch.linalg.eigvalsh(covariance_FF).clamp_min(0)
    total = variances_F.sum()
    if not total > 0:
        return torch.nan
    shares_F = variances_F / total
    return float(torch.special.entr(shares_F).sum().exp())
