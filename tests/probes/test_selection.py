import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from probes.base import Batch, Subject
from probes.errors import AnalyzerError
from probes.samples.selection import pieces, rows, spread


@pytest.mark.parametrize(
    ("count", "most", "places"),
    [(5, 9, [0, 1, 2, 3, 4]), (10, 5, [0, 2, 4, 6, 8]), (7, 3, [0, 2, 4]), (3, 0, []), (0, 4, [])],
)
def test_places_are_spread_evenly(count: int, most: int, places: list[int]) -> None:
    assert spread(count, most) == places


def subject(*batches: object, **rest: int) -> Subject:
    return Subject(nn.Identity(), [*batches], **rest)


def test_pieces_keep_samples_targets_and_lengths_together() -> None:
    x, y = torch.arange(22.0).reshape(11, 2), torch.arange(11)
    probed = subject(Batch(x[:4], y[:4], y[:4] + 1), Batch(x[4:], {"tags": y[4:]}, y[4:] + 1))
    chosen = [0, 3, 4, 7, 8, 9]
    found = [*pieces(probed, chosen, 3)]
    assert [places for places, _ in found] == [[0, 3], [4, 7, 8], [9]]
    for places, batch in found:
        targets = batch.targets["tags"] if isinstance(batch.targets, dict) else batch.targets
        assert torch.equal(batch.inputs, x[places])  # type: ignore[arg-type]
        assert targets.tolist() == places
        assert batch.lengths is not None
        assert (batch.lengths - 1).tolist() == places


def test_the_batch_axis_may_be_second_and_what_has_none_stays() -> None:
    x, table = torch.randn(5, 6, 2), torch.randn(3, 3)
    ((places, batch),) = pieces(subject(((x, table), None), batch_axis=1), [1, 4], 9)
    assert places == [1, 4]
    left, right = batch.inputs
    assert torch.equal(left, x[:, [1, 4]])
    assert torch.equal(right, table)


@pytest.mark.parametrize("ordered", [True, False])
def test_packed_samples_are_repacked(ordered: bool) -> None:
    lengths = torch.tensor([5, 4, 4, 2] if ordered else [2, 5, 4, 4])
    x = torch.randn(4, 5, 3)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=ordered)
    ((_, batch),) = pieces(subject(packed), [1, 3], 9)
    padded, found = pad_packed_sequence(batch.inputs, batch_first=True)  # type: ignore[arg-type]
    assert found.tolist() == lengths[[1, 3]].tolist()
    for row, place in enumerate([1, 3]):
        assert torch.equal(padded[row, : found[row]], x[place, : lengths[place]])


def test_rows_are_chosen_over_all_batches() -> None:
    x = torch.zeros(4, 1)
    assert rows(subject(x, x, x), 4) == [0, 3, 6, 9]
    with pytest.raises(
        AnalyzerError, match=r"^there is no batch to measure on: the data is empty$"
    ):
        rows(subject(), 4)
