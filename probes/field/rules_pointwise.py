"""Rules of operators that compute each element from the elements at the same place."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from probes.field.intervals import Field, Span, aligned, contract, union
from probes.field.operation import Operation, Rule, named


def pointwise(op: Operation) -> Sequence[Field | None]:
    """Union over the operands, broadcast; global gates are left out where that is asked."""
    sources = op.sources()
    if op.base in _GATING:
        return [tuple(_gated(op, spans) for spans in _by_axis(sources))]
    return [tuple(union([span for _, span in spans]) for spans in _by_axis(sources))]


def _by_axis(sources: list[tuple[Tensor, Field]]) -> list[list[tuple[Tensor, Span]]]:
    """Operands and their spans, one list per axis."""
    axes = range(len(sources[0][1]))
    return [[(tensor, field[axis]) for tensor, field in sources] for axis in axes]


def _gated(op: Operation, operands: list[tuple[Tensor, Span]]) -> Span:
    """Union over the operands that are no gate, if there is one and gates do not count."""
    spans = [span for _, span in operands]
    local = [span for span in spans if not span.cause]
    gates = [(tensor, span) for tensor, span in operands if span.cause]
    if not local or not gates:
        return union(spans)
    if op.base != "mul" and not all(_is_statistic(*gate) for gate in gates):
        return union(spans)
    op.gated = True
    return union(spans if op.reading.gates else local)


def _is_statistic(tensor: Tensor, span: Span) -> bool:
    """Whether there is one value for the whole map, such as its mean."""
    return all(tensor.shape[dim] == 1 for dim in span.dims)


def same(op: Operation) -> Sequence[Field | None]:
    """Pass the first argument on to the first output; the others are statistics."""
    if any(op.field(value) is not None for value in op.args[1:]):
        return op.whole("a scale computed from the input")
    return [op.main(), *([None] * (len(op.outs) - 1))]


def constant(op: Operation) -> Sequence[Field | None]:
    """Depend on no input, whatever the operands are used for."""
    return [None] * len(op.outs)


def copied(op: Operation) -> Sequence[Field | None]:
    """Hold what the second argument holds; a number depends on nothing."""
    source = op.field(op.args[1])
    if source is None:
        return [None]
    return [tuple(aligned(span, len(op.output)) for span in source)]


def halves(op: Operation) -> Sequence[Field | None]:
    """Gated linear unit: the first half of a dimension, times the sigmoid of the second."""
    field, dim = op.main(), op["dim"] % len(op.shape)
    assert field is not None
    return [tuple(_halved(op, span, dim) for span in field)]


def _halved(op: Operation, span: Span, dim: int) -> Span:
    """Union of both halves along ``dim``."""
    if span.low.shape[dim] == 1:
        return span
    if dim in span.dims:
        return contract(span, [dim], op.cause("gating of one half of the axis by the other"))
    first, second = (np.split(bound, 2, axis=dim) for bound in (span.low, span.high))
    return replace(span, low=np.minimum(*first), high=np.maximum(*second))


def is_pointwise(op: Operation) -> bool:
    """Whether torch itself tags the operator as one that works element by element."""
    return torch.Tag.pointwise in op.func.tags


_GATING = frozenset({"mul", "div", "sub"})
"""Operators that apply a gate or a statistic to a map."""

RULES: dict[str, Rule] = {
    # Those that torch does not tag as pointwise.
    **named(
        pointwise,
        "_prelu_kernel prelu hardswish rsub floor_divide bernoulli log_sigmoid_forward "
        "rrelu_with_noise polar complex bucketize __and__ __or__ __xor__ tril triu isclose "
        "dropout masked_fill logical_and logical_or where detach alias _to_copy clone real imag "
        "lift_fresh lift contiguous _conj conj conj_physical resolve_conj resolve_neg _neg_view",
    ),
    # Statistics are constants of evaluation mode in batch norm, and taken as such in group and
    # instance norm, which are global in earnest: the convention of Araujo et al. 2019.
    **named(
        same,
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
        "cudnn_batch_norm miopen_batch_norm _batch_norm_with_update _batch_norm_no_update "
        "batch_norm native_group_norm native_dropout _fused_dropout",
    ),
    **named(
        constant,
        "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros "
        "new_ones new_empty new_full new_empty_strided zero uniform normal random exponential "
        "_local_scalar_dense is_same_size equal",
    ),
    **named(copied, "copy fill"),
    **named(halves, "glu"),
}
