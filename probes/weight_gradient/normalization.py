"""Normalization layers with learnt scales and shifts.

Shapes: B sample, C channel, G group; ... positions.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from probes.samples.layout import batch_dim
from probes.weight_gradient.contribution import Formed
from probes.weight_gradient.operation import Arrived, Operation, Parts, Use, Wanted

_aten = torch.ops.aten
_ALL, _INPUT = (True, True, True), (True, False, False)


@dataclass(frozen=True, eq=False)
class _BatchNorm(Operation):
    """With running statistics: a scale and a shift of every channel."""

    mean: Tensor
    variance: Tensor
    eps: float

    def backward(self, arrived: Arrived, wanted: Wanted) -> Parts:
        gradient, x = arrived.first(arrived.gradient), arrived.first(arrived.x)
        # Every channel of every sample as a channel of its own, of a batch of one.
        one = (1, -1, *x.shape[2:])
        weight = torch.ones_like(self.mean) if arrived.weight is None else arrived.weight
        scales = (values.to(x).repeat(len(x)) for values in (weight, self.mean, self.variance))
        found: tuple[Tensor, ...] = _aten.native_batch_norm_backward(
            gradient.reshape(one), x.reshape(one), *scales, None, None, False, self.eps, _ALL
        )
        x_gradient, weight_BC, bias_BC = (
            found[0].view_as(x),
            *(values.view(x.shape[:2]) for values in found[1:]),
        )
        return Parts(x_gradient.to(arrived.x), Formed(weight_BC), Formed(bias_BC))


@dataclass(frozen=True, eq=False)
class _GroupNorm(Operation):
    """Over groups of channels of each sample; keeps mean and inverse deviation, (B, G)."""

    groups: int

    def backward(self, arrived: Arrived, wanted: Wanted) -> Parts:
        x, mean, inverse = (arrived.first(v) for v in (arrived.x, *arrived.kept))
        gradient = arrived.first(arrived.gradient).contiguous()
        batch, channels = x.shape[:2]
        sizes = (batch, channels, x[0, 0].numel(), self.groups)
        weight = None if arrived.weight is None else arrived.weight.to(x)
        found: tuple[Tensor, ...] = _aten.native_group_norm_backward(
            gradient, x.contiguous(), mean, inverse, weight, *sizes, _INPUT
        )
        sum_BC = gradient.flatten(2).sum(2)
        dot_BC = torch.linalg.vecdot(gradient.flatten(2), x.flatten(2))
        mean_BC, inverse_BC = (
            values.repeat_interleave(channels // self.groups, 1) for values in (mean, inverse)
        )
        weight_BC = (dot_BC - mean_BC * sum_BC) * inverse_BC
        return Parts(found[0].to(arrived.x), Formed(weight_BC), Formed(sum_BC))


@dataclass(frozen=True, eq=False)
class _LayerNorm(Operation):
    """Over the last axes; keeps mean and inverse deviation, which broadcast."""

    shape: tuple[int, ...]

    def batch_dim(self, x: Tensor, samples: int, axis: int) -> int | None:
        return batch_dim(x.flatten(-len(self.shape))[..., 0], samples, axis)

    def backward(self, arrived: Arrived, wanted: Wanted) -> Parts:
        gradient, x = arrived.gradient.contiguous(), arrived.x.contiguous()
        found: tuple[Tensor, ...] = _aten.native_layer_norm_backward(
            gradient, x, self.shape, *arrived.kept, arrived.weight, None, _INPUT
        )
        gradient, x, mean, inverse = (arrived.first(v) for v in (gradient, x, *arrived.kept))
        normal = (x - mean) * inverse
        weight, bias = (
            Formed(values.reshape(len(x), -1, *self.shape).sum(1))
            for values in (normal * gradient, gradient)
        )
        return Parts(found[0], weight, bias)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Use:
    """Read a call of ``functional.batch_norm``."""

    def run(x: Tensor, w: Tensor | None, b: Tensor | None) -> tuple[Tensor, ...]:
        arguments: Any = (running_mean, running_var, w, b, training, momentum, eps)
        return (functional.batch_norm(x, *arguments),)

    if training or running_mean is None or running_var is None:
        nothing = _BatchNorm(run, input, input, eps)
        return Use(nothing, input, weight, bias, "it normalizes with statistics of the batch")
    return Use(_BatchNorm(run, running_mean, running_var, eps), input, weight, bias)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Use:
    """Read a call of ``functional.group_norm``."""
    sizes = (input.shape[0], input.shape[1], math.prod(input.shape[2:]), num_groups)

    def run(x: Tensor, w: Tensor | None, b: Tensor | None) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = torch.native_group_norm(x.contiguous(), w, b, *sizes, eps)
        return found

    return Use(_GroupNorm(run, num_groups), input, weight, bias)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Use:
    """Read a call of ``functional.instance_norm``: groups of one channel, or running statistics."""
    if use_input_stats:
        return group_norm(input, input.shape[1], weight, bias, eps)
    return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)


def layer_norm(
    input: Tensor,
    normalized_shape: list[int] | tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Use:
    """Read a call of ``functional.layer_norm``."""
    shape = tuple(normalized_shape)

    def run(x: Tensor, w: Tensor | None, b: Tensor | None) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = torch.native_layer_norm(x, shape, w, b, eps)
        return found

    return Use(_LayerNorm(run, shape), input, weight, bias)
