"""What the first and the second half of sequences add to a gradient, and whether they agree.

Shapes: T timestep, N sample, K timestep of a half, G row and I column (of all weights together),
W weight, P half (first, second).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from probes.recurrent.shares.outer import Outer, Spans, inner, joined, own_inner

FORMED = 2**23
"""Numbers that the gradients of all samples may take to be formed rather than multiplied out."""

COLUMNS = 2**13
"""Columns of them that are summed together: few enough for a cache."""

LEAST_LEFT = 100
"""Squared norm of what is left without a sample, in roundings of what it is the difference of,
below which its direction is not known: cosines just above are off by up to 0.001."""


class Terms(NamedTuple):
    """Outer products whose sums are the gradients of some weights, over one sequence they read."""

    left: Tensor
    """Shape (T, N, G)."""
    right: Tensor
    """Shape (T, N, I)."""
    spans: Spans
    """Columns of each weight."""
    half: Tensor
    """First timestep of the second half of each sample: (N,)."""

    def by_time(self) -> Outer:
        """One sum for every timestep."""
        return Outer(self.left, self.right, self.spans)

    def by_sample(self) -> Outer:
        """One sum for every sample."""
        return Outer(self.left.transpose(0, 1), self.right.transpose(0, 1), self.spans)


class Halved(NamedTuple):
    """Gradients of some weights, and how their parts relate, in float64."""

    norm: Tensor
    """Norm of the gradient, summed over samples and timesteps: (W,)."""
    cosine: Tensor
    """Cosine of the first half with the second: (W,), nan where one of them is zero."""
    cosine_without: Tensor
    """The same without each sample: (W, N), nan where that leaves nothing, or as good as nothing
    beside that sample, so that it would be rounding."""
    sample_norm: Tensor
    """Norm of the gradient of each sample: (W, N)."""
    sample_cosine: Tensor
    """Cosine of the halves of each sample: (W, N)."""
    inner: list[Tensor]
    """Of each sequence the inner products of what each timestep of each sample adds with the whole
    gradient: (W, T, N)."""
    own: list[Tensor]
    """Likewise with the gradient of that sample alone."""


def halved(terms: Sequence[Terms]) -> Halved:
    """Compare the halves of all sequences that some weights are used for, and their timesteps.

    Parameters
    ----------
    terms : sequence of Terms
        With the same samples and weights; usually one.
    """
    halves = [_half(terms, second=second) for second in (False, True)]
    small = len(halves[0].left) * halves[0].size <= FORMED
    products = (_from_formed if small else _from_factors)(terms, *halves)
    # <A - a, B - b> = <A, B> - <A, b> - <a, B> + <a, b>, of any two halves.
    cross_WNPP = products.cross + products.cross.transpose(2, 3)
    without_WNPP = products.whole[:, None] - cross_WNPP + products.own
    rounding = torch.finfo(halves[0].left.dtype).eps
    unknown_WN = _lost(without_WNPP, products.own, rounding)
    return Halved(
        products.whole.sum((1, 2)).clamp_min(0).sqrt(),
        _cosine(products.whole),
        _cosine(without_WNPP).masked_fill(unknown_WN, torch.nan),
        products.own.sum((2, 3)).clamp_min(0).sqrt(),
        _cosine(products.own),
        products.timesteps,
        products.own_timesteps,
    )


class _Products(NamedTuple):
    """Inner products between parts of gradients."""

    whole: Tensor
    """Of the halves of all samples together: (W, P, P)."""
    own: Tensor
    """Of the halves of each sample: (W, N, P, P)."""
    cross: Tensor
    """Of the halves of each sample with those of all together: (W, N, P, P)."""
    timesteps: list[Tensor]
    """Of each timestep of each sample with everything: (W, T, N)."""
    own_timesteps: list[Tensor]
    """Of each timestep of each sample with everything of the sample: (W, T, N)."""


def _from_formed(terms: Sequence[Terms], first: Outer, second: Outer) -> _Products:
    """Form the gradients of all samples."""
    formed = first.formed(), second.formed()
    total_PX = torch.stack([_summed(values_NX) for values_NX in formed])
    early, both, late = (first.dots(formed[a], formed[b]) for a, b in ((0, 0), (0, 1), (1, 1)))
    cross = [
        first.dots(values_NX, total_X.to(values_NX)) for values_NX in formed for total_X in total_PX
    ]
    shape = first.right.shape[2], first.left.shape[2]
    sample_NIG = (formed[0] + formed[1]).view(-1, *shape)
    return _Products(
        _gram(total_PX.view(2, *shape), first.spans),
        _square((early, both, both, late)),
        _square(cross),
        [one.by_time().against(total_PX.sum(0).view(shape)) for one in terms],
        [one.by_sample().against(sample_NIG).transpose(1, 2) for one in terms],
    )


def _summed(values_NX: Tensor) -> Tensor:
    """Sum over samples in float64: (X,); cut into columns, which is several times faster."""
    return torch.cat([part.double().sum(0) for part in torch.split(values_NX, COLUMNS, 1)])


def _from_factors(terms: Sequence[Terms], first: Outer, second: Outer) -> _Products:
    """Multiply out the factors, as the gradients of all samples would take too much memory."""
    total_PIG = torch.stack([first.total().double(), second.total().double()])
    own = inner(first, first), *(inner(first, second),) * 2, inner(second, second)
    by_half = [[one.by_time().against(total_IG) for one in terms] for total_IG in total_PIG]
    cross = torch.stack(
        [
            torch.stack([_by_half(*pair) for pair in zip(parts, terms, strict=True)]).sum(0)
            for parts in by_half
        ],
        -1,
    )
    return _Products(
        _gram(total_PIG, first.spans),
        _square(own),
        cross,
        [early + late for early, late in zip(*by_half, strict=True)],
        own_inner([one.by_sample() for one in terms]),
    )


def _square(products: Sequence[Tensor]) -> Tensor:
    """Put four inner products into a matrix of halves."""
    found = torch.stack([*products], -1)
    return found.view(*found.shape[:-1], 2, 2)


def _gram(total_PIG: Tensor, spans: Spans) -> Tensor:
    """Inner products of the halves of all samples: (W, P, P)."""
    parts = [total_PIG[:, a:b].flatten(1) for a, b in spans]
    return torch.stack([part_PX @ part_PX.t() for part_PX in parts])


def _by_half(inner_WTN: Tensor, terms: Terms) -> Tensor:
    """Sum over the timesteps of each half: (W, N, P)."""
    steps_T1 = torch.arange(inner_WTN.shape[1], device=inner_WTN.device)[:, None]
    late_TN = steps_T1 >= terms.half.to(inner_WTN.device)
    return torch.stack([(inner_WTN * ~late_TN).sum(1), (inner_WTN * late_TN).sum(1)], -1)


def _cosine(products_PP: Tensor) -> Tensor:
    """Cosine of two halves from their inner products (..., P, P)."""
    square = products_PP[..., 0, 0].clamp_min(0) * products_PP[..., 1, 1].clamp_min(0)
    return products_PP[..., 0, 1] / square.sqrt()


def _lost(left: Tensor, part: Tensor, rounding: float) -> Tensor:
    """Whether what is left of a gradient without a part is as small as its rounding: (...).

    In one half at least. Both are inner products of the halves (..., P, P). Those of what is left
    come from others, so that their error is a rounding of the squared norms of these: where little
    is left, of the whole and the part together, which are alike.
    """
    left, part = (products.diagonal(dim1=-2, dim2=-1) for products in (left, part))
    return (left < LEAST_LEFT * rounding * 4 * part).any(-1)


def _half(terms: Sequence[Terms], *, second: bool) -> Outer:
    """One half of every sample, over all sequences: sums over its timesteps."""
    parts = [_cut(one, second) for one in terms]
    if len(parts) == 1:
        return parts[0]
    return joined(parts)


def _cut(terms: Terms, second: bool) -> Outer:
    """One half of every sample of one sequence."""
    left_TNG, right_TNI, spans, half_N = terms
    middle = int(half_N.max())
    if bool((half_N == middle).all()):
        chosen = slice(middle, None) if second else slice(0, middle)
        return Outer(left_TNG[chosen].transpose(0, 1), right_TNI[chosen].transpose(0, 1), spans)
    start_N = half_N if second else torch.zeros_like(half_N)
    stop_N = torch.full_like(half_N, len(left_TNG)) if second else half_N
    index_NK = start_N[:, None] + torch.arange(int((stop_N - start_N).max()))
    outside_NK = (index_NK >= stop_N[:, None]).to(left_TNG.device)
    index_NK = index_NK.clamp_max(len(left_TNG) - 1).to(left_TNG.device)
    rows_N1 = torch.arange(len(half_N), device=left_TNG.device)[:, None]
    left_NKG = left_TNG[index_NK, rows_N1].masked_fill(outside_NK[..., None], 0)
    return Outer(left_NKG, right_TNI[index_NK, rows_N1], spans)
