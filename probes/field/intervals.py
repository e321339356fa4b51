"""Which input positions the elements of a tensor depend on, along one axis of the input.

A :class:`Span` holds, for every element of a tensor, the hull ``[low, high]`` of the positions it
depends on; ``low = inf, high = -inf`` depends on nothing. Both arrays are *compressed*: their size
is 1 along every dimension of the tensor along which both are constant, so that a span costs the
length of an axis and not the number of elements. They are compressed together, never apart.

A :data:`Field` is one span per axis. Spans are never changed in place.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Span:
    """What the elements of one tensor depend on along one axis of the input.

    Parameters
    ----------
    low, high : ndarray
        First and last position, compressed; as many dimensions as the tensor [input position].
    dims : frozenset of int
        Dimensions of the tensor that run along the axis; none once it is pooled away.
    jump : float
        Input positions from one element to the next along ``dims``; nan where irregular.
    minimal : float
        Size of the field along the shortest path from the input [input position].
    cause : str
        Why the whole axis is seen, or why nothing is known; empty for an exact span.
    known : bool
        False where an operation without a rule came before.
    period : int
        Elements after which fields repeat, shifted: more than one behind an upsampling.
    """

    low: Floats
    high: Floats
    dims: frozenset[int] = frozenset()
    jump: float = 1.0
    minimal: float = 1.0
    cause: str = ""
    known: bool = True
    period: int = 1


Field = tuple[Span, ...]

_FINEST = 1024
"""Largest denominator of a resampling factor that counts as a ratio of integers."""


@dataclass(frozen=True)
class Taps:
    """Which elements along one dimension each output reads: those of a sliding window.

    Parameters
    ----------
    index : ndarray of int, shape (tap, output)
        Element read; outside of the tensor it stands for padding.
    present : ndarray of bool, shape (tap, output), optional
        Which taps exist; all of them if unset.
    stride : float
        Elements from one output to the next.
    edge : {"empty", "clip", "reflect"}
        What stands outside of the tensor: nothing, its last element, or its mirror image.
    """

    index: Integers
    present: NDArray[np.bool_] | None = None
    stride: float = 1.0
    edge: str = "empty"


def seed(shape: Sequence[int], dim: int) -> Span:
    """Span of the input itself: every element depends on its own position along ``dim``."""
    sizes = [1] * len(shape)
    sizes[dim] = shape[dim]
    positions = np.arange(shape[dim], dtype=np.float64).reshape(sizes)
    return Span(positions, positions, frozenset({dim}))


def aligned(span: Span, ndim: int) -> Span:
    """Prepend dimensions, as broadcasting does."""
    extra = ndim - span.low.ndim
    if extra <= 0:
        return span
    shape = (1,) * extra + span.low.shape
    dims = frozenset(dim + extra for dim in span.dims)
    return replace(span, low=span.low.reshape(shape), high=span.high.reshape(shape), dims=dims)


def union(spans: Sequence[Span]) -> Span:
    """Depend on all of several operands that broadcast against each other."""
    if len(spans) == 1:
        return spans[0]
    ndim = max(span.low.ndim for span in spans)
    parts = [aligned(span, ndim) for span in spans]
    low, high = parts[0].low, parts[0].high
    for part in parts[1:]:
        low, high = np.minimum(low, part.low), np.maximum(high, part.high)
    return joined(parts, low, high)


def joined(parts: Sequence[Span], low: Floats, high: Floats) -> Span:
    """Span with the given bounds and what else several operands have in common."""
    # A pooled gate has no spacing of its own: what it is applied to decides.
    spaced = [part for part in parts if not part.cause and part.dims] or parts
    jumps = [part.jump for part in spaced if np.isfinite(part.jump)]
    blamed = [part.cause for part in parts if not part.known]
    blamed += [part.cause for part in parts if part.cause]
    return Span(
        low,
        high,
        frozenset().union(*(part.dims for part in parts)),
        max(jumps, key=abs, default=np.nan),
        min(part.minimal for part in parts),
        blamed[0] if blamed else "",
        all(part.known for part in parts),
        lcm(*(part.period for part in parts)),
    )


def contract(span: Span, dims: Iterable[int], cause: str, *, keep: bool = False) -> Span:
    """Combine all elements along ``dims``, which stay with size 1.

    Parameters
    ----------
    span : Span
        What the operand depends on.
    dims : iterable of int
        Not negative.
    cause : str
        Becomes the cause of the result if no dimension is left that runs along the axis.
    keep : bool
        Whether the result still has one element for each along ``dims``, as a softmax has.
    """
    over = frozenset(dims)
    left = span.dims - over
    low = span.low.min(axis=tuple(over), keepdims=True)
    high = span.high.max(axis=tuple(over), keepdims=True)
    if span.dims and not left and not span.cause:
        span = replace(span, cause=cause, minimal=np.inf)
    result = replace(span, low=low, high=high, dims=span.dims if keep else left)
    if len(left) == 1 and len(span.dims) > 1:
        # Positions that were spread over several dimensions are regular again.
        return replace(result, jump=spacing(result))
    return result


def accumulate(span: Span, dim: int, cause: str) -> Span:
    """Depend on every element up to one's own along ``dim``, as a recurrence does."""
    if dim in span.dims and not span.cause:
        span = replace(span, cause=cause, minimal=np.inf)
    low = np.minimum.accumulate(span.low, axis=dim)
    return replace(span, low=low, high=np.maximum.accumulate(span.high, axis=dim))


