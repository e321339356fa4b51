"""Fields of tensors that share memory, after one of them was written in place."""

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from probes.field.intervals import Field, Floats, Span, compressed, joined
from probes.field.rules_layout import strided

Fields = tuple[Field, Field, Field]
"""What one tensor depends on: extended, extended without global gates, clipped to the input."""

Place = tuple[tuple[int, ...], tuple[int, ...], int]
"""Shape, strides and offset of a view within the tensor that owns the memory."""


def viewed(owner: Tensor, fields: Fields, view: Tensor) -> Fields:
    """Fields of ``view`` of ``owner``, from those of the owner."""
    place = _place(owner, view)
    extended, ungated, clipped = (
        tuple(strided(span, owner, *place) for span in field) for field in fields
    )
    return extended, ungated, clipped


def written(owner: Tensor, old: Fields | None, view: Tensor, new: Fields | None) -> Fields:
    """Fields of ``owner``, ``old``, once those of its part ``view`` are ``new``.

    None depends on nothing; one of both depends on something.
    """
    olds, news = old or (None, None, None), new or (None, None, None)
    extended, ungated, clipped = (
        _written(owner, before, view, after) for before, after in zip(olds, news, strict=True)
    )
    return extended, ungated, clipped


def _written(owner: Tensor, old: Field | None, view: Tensor, new: Field | None) -> Field:
    """One reading of :func:`written`."""
    count = len(old or new or ())
    olds, news = old or (None,) * count, new or (None,) * count
    return tuple(
        _scattered(owner, before, view, after) for before, after in zip(olds, news, strict=True)
    )


def _scattered(owner: Tensor, old: Span | None, view: Tensor, new: Span | None) -> Span:
    """Span of ``owner`` with that of ``view`` put in its place."""
    whole, part = _bounds(old, tuple(owner.shape)), _bounds(new, tuple(view.shape))
    low, high = (
        _put(owner, view, before, after) for before, after in zip(whole, part, strict=True)
    )
    parts = [] if old is None else [old]
    if new is not None:
        dims = frozenset(_owned(owner, view, dim) for dim in new.dims)
        parts.append(Span(low, high, dims, new.jump, new.minimal, new.cause, new.known))
    return compressed(joined(parts, low, high))


def _bounds(span: Span | None, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Bounds of every element; of what depends on nothing, the empty interval."""
    low, high = (np.array(np.inf), np.array(-np.inf)) if span is None else (span.low, span.high)
    return np.broadcast_to(low, shape), np.broadcast_to(high, shape)


def _put(owner: Tensor, view: Tensor, whole: Floats, part: Floats) -> Floats:
    """Write ``part`` where ``view`` lies in ``owner``."""
    with _disable_current_modes():
        memory = torch.empty_strided(owner.shape, owner.stride(), dtype=torch.float64)
        memory.copy_(torch.from_numpy(whole.copy()))
        memory.as_strided(*_place(owner, view)).copy_(torch.from_numpy(part.copy()))
        put: Floats = memory.contiguous().numpy()
    return put


def _place(owner: Tensor, view: Tensor) -> Place:
    """Where ``view`` lies in ``owner``."""
    offset = view.storage_offset() - owner.storage_offset()
    return tuple(view.shape), tuple(view.stride()), int(offset)


def _owned(owner: Tensor, view: Tensor, dim: int) -> int:
    """Dimension of ``owner`` that the dimension ``dim`` of ``view`` runs along."""
    stride = view.stride(dim)
    fits = [d for d, step in enumerate(owner.stride()) if step <= stride and owner.shape[d] > 1]
    return max(fits, key=lambda d: owner.stride(d), default=dim)
