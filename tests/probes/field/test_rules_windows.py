"""Operators that slide a window: every element of what they return, against nan."""

from functools import partial

import numpy as np
import pytest
import torch
from followed import assert_clipped, assert_regular, fields, staggered
from torch import Tensor
from torch.nn import functional

ones = partial(torch.ones, dtype=torch.float64)


def resize(x: Tensor, *size, mode: str, **more) -> Tensor:
    """Resample to a size."""
    return functional.interpolate(x, size, mode=mode, **more)


def rescale(x: Tensor, *factors, mode: str, **more) -> Tensor:
    """Resample by factors."""
    return functional.interpolate(x, scale_factor=factors, mode=mode, **more)


WINDOWS: dict[str, tuple] = {
    # Name: function, shape of the input, spacing and shortest path of each axis.
    "convolution": (
        lambda x: functional.conv1d(x, ones(2, 3, 3), stride=2, padding=1),
        *((1, 3, 11), [2], [3]),
    ),
    "convolution of two axes": (
        lambda x: functional.conv2d(
            x, ones(2, 3, 3, 2), stride=(1, 3), padding=(2, 0), dilation=(2, 1)
        ),
        *((1, 3, 9, 10), [1, 3], [5, 2]),
    ),
    "convolution of three axes": (
        lambda x: functional.conv3d(x, ones(2, 1, 2, 3, 1), padding=(0, 1, 0)),
        *((1, 1, 4, 5, 6), [1, 1, 1], [2, 3, 1]),
    ),
    "groups": (
        lambda x: functional.conv1d(staggered(x).repeat(1, 2, 1), ones(4, 3, 3), groups=2),
        *((1, 3, 15), [1], [3]),
    ),
    "four groups": (
        lambda x: functional.conv1d(staggered(x), ones(8, 2, 3), groups=4, stride=2),
        *((1, 8, 20), [2], [3]),
    ),
    "depthwise": (
        lambda x: functional.conv1d(staggered(x), ones(6, 1, 3), groups=3),
        *((1, 3, 15), [1], [3]),
    ),
    "transposed": (
        lambda x: functional.conv_transpose1d(
            x, ones(3, 4, 3), stride=2, padding=1, output_padding=1
        ),
        *((1, 3, 7), [1 / 2], [1]),
    ),
    "transposed, kernels that overlap": (
        lambda x: functional.conv_transpose1d(x, ones(3, 4, 5), stride=2),
        *((1, 3, 7), [1 / 2], [2]),
    ),
    "transposed of two axes": (
        lambda x: functional.conv_transpose2d(
            x, ones(3, 4, 3, 4), stride=(1, 2), padding=(1, 3), dilation=(2, 3)
        ),
        *((1, 3, 7, 6), [1, 1 / 2], [5, 4]),
    ),
    "transposed in groups": (
        lambda x: functional.conv_transpose1d(
            staggered(x), ones(6, 2, 3), groups=2, stride=2, padding=1
        ),
        *((1, 6, 12), [1 / 2], [1]),
    ),
    "max pool": (
        lambda x: functional.max_pool1d(x, 3, 2, padding=1), *((1, 2, 11), [2], [3])
    ),
    "max pool of two axes": (
        lambda x: functional.max_pool2d(x, (3, 2), dilation=(2, 1), ceil_mode=True),
        *((1, 2, 11, 9), [3, 2], [5, 2]),
    ),
    "max pool of three axes": (
        lambda x: functional.max_pool3d(x, 2, (1, 2, 3)),
        *((1, 2, 4, 5, 8), [1, 2, 3], [2, 2, 2]),
    ),
    "mean pool": (lambda x: functional.avg_pool1d(x, 3, 1, 1), *((1, 2, 11), [1], [3])),
    "mean pool of two axes": (
        lambda x: functional.avg_pool2d(staggered(x), (2, 3), padding=(1, 0), ceil_mode=True),
        *((1, 2, 11, 8), [2, 3], [2, 3]),
    ),
    "mean pool of three axes": (
        lambda x: functional.avg_pool3d(x, 2, padding=1),
        *((1, 2, 4, 5, 6), [2, 2, 2], [2, 2, 2]),
    ),
    "adaptive pool": (
        lambda x: functional.adaptive_avg_pool1d(x, 4), *((1, 2, 22), [5.5], [6])
    ),
    "adaptive pool to more": (
        lambda x: functional.adaptive_avg_pool2d(staggered(x), (8, 14)),
        *((1, 2, 11, 8), [11 / 8, 1 / 2], [2, 1]),
    ),
    "adaptive max pool": (
        lambda x: functional.adaptive_max_pool2d(x, (5, 3)),
        *((1, 2, 11, 8), [11 / 5, 8 / 3], [3, 3]),
    ),
    "adaptive pool of three axes": (
        lambda x: functional.adaptive_avg_pool3d(x, (2, 3, 4)),
        *((1, 2, 5, 6, 7), [5 / 2, 2, 7 / 4], [3, 2, 2]),
    ),
    "nearest": (lambda x: resize(x, 17, mode="nearest"), *((1, 2, 11), [11 / 17], [1])),
    "nearest, by a factor": (
        lambda x: rescale(x, 1.7, mode="nearest"), *((1, 2, 21), [1 / 1.7], [1])
    ),
    "nearest of two axes": (
        lambda x: rescale(staggered(x), 2, 0.6, mode="nearest"),
        *((1, 2, 5, 12), [1 / 2, 1 / 0.6], [1, 1]),
    ),
    "nearest of three axes": (
        lambda x: rescale(x, 2, 1.5, 0.7, mode="nearest"),
        *((1, 2, 5, 6, 14), [1 / 2, 2 / 3, 1 / 0.7], [1, 1, 1]),
    ),
    "nearest of three axes, by size": (
        lambda x: resize(x, 3, 9, 5, mode="nearest"),
        *((1, 2, 5, 6, 7), [5 / 3, 2 / 3, 7 / 5], [1, 1, 1]),
    ),
    "nearest, exactly": (
        lambda x: resize(x, 7, 13, mode="nearest-exact"),
        *((1, 2, 11, 9), [11 / 7, 9 / 13], [1, 1]),
    ),
    "cubic": (
        lambda x: resize(x, 7, 15, mode="bicubic"), *((1, 2, 11, 18), [11 / 7, 6 / 5], [4, 4])
    ),
    "cubic with aligned corners": (
        lambda x: resize(x, 7, 16, mode="bicubic", align_corners=True),
        *((1, 2, 13, 10), [2, 3 / 5], [4, 4]),
    ),
    "linear, smoothed": (
        lambda x: resize(x, 7, 15, mode="bilinear", antialias=True),
        *((1, 2, 11, 9), [11 / 7, 3 / 5], [3, 2]),
    ),
    "linear, smoothed and much smaller": (
        lambda x: resize(x, 12, 12, mode="bilinear", antialias=True),
        *((1, 2, 30, 27), [5 / 2, 9 / 4], [5, 4]),
    ),
    "cubic, smoothed": (
        lambda x: resize(x, 12, 15, mode="bicubic", antialias=True),
        *((1, 2, 30, 9), [5 / 2, 3 / 5], [10, 4]),
    ),
    "padded and cut": (lambda x: functional.pad(x, (2, 0, -1, 3)), *((1, 2, 5, 6), [1, 1], [1, 1])),
    "padded with constants": (
        lambda x: functional.pad(x, (1, 2, 3, 4, 5, 6)),
        *((1, 2, 5, 6, 7), [1, 1, 1], [1, 1, 1]),
    ),
    "padded with what is at the edge": (
        lambda x: functional.pad(x, (2, 3, 1, 6), mode="replicate"),
        *((1, 2, 5, 6), [1, 1], [1, 1]),
    ),
    "padded with mirror images": (
        lambda x: functional.pad(x, (2, 3, 1, 4), mode="reflect"),
        *((1, 2, 5, 6), [1, 1], [1, 1]),
    ),
}  # fmt: skip

