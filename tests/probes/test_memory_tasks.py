"""Networks trained on tasks whose memory is known: the horizons must be that memory, exactly.

Shapes: B sample, T timestep.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from analyzer.limits import LagProfileLimits, MemoryHorizonLimits
from analyzer.rules.lag_profile import lag_in_use
from analyzer.rules.memory_horizon import functional_horizon
from probes.base import Subject
from probes.lag_profile import LagProfile
from probes.memory_horizon import MemoryHorizon

SAMPLES = 512
STEPS = 4000
RATE = 1e-2

Data = tuple[Tensor, Tensor]


class Net(nn.Module):
    """A recurrent layer and a readout at every timestep, or at the last one."""

    def __init__(self, kind: str, inputs: int, units: int, *, last: bool) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(inputs, units, batch_first=True)
        self.head = nn.Linear(units, 1)
        self.last = last
        if kind == "LSTM":
            self.rnn.bias_hh_l0.data[units : 2 * units] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.rnn(x)[0]
        y: Tensor = self.head(states[:, -1] if self.last else states)
        return y


def signs(*shape: int, generator: torch.Generator) -> Tensor:
    """Random -1 and 1."""
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1


def recall(delay: int, steps: int, samples: int, generator: torch.Generator) -> Data:
    """Repeat every sign ``delay`` steps later."""
    x = signs(samples, steps, 1, generator=generator)
    return x, (x.roll(delay, 1) > 0).float()


def latch(delay: int, steps: int, samples: int, generator: torch.Generator) -> Data:
    """Keep the sign that is flagged ``delay`` steps before the end, among others."""
    x = torch.zeros(samples, steps, 2)
    x[..., 0] = signs(samples, steps, generator=generator)
    x[:, -1 - delay, 1] = 1
    return x, (x[:, -1 - delay, :1] > 0).float()


def adding(delay: int, steps: int, samples: int, generator: torch.Generator) -> Data:
    """Add two marked numbers: that ``delay`` steps before the end, and a later one."""
    numbers, marks = torch.rand(samples, steps, generator=generator), torch.zeros(samples, steps)
    marks[:, -1 - delay] = 1
    later = torch.randint(steps - delay, steps - 1, (samples,), generator=generator)
    marks[torch.arange(samples), later] = 1
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(1, keepdim=True)


class Task(NamedTuple):
    make: Callable[..., Data]
    delay: int
    steps: int
    kind: str
    inputs: int
    units: int
    loss: str
    enough: float


TASKS = {
    "recall 5": Task(recall, 5, 15, "LSTM", 1, 32, "binary_cross_entropy_with_logits", 1e-3),
    "recall 5 by a GRU": Task(
        recall, 5, 15, "GRU", 1, 32, "binary_cross_entropy_with_logits", 1e-3
    ),
    "recall 10": Task(recall, 10, 25, "LSTM", 1, 48, "binary_cross_entropy_with_logits", 2e-4),
    "latch 15": Task(latch, 15, 20, "LSTM", 2, 24, "binary_cross_entropy_with_logits", 1e-3),
    "adding 12": Task(adding, 12, 16, "LSTM", 2, 32, "mse_loss", 2e-4),
}


def trained(task: Task, seed: int) -> Net:
    """Train until the loss is small enough."""
    torch.manual_seed(seed)
    net = Net(task.kind, task.inputs, task.units, last=task.make is not recall)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    loss_of: Any = getattr(functional, task.loss)
    first = task.delay if task.make is recall else 0
    for _ in range(STEPS):
        x, y = task.make(task.delay, task.steps, 64, generator)
        loss = loss_of(net(x)[:, first:], y[:, first:])
        if loss < task.enough:
            return net
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    raise AssertionError(f"not trained: loss {float(loss)}")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", TASKS)
def test_the_horizons_are_the_delay_of_the_task(name: str, seed: int) -> None:
    task = TASKS[name]
    data = task.make(task.delay, task.steps, SAMPLES, torch.Generator().manual_seed(99))
    subject = Subject(trained(task, seed), [data], task.loss)
    trace = MemoryHorizon()(subject)
    for share in (0.01, 0.05):
        found = functional_horizon(trace, MemoryHorizonLimits(share=share))
        assert found.value == task.delay
        assert (found.low, found.high) == (task.delay, task.delay + 1)
    for points in (16, task.steps):
        used = lag_in_use(LagProfile(points)(subject), LagProfileLimits().mass)
        assert (used.low, used.value, used.high) == (task.delay,) * 3
