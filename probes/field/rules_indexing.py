"""Rules of operators that choose elements by index."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from probes.field.intervals import Field, contract, insert, union
from probes.field.operation import Operation, Rule, ValuesNeededError, named
from probes.field.rules_layout import moved_by


def embedding(op: Operation) -> Sequence[Field | None]:
    """Look up a vector for every index: a dimension of features is added."""
    field = op.field(op["indices"])
    if field is None or op.main() is not None:
        return chosen(op)
    return [tuple(insert(span, span.low.ndim) for span in field)]


def chosen(op: Operation) -> Sequence[Field | None]:
    """Elements at given indices, followed exactly where the indices do not depend on the input."""
    field = op.main()
    if field is None or _depends(op, op.args[1:]):
        return data_dependent(op)
    args = _values(op.args[1:])

    def move(full: Tensor) -> Tensor:
        moved: Tensor = op.func(full, *args, **op.kwargs)
        return moved

    return [tuple(moved_by(move, span, op.shape) for span in field)]


def written(op: Operation) -> Sequence[Field | None]:
    """Elements put at indices along a dimension: any of them may end up anywhere along it."""
    return _along(op, first=False)


def picked(op: Operation) -> Sequence[Field | None]:
    """One element along a dimension for every index: any of them, and what the index rests on."""
    return _along(op, first=True)


def _along(op: Operation, *, first: bool) -> Sequence[Field | None]:
    """Union over the operands; the first, or the others, are combined along ``dim`` before."""
    sources = op.sources()
    if any(tensor.dim() != len(op.output) for tensor, _ in sources):
        return data_dependent(op)
    cause = op.cause("elements moved along the axis")
    terms = []
    for place, (tensor, field) in enumerate(sources):
        dims = {d for d, size in enumerate(tensor.shape) if size != op.output[d]}
        if first == (place == 0 and op.main() is not None):
            dims.add(op["dim"] % len(op.output))
        terms.append([contract(span, dims, cause, keep=True) for span in field])
    return [tuple(union(spans) for spans in zip(*terms, strict=True))]


def data_dependent(op: Operation) -> Sequence[Field | None]:
    """Depend on everything, because positions are computed from the input."""
    return op.whole("positions computed from the input")


def _depends(op: Operation, arguments: Sequence[Any]) -> bool:
    """Whether an index depends on the input."""
    flat = [item for each in arguments for item in (each if isinstance(each, list) else [each])]
    return any(op.field(item) is not None for item in flat)


def _values(arguments: Sequence[Any]) -> list[Any]:
    """Arguments with real tensors on the CPU.

    Raises
    ------
    ValuesNeededError
        One of them is symbolic: the pass has to be repeated on real tensors.
    """

    def real(value: Any) -> Any:
        if isinstance(value, FakeTensor):
            raise ValuesNeededError("positions are computed in the forward")
        if isinstance(value, Tensor):
            with _disable_current_modes():
                return value.detach().cpu()
        return value

    return [
        [real(item) for item in each] if isinstance(each, list) else real(each)
        for each in arguments
    ]


RULES: dict[str, Rule] = {
    **named(embedding, "embedding"),
    **named(chosen, "index index_select"),
    **named(written, "scatter scatter_add scatter_reduce index_add index_copy index_fill"),
    **named(picked, "gather"),
    **named(
        data_dependent, "index_put _index_put_impl masked_scatter grid_sampler_2d grid_sampler_3d"
    ),
}
