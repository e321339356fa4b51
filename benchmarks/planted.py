"""Small networks trained on a task, healthy or with a fault planted into them.

Shapes: B sample, T timestep, S symbol, H unit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Planted:
    """A kind of network, and what should be found in it.

    Parameters
    ----------
    name : str
    make : callable
        Trains one, given a seed.
    code : str
        The finding that has to alarm; empty for a healthy one.
    probes : tuple of str
        What measures it; all probes if empty.
    limits : dict
        What the user would have said of it.
    """

    name: str
    make: Callable[[int], Subject]
    code: str = ""
    probes: tuple[str, ...] = ()
    limits: dict[str, dict[str, float]] = field(default_factory=dict)


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
    """A residual network whose last field is smaller than the input; ``tail`` plain layers more."""

    def __init__(self, tail: int = 0, channels: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, channels, 5, 2, padding=2)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(3)))
        layers = [nn.Conv1d(channels, channels, 9, padding=4) for _ in range(tail)]
        self.tail = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = self.tail(self.blocks(functional.relu(self.stem(x.transpose(1, 2)))))
        y: Tensor = self.head(features.mean(2))
        return y


class Recurrent(nn.Module):
    """One recurrent layer and a linear one on its last output."""

    def __init__(self, kind: type[nn.RNNBase], inputs: int, units: int, classes: int) -> None:
        super().__init__()
        self.rnn = kind(inputs, units, batch_first=True)  # type: ignore[arg-type]
        self.head = nn.Linear(units, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0][:, -1])
        return y


def perceptron(width: int = 24, depth: int = 2, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Hidden layers of one width."""
    sizes = [70, *[width] * depth]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), act())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 5))


