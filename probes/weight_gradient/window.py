"""Weights of convolutions in one, two and three dimensions, grouped, dilated, transposed.

Shapes: B sample, C input channel, O output channel, P output position, Q padded input position,
... spatial axes.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from probes.weight_gradient.contribution import (
    CALL,
    WORKSPACE,
    WRITE,
    Contribution,
    together,
)

_BACKWARD = torch.ops.aten.convolution_backward.default

GRAM = WORKSPACE
"""Bytes of products of positions with positions that are formed at a time."""

ADD = 40
"""Multiply-adds that take the time of adding one product of positions to another."""


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves over its input; one entry per spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def straight(self) -> "Geometry":
        """Move in the same way without being transposed."""
        return Geometry(self.stride, self.padding, self.dilation, self.groups)

    def gradients(
        self, gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the input and of the weight, those that are wanted, by torch."""
        nothing = (0,) * len(self.stride)
        found: tuple[Tensor | None, ...] = _BACKWARD(
            *(gradient, x, weight, None, self.stride, self.padding, self.dilation),
            *(self.transposed, self.output_padding or nothing, self.groups, (*wanted, False)),
        )
        return found[0], found[1]


@dataclass(frozen=True, eq=False)
class Window(Contribution):
    """Gradient of the weight of a convolution that is not transposed.

    That of a transposed one is this with the input and what arrived swapped.

    Parameters
    ----------
    gradient : Tensor, shape (B, O, ...)
        What arrived at the outputs.
    x : Tensor, shape (B, C, ...)
        Inputs.
    geometry : Geometry
        Not transposed.
    shape : tuple of int
        Of the weight: (O, C / groups, ...).

    References
    ----------
    .. [1] Rochette et al., Efficient Per-Example Gradient Computations in Convolutional Neural
       Networks (2019): samples as groups.
    .. [2] Bu et al., Scalable and Efficient Training of Large Convolutional Neural Networks with
       Differential Privacy (2022): norms from products of positions. Here the products are those
       of input positions, not of unfolded patches.
    """

    x: Tensor
    geometry: Geometry
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def explicit(self) -> Tensor:
        count, geometry = len(self.x), self.geometry
        if geometry.groups == 1 and math.prod(self.shape[2:]) == 1:
            x_BCP = self._pointwise().x.flatten(2)
            found = torch.bmm(self.gradient.flatten(2), x_BCP.transpose(1, 2))
            return found.view(count, *self.shape)
        folded = Geometry(
            geometry.stride, geometry.padding, geometry.dilation, geometry.groups * count
        )
        weight = self.x.new_empty(count * self.shape[0], *self.shape[1:])
        gradient, x = (
            values.reshape(1, -1, *values.shape[2:]) for values in (self.gradient, self.x)
        )
        formed = folded.gradients(gradient, x, weight, (False, True))[1]
        assert formed is not None
        return formed.view(count, *self.shape)

    def total(self) -> Tensor:
        weight = self.x.new_empty(self.shape)
        found = self.geometry.gradients(self.gradient, self.x, weight, (False, True))[1]
        assert found is not None
        return found

    def squared_norms(self) -> Tensor | None:
        one = self if math.prod(self.shape[2:]) > 1 else self._pointwise()
        if not one.cheaper():
            return None
        sizes = one.positions()
        step = max(1, GRAM // (self.x.element_size() * (sizes[0] ** 2 + sizes[1] ** 2)))
        parts = [one.rows(slice(i, i + step)) for i in range(0, len(self.x), step)]
        return torch.cat([part.gram() for part in parts])

    def positions(self) -> tuple[int, int]:
        """Count the positions of the output and of the padded input."""
        padded = [
            size + 2 * pad
            for size, pad in zip(self.x.shape[2:], self.geometry.padding, strict=True)
        ]
        return math.prod(self.gradient.shape[2:]), math.prod(padded)

    def cheaper(self) -> bool:
        """Whether the products of positions cost less than forming the gradient.

        Both come beside, or in place of, the gradient that is summed over the samples, whose cost
        is left out.
        """
        if self.geometry.groups > 1:
            return False
        outputs, inputs = self.positions()
        channels = self.gradient.shape[1], self.x.shape[1]
        gram = inputs**2 * channels[1] + outputs**2 * (
            channels[0] + ADD * math.prod(self.shape[2:])
        )
        return gram < WRITE * self.size + CALL / together(self.size * self.x.element_size())

    def gram(self) -> Tensor:
        """Square norms from products of output positions and of the input positions they read."""
        x = self._padded()
        x_BCQ, gradient_BOP = x.flatten(2), self.gradient.flatten(2)
        inputs = torch.bmm(x_BCQ.transpose(1, 2), x_BCQ).view(-1, *x.shape[2:], *x.shape[2:])
        outputs = torch.bmm(gradient_BOP.transpose(1, 2), gradient_BOP)
        read: Tensor | None = None
        for tap in itertools.product(*(range(size) for size in self.shape[2:])):
            seen = self._seen(tap)
            part = inputs[(slice(None), *seen, *seen)]
            read = part.clone() if read is None else read.add_(part)
        assert read is not None
        return (read.flatten(1) * outputs.flatten(1)).sum(1)

    def _seen(self, tap: tuple[int, ...]) -> tuple[slice, ...]:
        """Select the padded input positions that one tap of the kernel reads."""
        geometry, ends = self.geometry, self.gradient.shape[2:]
        steps = zip(tap, geometry.dilation, geometry.stride, ends, strict=True)
        return tuple(
            slice(at * dilation, at * dilation + stride * (end - 1) + 1, stride)
            for at, dilation, stride, end in steps
        )

    def _padded(self) -> Tensor:
        """Pad the input as the convolution does."""
        edges = [side for pad in reversed(self.geometry.padding) for side in (pad, pad)]
        return functional.pad(self.x, edges) if any(edges) else self.x

    def _pointwise(self) -> "Window":
        """Keep only those input positions that a kernel of size 1 reads."""
        geometry = self.geometry
        if not any(geometry.padding) and set(geometry.stride) == {1}:
            return self
        x = self._padded()[(slice(None), slice(None), *self._seen((0,) * len(self.shape[2:])))]
        ones, zeros = (1,) * len(self.shape[2:]), (0,) * len(self.shape[2:])
        return Window(self.gradient, x, Geometry(ones, zeros, ones, geometry.groups), self.shape)
