"""Tensors that share memory, one of which is written to: every element, against nan."""

import numpy as np
import pytest
import torch
from followed import assert_clipped, fields
from torch import Tensor, nn

from probes.base import Subject
from probes.receptive_field import ReceptiveField

X = torch.rand(1, 3, 6, 8, dtype=torch.float64)
"""Its axes are the last two dimensions."""


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def part_of_a_constant(x):
    y = zeros(1, 3, 6, 8)
    y[:, 1:, 2:] = x[:, 1:, :4]
    return y


def constants_in_a_part(x):
    y = x.clone()
    y[:, :, :2] = 0
    y[..., 3:].zero_()
    return [y, y.flip(3)]


def views_read_later(x):
    y = x.clone()
    left, right = y[..., :4], y[..., 4:]
    left += right
    return [y, left, right, y[:, :, 1]]


def view_of_a_view(x):
    y = x.clone()
    view = y.mT[:, :, 2:, 1:]
    view *= x[..., :1, :6].mT
    return [y, view]


def view_in_another_order(x):
    y = torch.empty_strided((1, 1, 6, 8), (48, 1, 8, 1), dtype=torch.float64).zero_()
    y[..., 1:] = x[:, :1, :, :-1]
    return y


def view_of_two_rows(x):
    y = zeros(1, 3, 2, 8)
    y[..., :4] = x[:, :, :2, :4]
    return y


def transposed(x):
    y = zeros(6, 8)
    y.t()[2].copy_(x[0, 0, :, 3])
    return y


def owner_with_an_offset(x):
    y = (x * 1.0)[..., 2:].detach()
    view = y[..., 1:]
    view += y[..., :1]
    return [y, view]


def overwritten(x):
    y = x.clone()
    view = y[0]
    y.zero_()
    return [view, y, x]


def another_view(x):
    y = zeros(1, 3, 6, 8)
    one, other = y[0], y[:, 1]
    one.copy_(x[0])
    return [other, y]


def twice(x):
    y = x.clone()
    view = y[..., :4]
    y.relu_()
    kept = view + 0
    view.mul_(2)
    view[..., 0] = 0
    return [kept, y, view]


def flat(x):
    y = x.clone()
    line, row = y.view(-1), y[0, 0]
    line[5] = 7
    row[1:] = row[:-1].clone()
    return [y, line]


def reshaped_in_place(x):
    y = x.clone()
    y.squeeze_(0)
    y[0] += 1
    y.unsqueeze_(0)
    return y.transpose_(1, 2)


def result_in_a_constant(x):
    y = zeros(1, 3, 6, 16)
    torch.mul(x, 2, out=y[..., 4:12])
    return y


def result_in_what_is_read_later(x):
    y = x.clone()
    view = y[..., :2]
    torch.sum(x, 3, keepdim=True, out=y[..., :1])
    return [view, y]


def constant_result(x):
    y = x.clone()
    view = y[0]
    torch.mul(zeros(1, 3, 6, 8), 2, out=y)
    return [y, view, x]


def two_results(x):
    both = zeros(2, 6, 8)
    torch.aminmax(x[0], dim=0, out=(both[0], both[1]))
    return both


FUNCTIONS = [
    *(part_of_a_constant, constants_in_a_part, views_read_later, view_of_a_view),
    *(
        view_in_another_order,
        view_of_two_rows,
        transposed,
        owner_with_an_offset,
        overwritten,
        another_view,
        twice,
    ),
    *(flat, reshaped_in_place, result_in_a_constant, result_in_what_is_read_later),
    *(constant_result, two_results),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_what_is_written_is_followed(function):
    assert_clipped(function, X, (2, 3))


def test_the_axis_of_a_part_is_that_of_the_whole():
    for function in (part_of_a_constant, view_in_another_order, view_of_two_rows):
        ((extended, _, _),) = fields(function, X, (2, 3))
        assert [span.dims for span in extended] == [{2}, {3}]
    ((extended, _, _),) = fields(transposed, X, (2, 3))
    assert [span.dims for span in extended] == [{0}, frozenset()]


def test_what_is_written_has_the_shortest_path_and_the_gates_of_its_parts():
    def function(x: Tensor) -> Tensor:
        y = nn.functional.avg_pool2d(x, 3, 1, 1)
        y[:, 1:] = x[:, 1:] * x[:, 1:].mean()
        return y

    ((extended, ungated, clipped),) = fields(function, X, (2, 3))
    said = "reduction of the whole map (mean) in the model itself"
    for field, cause in ((extended, said), (ungated, ""), (clipped, said)):
        assert [(span.cause, span.minimal, span.jump) for span in field] == [(cause, 1, 1)] * 2


class Writing(nn.Module):
    """Write over a part of the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(1, 1, 3), nn.Conv1d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x[..., :3] = x[..., 9:]
        return self.last(self.first(x))


@pytest.mark.parametrize("batch", [1, 3])
def test_inputs_may_be_written_to(batch):
    trace = ReceptiveField()(Subject(Writing().eval(), [torch.rand(batch, 1, 12)]))
    assert trace.attrs["tensors"] == "symbolic"
    np.testing.assert_array_equal(trace["start"].to_numpy().ravel(), [5, 5])
    np.testing.assert_array_equal(trace["stop"].to_numpy().ravel(), [7, 7])
