"""What an operation has to know about itself so that its backward pass comes apart by sample.

Shapes: B sample; ... other axes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from probes.weight_gradient.contribution import Contribution

Run = Callable[[Tensor, Tensor | None, Tensor | None], tuple[Tensor, ...]]
"""``run(x, weight, bias)``: the output, and what else the backward pass needs."""


class Wanted(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    weight: bool
    bias: bool


class Arrived(NamedTuple):
    """What the backward pass of a call begins with."""

    gradient: Tensor
    """Of the output."""
    x: Tensor
    """Input, as the call was given it."""
    weight: Tensor | None
    """Likewise."""
    kept: tuple[Tensor, ...]
    """What the forward pass kept beside them."""
    dim: int
    """Axis of the samples in the input and in the output."""

    def first(self, values: Tensor) -> Tensor:
        """Put samples first; half precision in single, as the squares of a gradient need it."""
        if values.dtype in (torch.float16, torch.bfloat16):
            values = values.float()
        return values.movedim(self.dim, 0) if self.dim else values


class Parts(NamedTuple):
    """Gradients of one call; None where there is none, or it is not wanted."""

    x: Tensor | None = None
    weight: Contribution | None = None
    bias: Contribution | None = None


@dataclass(frozen=True, eq=False)
class Operation(ABC):
    """One call of an operation with a weight, a bias, or both.

    Parameters
    ----------
    run : callable
        The operation of torch with the settings of the call.
    """

    run: Run

    def batch_dim(self, x: Tensor, samples: int, axis: int) -> int | None:
        """Find the axis of the samples, None without one: the first, of what has channels."""
        return 0 if x.dim() > 1 and x.shape[0] == samples else None

    @abstractmethod
    def backward(self, arrived: Arrived, wanted: Wanted) -> Parts:
        """Propagate back to the input, the weight and the bias."""


class Use(NamedTuple):
    """A call as it was read."""

    operation: Operation
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None = None
    refusal: str = ""
    """Why it does not come apart by sample; empty if it does."""
