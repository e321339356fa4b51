"""Operators that move elements around: every element of what they return, against nan."""

import numpy as np
import pytest
import torch
from followed import assert_clipped, fields, staggered
from torch import Tensor
from torch.nn import functional

X = torch.rand(1, 3, 6, 8, dtype=torch.float64)
"""Its axes are the last two dimensions."""

ZEROS = torch.zeros(1, 3, 6, 2, dtype=torch.float64)

Dims = tuple[set[int], set[int]]


def blurred(x: Tensor) -> Tensor:
    """Means of windows of three rows and three columns."""
    return functional.avg_pool2d(x, 3, 1, 1)


MOVES: dict[str, tuple] = {
    # Name: function, dimensions of both axes, and their spacing where it is not one.
    "permute": (lambda x: x.permute(2, 0, 3, 1), ({0}, {2})),
    "permute, from the end": (lambda x: x.permute(-1, 1, 0, -2), ({3}, {0})),
    "transpose": (lambda x: x.transpose(1, -1), ({2}, {1})),
    "transpose, not the axes": (lambda x: x.transpose(0, 1), ({2}, {3})),
    "t": (lambda x: x[0, 0].t(), ({1}, {0})),
    "unsqueeze": (lambda x: x.unsqueeze(2), ({3}, {4})),
    "unsqueeze, last": (lambda x: x.unsqueeze(-1), ({2}, {3})),
    "unsqueeze, from the end": (lambda x: x.unsqueeze(-2), ({2}, {4})),
    "squeeze": (lambda x: x[:, :1].squeeze(), ({0}, {1})),
    "squeeze, one": (lambda x: x.squeeze(0), ({1}, {2})),
    "squeeze, from the end": (lambda x: x.squeeze(-4), ({1}, {2})),
    "squeeze, several": (lambda x: x[:, :1].squeeze((0, -3)), ({0}, {1})),
    "squeeze, larger": (lambda x: x.squeeze((0, 2)), ({1}, {2})),
    "expand": (lambda x: x[:, :1].expand(2, 3, -1, -1), ({2}, {3})),
    "expand, more dimensions": (lambda x: x.expand(2, *x.shape), ({3}, {4})),
    "select": (lambda x: x.select(1, 1), ({1}, {2})),
    "select, from the end": (lambda x: x.select(-3, -1), ({1}, {2})),
    "select a position": (lambda x: x[:, :, :, 2], ({2}, set())),
    "select the last position": (lambda x: x.select(2, -1), (set(), {2})),
    "slice": (lambda x: x[:, :, 1:5:2], ({2}, {3}), (2, 1)),
    "slice, from the end": (lambda x: x.narrow(-1, -5, 4), ({2}, {3})),
    "slice, every third": (lambda x: x[..., :-1:3], ({2}, {3}), (1, 3)),
    "slice channels": (lambda x: x[:, ::2], ({2}, {3})),
    "slice to the end": (lambda x: x[:, 1:], ({2}, {3})),
    "split": (lambda x: x.split(3, -1), ({2}, {3})),
    "split, sizes": (lambda x: x.split([1, 4, 3], 3), ({2}, {3})),
    "split channels": (lambda x: x.split(2, 1), ({2}, {3})),
    "chunk": (lambda x: x.chunk(3, 2), ({2}, {3})),
    "unbind": (lambda x: x.unbind(-1), ({2}, set())),
    "unbind channels": (lambda x: x.unbind(1), ({1}, {2})),
    "stack": (lambda x: torch.stack([x, x.flip(1)], 2), ({3}, {4})),
    "stack, last": (lambda x: torch.stack([x, x], -1), ({2}, {3})),
    "stack with a constant": (
        lambda x: torch.stack([torch.zeros(2).double(), x[0, 0, 0, :2]], 0),
        (set(), {1}),
    ),
    "concatenate": (lambda x: torch.cat([x, x.flip(1)], 1), ({2}, {3})),
    "concatenate with a constant": (lambda x: torch.cat([ZEROS, x], -1), ({2}, {3})),
    "concatenate with nothing": (
        lambda x: torch.cat([torch.zeros(0).double(), x], 2),
        ({2}, {3}),
    ),
    "concatenate one position": (
        lambda x: torch.cat([x[0, 0, 0, :1], torch.zeros(1).double(), x[0, 0, 0, 3:]], 0),
        (set(), {0}),
    ),
    "flip": (lambda x: x.flip(-1), ({2}, {3}), (1, -1)),
    "flip, both": (lambda x: x.flip((2, 3)), ({2}, {3}), (-1, -1)),
    "flip channels": (lambda x: x.flip(1), ({2}, {3})),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), ({2}, {3})),
    "repeat positions": (lambda x: x.repeat(1, 1, 1, 3), ({2}, {3}), (1, np.nan)),
    "repeat, more dimensions": (lambda x: x.repeat(2, 1, 1, 1, 1), ({3}, {4})),
    "channel shuffle": (lambda x: functional.channel_shuffle(x.repeat(1, 2, 1, 1), 2), ({2}, {3})),
    "view": (lambda x: x.reshape(3, 48), ({1}, {1}), (np.nan, np.nan)),
    "an axis in two": (lambda x: x.unflatten(3, (2, x.shape[3] // 2)), ({2}, {3, 4}), (1, np.nan)),
    "pairs of copies": (
        lambda x: functional.interpolate(x, scale_factor=(1, 2)).unflatten(3, (-1, 2)),
        ({2}, {3}),
    ),
    "other rows": (lambda x: x.reshape(1, 3, 12, -1), ({2}, {2, 3}), (np.nan, np.nan)),
    "as another type": (lambda x: x.view(torch.int64).view(torch.float64), ({2}, {3})),
    "pixel shuffle": (
        lambda x: functional.pixel_shuffle(x[:, :1].expand(1, 4, 6, 8), 2),
        ({2}, {3}),
        (np.nan, np.nan),
    ),
    "pixel unshuffle": (
        lambda x: functional.pixel_unshuffle(x, 2), ({1, 2}, {1, 3}), (np.nan, np.nan)
    ),
    "unfold": (lambda x: x.unfold(3, 4, 2), ({2}, {3, 4}), (1, np.nan)),
    "diagonal": (lambda x: x.diagonal(1, 2, 3), ({2}, {2})),
    "rotated": (lambda x: x.rot90(1, (2, 3)), ({3}, {2}), (1, -1)),
    "strided": (lambda x: x[0, 0].as_strided((5, 3), (8, 2), 1), ({0}, {1}), (1, 2)),
    "strided, from a view": (
        lambda x: x.contiguous()[0, 1].as_strided((5, 3), (8, 2), 48 + 1), ({0}, {1}), (1, 2)
    ),
    "strided, transposed": (
        lambda x: x.contiguous()[0, 0].t().as_strided((3, 2), (8, 1), 2), ({0}, {1})
    ),
    "parts of numbers": (lambda x: torch.view_as_real(torch.complex(x, x)), ({2}, {3})),
    "roll": (lambda x: x.roll((2, -1), (3, 2)), ({2}, {3})),
    "roll channels": (lambda x: x.roll(1, 1), ({2}, {3})),
    "roll all": (lambda x: x[0, 0].roll(11), ({0, 1}, {1}), (np.nan, np.nan)),
    "numbers of parts": (
        lambda x: torch.view_as_real(
            torch.view_as_complex(x.mT.reshape(1, 3, 8, 3, 2).contiguous()) * (1 + 1j)
        ),
        ({3}, {2}),
        (2, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_elements_are_followed(name):
    function, dims, *jumps = MOVES[name]
    for field in assert_clipped(function, X, (2, 3)):
        for reading in field:
            assert tuple({*span.dims} for span in reading) == dims
            np.testing.assert_equal([span.jump for span in reading], jumps[0] if jumps else (1, 1))
            assert [span.cause for span in reading] == ["", ""]


@pytest.mark.parametrize("name", MOVES)
def test_channels_that_differ_are_followed(name):
    x = torch.rand(1, 3, 6, 10, dtype=torch.float64)
    assert_clipped(lambda x: MOVES[name][0](blurred(staggered(x))), x, (2, 3))


def test_reshaping_other_dimensions_keeps_a_spacing_that_the_edges_hide():
    ((_, _, clipped),) = fields(lambda x: blurred(x).reshape(3, 6, 1, 8), X, (2, 3))
    assert [span.jump for span in clipped] == [1, 1]
    assert [span.dims for span in clipped] == [{1}, {3}]


def test_memory_read_as_numbers_of_another_size_is_unknown():
    x = torch.rand(1, 1, 6, 8)
    ((extended, _, clipped),) = fields(lambda x: x.view(torch.float16), x, (2, 3))
    for rows, columns in (extended, clipped):
        said = "reinterpreted memory (view) in the model itself"
        assert [(span.cause, span.known) for span in (rows, columns)] == [(said, False)] * 2
        assert [span.high.item() for span in (rows, columns)] == [5, 7]
        assert rows.low.shape == (1, 1, 1, 1)


def test_parts_of_numbers_that_are_positions_are_the_whole_axis():
    ((extended, _, _),) = assert_clipped(
        lambda x: torch.view_as_complex(x[..., :2].contiguous()) * (1 + 1j), X, (2, 3)
    )
    said = "complex numbers of the positions (view_as_complex) in the model itself"
    assert [span.cause for span in extended] == ["", said]
    assert [span.dims for span in extended] == [{2}, frozenset()]