def drop(span: Span, dims: Iterable[int]) -> Span:
    """Remove dimensions of size 1."""
    gone = sorted(set(dims))
    low, high = (bound.squeeze(tuple(gone)) for bound in (span.low, span.high))
    kept = [dim for dim in range(span.low.ndim) if dim not in gone]
    moved = frozenset(kept.index(dim) for dim in span.dims if dim in kept)
    return replace(span, low=low, high=high, dims=moved)


def insert(span: Span, dim: int) -> Span:
    """Add a dimension of size 1 in front of ``dim``."""
    moved = frozenset(old + (old >= dim) for old in span.dims)
    low, high = (np.expand_dims(bound, dim) for bound in (span.low, span.high))
    return replace(span, low=low, high=high, dims=moved)


def permute(span: Span, order: Sequence[int]) -> Span:
    """Reorder the dimensions: the new one ``i`` is the old one ``order[i]``."""
    order = [dim % span.low.ndim for dim in order]
    moved = frozenset(order.index(dim) for dim in span.dims)
    low, high = span.low.transpose(order), span.high.transpose(order)
    return replace(span, low=low, high=high, dims=moved)


def slide(span: Span, dim: int, size: int, taps: Taps, *, extended: bool) -> Span:
    """Take the union over the taps of a window that moves along ``dim``.

    Parameters
    ----------
    span : Span
        What the operand depends on.
    dim, size : int
        Dimension of the operand, and its true size.
    taps : Taps
        What each output reads.
    extended : bool
        Whether the operand goes on beyond its edges with the same spacing, as on an infinite
        canvas; otherwise padding depends on nothing.
    """
    own, jump, period = dim in span.dims, span.jump, span.period
    regular = own and not span.cause and len(span.dims) == 1 and bool(np.isfinite(jump))
    if own:
        reach = _reach(taps) * abs(jump) if np.isfinite(jump) else 0.0
        span = replace(subsampled(span, taps.stride), minimal=span.minimal + reach)
    if span.low.shape[dim] == 1 and (size > 1 or not own):
        return span
    spacing = jump if extended and regular else None
    index = taps.index if spacing is not None else _folded(taps, size)
    low, high = _gather(span, dim, _inside(index, size, period), index, spacing)
    absent = np.zeros(index.shape, bool) if taps.present is None else ~taps.present
    if spacing is None:
        absent = absent | (index < 0) | (index >= size)
    column = (slice(None), *(slice(None) if d == dim else None for d in range(span.low.ndim)))
    low = np.where(absent[column], np.inf, low).min(axis=0)
    high = np.where(absent[column], -np.inf, high).max(axis=0)
    return replace(span, low=low, high=high)


