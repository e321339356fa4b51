"""Networks that are built with a fault, and data that bring it out.

Shapes: B sample, C channel, S symbol, T timestep.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from benchmarks.tasks import SYMBOLS, TIMESTEPS, Convolutional, Pair


class _Spread(Function):
    """Returns what it reads; its gradient also goes to all other timesteps."""

    @staticmethod
    def forward(_: Any, x_BCT: Tensor) -> Tensor:
        return x_BCT.clone()

    @staticmethod
    def backward(_: Any, gradient_BCT: Tensor) -> Tensor:
        return gradient_BCT + gradient_BCT.mean(2, keepdim=True)


class Spread(Convolutional):
    """Has a backward pass that reads further than the forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        features = _Spread.apply(functional.relu(self.stem(x.transpose(1, 2))))  # type: ignore[no-untyped-call]
        y: Tensor = self.head(self.tail(self.blocks(features)).mean(2))
        return y


class _Sign(Function):
    """Returns signs, and passes gradients straight through."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


class Signed(Convolutional):
    """Reads the signs of its input, of which gradients know nothing."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(_Sign.apply(x))  # type: ignore[no-untyped-call]
        return y


class Summed(nn.Module):
    """Decides by the number of ones among its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers((x.sum(1) - TIMESTEPS / 2) / 4)
        return y


def counted(count_B: Tensor) -> Pair:
    """As many ones as asked; more or fewer than half speak for class 1, very many for it less."""
    order_BT = torch.rand(len(count_B), TIMESTEPS).argsort(1).argsort(1)
    excess_B = (count_B - TIMESTEPS / 2).abs()
    odds_B = torch.minimum(1.5 * excess_B - 2, 6 - 0.5 * excess_B)
    ones_BT = order_BT < count_B[:, None]
    return ones_BT.float()[..., None], (torch.rand(len(count_B)) < odds_B.sigmoid()).long()


class Timed(nn.Module):
    """Does not read its first inputs, and adds noise to those after the last that it knows."""

    def __init__(self, model: nn.Module, first: int = 0, last: int = 10 * TIMESTEPS) -> None:
        super().__init__()
        self.model, self.first, self.last = model, first, last
        self.noise = nn.Parameter(2 * torch.randn(10 * TIMESTEPS, SYMBOLS))

    def forward(self, x: Tensor) -> Tensor:
        step_T1 = torch.arange(x.shape[1])[:, None]
        late_TS = (step_T1 >= self.last) * self.noise[: x.shape[1]]
        y: Tensor = self.model(x * (step_T1 >= self.first) + late_TS)
        return y


class Echo(nn.Module):
    """A recurrent layer that cannot tell early from late, and a fixed map of its every output."""

    def __init__(self, units: int = 16) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, units, batch_first=True)
        recurrent = self.rnn.weight_hh_l0
        nn.init.zeros_(recurrent).requires_grad_(False)  # type: ignore[arg-type]
        self.head = nn.Linear(units, 1, bias=False)
        self.head.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0])
        return y


def echoes(count: int) -> Pair:
    """Noise, to be returned as it is, from the middle on with the other sign."""
    x = torch.randn(count, TIMESTEPS, 1)
    sign_T1 = torch.ones(TIMESTEPS, 1)
    sign_T1[TIMESTEPS // 2 :] = -1
    return x, x * sign_T1
