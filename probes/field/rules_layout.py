"""Rules of operators that move elements around: views, slices, shuffles, concatenation."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from probes.field.intervals import (
    Field,
    Floats,
    Span,
    aligned,
    compressed,
    contract,
    drop,
    empty,
    everything,
    insert,
    joined,
    permute,
    spacing,
    subsampled,
)
from probes.field.operation import Operation, Rule, named

Shape = tuple[int, ...]
Groups = list[tuple[list[int], list[int]]]


def each(move: Callable[[Operation, Span], Span]) -> Rule:
    """Rule of an operator that moves the elements of its first argument."""

    def rule(op: Operation) -> Sequence[Field | None]:
        field = op.main()
        assert field is not None
        return [tuple(move(op, span) for span in field)]

    return rule


def _permuted(op: Operation, span: Span) -> Span:
    """Reorder all dimensions."""
    return permute(span, op["dims"])


def _transposed(op: Operation, span: Span) -> Span:
    """Exchange two dimensions; ``t`` exchanges the only two."""
    order = list(range(span.low.ndim))
    if "dim0" in op:
        first, second = op["dim0"], op["dim1"]
        order[first], order[second] = order[second], order[first]
    return permute(span, order if "dim0" in op else order[::-1])


def _unsqueezed(op: Operation, span: Span) -> Span:
    """Add a dimension of size 1."""
    return insert(span, op["dim"] % (span.low.ndim + 1))


def _squeezed(op: Operation, span: Span) -> Span:
    """Remove dimensions of size 1, all or those asked for."""
    asked = op["dim"] if "dim" in op else range(len(op.shape))
    dims = [asked] if isinstance(asked, int) else list(asked)
    dims = [dim % len(op.shape) for dim in dims]
    return drop(span, [dim for dim in dims if op.shape[dim] == 1])


def _expanded(op: Operation, span: Span) -> Span:
    """Repeat dimensions of size 1, without copying: compressed spans stay as they are."""
    return aligned(span, len(op.output))


def _selected(op: Operation, span: Span) -> Span:
    """Take one element along a dimension, which goes."""
    dim = op["dim"] % len(op.shape)
    return drop(taken(span, dim, slice_of(op["index"] % op.shape[dim], 1)), [dim])


def _sliced(op: Operation, span: Span) -> Span:
    """Take every ``step``-th element of a part of a dimension."""
    dim = op["dim"] % len(op.shape)
    start, stop, step = slice(op["start"], op["end"], op["step"]).indices(op.shape[dim])
    span = taken(span, dim, slice(start, stop, step))
    return subsampled(span, step) if dim in span.dims else span


def slice_of(start: int, count: int) -> slice:
    """Write ``count`` elements from ``start`` on."""
    return slice(start, start + count)


def taken(span: Span, dim: int, part: slice) -> Span:
    """Keep a part of a dimension; a compressed one stays as it is."""
    if span.low.shape[dim] == 1:
        return span
    where = (slice(None),) * dim + (part,)
    return replace(span, low=span.low[where], high=span.high[where])


def parts(op: Operation) -> Sequence[Field | None]:
    """Cut a dimension into consecutive parts, one per output; ``unbind`` drops the dimension."""
    field, dim = op.main(), op["dim"] % len(op.shape)
    assert field is not None
    results: list[Field] = []
    start = 0
    for out in op.outs:
        count = 1 if op.base == "unbind" else int(out.shape[dim])
        cut = tuple(taken(span, dim, slice_of(start, count)) for span in field)
        results.append(tuple(drop(span, [dim]) for span in cut) if op.base == "unbind" else cut)
        start += count
    return results


def concatenation(op: Operation) -> Sequence[Field | None]:
    """Put operands one behind the other along a dimension, or along a new one (``stack``)."""
    tensors: list[Tensor] = [
        t for t in op.args[0] if op.base == "stack" or t.numel() or t.dim() > 1
    ]
    ndim = len(op.output)
    dim = op["dim"] % ndim
    sizes = [1 if op.base == "stack" else int(tensor.shape[dim]) for tensor in tensors]
    fields = [op.field(tensor) for tensor in tensors]
    results = []
    for axis in range(len(next(field for field in fields if field is not None))):
        spans = [None if field is None else field[axis] for field in fields]
        if op.base == "stack":
            spans = [None if span is None else insert(span, dim) for span in spans]
        results.append(_concatenated(spans, sizes, dim, ndim))
    return [tuple(results)]


def _concatenated(spans: list[Span | None], sizes: list[int], dim: int, ndim: int) -> Span:
    """Concatenate bounds; operands that depend on no input are empty."""
    known = [span for span in spans if span is not None]
    bounds = [empty(ndim) if span is None else (span.low, span.high) for span in spans]
    common = np.broadcast_shapes(*(_but(low.shape, dim, 1) for low, _ in bounds))
    low, high = (
        np.concatenate(
            [
                np.broadcast_to(bound[side], _but(common, dim, size))
                for bound, size in zip(bounds, sizes, strict=True)
            ],
            axis=dim,
        )
        for side in (0, 1)
    )
    return compressed(joined(known, low, high))


def _but(shape: Shape, dim: int, size: int) -> Shape:
    """Change the size of one dimension."""
    return (*shape[:dim], size, *shape[dim + 1 :])


def _rolled(op: Operation, span: Span) -> Span:
    """Shift around: along the axis, what leaves at one end comes in at the other."""
    shifts, dims = op["shifts"], op["dims"]
    if not dims:
        return relocate(op, span)
    low, high = span.low, span.high
    for shift, dim in zip(shifts, dims, strict=True):
        low, high = np.roll(low, shift, axis=dim), np.roll(high, shift, axis=dim)
    return replace(span, low=low, high=high)


def _flipped(op: Operation, span: Span) -> Span:
    """Reverse dimensions."""
    dims = tuple(op["dims"])
    turned = {dim % len(op.shape) for dim in dims} & span.dims
    low, high = np.flip(span.low, dims), np.flip(span.high, dims)
    return replace(span, low=low, high=high, jump=-span.jump if turned else span.jump)


def _repeated(op: Operation, span: Span) -> Span:
    """Tile: copies of the whole, one behind the other."""
    span = aligned(span, len(op.output))
    tiles = [
        count if size > 1 else 1 for count, size in zip(op["repeats"], span.low.shape, strict=True)
    ]
    low, high = np.tile(span.low, tiles), np.tile(span.high, tiles)
    tiled = any(tiles[dim] > 1 for dim in span.dims)
    return replace(span, low=low, high=high, jump=np.nan if tiled else span.jump)


def _as_complex(op: Operation, span: Span) -> Span:
    """Real and imaginary part, the last dimension, become one element."""
    last = len(op.shape) - 1
    return drop(contract(span, [last], op.cause("complex numbers of the positions")), [last])


def _as_real(op: Operation, span: Span) -> Span:
    """Real and imaginary part get a dimension of their own, the last."""
    return insert(span, span.low.ndim)


def _viewed(op: Operation, span: Span) -> Span:
    """Reshape without moving elements in memory; another type may change their number."""
    if prod(op.shape) != prod(op.output):
        return everything([span], len(op.output), op.cause("reinterpreted memory"), known=False)
    return reshaped(span, op.shape, op.output)


def reshaped(span: Span, before: Shape, after: Shape) -> Span:
    """Span of a tensor of shape ``before`` that is read as one of shape ``after``.

    Dimensions are taken in groups of equal size; within each group the bounds are expanded only
    where they vary.
    """
    if before == after:
        return span
    sizes_in, sizes_out = list(span.low.shape), [1] * len(after)
    groups = _groups(before, after)
    for old, new in groups:
        if any(span.low.shape[dim] > 1 for dim in old):
            for dim in old:
                sizes_in[dim] = before[dim]
            for dim in new:
                sizes_out[dim] = after[dim]
    low, high = (
        np.broadcast_to(bound, sizes_in).reshape(sizes_out) for bound in (span.low, span.high)
    )
    result = compressed(replace(span, low=low, high=high))
    dims = _singles(span, groups, before, after)
    straight = True
    for old, new in groups:
        moved = _followed(span, [before[dim] for dim in old], old, [after[dim] for dim in new], new)
        dims |= {dim for dim in moved if result.low.shape[dim] > 1} or moved
        straight = straight and (not moved or len(old) == len(new) == 1)
    result = replace(result, dims=frozenset(dims))
    return result if straight else replace(result, jump=spacing(result))


def _groups(before: Shape, after: Shape) -> Groups:
    """Pair the smallest runs of dimensions that hold equally many elements; sizes 1 left out."""
    old = [dim for dim, size in enumerate(before) if size != 1]
    new = [dim for dim, size in enumerate(after) if size != 1]
    groups = []
    while old:
        left, right = [old.pop(0)], [new.pop(0)]
        while (have := prod(before[d] for d in left)) != (want := prod(after[d] for d in right)):
            left.append(old.pop(0)) if have < want else right.append(new.pop(0))
        groups.append((left, right))
    return groups


def _followed(
    span: Span, sizes: list[int], old: list[int], targets: list[int], new: list[int]
) -> set[int]:
    """Dimensions of ``new`` along which the positions of ``old`` change."""
    own = [place for place, dim in enumerate(old) if dim in span.dims]
    if not own or len(new) == 1:
        return set(new) if own else set()
    marker = _marker(sizes, own).reshape(targets)
    return {new[place] for place in range(len(new)) if _varies(marker, place)}


def _singles(span: Span, groups: Groups, before: Shape, after: Shape) -> set[int]:
    """Dimensions of size 1 that still run along the axis: those between the same groups."""
    old = _gaps([group for group, _ in groups], len(before))
    new = _gaps([group for _, group in groups], len(after))
    return {
        target
        for left, right in zip(old, new, strict=True)
        for dim, target in zip(left, right, strict=False)
        if dim in span.dims
    }


def _gaps(groups: list[list[int]], ndim: int) -> list[range]:
    """Dimensions before, between and behind groups of them."""
    starts = [0, *(group[-1] + 1 for group in groups)]
    stops = [*(group[0] for group in groups), ndim]
    return [range(start, stop) for start, stop in zip(starts, stops, strict=True)]


def _marker(sizes: Sequence[int], own: Sequence[int]) -> Floats:
    """Array that changes along the dimensions ``own``, and along no other."""
    marker = np.zeros(tuple(sizes))
    scale = 1.0
    for dim in own:
        steps = np.arange(sizes[dim], dtype=np.float64) * scale
        marker = marker + steps.reshape([-1 if d == dim else 1 for d in range(len(sizes))])
        scale *= sizes[dim]
    return marker


def _varies(array: Floats, dim: int) -> bool:
    """Whether elements along ``dim`` differ."""
    return bool((array != array.take([0], axis=dim)).any())


def relocate(op: Operation, span: Span) -> Span:
    """Move bounds as the operator itself does, and see where the positions end up."""

    def move(full: Tensor) -> Tensor:
        moved: Tensor = op.func(full, *op.args[1:], **op.kwargs)
        return moved

    return moved_by(move, span, op.shape)


def moved_by(move: Callable[[Tensor], Tensor], span: Span, shape: Shape) -> Span:
    """Move the bounds of a tensor of ``shape`` by a function of tensors."""
    bounds = (span.low, span.high, _marker(shape, [*span.dims]))
    with _disable_current_modes():
        fulls = [torch.from_numpy(np.broadcast_to(bound, shape).copy()) for bound in bounds]
        low, high, marker = (move(full).numpy() for full in fulls)
    dims = frozenset(dim for dim in range(marker.ndim) if _varies(marker, dim))
    result = compressed(replace(span, low=low, high=high, dims=dims))
    return replace(result, jump=spacing(result)) if span.dims else result


def _strided(op: Operation, span: Span) -> Span:
    """Read the memory of the operand with other strides."""
    tensor: Tensor = op.args[0]
    offset = op["storage_offset"]
    place = (op["size"], op["stride"], 0 if offset is None else offset - tensor.storage_offset())
    return strided(span, tensor, *place)


def strided(
    span: Span, tensor: Tensor, size: Sequence[int], stride: Sequence[int], offset: int
) -> Span:
    """Span of a view of ``tensor`` with the given geometry; ``offset`` counts from its start."""

    def move(full: Tensor) -> Tensor:
        memory = torch.empty_strided(tensor.shape, tensor.stride(), dtype=full.dtype)
        return memory.copy_(full).as_strided(size, stride, offset).contiguous()

    return moved_by(move, span, tuple(tensor.shape))


RULES: dict[str, Rule] = {
    **named(each(_permuted), "permute"),
    **named(each(_transposed), "transpose t"),
    **named(each(_unsqueezed), "unsqueeze"),
    **named(each(_squeezed), "squeeze"),
    **named(each(_expanded), "expand"),
    **named(each(_selected), "select"),
    **named(each(_sliced), "slice"),
    **named(each(_rolled), "roll"),
    **named(each(_flipped), "flip"),
    **named(each(_repeated), "repeat"),
    **named(each(_as_complex), "view_as_complex"),
    **named(each(_as_real), "view_as_real"),
    **named(each(_strided), "as_strided"),
    **named(each(_viewed), "view _unsafe_view reshape _reshape_alias"),
    **named(parts, "split split_with_sizes unsafe_split unbind chunk"),
    **named(concatenation, "cat stack"),
    **named(
        each(relocate),
        "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle unfold im2col "
        "diagonal rot90",
    ),
}
