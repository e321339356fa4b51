"""Operators that work element by element, and gates of the whole map."""

import pytest
import torch
from followed import assert_clipped, fields, staggered
from torch import Tensor
from torch.nn import functional

X = torch.rand(1, 4, 6, 8, dtype=torch.float64)
"""Its axes are the last two dimensions."""


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.float64)


def written(target: Tensor, source: Tensor) -> Tensor:
    """Copy of the target that the source was copied to."""
    return target.clone().copy_(source)


UNIONS = {
    "sum": lambda x: x + x.flip(1),
    "sum of rows": lambda x: x[:, :, :1] + x[:, :, 1:],
    "sum with a vector": lambda x: x + x[0, 0, 0],
    "product": lambda x: x * x[:, :, :, 2:3],
    "difference": lambda x: x - x[..., :1, :],
    "not one of those that torch knows to be pointwise": lambda x: functional.prelu(x, ones(4)),
    "normalized by constants": lambda x: functional.batch_norm(x, ones(4), ones(4)),
    "copy": lambda x: written(ones(1, 4, 6, x.shape[-1]), x),
    "copy to more": lambda x: written(ones(2, 4, 6, x.shape[-1]), x[0, :, :1]),
    "copy of a constant": lambda x: [written(x, ones(1, 4, 6, 1)), x],
    "constants": lambda x: [torch.zeros_like(x), x.new_ones(3), x],
    "halves of the channels": lambda x: functional.glu(x, 1),
    "halves from the end": lambda x: functional.glu(x, -3),
    "halves of what is the same": lambda x: functional.glu(x[:, :1].expand(-1, 4, -1, -1), 1),
}


@pytest.mark.parametrize("name", UNIONS)
def test_elements_are_followed(name):
    for found in assert_clipped(UNIONS[name], X, (2, 3)):
        assert not any(span.cause for field in found for span in field)


@pytest.mark.parametrize("name", UNIONS)
def test_channels_that_differ_are_followed(name):
    x = torch.rand(1, 4, 6, 11, dtype=torch.float64)
    assert_clipped(lambda x: UNIONS[name](staggered(x)), x, (2, 3))


def test_an_axis_that_gates_itself_is_seen_as_a_whole():
    ((extended, _, clipped),) = fields(lambda x: functional.glu(x, -1), X, (2, 3))
    said = "gating of one half of the axis by the other (glu) in the model itself"
    for rows, columns in (extended, clipped):
        assert (rows.cause, rows.dims) == ("", {2})
        assert (columns.cause, columns.dims) == (said, frozenset())
        assert (columns.low.item(), columns.high.item()) == (0, 7)


MEAN = "reduction of the whole map (mean) in the model itself"

GATES = {
    # What is not a gate counts in both readings.
    "product": (lambda x: x * x.mean((2, 3), keepdim=True), True),
    "product of a column": (lambda x: x * x.softmax(3), True),
    "difference": (lambda x: x - x.mean((2, 3), keepdim=True), True),
    "difference from one number": (lambda x: x - x.mean(), True),
    "difference from the last sum": (lambda x: x - x.cumsum(3)[..., -1:], True),
    "difference of two": (lambda x: x[..., :2] - x.softmax(3)[..., :2], False),
    "ratio": (lambda x: x / x.mean((2, 3), keepdim=True), True),
    "difference of maps": (lambda x: x - x.softmax(3), False),
    "ratio of maps": (lambda x: x / x.softmax(3), False),
    "sum": (lambda x: x + x.mean((2, 3), keepdim=True), False),
    "sum with one number": (lambda x: x + x.mean(), False),
    "product of gates": (lambda x: x.mean((2, 3)) * x.mean(), False),
}


@pytest.mark.parametrize("name", GATES)
def test_gates_are_told_apart(name):
    function, gate = GATES[name]
    ((extended, ungated, clipped),) = fields(function, X, (2, 3))
    assert extended[1].cause
    assert clipped[1].cause == extended[1].cause
    assert ungated[1].cause == ("" if gate else extended[1].cause)
    assert (ungated is extended) == (not gate)
    if gate:
        assert ungated[1].low.ravel().tolist() == [*range(8)]
        assert ungated[1].high.ravel().tolist() == [*range(8)]
