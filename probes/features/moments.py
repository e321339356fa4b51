"""Covariance of the units of a layer by groups of samples, and positions that count as independent.

Shapes: B sample, S position, C unit, G group, K group that is left out, N row of a group.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from probes.features.layers import Seen

TOGETHER = 2**20
"""Numbers of covariances without a group that are worked out at the same time, at least one."""

EVERY = slice(None)
"""All groups."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of groups of positions, in float64, of what is left after a shift.

    Parameters
    ----------
    shift : Tensor, shape (C,)
        Near the mean, so that little cancels.
    counts : Tensor, shape (G,)
        Positions.
    sums : Tensor, shape (G, C)
    products : Tensor, shape (G, C, C)
    rough : bool
        Whether the products of one call are summed in float32, in half the time: then variances
        below a ten-millionth of the largest are rounding.
    """

    shift: Tensor
    counts: Tensor
    sums: Tensor
    products: Tensor
    rough: bool = False

    @classmethod
    def around(cls, shift_C: Tensor, groups: int, rough: bool) -> "Sums":
        """Begin with nothing."""
        width, zeros = len(shift_C), shift_C.new_zeros
        sums = zeros(groups), zeros(groups, width), zeros(groups, width, width)
        return cls(shift_C, *sums, rough)

    def add(self, seen: Seen, start: int) -> tuple[Tensor, Tensor]:
        """Add positions; return sum (B, C) and number of positions (B, 1) of each sample."""
        dtype = torch.float32 if self.rough else torch.float64
        centred_BSC = seen.values.detach().to(dtype) - self.shift.to(dtype)
        samples, positions, width = centred_BSC.shape
        count_B = self.counts.new_full((samples,), positions)
        if seen.valid is not None:
            centred_BSC = centred_BSC.masked_fill_(~seen.valid[..., None], 0)
            count_B = seen.valid.sum(1).to(self.counts)
        sum_BC = centred_BSC.sum(1).double()
        groups, first = len(self.counts), start % len(self.counts)
        number_B = torch.arange(first, first + samples, device=self.shift.device)
        group_B = number_B % groups
        self.counts.index_add_(0, group_B, count_B)
        self.sums.index_add_(0, group_B, sum_BC)
        rows_GNC = centred_BSC.reshape(1, -1, width)
        if groups > 1:
            # Rows of zeros fill up the groups of fewer samples: they add nothing.
            most = (first + samples - 1) // groups + 1
            rows_GNC = centred_BSC.new_zeros(groups, most, positions, width)
            rows_GNC[group_B, number_B // groups] = centred_BSC
            rows_GNC = rows_GNC.flatten(1, 2)
        if self.rough:
            self.products.add_(rows_GNC.mT @ rows_GNC)
        else:
            self.products.baddbmm_(rows_GNC.mT, rows_GNC)
        return sum_BC, count_B[:, None]


class Moments:
    """What is kept of the units of one layer.

    Parameters
    ----------
    groups : int
        Sample number n of the audit set belongs to group n modulo ``groups``.
    rough : bool
        As of :class:`Sums`.
    """

    def __init__(self, groups: int, rough: bool = False) -> None:
        self.samples = 0
        self._groups, self._rough = groups, rough
        self._sums: Sums | None = None
        self._pending: tuple[Tensor, Tensor] | None = None
        self._sum = torch.zeros(())
        self._square = torch.zeros(())

    def add(self, seen: Seen, start: int) -> None:
        """Add one call of the layer.

        Parameters
        ----------
        seen : Seen
            What it returned.
        start : int
            Number of the first sample.
        """
        if self._sums is None:
            shift_C = _mean(seen)
            if shift_C is None:
                return
            self._sums = Sums.around(shift_C, self._groups, self._rough)
        sum_BC, count_B1 = self._sums.add(seen, start)
        if self._pending is not None:
            sum_BC, count_B1 = sum_BC + self._pending[0], count_B1 + self._pending[1]
        self._pending = sum_BC, count_B1

    def close(self) -> None:
        """Take down the mean of each sample, over all calls of the layer in one pass."""
        if self._pending is None:
            return
        sum_BC, count_B1 = self._pending
        # About the shift of the sums.
        mean_BC = (sum_BC / count_B1)[count_B1[:, 0] > 0]
        self._sum = self._sum.to(mean_BC) + mean_BC.sum(0)
        self._square = self._square.to(mean_BC) + mean_BC.square().sum()
        self.samples += len(mean_BC)
        self._pending = None

    def between(self) -> float:
        """Variance of the means of samples, summed over the units; nan for fewer than two."""
        if self.samples < 2:
            return torch.nan
        square = self._square - self._sum.square().sum() / self.samples
        return float(square.clamp_min(0)) / (self.samples - 1)

    def rows(self) -> int:
        """Positions that were added."""
        return 0 if self._sums is None else int(self._sums.counts.sum())

    def pooled(self, groups: slice = EVERY) -> "Pooled":
        """Join some of the groups, those without any position left out.

        Raises
        ------
        ValueError
            Nothing was added.
        """
        if self._sums is None:
            raise ValueError("a covariance of no positions")
        counts, sums = self._sums.counts[groups], self._sums.sums[groups]
        products, known = self._sums.products[groups], counts > 0
        if not known.all():
            counts, sums, products = counts[known], sums[known], products[known]
        return Pooled(Sums(self._sums.shift, counts, sums, products))


@dataclass(frozen=True, eq=False)
class Pooled:
    """Covariance of all positions of some groups, and of all but those of each."""

    sums: Sums

    @cached_property
    def mean(self) -> Tensor:
        """Shape (C,)."""
        return self.sums.shift + self.sums.sums.sum(0) / self.sums.counts.sum()

    @cached_property
    def _products(self) -> Tensor:
        """Sum of the products: (C, C)."""
        return self.sums.products.sum(0)

    @cached_property
    def whole(self) -> Tensor:
        """Shape (C, C)."""
        count, sum_C = self.sums.counts.sum(), self.sums.sums.sum(0)
        return torch.addr(self._products / count, sum_C, -sum_C / count**2)

    def without(self) -> Iterator[tuple[slice, Tensor]]:
        """Leave out each of the groups; yield which, and their covariances without them (K, C, C).

        A single group cannot be left out.
        """
        groups, width = self.sums.sums.shape
        most = max(TOGETHER // width**2, 1)
        for start in range(0, groups if groups > 1 else 0, most):
            left = slice(start, start + most)
            count_K = self.sums.counts.sum() - self.sums.counts[left]
            mean_KC = (self.sums.sums.sum(0) - self.sums.sums[left]) / count_K[:, None]
            rest_KCC = (self._products - self.sums.products[left]).div_(count_K[:, None, None])
            yield left, rest_KCC.baddbmm_(mean_KC[..., None], mean_KC[:, None], alpha=-1)


def _mean(seen: Seen) -> Tensor | None:
    """Mean of positions that are no padding: (C,), in float64; None without any."""
    values_BSC = seen.values.detach()
    if seen.valid is not None:
        values_NC = values_BSC[seen.valid]
        return values_NC.mean(0, dtype=torch.float64) if len(values_NC) else None
    return values_BSC.mean((0, 1), dtype=torch.float64) if values_BSC.shape[1] else None


def independent(moments: Moments, variance: float) -> float:
    """Positions that count as independent: as many as would leave the mean as uncertain.

    Positions of one sample are alike. The variance of the mean of a sample, against that of a
    single position, says how many of them count; no more than there are.

    Parameters
    ----------
    moments : Moments
        Of the layer.
    variance : float
        Of single positions, summed over the units.

    References
    ----------
    .. [1] Kish, Survey Sampling (1965), for the design effect.
    """
    between, rows = moments.between(), float(moments.rows())
    if not between > 0:
        return rows if between == 0 else min(rows, 1.0)
    return min(rows, moments.samples * variance / between)
