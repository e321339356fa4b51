"""What one use of a parameter adds to its gradient, for every sample, formed only as needed.

Shapes: B sample; ... the parameter's own axes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from probes.algebra.norms import far, rough, unsafe

WORKSPACE = 2**21
"""Bytes of per-sample gradient formed at a time: more do not stay in the processor's cache."""

MOST = 16
"""Samples whose gradient is formed at a time, however small it is."""

WRITE = 32
"""Multiply-adds that take the time of forming one more element of gradient and squaring it."""

CALL = 4_000_000
"""Multiply-adds that take the time of one more call. Both from a fit to 24 convolutions on a CPU
(one thread): a model of costs, not a stopwatch, so that the same audit gives the same bytes."""


@dataclass(frozen=True, eq=False)
class Contribution(ABC):
    """One use of a parameter.

    Parameters
    ----------
    gradient : Tensor
        What arrived at the output of the operation, batch axis first.
    """

    gradient: Tensor

    @property
    @abstractmethod
    def size(self) -> int:
        """Elements of the parameter."""

    @abstractmethod
    def explicit(self) -> Tensor:
        """Form the gradient of every sample: (B, ...)."""

    @abstractmethod
    def total(self) -> Tensor:
        """Sum the gradient over the samples, without forming each."""

    def squared_norms(self) -> Tensor | None:
        """Square norm of each sample where it is cheaper without forming the gradient: (B,)."""
        return None

    def rows(self, chosen: slice | Tensor) -> Self:
        """Keep some samples only."""
        return self._mapped(lambda tensor: tensor[chosen])

    def pieces(self) -> Iterator[slice]:
        """Cut the samples into those whose gradient is formed at a time."""
        step = together(self.size * self.gradient.element_size())
        return (slice(start, start + step) for start in range(0, len(self.gradient), step))

    def floats(self, dtype: torch.dtype) -> Self:
        """Compute in another precision."""
        return self._mapped(lambda t: t.to(dtype) if t.is_floating_point() else t)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply ``change`` to every tensor."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return replace(
            self, **{name: change(v) for name, v in values.items() if isinstance(v, Tensor)}
        )


@dataclass(frozen=True, eq=False)
class Formed(Contribution):
    """A gradient so small that it is there for every sample: of biases and scales."""

    @property
    def size(self) -> int:
        return self.gradient[0].numel()

    def explicit(self) -> Tensor:
        return self.gradient

    def total(self) -> Tensor:
        return self.gradient.sum(0)


def measured(contribution: Contribution) -> tuple[Tensor, Tensor]:
    """Measure one use of a parameter.

    Forms at most ``WORKSPACE`` bytes of gradient at a time, or that of one sample.

    Returns
    -------
    norms, total : Tensor
        Norm for each sample in float64, shape (B,), and the gradient summed over the samples.
    """
    if far(contribution.gradient):
        return _measured_far(contribution)
    norm_B, total = _measured(contribution)
    if total.dtype != torch.float64:
        unsafe_B = unsafe(norm_B)
        if unsafe_B is not None:
            # Only where something arrived: samples whose loss is zero are many, and are zero.
            unsafe_B &= contribution.gradient.flatten(1).any(1)
            if unsafe_B.any():
                again = contribution.rows(unsafe_B).floats(torch.float64)
                norm_B[unsafe_B] = _measured(again)[0]
    return norm_B, total


def _measured(contribution: Contribution) -> tuple[Tensor, Tensor]:
    """As :func:`measured`, in the precision of the gradient."""
    squares_B = contribution.squared_norms()
    if squares_B is not None:
        return squares_B.double().clamp_min(0).sqrt(), contribution.total()
    if isinstance(contribution, Formed):
        return rough(contribution.gradient), contribution.total()
    parts: list[Tensor] = []
    total: Tensor | None = None
    for some in contribution.pieces():
        total = _formed(contribution.rows(some), parts, total)
    assert total is not None
    return torch.cat(parts), total


def _measured_far(contribution: Contribution) -> tuple[Tensor, Tensor]:
    """As :func:`measured`, without a look at the norms: what to do again is not known before."""
    gradient = contribution.gradient
    size_B = gradient.flatten(1).abs().amax(1)
    size_B = torch.where((size_B > 0) & size_B.isfinite(), size_B, 1)
    scaled = gradient / size_B.view(-1, *[1] * (gradient.dim() - 1))
    squares_B = replace(contribution, gradient=scaled).squared_norms()
    if squares_B is None:
        return _measured(contribution)
    return squares_B.double().clamp_min(0).sqrt() * size_B, contribution.total()


def _formed(some: Contribution, parts: list[Tensor], total: Tensor | None) -> Tensor:
    """Form the gradient of some samples, append their norms, add them to the sum.

    A function of its own, so that the memory is free again before the next samples need as much.
    """
    gradient = some.explicit()
    parts.append(rough(gradient))
    summed = gradient.sum(0) if len(gradient) > 1 else gradient[0]
    return summed if total is None else total.add_(summed)


def together(size: int) -> int:
    """Count the samples whose gradient, of ``size`` bytes each, is formed at a time."""
    return max(1, min(MOST, WORKSPACE // max(size, 1)))
