"""Small networks, the two tasks that they are trained on, and how they are audited.

Shapes: B sample, T timestep, S symbol, H unit.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from analyzer.demo import SPECS
from probes.base import Subject

SYMBOLS, DELAY, TIMESTEPS = 4, 12, 24
"""Of delayed recall: the answer is the symbol shown ``DELAY`` steps before the end."""

Pair = tuple[Tensor, Tensor]


@cache
def beats() -> tuple[Pair, Pair]:
    """Heartbeats at half their rate, 700 to train on and 300 to audit with."""
    arrays = np.load(SPECS["ecg_cnn"].data)
    inputs = torch.from_numpy(arrays["inputs"]).float().reshape(1000, 140, 1)[:, ::2]
    targets = torch.from_numpy(arrays["targets"]).long()
    return (inputs[:700], targets[:700]), (inputs[700:], targets[700:])


def recall(count: int, delay: int = DELAY) -> Pair:
    """Random symbols, of which the one ``delay`` steps before the end is the answer."""
    symbols_BT = torch.randint(SYMBOLS, (count, TIMESTEPS))
    return functional.one_hot(symbols_BT, SYMBOLS).float(), symbols_BT[:, -1 - delay]


class Block(nn.Module):
    """Two convolutions that are added to what they read."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, channels, 5, padding=2)
        self.second = nn.Conv1d(channels, channels, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(functional.relu(self.first(x))))


class Convolutional(nn.Module):
    """A residual network whose last field is smaller than the input; ``tail`` plain layers more.

    Behind a ``stem`` of 139 positions all blocks see the whole input.
    """

    def __init__(self, tail: int = 0, channels: int = 12, stem: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, channels, stem, 2, padding=stem // 2)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(3)))
        layers = [nn.Conv1d(channels, channels, 9, padding=4) for _ in range(tail)]
        self.tail = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = self.tail(self.blocks(functional.relu(self.stem(x.transpose(1, 2)))))
        y: Tensor = self.head(features.mean(2))
        return y


class Recurrent(nn.Module):
    """A recurrent layer, or several, and a linear one on the last output."""

    def __init__(
        self, kind: type[nn.RNNBase], inputs: int, units: int, classes: int, layers: int = 1
    ) -> None:
        super().__init__()
        self.rnn = kind(inputs, units, layers, batch_first=True)  # type: ignore[arg-type]
        self.head = nn.Linear(units, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0][:, -1])
        return y


def perceptron(width: int = 24, depth: int = 2, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Hidden layers of one width."""
    sizes = [70, *[width] * depth]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), act())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 5))


def fitted(
    model: nn.Module,
    draw: Callable[[], Pair],
    steps: int,
    rate: float = 0.005,
    loss: str = "cross_entropy",
) -> None:
    """Train with a rate that rises and falls."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for _ in range(steps):
        inputs, targets = draw()
        optimizer.zero_grad()
        getattr(functional, loss)(model(inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()


def on_beats(model: nn.Module, steps: int = 250) -> nn.Module:
    """Train on heartbeats."""
    inputs, targets = beats()[0]

    def draw() -> Pair:
        rows = torch.randint(len(inputs), (64,))
        return inputs[rows], targets[rows]

    fitted(model, draw, steps)
    return model


def audited(model: nn.Module, data: Pair | None = None, **more: Any) -> Subject:
    """Audit with heartbeats the network has not seen, or with other data."""
    inputs, targets = data or beats()[1]
    batches = [*zip(inputs.split(100), targets.split(100), strict=True)]
    axis = None if isinstance(model, nn.Sequential) else 1
    return Subject(model.eval(), batches, time_axis=axis, **{"loss": "cross_entropy"} | more)


def seeded(make: Callable[[], Subject]) -> Callable[[int], Subject]:
    """Draw everything from one seed."""

    def run(seed: int) -> Subject:
        torch.manual_seed(seed)
        return make()

    return run


def convolutional() -> nn.Module:
    """Train the convolutional network."""
    return on_beats(Convolutional())


def recurrent() -> nn.Module:
    """Train an LSTM on heartbeats."""
    return on_beats(Recurrent(nn.LSTM, 1, 24, 5))


def remembering(delay: int = DELAY) -> nn.Module:
    """Train an LSTM on delayed recall."""
    model = Recurrent(nn.LSTM, SYMBOLS, 32, SYMBOLS)
    nn.init.constant_(model.rnn.bias_hh_l0[32:64], 2.0)
    fitted(model, lambda: recall(64, delay), 500, 0.02)
    return model


def dense() -> nn.Sequential:
    """Train a perceptron."""
    model = perceptron()
    on_beats(model)
    return model


def followed(rate: float) -> Subject:
    """Train a perceptron at one rate, and keep the optimizer and the data trained on."""
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters(), 0.001)
    train, test = beats()
    for step in range(250):
        if step == 249:
            optimizer.param_groups[0]["lr"] = rate
        rows = torch.randint(len(train[0]), (64,))
        optimizer.zero_grad()
        functional.cross_entropy(model(train[0][rows]), train[1][rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return audited(model, test, trained_on=[train], optimizer=optimizer.state_dict())
