"""What replacing inputs costs, by hand: which samples are taken, donors, losses and distances."""

import pytest
import torch
from torch import Tensor, nn

from probes.base import Batch, Subject
from probes.errors import NotApplicable
from probes.loss.replacement import Replacement, donors_of, grid
from probes.recurrent.watching.resumption import Resumption


class Weighed(nn.Module):
    """A weighted sum over time: (B, T) -> (B, 2), or with ``each`` the sums so far (B, T, 2)."""

    def __init__(self, each: bool = False) -> None:
        super().__init__()
        self.each = each

    def forward(self, x: Tensor) -> Tensor:
        sums = (x * torch.arange(1.0, x.shape[1] + 1)).cumsum(1)
        sums = torch.stack([sums, 3 * sums], -1)
        return sums if self.each else sums[:, -1]


def subject(*batches: Tensor | Batch, loss: str | None = None, each: bool = False) -> Subject:
    return Subject(Weighed(each), batches, loss, time_axis=1)


def replacement(subject: Subject, draws: int, limit: int) -> Replacement:
    return Replacement.of(subject, draws, limit, Resumption(subject.model))


PAIRS = [torch.randn(2, 4) for _ in range(3)]


@pytest.mark.parametrize(("limit", "taken"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 6), (100, 6)])
def test_whole_batches_are_taken_until_there_are_enough(limit: int, taken: int) -> None:
    found = replacement(subject(*PAIRS), 1, limit)
    assert len(found.pool) == len(found.donor) == taken
    assert len(found.subject.batches) == len(found.sequences) == taken // 2
    assert found.subject.time_axis == 1


def test_batches_count_with_the_samples_that_they_have() -> None:
    batches = [torch.randn(count, 4) for count in (1, 3, 2)]
    taken = [len(replacement(subject(*batches), 1, limit).pool) for limit in (2, 3, 4, 5)]
    assert taken == [4, 4, 4, 6]


def test_one_sample_has_no_donor() -> None:
    with pytest.raises(NotApplicable) as raised:
        replacement(subject(torch.randn(1, 4)), 1, 9)
    assert str(raised.value) == (
        "the audit set is one sample: there is no other to replace it with"
    )


def test_one_timestep_has_nothing_older() -> None:
    with pytest.raises(NotApplicable) as raised:
        replacement(subject(torch.randn(3, 1)), 1, 9)
    assert str(raised.value) == "the inputs have one timestep: there is nothing older to replace"
    ragged = Batch(torch.randn(2, 3), None, torch.tensor([1, 2]))
    assert replacement(subject(ragged), 1, 9).timesteps == 2


@pytest.mark.parametrize("count", [2, 3, 17])
def test_donors_are_one_cycle_through_all(count: int) -> None:
    donor_B = donors_of(count, torch.Generator().manual_seed(3))
    at, seen = 0, []
    for _ in range(count):
        seen.append(at)
        at = int(donor_B[at])
    assert at == 0
    assert sorted(seen) == [*range(count)]


def expected(x: Tensor, other: Tensor, lags: range, loss: bool, targets: Tensor) -> Tensor:
    """Replace, run, and compare, for sequences of one length."""
    changed = x.clone()
    for lag in lags:
        if lag < x.shape[1]:
            changed[:, x.shape[1] - 1 - lag] = other[:, x.shape[1] - 1 - lag]
    before, after = Weighed()(x).double(), Weighed()(changed).double()
    if loss:
        return (after - targets).square().mean(1) - (before - targets).square().mean(1)
    return 0.5 * (after - before).square().mean(1)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("loss", [None, "mse_loss"])
@pytest.mark.parametrize("draws", [1, 2])
def test_excess_is_the_mean_over_donors(loss: str | None, draws: int, each: bool) -> None:
    x, targets = torch.cat(PAIRS), torch.randn(6, 2)
    shown = targets[:, None].expand(-1, 4, -1) if each else targets
    batches = [Batch(x[at : at + 2], shown[at : at + 2] if loss else None) for at in (0, 2, 4)]
    found = replacement(subject(*batches, loss=loss, each=each), draws, 9).intact()
    lags = [range(0, 2), range(1, 9), range(3, 3), range(4, 9)]
    donors = [found.donor, found.donor[found.donor]][:draws]
    for column, replaced in enumerate(lags):
        own = [expected(x, x[donor], replaced, loss is not None, targets) for donor in donors]
        torch.testing.assert_close(
            found.excess(lags)[:, column], torch.stack(own).mean(0), rtol=1e-4, atol=1e-4
        )
    intact = found.losses()
    if loss is None:
        assert intact.tolist() == [0] * 6
    else:
        own = (Weighed()(x) - targets).square().mean(1).double()
        torch.testing.assert_close(intact, own, rtol=1e-5, atol=1e-5)
    assert found.facts()["intact_loss"] == pytest.approx(float(intact.mean()))
    distance = found.facts()["objective"].startswith("half the mean square distance of the last")
    assert distance is (loss is None)
    assert found.facts()["sequence_length"] == 4
    assert found.facts()["time_axis"] == 1


def test_the_oldest_input_of_the_longest_sequence_can_be_replaced() -> None:
    x = torch.tensor([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]])
    batch = Batch(x, None, torch.tensor([2, 3]))
    found = replacement(subject(batch, each=True), 1, 9).intact()
    assert found.timesteps == 3
    assert found.lengths.tolist() == [2, 3]
    excess = found.excess([range(2, 3), range(3, 9)])
    # The donor, repeated backwards from its end, gives 2 for the 3 at the first timestep.
    assert excess.tolist() == [[0, 0], [0.5 * (1 + 9) / 2, 0]]


@pytest.mark.parametrize("timesteps", [3, 4, 5, 50, 1000])
@pytest.mark.parametrize("points", [4, 5, 12])
def test_a_grid_is_as_dense_as_it_may_be(timesteps: int, points: int) -> None:
    found = grid(timesteps, points)
    assert found == sorted({*found})
    assert (found[0], found[-1]) == (0, timesteps)
    if timesteps < points:
        assert found == [*range(timesteps + 1)]
        return
    geometric = [
        {0, *(round(timesteps ** (step / (count - 1))) for step in range(count))}
        for count in range(2, 8 * points)
    ]
    fitting = [steps for steps in geometric if len(steps) <= points]
    assert len(found) == max(map(len, fitting)) <= points
    assert {*found} in geometric
