"""Sums of outer products, measured without forming more than a few of them at a time.

The gradient of a recurrent weight is a sum of one outer product for every timestep of every
sample. What each timestep or sample adds to it is such a sum itself, and inner products of these
cost no more memory than their factors. Weights whose products have the left factor in common are
measured together.

Shapes: S sum, K outer product of a sum, G row and I column (of all weights together), W weight.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

AT_ONCE = 2**20
"""Numbers of the sums that are formed at the same time: few enough for a cache."""

FLOAT32_SAFE = 1e-25
"""Inner products above this, and below its inverse, lose nothing to underflow in float32."""

Spans = tuple[tuple[int, int], ...]
"""First column of each weight, and the one after its last."""


class Outer(NamedTuple):
    """Several sums of outer products."""

    left: Tensor
    """Shape (S, K, G)."""
    right: Tensor
    """Shape (S, K, I)."""
    spans: Spans

    @property
    def size(self) -> int:
        """Numbers in one sum."""
        return self.left.shape[2] * self.right.shape[2]

    def total(self) -> Tensor:
        """Sum of all sums: (I, G)."""
        return self.right.flatten(0, 1).t() @ self.left.flatten(0, 1)

    def formed(self) -> Tensor:
        """Every sum, column after column: (S, I * G)."""
        return torch.bmm(self.right.transpose(1, 2), self.left).flatten(1)

    def against(self, total: Tensor) -> Tensor:
        """Inner products of every single outer product with a matrix (W, S, K), in float64.

        One matrix (I, G) for all sums, or one for each (S, I, G).
        """
        found, start = [], 0
        total = total.to(self.left).mT
        for piece in self.at_a_time(self.left.shape[1] * self.right.shape[2]):
            stop = start + len(piece.left)
            own = total if total.dim() == 2 else total[start:stop]
            rows = torch.matmul(piece.left, own).flatten(0, 1)
            found.append(dots(rows, piece.right.flatten(0, 1), self.spans))
            start = stop
        return torch.cat(found, 1).view(len(self.spans), *self.left.shape[:2])

    def dots(self, left: Tensor, right: Tensor) -> Tensor:
        """Inner products of sums that are formed, as by :func:`dots`: (W, S)."""
        rows = self.left.shape[2]
        return dots(left, right, tuple((rows * a, rows * b) for a, b in self.spans))

    def at_a_time(self, numbers: int) -> Iterator["Outer"]:
        """Cut into as many sums at a time as fit, at ``numbers`` each."""
        step = max(1, AT_ONCE // numbers)
        for start in range(0, len(self.left), step):
            stop = start + step
            yield Outer(self.left[start:stop], self.right[start:stop], self.spans)


def inner(one: Outer, other: Outer) -> Tensor:
    """Inner products of the sums of two parts, weight by weight: (W, S), in float64.

    In the Gram form, where <a b', c d'> = (a c)(b d), or with the sums formed, a few at a time:
    whichever takes fewer operations. The Gram form squares the relative error where outer products
    cancel within a sum, and so is computed in float64.
    """
    counts = one.left.shape[1], other.left.shape[1]
    edges = one.left.shape[2] + one.right.shape[2]
    if 4 * counts[0] * counts[1] * edges < sum(counts) * one.size:
        measure, numbers = _gram, sum(counts) * edges + counts[0] * counts[1]
    else:
        measure, numbers = _formed, 2 * one.size
    pieces = zip(one.at_a_time(numbers), other.at_a_time(numbers), strict=True)
    return torch.cat([measure(*piece) for piece in pieces], 1)


def joined(parts: Sequence[Outer]) -> Outer:
    """Put the outer products of each sum in several parts together."""
    left = torch.cat([part.left for part in parts], 1)
    return Outer(left, torch.cat([part.right for part in parts], 1), parts[0].spans)


def own_inner(parts: Sequence[Outer]) -> list[Tensor]:
    """Inner products of every single outer product with its whole sum over all parts.

    Returns
    -------
    list of Tensor, shape (W, K, S)
        For each part.
    """
    counts = [part.left.shape[1] for part in parts]
    whole = joined(parts) if len(parts) > 1 else parts[0]
    edges = whole.left.shape[2] + whole.right.shape[2]
    if sum(counts) * edges < whole.size:
        measure, numbers = _own_gram, sum(counts) * (edges + sum(counts))
    else:
        measure, numbers = _own_formed, whole.size
    found = torch.cat([measure(piece) for piece in whole.at_a_time(numbers)], 1)
    return [*torch.split(found.transpose(1, 2), counts, 1)]


def _own_gram(whole: Outer) -> Tensor:
    """Inner products with the whole sum from those of the factors: (W, S, K)."""
    left, right = whole.left.double(), whole.right.double()
    left_SKK = torch.bmm(left, left.transpose(1, 2))
    return torch.stack(
        [
            (left_SKK * torch.bmm(right[:, :, a:b], right[:, :, a:b].transpose(1, 2))).sum(2)
            for a, b in whole.spans
        ]
    )


def _own_formed(whole: Outer) -> Tensor:
    """Inner products with the whole sum, formed: (W, S, K)."""
    return whole.against(whole.formed().view(-1, whole.right.shape[2], whole.left.shape[2]))


def dots(left_SX: Tensor, right: Tensor, spans: Spans) -> Tensor:
    """Inner products row by row, over some columns at a time: (W, S), in float64.

    With rows (S, X), or with one row (X,) for all.
    """
    return torch.stack([_dot(left_SX[:, a:b], right[..., a:b]) for a, b in spans])


def _dot(left_SX: Tensor, right: Tensor) -> Tensor:
    """Inner products row by row: (S,); those of small float32 numbers do not vanish."""
    found_S = _product(left_SX, right).double()
    if left_SX.dtype != torch.float64:
        size_S = found_S.abs()
        unsafe_S = ~((size_S > FLOAT32_SAFE) & (size_S < 1 / FLOAT32_SAFE))
        if unsafe_S.any():
            others = right if right.dim() == 1 else right[unsafe_S]
            found_S[unsafe_S] = _product(left_SX[unsafe_S].double(), others.double())
    return found_S


def _product(left_SX: Tensor, right: Tensor) -> Tensor:
    """Inner products row by row: (S,); a matrix product where the other row is always the same."""
    if right.dim() == 1:
        return left_SX @ right
    found_S: Tensor = torch.linalg.vecdot(left_SX, right)
    return found_S


def _gram(one: Outer, other: Outer) -> Tensor:
    """Inner products from those of the factors."""
    left_SKK = torch.bmm(one.left.double(), other.left.double().transpose(1, 2))
    ones, others = one.right.double(), other.right.double().transpose(1, 2)
    return torch.stack(
        [(left_SKK * torch.bmm(ones[:, :, a:b], others[:, a:b])).sum((1, 2)) for a, b in one.spans]
    )


def _formed(one: Outer, other: Outer) -> Tensor:
    """Inner products from the sums themselves."""
    formed = one.formed()
    return one.dots(formed, formed if other is one else other.formed())
