"""Samples cut out of batches."""

import pytest
import torch

from probes.base import Batch, Subject
from probes.errors import NotApplicable
from probes.field.samples import flat_inputs, part_of, pieces


def numbers(*batches: torch.Tensor, axis: int = 0, count: int = 9, size: int = 2) -> list[list]:
    """First number of each sample, piece by piece."""
    subject = Subject(torch.nn.Identity(), batches, batch_axis=axis)
    found = pieces(subject, count, size)
    return [piece.inputs.movedim(axis, 0).flatten(1)[:, 0].tolist() for piece in found]


def series(start: int, count: int, length: int = 4) -> torch.Tensor:
    """Samples whose first numbers count on."""
    return torch.arange(float(start), start + count)[:, None] + torch.zeros(count, length)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [[0]]),
        (2, [[0, 1]]),
        (3, [[0, 1], [2]]),
        (4, [[0, 1], [2], [3]]),
        (6, [[0, 1], [2], [3, 4], [5]]),
        (99, [[0, 1], [2], [3, 4], [5, 6], [7]]),
    ],
)
def test_the_first_samples_come_in_pieces(count, expected):
    assert numbers(series(0, 3), series(3, 5), count=count) == expected


def test_samples_of_another_shape_are_left_out():
    batches = (series(0, 2), series(2, 2, length=5), series(4, 2))
    assert numbers(*batches, count=3) == [[0, 1], [4]]


def test_the_batch_axis_may_be_another():
    assert numbers(series(0, 3).t(), series(3, 1).t(), axis=1) == [[0, 1], [2], [3]]
    # As long as the batch is: only its batch axis is left out of the shape.
    square, longer = series(0, 4).t(), series(4, 4, length=5).t()
    assert numbers(square, longer, square, axis=1, size=4) == [[0, 1, 2, 3]] * 2


def test_only_what_has_the_batch_axis_is_cut():
    inputs = {"x": series(0, 3), "names": "abc", "weight": torch.ones(2), "number": torch.tensor(3)}
    cut = part_of(Batch(inputs), 0, 3, 1, 2).inputs
    assert cut["x"][:, 0].tolist() == [1, 2]
    assert (cut["names"], cut["weight"].tolist(), cut["number"].item()) == ("abc", [1, 1], 3)
    second = part_of(Batch((series(0, 3).t(), torch.ones(3))), 1, 3, 2, 1).inputs
    assert (second[0].shape, second[1].shape) == ((4, 1), (3,))


def test_packed_sequences_are_not_applicable():
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(2, 1)])
    with pytest.raises(NotApplicable) as raised:
        flat_inputs(Batch(packed))
    assert str(raised.value) == "the inputs are packed sequences, which this probe does not read"