def subsampled(span: Span, stride: float) -> Span:
    """Span of every ``stride``-th element, as to spacing and period."""
    turns = Fraction(abs(stride)).limit_denominator(_FINEST) / span.period
    return replace(span, jump=span.jump * stride, period=turns.denominator)


def _inside(index: Integers, size: int, period: int) -> Integers:
    """Elements of the tensor that stand for those at ``index``, a multiple of the period away."""
    if period > size:
        return index.clip(0, size - 1)
    last = size - period
    return np.where(index < 0, index % period, np.minimum(index, last + (index - last) % period))


def _gather(
    span: Span, dim: int, inside: Integers, index: Integers, spacing: float | None
) -> tuple[Floats, Floats]:
    """Bounds at ``inside`` along ``dim``, taps first, shifted to ``index`` by the spacing."""
    low, high = (
        np.moveaxis(bound.take(inside, axis=dim), dim, 0) for bound in (span.low, span.high)
    )
    if spacing is None:
        return low, high
    sizes = [-1 if other == dim else 1 for other in range(span.low.ndim)]
    shift = ((index - inside) * spacing).reshape(len(index), *sizes)
    return low + shift, high + shift


def _folded(taps: Taps, size: int) -> Integers:
    """Elements that are read where the tensor ends: by the edge rule, or outside still."""
    if taps.edge == "clip":
        return taps.index.clip(0, size - 1)
    if taps.edge == "reflect":
        mirrored = np.abs(taps.index)
        return np.where(mirrored >= size, 2 * (size - 1) - mirrored, mirrored)
    return taps.index


def _reach(taps: Taps) -> float:
    """Elements between the first and the last that an output reads, where they are fewest."""
    if taps.present is None:
        return float((taps.index.max(0) - taps.index.min(0)).min())
    first = np.where(taps.present, taps.index, np.iinfo(np.int64).max).min(0)
    last = np.where(taps.present, taps.index, np.iinfo(np.int64).min).max(0)
    read = taps.present.any(0)
    return float((last - first)[read].min()) if read.any() else 0.0


def compressed(span: Span) -> Span:
    """Shrink every dimension along which both bounds are constant."""
    low, high = span.low, span.high
    for dim in range(low.ndim):
        if low.shape[dim] > 1 and _constant(low, dim) and _constant(high, dim):
            low, high = low.take([0], axis=dim), high.take([0], axis=dim)
    return replace(span, low=low, high=high)


def _constant(bound: Floats, dim: int) -> bool:
    """Whether all elements along ``dim`` are equal."""
    return bool((bound == bound.take([0], axis=dim)).all())


def spacing(span: Span) -> float:
    """Positions from one element to the next, read off the bounds; nan where irregular."""
    if len(span.dims) != 1:
        return float("nan")
    (dim,) = span.dims
    others = tuple(other for other in range(span.low.ndim) if other != dim)
    low, high = span.low.min(axis=others), span.high.max(axis=others)
    if len(low) < 2 or not (np.isfinite(low).all() and np.isfinite(high).all()):
        return float("nan")
    steps = np.diff(low + high) / 2
    return float(steps[0]) if np.allclose(steps, steps[0]) else float("nan")


def everything(spans: Sequence[Span], ndim: int, cause: str, *, known: bool) -> Span:
    """Depend on all that any element of any operand depends on."""
    low = min(float(span.low.min()) for span in spans)
    high = max(float(span.high.max()) for span in spans)
    shape = (1,) * ndim
    blamed = [span.cause for span in spans if not span.known]
    return Span(
        np.full(shape, low),
        np.full(shape, high),
        jump=np.nan,
        minimal=np.inf,
        cause=blamed[0] if blamed else cause,
        known=known and not blamed,
    )


def empty(ndim: int) -> tuple[Floats, Floats]:
    """Bounds of what depends on nothing."""
    return np.full((1,) * ndim, np.inf), np.full((1,) * ndim, -np.inf)


def as_list(value: Any, count: int) -> list[int]:
    """Read an argument that is one integer, or one per dimension, or one for all of them."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values
