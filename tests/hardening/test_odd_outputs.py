"""Outputs and states that are laid out in other ways than most: the same numbers all the same."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo_parts import sequences

from probes.base import Batch, Subject, call
from probes.field.intervals import seed
from probes.field.mode import FieldMode, RecurrentMode
from probes.lag_profile import LagProfile
from probes.loss.objective import prediction, sample_losses
from probes.memory_horizon import MemoryHorizon
from probes.structure import leaves, mapped


class Numbers(nn.Module):
    """One number for each timestep, with or without an axis for it."""

    def __init__(self, axis: bool) -> None:
        super().__init__()
        self.gru, self.head, self.axis = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 1), axis

    def forward(self, x_BTC: Tensor) -> Tensor:
        y_BT1 = self.head(self.gru(x_BTC)[0])
        return y_BT1 if self.axis else y_BT1[:, :, 0]


@pytest.mark.parametrize("probe", [MemoryHorizon(), LagProfile()])
def test_one_number_for_each_timestep_needs_no_axis_of_its_own(probe: Any) -> None:
    traces = []
    for axis in (True, False):
        torch.manual_seed(0)
        traces.append(probe(Subject(Numbers(axis), [sequences(6, 8, 3)])))
    plain, bare = traces
    for name in plain.data_vars:
        np.testing.assert_allclose(plain[name].to_numpy(), bare[name].to_numpy(), rtol=1e-6)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("both", [False, True])
def test_outputs_depend_on_what_the_initial_state_depends_on(layer: Any, both: bool) -> None:
    rnn = layer(2, 3, batch_first=True, bidirectional=both)
    state = torch.zeros(1 + both, 1, 3)
    given = (state, state.clone()) if layer is nn.LSTM else state
    x_BTC = torch.zeros(1, 5, 2)
    mode = FieldMode()
    with torch.no_grad(), mode, RecurrentMode(mode):
        # As a decoder: the state comes from positions 2 to 4 of something, the input from nothing.
        source = torch.zeros(1, 3, 3)
        mode.seed(source, (seed(source.shape, 1),))
        state.copy_(source.sum(1, keepdim=True).expand(1 + both, 1, 3))
        out, _ = rnn(x_BTC, given)
        decoded = mode.fields(out)
        mode.seed(x_BTC, (seed(x_BTC.shape, 1),))
        joint = mode.fields(rnn(x_BTC, given)[0])
    assert decoded is not None
    assert joint is not None
    (span,) = decoded[0]
    assert (span.low.min(), span.high.max()) == (0, 2)
    assert span.cause
    (span,) = joint[0]
    low, high = np.broadcast_to(span.low, (1, 5, 1)), np.broadcast_to(span.high, (1, 5, 1))
    assert low.ravel().tolist() == [0] * 5
    assert high.ravel().tolist() == ([4] * 5 if both else [2, 2, 2, 3, 4])


@dataclass
class Answer:
    logits: Tensor
    steps: int
    parts: Any = None


def test_dataclasses_are_looked_into() -> None:
    held = Answer(torch.ones(2, 3), 7, {"deep": Answer(torch.zeros(2), 1)})
    found = [tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves(held)]
    assert found == [(2, 3), 7, (2,), 1, None]
    doubled = mapped(held, lambda leaf: leaf * 2 if isinstance(leaf, Tensor) else leaf)
    assert doubled.logits.equal(torch.full((2, 3), 2.0))
    assert (doubled.steps, doubled.parts["deep"].steps) == (7, 1)
    assert held.logits.equal(torch.ones(2, 3))


def test_a_loss_of_a_dataclass_is_taken_apart_by_sample() -> None:
    x, targets = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0])

    def loss(outputs: Answer, wanted: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.logits, wanted)

    subject = Subject(nn.Identity(), [Batch(x, targets)], loss)
    found = sample_losses(subject, Answer(x, 1), Batch(x, targets))
    expected = nn.functional.cross_entropy(x, targets, reduction="none")
    torch.testing.assert_close(found, expected)
    assert prediction(subject, Answer(x, 1)).equal(x)
    assert prediction(Subject(nn.Identity(), [x], output="logits"), Answer(x, 1)).equal(x)


def test_random_numbers_are_the_same_in_every_call() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x) + float(np.random.rand())  # noqa: NPY002

    first = call(Noise(), torch.zeros(4))
    torch.rand(3)
    assert call(Noise(), torch.zeros(4)).equal(first)
    assert not first.equal(torch.zeros(4))
