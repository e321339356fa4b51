"""Data for the small networks, the same every time."""

from typing import Any

import torch
from torch import Tensor, nn

from probes.base import Batch, Subject


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


vectors = sequences = drawn


def images(count: int, channels: int, side: int) -> Tensor:
    return drawn(count, channels, side, side)


def classes(count: int, positions: int = 0) -> Tensor:
    shape = (count, positions) if positions else (count,)
    return torch.arange(count * max(1, positions)).reshape(shape) * 5 % 3


def classified(model: nn.Module, x: Tensor, positions: int = 0, **more: Any) -> Subject:
    """Two batches of unequal size, and a class for each sample or position."""
    y, cut = classes(len(x), positions), 2 * len(x) // 3
    batches = [Batch(x[:cut], y[:cut]), Batch(x[cut:], y[cut:])]
    return Subject(model, batches, "cross_entropy", **more)
