"""What the covariance of a layer says about its width.

Shapes: C unit, J direction, G group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probes.features import numbers
from probes.features.moments import Moments, independent, pooled


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
    whole = pooled(moments.groups)
    width, groups = len(whole.mean), len(moments.groups)
    seen = independent(moments, float(whole.whole.trace()))
    still_C = numbers.constant(whole.mean, whole.whole)
    spread_GX, copies_G = _unknown(groups, 3), _unknown(groups)
    spread_X, shares_J, rank = _unknown(3), torch.empty(0), torch.nan
    if seen >= rules.power * width:
        found = numbers.spectrum(whole.whole)
        spread_X = _spread(found.variances, rules.level)
        rank = float(numbers.rank(found.variances))
        total = found.variances.sum()
        shares_J = found.variances / total if total > 0 else shares_J
    twin_C = numbers.twins(numbers.correlation(whole.whole, still_C), rules.correlated)
    for at in range(len(whole.parts) if len(whole.parts) > 1 else 0):
        without_CC = whole.without(at)
        still = numbers.constant(whole.mean, without_CC)
        links_CC = numbers.correlation(without_CC, still)
        copies_G[at] = numbers.copies(numbers.twins(links_CC, rules.correlated))
        if len(shares_J):
            spread_GX[at] = _spread(numbers.along(without_CC, found.directions), rules.level)
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


def _spread(variances_J: Tensor, level: float) -> Tensor:
    """Directions, effective rank and participation ratio."""
    return torch.tensor(
        [
            numbers.directions(variances_J, level),
            numbers.effective_rank(variances_J),
            numbers.participation(variances_J),
        ],
        dtype=torch.float64,
    )


def _unknown(*shape: int) -> Tensor:
    """Make a table of nan."""
    return torch.full(shape, torch.nan, dtype=torch.float64)


def plain(moments: Moments, level: float) -> Tensor:
    """Directions and effective rank: (2,)."""
    variances_J = numbers.spectrum(pooled(moments.groups).whole).variances
    return _spread(variances_J, level)[:2]
