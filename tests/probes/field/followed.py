"""Fields of every element that a function returns, and the same seen by putting in nan.

Unlike :mod:`oracle`, which looks at the centre units of layers, this looks at all elements of what
a few operators return, so that a wrong rule has nowhere to hide.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from oracle import tree
from torch import Tensor

from probes.field.intervals import Span
from probes.field.memory import Fields
from probes.field.mode import FieldMode, RecurrentMode

Function = Callable[[Tensor], object]
Bounds = tuple[np.ndarray, np.ndarray]


def fields(function: Function, x: Tensor, dims: Sequence[int]) -> list[Fields | None]:
    """Follow a function of ``x``, whose axes are ``dims``: fields of all that it returns."""
    mode = seeded(x, dims)
    with torch.no_grad(), mode, RecurrentMode(mode):
        outs = tree(function(x))
    return [mode.fields(out) for out in outs]


def seeded(x: Tensor, dims: Sequence[int]) -> FieldMode:
    """Mode that knows ``x`` as the input."""
    mode = FieldMode()
    mode.seed(x, tuple(seed(x, dim) for dim in dims))
    return mode


def seed(x: Tensor, dim: int) -> Span:
    """Span of an input, written out."""
    positions = np.arange(x.shape[dim], dtype=float)
    positions = positions.reshape([-1 if other == dim else 1 for other in range(x.dim())])
    return Span(positions, positions, frozenset({dim}))


def reached(function: Function, x: Tensor, dim: int, *, change: bool) -> list[Bounds]:
    """First and last position along ``dim`` that reaches each element of each output.

    With ``change``, what is put in is another number: a weight of exactly zero hides it.
    """
    found: list[Bounds] = []
    before = tree(function(x))
    for position in range(x.shape[dim]):
        probe = x.clone()
        probe.select(dim, position).fill_(1e3 if change else torch.nan)
        after = tree(function(probe))
        hits = [(new != old).numpy() for new, old in zip(after, before, strict=True)]
        if not found:
            found = [(np.full(hit.shape, np.inf), np.full(hit.shape, -np.inf)) for hit in hits]
        for hit, (low, high) in zip(hits, found, strict=True):
            low[hit] = np.minimum(low[hit], position)
            high[hit] = position
    return found


def full(span: Span, shape: Sequence[int]) -> Bounds:
    """Bounds of every element; they have to fit the output and to be compressed together."""
    assert span.low.shape == span.high.shape
    assert span.low.ndim == len(shape)
    return np.broadcast_to(span.low, shape), np.broadcast_to(span.high, shape)


def assert_clipped(
    function: Function, x: Tensor, dims: Sequence[int], *, change: bool = False
) -> list[Fields]:
    """Compare the clipped bounds of all elements of all outputs; return the fields."""
    found = fields(function, x, dims)
    expected = zip(*(reached(function, x, dim, change=change) for dim in dims), strict=True)
    for each, axes in zip(found, expected, strict=True):
        if each is None:
            assert all(np.isinf(low).all() for low, _ in axes)
            continue
        bounds = [full(span, axes[0][0].shape) for span in each[2]]
        # What reads padding along one axis depends on nothing, along the others too.
        empty = np.any([np.isinf(low) for low, _ in bounds], axis=0)
        assert all((high[np.isinf(low)] == -np.inf).all() for low, high in bounds)
        for found_bounds, expected_bounds in zip(bounds, axes, strict=True):
            np.testing.assert_array_equal(np.isinf(expected_bounds[0]), empty)
            for here, there in zip(found_bounds, expected_bounds, strict=True):
                np.testing.assert_array_equal(here[~empty], there[~empty])
    return [each for each in found if each is not None]


def assert_regular(span: Span, clipped: Span, size: int) -> None:
    """Compare extended bounds with those clipped to the input of a size, and with themselves.

    They are the same within the input, and go on in steps of the spacing from one period to the
    next.
    """
    shape = np.broadcast_shapes(span.low.shape, clipped.low.shape)
    low, high = np.broadcast_to(span.low, shape), np.broadcast_to(span.high, shape)
    start, stop = np.broadcast_to(clipped.low, shape), np.broadcast_to(clipped.high, shape)
    within = (low >= 0) & (high < size)
    assert within.any()
    np.testing.assert_array_equal(low[within], start[within])
    np.testing.assert_array_equal(high[within], stop[within])
    (dim,) = span.dims
    for bound in (low, high):
        rows = np.moveaxis(bound, dim, 0)
        steps = rows[span.period :] - rows[: -span.period]
        np.testing.assert_allclose(steps, span.period * span.jump)


def staggered(x: Tensor) -> Tensor:
    """Channels that start at different positions: one later along the last dimension each."""
    count, size = x.shape[1], x.shape[-1]
    parts = [x.narrow(1, c, 1).narrow(-1, c, size - count + 1) for c in range(count)]
    return torch.cat(parts, 1)
