"""Covariance of the units of a layer by groups of samples, and positions that count as independent.

Shapes: B sample, S position, C unit, G group, J direction.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from probes.algebra.spectrum import Covariance
from probes.features.layers import Seen


class Moments:
    """What is kept of the units of one layer.

    Parameters
    ----------
    groups : int
        Sample number n of the audit set belongs to group n modulo ``groups``.
    """

    def __init__(self, groups: int) -> None:
        self.groups = [Covariance() for _ in range(groups)]
        self.samples = 0
        self._pending: tuple[Tensor, Tensor] | None = None
        self._shift: Tensor | None = None
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
        count = len(self.groups)
        for group, covariance in enumerate(self.groups):
            own = slice((group - start) % count, None, count)
            covariance.add(seen.values[own][seen.valid[own]])
        mask_BS1 = seen.valid[..., None].to(torch.float64)
        sum_BC, count_B1 = (seen.values.double() * mask_BS1).sum(1), mask_BS1.sum(1)
        if self._pending is not None:
            sum_BC, count_B1 = sum_BC + self._pending[0], count_B1 + self._pending[1]
        self._pending = sum_BC, count_B1

    def close(self) -> None:
        """Take down the mean of each sample, over all calls of the layer in one pass."""
        if self._pending is None:
            return
        sum_BC, count_B1 = self._pending
        mean_BC = (sum_BC / count_B1)[count_B1[:, 0] > 0]
        if self._shift is None:
            self._shift = mean_BC.mean(0)
            self._sum = torch.zeros_like(self._shift)
            self._square = self._shift.new_zeros(())
        self._sum = self._sum + (mean_BC - self._shift).sum(0)
        self._square = self._square + (mean_BC - self._shift).square().sum()
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
        return sum(group.count for group in self.groups)


class Pooled(NamedTuple):
    """Covariance of all samples and of all but those of each group; groups without any left out."""

    mean: Tensor
    """Shape (C,)."""
    whole: Tensor
    """Shape (C, C)."""
    shares: tuple[float, ...]
    """Of every group in all positions."""
    away: tuple[Tensor, ...]
    """Mean of every group, less that of all: (C,) each."""
    parts: tuple[Tensor, ...]
    """Mean squares of every group about the mean of all: (C, C) each."""

    def without(self, group: int) -> Tensor:
        """Covariance without one of the groups: (C, C)."""
        share = self.shares[group] / (1 - self.shares[group])
        # The mean of the others lies on the other side of the mean of all.
        shift_C = share * self.away[group]
        rest_CC = self.whole + share * (self.whole - self.parts[group])
        return rest_CC - torch.outer(shift_C, shift_C)


def pooled(groups: Sequence[Covariance]) -> Pooled:
    """Merge covariances of groups of samples, each about its own mean."""
    known = [group for group in groups if group.count]
    total = sum(group.count for group in known)
    shares = tuple(group.count / total for group in known)
    means = [group.mean() for group in known]
    mean_C = torch.stack([share * mean for share, mean in zip(shares, means, strict=True)]).sum(0)
    away = tuple(mean - mean_C for mean in means)
    parts = tuple(
        group.matrix() + torch.outer(away_C, away_C)
        for group, away_C in zip(known, away, strict=True)
    )
    whole_CC = torch.zeros_like(parts[0])
    for share, part_CC in zip(shares, parts, strict=True):
        whole_CC += share * part_CC
    return Pooled(mean_C, whole_CC, shares, away, parts)


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
