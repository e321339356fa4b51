"""Parts of the memory footprint by themselves: moments, storages, batches, passes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from probes.base import Batch, Subject
from probes.errors import AnalyzerError
from probes.footprint.batches import repeated, shortened
from probes.footprint.moments import moments_of
from probes.footprint.storages import Storages
from probes.footprint.sweep import Sweep, peak, sweep

MISSING = "no state of the optimizer: save optimizer.state_dict() beside the weights"


# Moments


def model() -> nn.Module:
    """Parameters of 24, 12, 8 and 8 bytes."""
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 1, bias=False), nn.PReLU(2))


TRAINED = ["0.weight", "0.bias", "1.weight"]


@pytest.mark.parametrize(
    ("assumed", "step", "words"),
    [
        (0, 0, "assumed 0 values for each parameter, as plain gradient descent keeps"),
        (1, 0, "assumed 1 value for each parameter, as momentum keeps"),
        (2, 48, "assumed 2 values for each parameter, as Adam keeps"),
        (3, 48, "assumed 3 values for each parameter"),
    ],
)
def test_moments_that_are_assumed(assumed: int, step: int, words: str) -> None:
    found = moments_of(Subject(model(), []), TRAINED, assumed)
    assert found.sizes == {
        "0.weight": 24 * assumed,
        "0.bias": 12 * assumed,
        "1.weight": 8 * assumed,
    }
    # In a step of Adam: the root and the quotient of the largest parameter.
    assert found.step == step
    assert found.origin == f"{words} ({MISSING})"


@pytest.mark.parametrize(
    ("state", "step", "words"),
    [
        ({}, 0, "no moments"),
        ({"momentum_buffer": 1}, 0, "momentum_buffer"),
        ({"square_avg": 1, "grad_avg": 1}, 48, "grad_avg and square_avg"),
        ({"exp_avg_sq": 1, "exp_avg": 1}, 48, "exp_avg and exp_avg_sq"),
    ],
)
def test_moments_in_the_checkpoint(state: dict[str, int], step: int, words: str) -> None:
    net = model()
    kept = {
        at: {name: torch.zeros_like(weight) for name in state}
        for at, weight in enumerate(net.parameters())
    }
    optimizer = {"state": kept, "param_groups": [{"params": [0, 1, 2, 3]}]}
    found = moments_of(Subject(net, [], optimizer=optimizer), TRAINED, 2)
    sizes = {"0.weight": 24, "0.bias": 12, "1.weight": 8, "2.weight": 8}
    assert found.sizes == {name: len(state) * size for name, size in sizes.items()}
    assert found.step == step
    assert found.origin == f"in the checkpoint: {words}"


# Storages


def test_a_storage_counts_once_until_it_is_freed() -> None:
    storages = Storages([])
    first, second = torch.zeros(10), torch.zeros(6)
    storages.add(first, "a")
    storages.add(first[2:4], "b")
    storages.add(second, "b")
    assert (dict(storages.bytes), storages.total) == ({"a": 40, "b": 24}, 64)
    view = first[3:]
    del first
    assert storages.total == 64
    del view
    assert (dict(storages.bytes), storages.total) == ({"a": 0, "b": 24}, 24)


def test_storages_that_were_there_before_and_those_without_one_do_not_count() -> None:
    held = torch.zeros(10)
    storages = Storages([held])
    storages.add(held[1:3], "a")
    storages.add(torch.eye(3).to_sparse(), "a")
    assert storages.total == 0


def test_a_storage_that_grows_counts_with_the_size_it_has() -> None:
    storages, tensor = Storages([]), torch.zeros(10)
    storages.add(tensor, "a")
    tensor.untyped_storage().resize_(60)
    storages.add(tensor, "a")
    assert (storages.bytes["a"], storages.total) == (60, 60)
    del tensor
    assert (storages.bytes["a"], storages.total) == (0, 0)


def test_what_is_not_used_yet_of_a_storage_is_left_out() -> None:
    tensor = torch.zeros(10)
    spare = {id(tensor.untyped_storage()): 12}
    storages = Storages([], spare)
    storages.add(tensor, "a")
    assert storages.total == 28
    spare.clear()
    storages.add(tensor, "a")
    assert storages.total == 40


# Batches


@pytest.mark.parametrize("packed", [False, True])
def test_the_longest_sample_is_repeated_and_cut(packed: bool) -> None:
    x, lengths = torch.randn(3, 4, 2), torch.tensor([2, 4, 3])
    targets = torch.arange(12).view(3, 4)
    inputs = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    batch = Batch(inputs, targets) if packed else Batch(x, targets, lengths)
    subject = Subject(nn.Identity(), [batch])
    whole = repeated(subject, 5)
    short = shortened(subject, whole, 1, 3)
    for found, steps in ((whole, 4), (short, 3)):
        values: Any = found.inputs
        if packed:
            values = pad_packed_sequence(values, batch_first=True)[0]
            assert found.lengths is None
        else:
            assert found.lengths.tolist() == [steps] * 5  # type: ignore[union-attr]
        assert torch.equal(values, x[[1] * 5, :steps])
        assert found.targets.tolist() == [[4, 5, 6, 7][:steps]] * 5


def test_targets_of_other_axes_stay_as_they_are() -> None:
    targets = {"step": torch.zeros(2, 3, 4), "class": torch.tensor([1, 2]), "name": "a"}
    subject = Subject(nn.Identity(), [Batch(torch.randn(2, 4, 3), targets)])
    short = shortened(subject, repeated(subject, 2), 1, 2)
    assert short.targets["step"].shape == (2, 3, 2)
    assert short.targets["class"].tolist() == [1, 1]
    assert short.targets["name"] == "a"


def test_without_lengths_the_first_sample_is_repeated() -> None:
    subject = Subject(nn.Linear(2, 2), [torch.tensor([[3.0, 4.0], [5.0, 6.0]])])
    assert repeated(subject, 3).inputs.tolist() == [[3.0, 4.0]] * 3  # type: ignore[union-attr]


@pytest.mark.parametrize("batches", [[], [torch.empty(0, 2)]])
def test_without_samples_there_is_nothing_to_repeat(batches: list[Tensor]) -> None:
    with pytest.raises(AnalyzerError) as raised:
        repeated(Subject(nn.Linear(2, 2), batches), 3)
    assert str(raised.value) == "there is no batch to measure on: the data is empty"


def test_as_many_samples_as_timesteps_are_not_taken_for_these() -> None:
    targets = {"each": torch.zeros(5, 5), "last": torch.zeros(5)}
    subject = Subject(nn.Linear(2, 2), [Batch(torch.randn(5, 5, 2), targets)])
    short = shortened(subject, repeated(subject, 5), 1, 3)
    assert short.inputs.shape == (5, 3, 2)  # type: ignore[union-attr]
    assert short.targets["each"].shape == (5, 3)
    assert short.targets["last"].shape == (5,)


# Passes


class Mean(nn.Module):
    """Reads sequences of any length, at least ``shortest``."""

    def __init__(self, shortest: int = 0) -> None:
        super().__init__()
        self.shortest = shortest
        self.rnn = nn.RNN(3, 5, batch_first=True)
        self.head = nn.Linear(5, 2)
        self.seen: list[tuple[int, int, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), x.shape[1], self.training, torch.is_grad_enabled()))
        if x.shape[1] < self.shortest:
            raise IndexError(f"{x.shape[1]} timesteps\nare too few")
        y: Tensor = self.head(self.rnn(x)[0].mean(1))
        return y


def swept(net: nn.Module, timesteps: int = 8, samples: int = 12) -> Sweep:
    data = Batch(torch.randn(3, timesteps, 3), torch.tensor([0, 1, 1]))
    seen: list[tuple[int, int]] = []
    found = sweep(
        Subject(net, [data], "cross_entropy", time_axis=1), samples, lambda *done: seen.append(done)
    )
    assert seen == [(1, 5), (2, 5), (3, 5), (5, 5)]
    return found


def test_passes_of_fewer_samples_and_then_of_fewer_timesteps() -> None:
    net = Mean()
    found = swept(net)
    assert [(one.samples, one.timesteps) for one in found.passes] == [
        (3, 8), (6, 8), (12, 8), (3, 4), (3, 6),
    ]  # fmt: skip
    assert [one.inputs for one in found.passes] == [
        samples * steps * 3 * 4 for samples, steps in ((3, 8), (6, 8), (12, 8), (3, 4), (3, 6))
    ]
    assert (found.mode, found.fixed) == ("train", "")
    # Training in train mode with gradients, serving in eval mode without.
    assert [*dict.fromkeys(net.seen)][-6:] == [
        (12, 8, True, True), (12, 8, False, False),
        (3, 4, True, True), (3, 4, False, False),
        (3, 6, True, True), (3, 6, False, False),
    ]  # fmt: skip


@pytest.mark.parametrize(("shortest", "timesteps"), [(5, 8), (6, 9)])
def test_a_model_that_takes_no_shorter_sequences_is_swept_over_samples_alone(
    shortest: int, timesteps: int
) -> None:
    found = swept(Mean(shortest), timesteps)
    assert len(found.passes) == 3
    assert found.fixed == "the model does not take shorter sequences (4 timesteps)"


@pytest.mark.parametrize(("timesteps", "passes"), [(3, 3), (4, 5)])
def test_sequences_of_four_timesteps_can_be_shortened(timesteps: int, passes: int) -> None:
    found = swept(Mean(), timesteps)
    assert len(found.passes) == passes
    few = "the sequences have 3 timesteps, too few to shorten them"
    assert found.fixed == (few if timesteps == 3 else "")


def test_what_the_user_froze_stays_frozen_while_others_train() -> None:
    net = Mean()
    net.rnn.requires_grad_(False)
    trained = swept(net).passes[0].training.gradients
    assert [*trained] == ["head.weight", "head.bias"]
    assert not any(weight.requires_grad for weight in net.rnn.parameters())
    net.requires_grad_(False)
    assert len(swept(net).passes[0].training.gradients) == 6


class Serving(Mean):
    """Does not train."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError
        return super().forward(x)


def test_a_model_that_only_runs_in_eval_mode_is_trained_in_it() -> None:
    net = Serving()
    assert swept(net).mode == "eval, as the model does not run in train mode: ValueError"
    assert [*dict.fromkeys(net.seen)][-2:] == [(3, 6, False, True), (3, 6, False, False)]
    assert net.training


class Detached(Mean):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def test_the_peak_is_that_of_training_in_eval_mode_or_of_serving() -> None:
    data = [torch.randn(3, 8, 3)]
    net = Mean()
    most = [peak(Subject(net, data), samples) for samples in (4, 8)]
    assert net.seen == [(4, 8, False, True), (8, 8, False, True)]
    assert 0 < most[0] < most[1] <= 2 * most[0]
    detached = Detached()
    assert 0 < peak(Subject(detached, data), 8) < most[1]
    assert detached.seen[-1] == (8, 8, False, False)


def test_without_data_nothing_is_swept() -> None:
    with pytest.raises(AnalyzerError) as raised:
        sweep(Subject(Mean(), []), 8, lambda *_: None)
    assert str(raised.value) == "there is no batch to measure on: the data is empty"