LINEAR: dict[str, tuple] = {
    # Where a weight is exactly zero, these read one element less.
    "linear": (lambda x: resize(x, 16, mode="linear"), *((1, 2, 12), [3 / 4], [2])),
    "linear, by a factor": (lambda x: rescale(x, 2, mode="linear"), *((1, 2, 11), [1 / 2], [2])),
    "linear, half": (lambda x: rescale(x, 0.4, mode="linear"), *((1, 2, 22), [5 / 2], [2])),
    "linear with aligned corners": (
        lambda x: resize(x, 16, mode="linear", align_corners=True), *((1, 2, 13), [4 / 5], [1])
    ),
    "linear of two axes": (
        lambda x: resize(x, 8, 12, mode="bilinear"), *((1, 2, 12, 9), [3 / 2, 3 / 4], [2, 2])
    ),
    "linear of three axes": (
        lambda x: resize(x, 4, 12, 8, mode="trilinear"),
        *((1, 2, 6, 9, 4), [3 / 2, 3 / 4, 1 / 2], [2, 2, 2]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*WINDOWS, *LINEAR])
def test_windows_are_followed(name):
    function, shape, jumps, minimal = (WINDOWS | LINEAR)[name]
    x = torch.rand(*shape, dtype=torch.float64)
    dims = range(2, len(shape))
    ((extended, ungated, clipped),) = assert_clipped(function, x, dims, change=name in LINEAR)
    assert ungated is extended
    assert [{*span.dims} for span in extended] == [{dim} for dim in dims]
    for field in (extended, clipped):
        np.testing.assert_allclose([span.jump for span in field], jumps)
        assert [span.minimal for span in field] == minimal
        assert not any(span.cause for span in field)
    for span, cut, dim in zip(extended, clipped, dims, strict=True):
        assert_regular(span, cut, shape[dim])


def test_one_position_is_resampled_from_the_first():
    function = lambda x: resize(x, 1, mode="linear", align_corners=True)  # noqa: E731
    ((_, _, clipped),) = assert_clipped(function, torch.rand(1, 2, 6).double(), [2], change=True)
    assert (clipped[0].low.item(), clipped[0].high.item()) == (0, 0)


def test_one_axis_can_be_pooled_alone():
    function = lambda x: functional.adaptive_avg_pool2d(staggered(x), (1, 4))  # noqa: E731
    ((extended, _, _),) = assert_clipped(function, torch.rand(1, 2, 5, 9).double(), [2, 3])
    rows, columns = extended
    assert rows.cause == "global pooling (_adaptive_avg_pool2d) in the model itself"
    assert (rows.dims, columns.dims, columns.cause) == (frozenset(), {3}, "")
    assert (rows.minimal, columns.minimal, columns.jump) == (np.inf, 2, 2)


def test_channels_may_be_the_positions():
    function = lambda x: functional.conv1d(x, ones(2, 5, 3))  # noqa: E731
    ((extended, _, _),) = assert_clipped(function, torch.rand(1, 5, 6).double(), [1, 2])
    cause = "convolution whose channels are the positions (convolution) in the model itself"
    assert [span.cause for span in extended] == [cause, ""]
    assert [span.dims for span in extended] == [frozenset(), {2}]
    assert extended[0].minimal == np.inf


COMPUTED = "a kernel computed from the input (convolution) in the model itself"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.conv1d(x, x[:, :, :3]),
        lambda x: functional.conv1d(x.new_ones(1, 2, 6), x),
    ],
)
def test_a_computed_kernel_moves_every_output(function):
    ((extended, ungated, clipped),) = fields(function, torch.rand(1, 2, 6).double(), [2])
    for (span,) in (extended, ungated, clipped):
        assert (span.low.ravel().tolist(), span.high.ravel().tolist()) == ([0], [5])
        assert (span.cause, span.known, span.dims) == (COMPUTED, True, frozenset())
