"""Networks whose parts are put together in every way that torch allows.

Shapes: B sample, T timestep, C channel, H hidden unit, K class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from zoo_parts import classified, images, sequences, vectors

from probes.base import Batch, Subject


class Shared(nn.Module):
    """One layer called twice, and once more under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.again = self.first
        self.head = nn.Linear(5, 3)

    def forward(self, x_BC: Tensor) -> Tensor:
        return self.head(torch.tanh(self.again(torch.tanh(self.first(self.first(x_BC))))))


class Tied(nn.Module):
    """A language model whose output weight is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(tokens_BT))[0])


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 4), nn.Linear(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.tanh(self.left(left) + self.right(right)))


class Nested(nn.Module):
    """Takes a dictionary within a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.part = TwoInputs()

    def forward(self, held: dict[str, Any], scale: float) -> Tensor:
        return self.part(held["left"], held["rest"][0]) * scale


class Tuples(nn.Module):
    """Layers that hand tuples, None and numbers to each other."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, state: tuple[Tensor, None, int]) -> tuple[Tensor, None, int]:
            return torch.relu(self.linear(state[0])), None, state[2] + 1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.Layer() for _ in range(2))
        self.head = nn.Linear(5, 3)

    def forward(self, x_BC: Tensor) -> tuple[Tensor, None, int]:
        state = (x_BC, None, 0)
        for layer in self.layers:
            state = layer(state)
        return self.head(state[0]), None, state[2]


class Dictionaries(nn.Module):
    """An output of many parts, of which only one is differentiable."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x_BTC: Tensor) -> dict[str, Any]:
        h_BTH, last = self.rnn(x_BTC)
        logits = self.head(h_BTH[:, -1])
        return {"choice": logits.argmax(-1), "loss": None, "logits": logits, "state": last}


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


class Structured(nn.Module):
    """Returns what a library of transformers does: a class of its own."""

    def __init__(self, kind: Callable[..., Any]) -> None:
        super().__init__()
        self.kind = kind
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x_BC: Tensor) -> Any:
        h_BH = torch.tanh(self.body(x_BC))
        return self.kind(self.head(h_BH), h_BH)


class Unused(nn.Module):
    """A layer that nobody calls, a parameter without use, modules without content."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Identity(), nn.Sequential(), nn.Linear(5, 4), nn.ModuleList())
        self.body = self.body[:3]
        self.idle = nn.LSTM(3, 4)
        self.temperature = nn.Parameter(torch.ones(()))
        self.nothing = nn.ParameterList()
        self.absent = None
        self.head = nn.Linear(4, 3)

    def forward(self, x_BC: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x_BC)))


class Owner(nn.Module):
    """All weights are parameters of the network itself; every operation is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 2, 3) / 3)
        self.weight = nn.Parameter(torch.randn(3, 4) / 2)

    def forward(self, x_BCT: Tensor) -> Tensor:
        h_BCT = nn.functional.conv1d(x_BCT, self.kernel).relu()
        return nn.functional.linear(h_BCT.mean(2), self.weight)


class Branches(nn.Module):
    """What is computed depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.plus, self.minus = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x_BC: Tensor) -> Tensor:
        return self.plus(x_BC) if x_BC.sum() > 0 else self.minus(x_BC)


class Cells(nn.Module):
    """Recurrence written as a loop over a cell, its states in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x_BTC: Tensor) -> Tensor:
        state, outs = None, []
        for x_BC in x_BTC.unbind(1):
            state = self.cell(x_BC, state)
            outs.append(state[0])
        return self.head(torch.stack(outs, 1)[:, -1])


class LastState(nn.Module):
    """Only the final state of a stacked layer is read; time comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x_TBC: Tensor) -> Tensor:
        return self.head(self.gru(x_TBC)[1][-1])


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, 2, batch_first=True, bidirectional=True, proj_size=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.head(self.lstm(x_BTC)[0])


class Residual(nn.Module):
    """Blocks that add to what they read, in place, on images."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x_BCYX: Tensor) -> Tensor:
            h_BCYX = self.norm(self.conv(x_BCYX))
            h_BCYX += x_BCYX
            return h_BCYX.relu_()

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.blocks = nn.Sequential(*(self.Block() for _ in range(2)))
        self.head = nn.Linear(3, 3)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x_BCYX)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.head(self.encoder(x_BTC))


class Stateful(nn.Module):
    """Goes on from the state of the call before."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.state: Any = None

    def forward(self, x_BTC: Tensor) -> Tensor:
        if self.state is not None and self.state[0].shape[1] != len(x_BTC):
            self.state = None
        h_BTH, state = self.lstm(x_BTC, self.state)
        self.state = tuple(part.detach() for part in state)
        return self.head(h_BTH[:, -1])


def two_inputs(as_mapping: bool) -> Subject:
    left, right = vectors(6, 5), vectors(6, 2)
    inputs = {"left": left, "right": right} if as_mapping else (left, right)
    return Subject(TwoInputs(), [Batch(inputs, torch.arange(6) % 3)], "cross_entropy")


def nested_inputs() -> Subject:
    held = {"left": vectors(6, 5), "rest": [vectors(6, 2), None]}
    return Subject(Nested(), [Batch((held, 0.5), torch.arange(6) % 3)], "cross_entropy")


def time_first() -> Subject:
    x_TBC = sequences(6, 8, 3).transpose(0, 1)
    return Subject(
        LastState(), [Batch(x_TBC, torch.arange(6) % 3)], "cross_entropy", batch_axis=1, time_axis=0
    )


def tokens() -> Tensor:
    return torch.randint(7, (6, 8), generator=torch.Generator().manual_seed(1))


STRUCTURES: dict[str, Callable[[], Subject]] = {
    "one layer": lambda: classified(nn.Linear(5, 3), vectors(6, 5)),
    "one convolution": lambda: classified(
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(2)), images(6, 1, 8), positions=36
    ),
    "one recurrent layer": lambda: classified(
        nn.LSTM(3, 3, batch_first=True), sequences(6, 8, 3), positions=8
    ),
    "no parameters": lambda: classified(nn.Sequential(nn.Flatten(), nn.Tanh()), vectors(6, 3)),
    "identity": lambda: Subject(nn.Identity(), [vectors(6, 5)]),
    "shared layers": lambda: classified(Shared(), vectors(6, 5)),
    "tied weights": lambda: Subject(Tied(), [Batch(tokens(), tokens())], "cross_entropy"),
    "several inputs": lambda: two_inputs(as_mapping=False),
    "keyword inputs": lambda: two_inputs(as_mapping=True),
    "nested inputs": nested_inputs,
    "tuples": lambda: classified(Tuples(), vectors(6, 5)),
    "dictionaries": lambda: classified(Dictionaries(), sequences(6, 8, 3)),
    "named tuple": lambda: classified(Structured(Pair), vectors(6, 5)),
    "dataclass": lambda: classified(Structured(Answer), vectors(6, 5)),
    "unused parts": lambda: classified(Unused(), vectors(6, 5)),
    "functions only": lambda: classified(Owner(), sequences(6, 2, 12)),
    "branches": lambda: classified(Branches(), vectors(6, 5)),
    "cells": lambda: classified(Cells(), sequences(6, 8, 3)),
    "time first": time_first,
    "projected both ways": lambda: classified(Projected(), sequences(6, 8, 3), positions=8),
    "residual in place": lambda: classified(Residual(), images(6, 1, 8)),
    "attention": lambda: classified(Attention(), sequences(6, 8, 4), positions=8),
    "stateful": lambda: classified(Stateful(), sequences(6, 8, 3)),
}
"""Name of each network -> the subject of its audit."""
