"""Rules of operators that slide a window: convolution, pooling, padding, resampling."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from probes.field.intervals import (
    Field,
    Floats,
    Integers,
    Span,
    Taps,
    as_list,
    contract,
    slide,
)
from probes.field.operation import Operation, Rule, named


def windowed(op: Operation, field: Field, taps: Sequence[Taps]) -> Field:
    """Slide along the last dimensions of the first argument, one :class:`Taps` for each."""
    first = len(op.shape) - len(taps)

    def moved(span: Span) -> Span:
        for offset, tap in enumerate(taps):
            dim = first + offset
            span = slide(span, dim, op.shape[dim], tap, extended=op.reading.extended)
        return span

    return tuple(moved(span) for span in field)


def convolution(op: Operation) -> Sequence[Field | None]:
    """Union over the kernel and over the channels of the group."""
    weight = op["weight"]
    field = op.main()
    if field is None or op.field(weight) is not None:
        return op.whole("a kernel computed from the input")
    kernel = list(weight.shape[2:])
    count = len(kernel)
    stride, padding, dilation = (
        as_list(op[name], count) for name in ("stride", "padding", "dilation")
    )
    transposed = "transpose" in op.base or ("transposed" in op and op["transposed"])
    make = _transposed_taps if transposed else _window_taps
    sizes = op.output[-count:]
    taps = [make(*each) for each in zip(sizes, kernel, stride, padding, dilation, strict=True)]
    channels = len(op.shape) - count - 1
    mixed = tuple(_mixed(op, span, channels, op["groups"]) for span in field)
    return [windowed(op, mixed, taps)]


def _window_taps(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Taps:
    """Taps of an ordinary convolution or pooling."""
    starts = np.arange(size) * stride - padding
    return Taps(starts + dilation * np.arange(kernel)[:, None], stride=stride)


def _transposed_taps(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Taps:
    """Taps of a transposed convolution: output q reads p where q = p stride + t dilation - pad."""
    offset = np.arange(size) + padding - dilation * np.arange(kernel)[:, None]
    return Taps(offset // stride, present=offset % stride == 0, stride=1 / stride)


def _mixed(op: Operation, span: Span, dim: int, groups: int) -> Span:
    """Combine the channels of each group, for each channel of the output."""
    if groups == 1 or span.low.shape[dim] == 1:
        cause = op.cause("convolution whose channels are the positions")
        return contract(span, [dim], cause) if groups == 1 else span
    before, after = op.shape[dim] // groups, op.output[dim] // groups
    shape = (*span.low.shape[:dim], groups, before, *span.low.shape[dim + 1 :])
    low = span.low.reshape(shape).min(axis=dim + 1).repeat(after, axis=dim)
    high = span.high.reshape(shape).max(axis=dim + 1).repeat(after, axis=dim)
    return replace(span, low=low, high=high)


def pooling(op: Operation) -> Sequence[Field | None]:
    """Union over the window; channels stay apart."""
    field = op.main()
    assert field is not None
    count = next(digit for digit in (1, 2, 3) if f"pool{digit}d" in op.base)
    kernel = as_list(op["kernel_size"], count)
    stride = as_list(op["stride"] or kernel, count)
    padding = as_list(op["padding"], count)
    dilation = as_list(op.get("dilation", 1), count)
    sizes = op.output[-count:]
    each = zip(sizes, kernel, stride, padding, dilation, strict=True)
    return [windowed(op, field, [_window_taps(*one) for one in each])]


def adaptive_pooling(op: Operation) -> Sequence[Field | None]:
    """Windows that depend on the input size; one of them is a global pooling."""
    field = op.main()
    assert field is not None
    count = next(digit for digit in (1, 2, 3) if f"pool{digit}d" in op.base)
    before, after = op.shape[-count:], op.output[-count:]
    first = len(op.shape) - count
    whole = [first + dim for dim, size in enumerate(after) if size == 1]
    pooled = tuple(contract(span, whole, op.cause("global pooling")) for span in field)
    taps = [
        Taps(np.zeros((1, 1), np.int64)) if many == 1 else _adaptive_taps(size, many)
        for size, many in zip(before, after, strict=True)
    ]
    return [windowed(op, pooled, taps)]


def _adaptive_taps(before: int, after: int) -> Taps:
    """Taps of the windows that cut ``before`` elements into ``after``."""
    outputs = np.arange(after)
    first, last = outputs * before // after, -(-(outputs + 1) * before // after)
    index = first + np.arange((last - first).max())[:, None]
    return Taps(index, present=index < last, stride=before / after)


def resampling(op: Operation) -> Sequence[Field | None]:
    """Nearest, linear and cubic interpolation, with and without antialiasing."""
    field = op.main()
    assert field is not None
    before, after = op.shape[2:], op.output[2:]
    align = bool(op.get("align_corners"))
    taps = []
    for size, many, scale in zip(before, after, _scales(op), strict=True):
        step = 1 / scale if scale else size / many
        if align:
            step = (size - 1) / max(many - 1, 1)
        index = _resampled(op.base, np.arange(many), step, align)
        taps.append(Taps(index, stride=step, edge="clip"))
    return [windowed(op, field, taps)]


def _scales(op: Operation) -> list[float | None]:
    """Output elements per input element where the caller set them."""
    names = ("scales_d", "scales_h", "scales_w", "scales")
    return [op[name] for name in names if name in op]


def _resampled(kind: str, outputs: Integers, step: float, align: bool) -> Integers:
    """Elements that each output interpolates between, (tap, output)."""
    if "nearest" in kind:
        return _whole(np.floor((outputs + 0.5 * ("exact" in kind)) * step))[None]
    centers = outputs * step if align else (outputs + 0.5) * step - 0.5
    half = 2 if "cubic" in kind else 1
    if kind.endswith("_aa"):
        reach = half * max(step, 1.0)
        first, last = _whole(np.floor(centers - reach + 1)), _whole(np.floor(centers + reach))
        return np.minimum(first + np.arange((last - first).max() + 1)[:, None], last)
    first = _whole(np.floor(centers))
    if half == 2:
        return first + np.arange(-1, 3)[:, None]
    return np.stack([first, _whole(np.ceil(centers))])


def _whole(values: Floats) -> Integers:
    """Convert whole numbers to integers."""
    integers: Integers = values.astype(np.int64)
    return integers


def padding(op: Operation) -> Sequence[Field | None]:
    """Constant, reflecting and replicating padding; negative amounts cut off."""
    field = op.main()
    assert field is not None
    amounts = list(op["pad"] if "pad" in op else op["padding"])
    before = [amounts[index] for index in range(len(amounts) - 2, -1, -2)]
    sizes = op.output[-len(before) :]
    edge = _EDGES[op.base.split("_")[0]]
    taps = [
        Taps((np.arange(size) - left)[None], edge=edge)
        for size, left in zip(sizes, before, strict=True)
    ]
    return [windowed(op, field, taps)]


_EDGES = {"constant": "empty", "reflection": "reflect", "replication": "clip"}

RULES: dict[str, Rule] = {
    **named(
        convolution,
        "convolution _convolution convolution_overrideable cudnn_convolution "
        "cudnn_convolution_transpose mkldnn_convolution miopen_convolution "
        "miopen_convolution_transpose miopen_depthwise_convolution",
    ),
    **named(
        pooling,
        "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
        "max_pool3d_with_indices mkldnn_max_pool2d avg_pool1d avg_pool2d avg_pool3d",
    ),
    **named(
        adaptive_pooling,
        "adaptive_avg_pool1d _adaptive_avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool3d "
        "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    ),
    **named(
        resampling,
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
        "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d "
        "upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa "
        "_upsample_bicubic2d_aa",
    ),
    **named(
        padding,
        "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
        "replication_pad2d replication_pad3d",
    ),
}
