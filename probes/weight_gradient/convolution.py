"""Convolutions.

Shapes: B sample, C channel; ... spatial axes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from probes.weight_gradient.contribution import Formed
from probes.weight_gradient.operation import Arrived, Operation, Parts, Use, Wanted
from probes.weight_gradient.window import Geometry, Window

Sizes = int | tuple[int, ...]
Function = Callable[..., Tensor]
Read = Callable[..., Use]


@dataclass(frozen=True, eq=False)
class _Convolution(Operation):
    """Straight or transposed."""

    geometry: Geometry
    shape: tuple[int, ...]

    def backward(self, arrived: Arrived, wanted: Wanted) -> Parts:
        assert arrived.weight is not None
        gradient, x, weight = arrived.gradient, arrived.x, arrived.weight
        x_gradient = None
        if wanted.x:
            x_gradient = self.geometry.gradients(gradient, x, weight, (True, False))[0]
        gradient, x = arrived.first(gradient), arrived.first(x)
        bias = Formed(gradient.flatten(2).sum(2)) if wanted.bias else None
        if self.geometry.transposed:
            gradient, x = x, gradient
        return Parts(x_gradient, Window(gradient, x, self.geometry.straight(), self.shape), bias)


def convolution(function: Function) -> Read:
    """Make the reader of calls of ``torch.conv1d``, ``conv2d`` or ``conv3d``."""

    def read(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> Use:
        axes = weight.dim() - 2
        dilated = _each(dilation, axes)
        if isinstance(padding, str):
            input, padding = _padded(input, padding, dilated, tuple(weight.shape[2:]))
        geometry = Geometry(_each(stride, axes), _each(padding, axes), dilated, groups)
        settings = (geometry.stride, geometry.padding, geometry.dilation, groups)
        return _use(function, settings, geometry, input, weight, bias)

    return read


def transposed_convolution(function: Function) -> Read:
    """Make the reader of calls of ``torch.conv_transpose1d``, ``2d`` or ``3d``."""

    def read(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        dilation: Sizes = 1,
    ) -> Use:
        axes = weight.dim() - 2
        strides, added = _each(stride, axes), _each(output_padding, axes)
        geometry = Geometry(
            strides, _each(padding, axes), _each(dilation, axes), groups, True, added
        )
        settings = (strides, geometry.padding, added, groups, geometry.dilation)
        use = _use(function, settings, geometry, input, weight, bias)
        if any(extra >= step for extra, step in zip(added, strides, strict=True)):
            return use._replace(refusal="its output padding is not smaller than its stride")
        return use

    return read


def _use(
    function: Function,
    settings: tuple[Any, ...],
    geometry: Geometry,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Use:
    """Put a call together."""

    def run(x: Tensor, w: Tensor | None, b: Tensor | None) -> tuple[Tensor, ...]:
        return (function(x, w, b, *settings),)

    single = "it is applied to a sample without a batch axis" * (x.dim() != weight.dim())
    operation = _Convolution(run, geometry, tuple(weight.shape))
    return Use(operation, x, weight, bias, single)


def _each(sizes: Sizes, axes: int) -> tuple[int, ...]:
    """Repeat one number, or a tuple of one, for every axis."""
    several = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return several * axes if len(several) == 1 else several


def _padded(
    x: Tensor, padding: str, dilation: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[Tensor, Sizes]:
    """Turn "valid" and "same" into numbers; an uneven total is padded at the end beforehand."""
    if padding == "valid":
        return x, 0
    total = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    uneven = [side for size in reversed(total) for side in (0, size % 2)]
    return functional.pad(x, uneven) if any(uneven) else x, tuple(size // 2 for size in total)