def fitted(model: nn.Module, draw: Callable[[], Pair], steps: int, rate: float = 0.005) -> None:
    """Train with a rate that rises and falls."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for _ in range(steps):
        inputs, targets = draw()
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
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
    return Subject(model.eval(), batches, "cross_entropy", time_axis=axis, **more)


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


def remembering() -> nn.Module:
    """Train an LSTM on delayed recall."""
    model = Recurrent(nn.LSTM, SYMBOLS, 32, SYMBOLS)
    nn.init.constant_(model.rnn.bias_hh_l0[32:64], 2.0)
    fitted(model, lambda: recall(64), 500, 0.02)
    return model


def dense() -> nn.Sequential:
    """Train a perceptron."""
    model = perceptron()
    on_beats(model)
    return model


HEALTHY = (
    Planted("residual CNN", seeded(lambda: audited(convolutional()))),
    Planted("LSTM", seeded(lambda: audited(recurrent()))),
    Planted(
        "LSTM, delayed recall",
        seeded(lambda: audited(remembering(), recall(300))),
        limits={"memory_horizon": {"required": DELAY}},
    ),
    Planted("perceptron", seeded(lambda: audited(dense()))),
)
"""Networks that nothing is planted in."""


def _dead() -> Subject:
    """Keep six of ten units of a layer below zero for good."""
    model = dense()
    nn.init.constant_(model[1].bias[:15], -100.0)  # type: ignore[index]
    return audited(model)


def _blocked() -> Subject:
    """Keep all units of a layer below zero for good."""
    model = dense()
    nn.init.constant_(model[3].bias, -100.0)  # type: ignore[arg-type]
    return audited(model)


def _copied() -> Subject:
    """Copy half of the units of a layer to the other half."""
    model = dense()
    with torch.no_grad():
        for weight in model[1].parameters():
            weight[12:] = weight[:12]
    return audited(model)


def _narrow() -> Subject:
    """Leave three directions to the weights of each layer."""
    model = dense()
    with torch.no_grad():
        for layer in (model[1], model[3]):
            left, size, right = torch.linalg.svd(layer.weight)
            layer.weight.copy_(left[:, :3] * size[:3] @ right[:3])
    return audited(model)


def _saturated() -> Subject:
    """Drive hyperbolic tangents to their ends."""
    model = on_beats(perceptron(act=nn.Tanh))
    with torch.no_grad():
        model[1].weight.mul_(1000)  # type: ignore[index]
        model[1].bias.mul_(1000)  # type: ignore[index]
    return audited(model)


def _idle() -> Subject:
    """Have a residual block add nothing."""
    model = convolutional()
    for weight in model.blocks[1].second.parameters():  # type: ignore[index]
        nn.init.zeros_(weight)
    return audited(model)


def _forgetful() -> Subject:
    """Train a forget gate that stays half open to recall three steps."""
    model = Recurrent(nn.LSTM, SYMBOLS, 32, SYMBOLS)
    for weight in model.rnn.parameters():
        kept = torch.ones_like(weight)
        kept[32:64] = 0
        weight.data.mul_(kept)
        weight.register_hook(kept.mul)
    fitted(model, lambda: recall(64, delay=3), 500, 0.02)
    return audited(model, recall(300, delay=3))


def _clenched() -> Subject:
    """Drive gates to their ends."""
    model = recurrent()
    with torch.no_grad():
        for weight in model.rnn.parameters():  # type: ignore[union-attr]
            weight.mul_(100)
    return audited(model)


def _scaled(radius: float) -> Subject:
    """Make the recurrent weights of a plain network a rotation times a factor."""
    model = on_beats(Recurrent(nn.RNN, 1, 32, 5), 60)
    nn.init.orthogonal_(model.rnn.weight_hh_l0, radius)
    with torch.no_grad():
        model.rnn.weight_ih_l0.mul_(0.1)
    return audited(model)


def _memorized() -> Subject:
    """Train a perceptron to know sixty shuffled labels by heart."""
    inputs, targets = (part[:60] for part in beats()[0])
    targets = targets[torch.randperm(60)]
    model = perceptron(256)
    fitted(model, lambda: (inputs, targets), 300)
    return audited(model, (inputs, targets), held_out=[beats()[1]])


FAULTS = (
    Planted("dead ReLUs", seeded(_dead), "dead-units", ("width",)),
    Planted("a layer dead as a whole", seeded(_blocked), "gradient-blocked", ("gradient_flow",)),
    Planted("copied units", seeded(_copied), "redundant-units", ("width",)),
    Planted("layers of rank 3", seeded(_narrow), "width-wasted", ("width",)),
    Planted("tanh at its ends", seeded(_saturated), "saturated-units", ("width",)),
    Planted("a residual block of zeros", seeded(_idle), "idle-blocks", ("depth_contribution",)),
    Planted(
        "ten sigmoid layers",
        seeded(lambda: audited(on_beats(perceptron(32, 10, nn.Sigmoid), 100))),
        "gradient-over-depth",
        ("gradient_flow",),
    ),
    Planted(
        "a tail beyond the field",
        seeded(lambda: audited(on_beats(Convolutional(tail=6)))),
        "unproductive-layers",
        ("receptive_field",),
    ),
    Planted(
        "a forget gate of one half",
        seeded(_forgetful),
        "memory-horizon",
        ("memory_horizon",),
        {"memory_horizon": {"required": DELAY}},
    ),
    Planted(
        "truncation shorter than the delay",
        seeded(lambda: audited(remembering(), recall(300))),
        "truncation-loss",
        ("truncation",),
        {"truncation": {"trained_with": 4}},
    ),
    Planted("gates at their ends", seeded(_clenched), "gate-saturation", ("gates",)),
    Planted(
        "recurrent weights that shrink states",
        seeded(lambda: _scaled(0.5)),
        "gradient-over-time",
        ("timestep_gradient",),
    ),
    Planted(
        "recurrent weights that amplify states",
        seeded(lambda: _scaled(3.0)),
        "state-stability",
        ("lyapunov",),
    ),
    Planted(
        "shuffled labels known by heart",
        seeded(_memorized),
        "generalization-gap",
        ("generalization",),
    ),
)
"""One fault each, and the finding that has to tell it."""
