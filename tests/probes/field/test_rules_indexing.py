"""Operators that choose elements by index, element by element."""

import pytest
import torch
from followed import assert_clipped, fields, staggered
from torch import Tensor
from torch.nn import functional

X = torch.rand(1, 2, 5, 6, dtype=torch.float64)
AXES = (2, 3)
BACK = torch.tensor([4, 1, 1, 0])


@pytest.mark.parametrize(
    ("function", "dims"),
    [
        (lambda x: x[:, :, BACK], ({2}, {3})),
        (lambda x: x.index_select(3, BACK), ({2}, {3})),
        (lambda x: x[:, :, BACK[:, None], BACK], ({2}, {3})),
        (lambda x: x[:, :, BACK, BACK], ({2}, {2})),
        (lambda x: x[0, :, BACK.view(2, 2)], ({1, 2}, {3})),
        (lambda x: functional.embedding(BACK, x[0, 0]), ({0}, {1})),
        (lambda x: functional.embedding(BACK.view(2, 2), x[0, 0]), ({0, 1}, {2})),
    ],
)
def test_constant_indices_are_followed(function, dims):
    (found,) = assert_clipped(function, X, AXES)
    for field in found:
        assert tuple({*span.dims} for span in field) == dims
        assert [span.cause for span in field] == ["", ""]


def test_the_spacing_of_indices_is_theirs():
    (found,) = fields(lambda x: x[:, :, [4, 2, 0]], X, AXES)
    assert [span.jump for span in found[0]] == [-2, 1]


WHOLE = "positions computed from the input (index) in the model itself"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, :, x[0, 0, :3, 0].long()],
        lambda x: torch.ones(7)[x[0, 0].long()],
        lambda x: x[:, :, BACK[:1], x[0, 0, 0].long()],
        lambda x: x[:, :, x[0, 0, 0].long(), BACK[:1]],
    ],
)
def test_computed_indices_see_everything(function):
    (found,) = fields(function, X, AXES)
    for field in found:
        assert [(span.low.item(), span.high.item()) for span in field] == [(0, 4), (0, 5)]
        assert [(span.cause, span.known, span.dims) for span in field] == [
            (WHOLE, True, frozenset())
        ] * 2


def test_tokens_become_vectors():
    tokens = torch.arange(12).view(1, 1, 3, 4)
    ((extended, _, clipped),) = fields(
        lambda x: functional.embedding(x, torch.rand(12, 2)), tokens, AXES
    )
    for rows, columns in (extended, clipped):
        assert (rows.dims, rows.low.shape, rows.low.ravel().tolist()) == (
            {2},
            (1, 1, 3, 1, 1),
            [0, 1, 2],
        )
        assert (columns.dims, columns.high.shape) == ({3}, (1, 1, 1, 4, 1))


def test_tokens_for_a_computed_table_see_everything():
    tokens = torch.arange(12).view(1, 1, 3, 4)
    ((extended, _, _),) = fields(
        lambda x: functional.embedding(x, x.view(12, 1).double()), tokens, AXES
    )
    said = "positions computed from the input (embedding) in the model itself"
    assert [span.cause for span in extended] == [said, said]


def index(size: int, other: int = 5) -> Tensor:
    """Back to front, along the last dimension."""
    return torch.arange(size).flip(0).expand(1, 2, other, size)


ZEROS = torch.zeros(1, 2, 5, 6, dtype=torch.float64)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ZEROS.scatter(3, index(6), x),
        lambda x: ZEROS.scatter(-1, index(6), x),
        lambda x: ZEROS.scatter_add(3, index(6), x),
        lambda x: ZEROS.index_add(3, torch.arange(6), x),
        lambda x: ZEROS.index_copy(-1, torch.arange(6), x),
        lambda x: x.gather(3, index(6)),
        lambda x: x.gather(-1, index(3)),
        lambda x: x.gather(3, index(9) % 6),
        lambda x: x.scatter(3, index(2), x),
        lambda x: x.index_add(3, torch.arange(6), x),
    ],
)
def test_what_is_moved_may_end_up_anywhere_along_the_dimension(function):
    ((extended, _, clipped),) = fields(function, X, AXES)
    for rows, columns in (extended, clipped):
        assert (rows.low.ravel().tolist(), rows.high.ravel().tolist()) == ([*range(5)],) * 2
        assert (rows.cause, rows.dims) == ("", {2})
        assert ({*columns.low.ravel()}, {*columns.high.ravel()}) == ({0}, {5})
        assert columns.cause.partition(" (")[0] == "elements moved along the axis"
        assert columns.dims == {3}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.scatter(1, torch.zeros(1, 2, 5, 6, dtype=torch.long), ZEROS),
        lambda x: x.scatter(3, index(6), ZEROS),
        lambda x: x.index_fill(3, torch.tensor([1]), 0.0),
        lambda x: ZEROS.gather(3, (x * 5).long()),
        lambda x: ZEROS.scatter(1, torch.zeros(1, 2, 5, 6, dtype=torch.long), x),
    ],
)
def test_what_stays_in_its_place_is_followed(function):
    ((extended, _, clipped),) = fields(function, X, AXES)
    for rows, columns in (extended, clipped):
        assert (rows.low.ravel().tolist(), rows.high.ravel().tolist()) == ([*range(5)],) * 2
        assert (columns.low.ravel().tolist(), columns.high.ravel().tolist()) == ([*range(6)],) * 2
        assert (rows.cause, columns.cause) == ("", "")


def test_channels_are_combined_where_elements_move_between_them():
    ((extended, _, _),) = fields(
        lambda x: ZEROS[..., :5].scatter(1, torch.zeros(1, 2, 5, 5).long(), staggered(x)), X, AXES
    )
    assert extended[1].low.ravel().tolist() == [0, 1, 2, 3, 4]
    assert extended[1].high.ravel().tolist() == [1, 2, 3, 4, 5]


def test_elements_of_a_larger_tensor_may_come_from_all_of_it():
    ((extended, _, _),) = fields(lambda x: x.gather(3, index(6, other=2)), X, AXES)
    rows, columns = extended
    assert (rows.low.ravel().tolist(), rows.high.ravel().tolist()) == ([0], [4])
    assert columns.high.ravel().tolist() == [5]


COMPUTED = [
    lambda x: x.masked_scatter(x > 0.5, ZEROS),
    lambda x: x.index_put((torch.tensor([0]),), ZEROS[0]),
    lambda x: functional.grid_sample(x, ZEROS[:, :1, :, :2], align_corners=False),
    lambda x: functional.grid_sample(ZEROS, x.flatten().view(1, 5, 6, 2), align_corners=False),
    lambda x: ZEROS.index_add(2, x.mean((0, 1, 3)).long(), ZEROS),
    lambda x: x.index_fill(2, torch.tensor([1]), x.mean()),
]


@pytest.mark.parametrize("function", COMPUTED)
def test_computed_positions_see_everything(function):
    ((extended, _, clipped),) = fields(function, X, AXES)
    for span, size in zip((*extended, *clipped), (5, 6, 5, 6), strict=True):
        assert span.cause.partition(" (")[0] == "positions computed from the input"
        assert (span.low.item(), span.high.item(), span.known) == (0, size - 1, True)
