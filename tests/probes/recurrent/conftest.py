"""A second implementation of recurrent layers: unrolled by hand, differentiated by autograd."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes.recurrent.watching.interception import FusedCall


@dataclass
class Unrolled:
    """Outputs, and the graph tensors of every step: lists by (layer, reverse), in data order."""

    y: Tensor
    finals: list[Tensor]
    hidden: dict[tuple[int, bool], list[Tensor]] = field(default_factory=dict)
    cell: dict[tuple[int, bool], list[Tensor]] = field(default_factory=dict)
    input_side: dict[tuple[int, bool], list[Tensor]] = field(default_factory=dict)
    recurrent_side: dict[tuple[int, bool], list[Tensor]] = field(default_factory=dict)


def advance(mode: str, a: Tensor, u: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step, as the torch documentation writes it: a from the input, u from the state."""
    if mode == "LSTM":
        i, f, g, o = (a + u).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    if mode == "GRU":
        (ar, az, an), (ur, uz, un) = a.chunk(3, -1), u.chunk(3, -1)
        z = torch.sigmoid(az + uz)
        return (1 - z) * torch.tanh(an + torch.sigmoid(ar + ur) * un) + z * h, c
    return (torch.tanh(a + u) if mode == "RNN_TANH" else torch.relu(a + u)), c


def unroll(module: nn.RNNBase, x: Tensor, h0: Tensor, c0: Tensor) -> Unrolled:
    """Run ``module`` on time-first x step by step; every state is a tensor that keeps its grad."""
    found = Unrolled(x, [])
    finals: list[list[Tensor]] = [[], []]
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(2 if module.bidirectional else 1):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            w_ih, w_hh = (getattr(module, f"weight_{side}{suffix}") for side in ("ih", "hh"))
            b_ih, b_hh = (getattr(module, f"bias_{side}{suffix}", None) for side in ("ih", "hh"))
            w_hr = getattr(module, f"weight_hr{suffix}", None)
            index = len(finals[0])
            h, c = h0[index], c0[index]
            steps = range(len(x))[::-1] if direction else range(len(x))
            kept: dict[int, tuple[Tensor, ...]] = {}
            for t in steps:
                a = nn.functional.linear(x[t], w_ih, b_ih)
                u = nn.functional.linear(h, w_hh, b_hh)
                h, c = advance(module.mode, a, u, h, c)
                h = h if w_hr is None else nn.functional.linear(h, w_hr)
                kept[t] = (h, c, a, u)
                for tensor in kept[t]:
                    if tensor.requires_grad:
                        tensor.retain_grad()
            finals[0].append(h)
            finals[1].append(c)
            key = (layer, bool(direction))
            columns = zip(*(kept[t] for t in range(len(x))), strict=True)
            for store, column in zip(
                (found.hidden, found.cell, found.input_side, found.recurrent_side),
                columns,
                strict=True,
            ):
                store[key] = list(column)
            outputs.append(torch.stack(found.hidden[key]))
        x = torch.cat(outputs, -1)
    found.y = x
    found.finals = [torch.stack(part) for part in finals[: 2 if module.mode == "LSTM" else 1]]
    return found


@pytest.fixture
def unrolled() -> Callable[..., Unrolled]:
    return unroll


def grads_of(tensors: list[Tensor]) -> Tensor:
    """Stack the gradients that the tensors kept; zero where none arrived."""
    return torch.stack([torch.zeros_like(t) if t.grad is None else t.grad for t in tensors])


@pytest.fixture
def kept_grads() -> Callable[[list[Tensor]], Tensor]:
    return grads_of


def largest_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest expected value."""
    assert found.shape == expected.shape
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture
def error() -> Callable[[Tensor, Tensor], float]:
    return largest_error


def make(kind: str, *sizes: int, scale: float = 2.0, **options: Any) -> nn.RNNBase:
    """A float64 module in eval mode whose weights are large enough to matter."""
    module: nn.RNNBase = getattr(nn, kind)(*sizes, **options, dtype=torch.float64)
    for weight in module.parameters():
        weight.data.mul_(scale)
    return module.eval()


@pytest.fixture
def trained() -> Callable[..., nn.RNNBase]:
    return make


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Timesteps of every call of one layer."""
    seen: list[int] = []
    layer = FusedCall.layer

    def counted(self: FusedCall, weights: list[Tensor], x: Tensor, states: tuple[Tensor, ...]):
        seen.append(len(x))
        return layer(self, weights, x, states)

    monkeypatch.setattr(FusedCall, "layer", counted)
    return seen
