"""Rules of operators that combine elements along whole dimensions: means, products, attention."""

from collections.abc import Sequence
from dataclasses import replace

from probes.field.intervals import (
    Field,
    Span,
    accumulate,
    aligned,
    compressed,
    contract,
    drop,
    insert,
    union,
)
from probes.field.operation import Operation, Rule, named
from probes.field.rules_pointwise import pointwise


def reduction(op: Operation) -> Sequence[Field | None]:
    """Combine the elements along some dimensions, or along all."""
    if "other" in op:
        return pointwise(op)
    field, ndim = op.main(), len(op.shape)
    asked = op.get("dim")
    dims = [asked] if isinstance(asked, int) else list(asked if asked is not None else [])
    dims = [dim % ndim for dim in dims] or list(range(ndim))
    cause = op.cause("reduction of the whole map")
    kept = len(op.output) == ndim

    def reduced(span: Span) -> Span:
        combined = contract(span, dims, cause)
        return combined if kept else drop(combined, dims)

    return [None if field is None else tuple(reduced(span) for span in field)]


def mixing(op: Operation) -> Sequence[Field | None]:
    """Let each element along some dimensions depend on all of them, as softmax and FFT do."""
    field = op.main()
    asked = op["dim"]
    dims = [asked] if isinstance(asked, int) else list(asked)
    dims = [dim % len(op.shape) for dim in dims]
    cause = op.cause("mixing of all positions")
    mixed = tuple(contract(span, dims, cause, keep=True) for span in field or ())
    return [mixed] if field else [None]


def running(op: Operation) -> Sequence[Field | None]:
    """Cumulative operators: each element depends on those before it."""
    field, dim = op.main(), op["dim"] % len(op.shape)
    cause = op.cause("accumulation over all earlier positions")
    return [tuple(accumulate(span, dim, cause) for span in field)] if field else [None]


def layer_normalization(op: Operation) -> Sequence[Field | None]:
    """Statistics over the last dimensions; over positions they are a global gate."""
    field = op.main()
    if field is None:
        return [None]
    first = len(op.shape) - len(op["normalized_shape"])
    dims = range(first, len(op.shape))
    op.gated = any(span.dims & {*dims} for span in field)
    if op.gated and not op.reading.gates:
        return [field]
    cause = op.cause("statistics of the whole map")
    return [tuple(contract(span, dims, cause, keep=True) for span in field)]


def product(op: Operation) -> Sequence[Field | None]:
    """Matrix products: the contracted dimension is combined."""
    left, right = ("self", "mat2") if op.base in ("mm", "bmm") else _MATRICES[op.base]
    cause = op.cause("dense product over all positions")
    return [_product(op, op.field(op[left]), op.field(op[right]), cause)]


def _product(op: Operation, left: Field | None, right: Field | None, cause: str) -> Field | None:
    """Field of ``left @ right`` plus the bias, if there is one."""
    ndim = len(op.output)
    terms: list[Field] = []
    if left is not None:
        rows = [contract(span, [span.low.ndim - 1], cause) for span in left]
        terms.append(tuple(_column(span, ndim) for span in rows))
    if right is not None:
        inner = [contract(span, [max(span.low.ndim - 2, 0)], cause) for span in right]
        terms.append(tuple(aligned(_row(span), ndim) for span in inner))
    bias = op.field(op["self"]) if op.base in _BIASED else None
    if bias is not None:
        terms.append(tuple(aligned(span, ndim) for span in bias))
    return tuple(union(spans) for spans in zip(*terms, strict=True)) if terms else None


def _column(span: Span, ndim: int) -> Span:
    """Drop the contracted last dimension if the product has no columns."""
    return drop(span, [span.low.ndim - 1]) if span.low.ndim > ndim else span


def _row(span: Span) -> Span:
    """Drop the contracted dimension of a vector."""
    return drop(span, [0]) if span.low.ndim == 1 else span


def dense(op: Operation) -> Sequence[Field | None]:
    """Linear layer on the last dimension."""
    field, cause = op.main(), op.cause("dense product over all positions")
    last = len(op.shape) - 1
    return [tuple(contract(span, [last], cause) for span in field) if field else None]


def attention(op: Operation) -> Sequence[Field | None]:
    """Scaled dot-product attention: every query sees every key and value."""
    ndim = len(op.shape)
    cause = op.cause("attention over all positions")
    terms = []
    for place, tensor in enumerate(op.args[:3]):
        field = op.field(tensor)
        # The last dimension holds features, the one before it positions.
        dims = [ndim - 1] if place == 0 else [ndim - 1, ndim - 2]
        if field is not None:
            terms.append(tuple(contract(span, dims, cause) for span in field))
    if not terms:
        return [None]
    return [tuple(union(spans) for spans in zip(*terms, strict=True)), *[None] * (len(op.outs) - 1)]


def packing(op: Operation) -> Sequence[Field | None]:
    """Pack padded sequences and back: for one sample, a batch dimension less or more."""
    field = op.main()
    if field is None:
        return [None]
    batch = 0 if op["batch_first"] else 1
    if op.base == "_pad_packed_sequence":
        return [tuple(insert(span, batch) for span in field), None]
    length = int(op.output[0])

    def packed(span: Span) -> Span:
        flat = drop(span, [batch])
        low, high = (bound[: max(length, 1)] for bound in (flat.low, flat.high))
        return compressed(replace(flat, low=low, high=high))

    return [tuple(packed(span) for span in field), None]


_BIASED = frozenset({"addmm", "baddbmm", "addmv", "_addmm_activation"})

_MATRICES = {
    "addmm": ("mat1", "mat2"),
    "_addmm_activation": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "mv": ("self", "vec"),
    "addmv": ("mat", "vec"),
    "dot": ("self", "tensor"),
}

RULES: dict[str, Rule] = {
    **named(
        reduction,
        "mean sum nansum amax amin max min aminmax var std var_mean std_mean argmax argmin "
        "linalg_vector_norm norm logsumexp prod any all median nanmedian mode count_nonzero",
    ),
    **named(
        mixing,
        "_softmax _log_softmax softmax log_softmax _safe_softmax sort argsort topk "
        "_fft_r2c _fft_c2c _fft_c2r",
    ),
    **named(running, "cumsum cumprod logcumsumexp cummax cummin"),
    **named(layer_normalization, "native_layer_norm _fused_rms_norm rms_norm"),
    **named(product, "mm bmm addmm _addmm_activation baddbmm mv addmv dot"),
    **named(dense, "linear"),
    **named(
        attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_attention_math scaled_dot_product_attention",
    ),
    **named(packing, "_pack_padded_sequence _pad_packed_sequence"),
}
