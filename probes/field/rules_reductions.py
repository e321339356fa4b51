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
    union,
)
from probes.field.operation import Operation, Rule, named


def reduction(op: Operation) -> Sequence[Field | None]:
    """Combine the elements along some dimensions, or along all."""
    field, ndim = op.main(), len(op.shape)
    assert field is not None
    dims = _dims(op, op.get("dim")) or list(range(ndim))
    cause = op.cause("reduction of the whole map")
    kept = len(op.output) == ndim

    def reduced(span: Span) -> Span:
        combined = contract(span, dims, cause)
        return combined if kept else drop(combined, dims)

    return [tuple(reduced(span) for span in field)]


def _dims(op: Operation, asked: int | Sequence[int] | None) -> list[int]:
    """Dimensions of the operand from the front, none of a number."""
    ndim = len(op.shape)
    dims = [asked] if isinstance(asked, int) else asked or []
    return [dim % ndim for dim in dims if ndim]


def mixing(op: Operation) -> Sequence[Field | None]:
    """Let each element along some dimensions depend on all of them, as softmax and FFT do."""
    field, dims = op.main(), _dims(op, op["dim"])
    assert field is not None
    cause = op.cause("mixing of all positions")
    return [tuple(contract(span, dims, cause, keep=True) for span in field)]


def running(op: Operation) -> Sequence[Field | None]:
    """Cumulative operators: each element depends on those before it."""
    field, dims = op.main(), _dims(op, op["dim"])
    assert field is not None
    cause = op.cause("accumulation over all earlier positions")
    for dim in dims:
        field = tuple(accumulate(span, dim, cause) for span in field)
    return [field]


def layer_normalization(op: Operation) -> Sequence[Field | None]:
    """Statistics over the last dimensions; over positions they are a global gate."""
    field = op.main()
    if field is None or any(op.field(value) is not None for value in op.args[1:]):
        return op.whole("a scale computed from the input")
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


def _product(op: Operation, left: Field | None, right: Field | None, cause: str) -> Field:
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
    return tuple(union(spans) for spans in zip(*terms, strict=True))


def _column(span: Span, ndim: int) -> Span:
    """Drop the contracted last dimension if the product has no columns."""
    return drop(span, [span.low.ndim - 1]) if span.low.ndim > ndim else span


def _row(span: Span) -> Span:
    """Drop the contracted dimension of a vector."""
    return drop(span, [0]) if span.low.ndim == 1 else span


def attention(op: Operation) -> Sequence[Field | None]:
    """Scaled dot-product attention: every query sees every key and value, and its row of the mask.

    The last dimension holds features, the one before it positions. Features of values stay apart.
    """
    last = len(op.shape) - 1
    cause = op.cause("attention over all positions")
    mask = op.get("attn_mask", op.get("attn_bias"))
    operands = zip([*op.args[:3], mask], ([last], [last - 1, last], [last - 1], []), strict=True)
    terms = [
        [aligned(contract(span, dims or [span.low.ndim - 1], cause), last + 1) for span in field]
        for tensor, dims in operands
        if (field := op.field(tensor)) is not None
    ]
    return [tuple(union(spans) for spans in zip(*terms, strict=True)), *[None] * (len(op.outs) - 1)]


def packing(op: Operation) -> Sequence[Field | None]:
    """Pack padded sequences: for one sample, a batch dimension less, and timesteps cut off."""
    field = op.main()
    if field is None:
        return op.whole("lengths computed from the input")
    batch = 0 if op["batch_first"] else 1
    length = int(op.output[0])

    def packed(span: Span) -> Span:
        flat = drop(span, [batch])
        low, high = (bound[:length] for bound in (flat.low, flat.high))
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
    **named(
        attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_attention_math scaled_dot_product_attention",
    ),
    **named(packing, "_pack_padded_sequence"),
}
