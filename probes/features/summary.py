"""What the covariance of a layer says about its width.

Shapes: C unit, J direction, G group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probes.features import numbers
from probes.features.moments import Moments, independent


@dataclass(frozen=True)
class Rules:
    """Defining numbers, as :class:`probes.width.Width` explains them."""

    level: float
    correlated: float
    power: int


@dataclass(frozen=True, eq=False)
class Summary:
    """Numbers of one layer; nan where they are undefined.

    Parameters
    ----------
    independent : float
        Positions that count as independent.
    spread : Tensor, shape (3,)
        Directions, effective rank and participation ratio.
    spread_without : Tensor, shape (G, 3)
        The same without each group of samples.
    variances : Tensor, shape (J,)
        Along the principal directions, as shares; empty with too few positions.
    rank : float
        Directions that vary at all.
    constant : Tensor, shape (C,)
        Units that do not vary.
    twin : Tensor, shape (C,)
        First unit of the group of units that say the same.
    copies : float
        Units beyond the first one of every group.
    copies_without : Tensor, shape (G,)
        The same without each group of samples.
    """

    independent: float
    spread: Tensor
    spread_without: Tensor
    variances: Tensor
    rank: float
    constant: Tensor
    twin: Tensor
    copies: float
    copies_without: Tensor


def summary(moments: Moments, rules: Rules) -> Summary:
    """Work out the numbers of a layer, on the CPU."""
    whole = moments.pooled()
    width, groups = len(whole.mean), len(whole.sums.counts)
    seen = independent(moments, float(whole.whole.trace()))
    still_C = numbers.constant(whole.mean, whole.whole)
    spread_GX, copies_G = _unknown(groups, 3), _unknown(groups)
    spread_X, shares_J, rank = _unknown(3), torch.empty(0), torch.nan
    basis_CJ = None
    if seen >= rules.power * width:
        found = numbers.spectrum(whole.whole)
        spread_X = numbers.spread(found.variances, rules.level)
        rank = float(numbers.rank(found.variances))
        total = found.variances.sum()
        if total > 0:
            shares_J, basis_CJ = found.variances / total, found.directions
    twin_C = numbers.twins(numbers.correlation(whole.whole, still_C), rules.correlated)
    for left, without_KCC in whole.without():
        if basis_CJ is not None:
            along_KJ = numbers.along(without_KCC, basis_CJ)
            spread_GX[left] = numbers.spread(along_KJ, rules.level)
        still_KC = numbers.constant(whole.mean, without_KCC)
        links_KCC = numbers.correlation(without_KCC, still_KC)
        copies_G[left] = numbers.copies_of(links_KCC, rules.correlated)
    return Summary(
        seen,
        spread_X,
        spread_GX,
        shares_J.cpu(),
        rank,
        still_C.cpu(),
        twin_C,
        float(numbers.copies(twin_C)),
        copies_G,
    )


def _unknown(*shape: int) -> Tensor:
    """Make a table of nan."""
    return torch.full(shape, torch.nan, dtype=torch.float64)


def plain(moments: Moments, level: float) -> Tensor:
    """Directions and effective rank, to three digits or more: (2,)."""
    variances_J = numbers.variances(moments.pooled().whole.float())
    return numbers.spread(variances_J.double(), level)[:2]
