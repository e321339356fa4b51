"""Run a model once and read off the theoretical field of every layer.

The run is symbolic: fake tensors have shapes and no values, so that it costs no arithmetic. Where
the forward needs values (control flow that depends on the data, custom code) it is repeated on
real tensors, one sample.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

from probes.base import Batch, Subject, call
from probes.errors import AnalyzerError, NotApplicable, first_line
from probes.field.intervals import Field, Span, empty, seed
from probes.field.memory import Fields
from probes.field.mode import FieldMode, RecurrentMode
from probes.field.samples import Place, flat_inputs, part_of
from probes.model.labels import label_of
from probes.model.taps import first_float

AXES = {1: ("time",), 2: ("y", "x"), 3: ("z", "y", "x")}
"""Names of the axes of the input, by how many there are."""

EXACT, WHOLE_INPUT, UNKNOWN = "EXACT", "WHOLE_INPUT", "UNKNOWN"

NOT_SYMBOLIC = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError)
"""What forwards raise on fake tensors; on real ones the same error is the user's to see."""

UNSEEN = "computed outside of torch's operators"
"""Cause where a module's output lost track of its input."""


@dataclass(frozen=True)
class LayerField:
    """Theoretical field of the centre unit of one layer; one number per axis.

    Parameters
    ----------
    name, kind : str
        Module name, with ``#k`` for its k-th call after the first, and class.
    status, reason : str
        EXACT, WHOLE_INPUT or UNKNOWN, and why.
    positions : int
        Elements of the feature map, channels not counted.
    size, size_without_gates : ndarray
        Field on an infinite canvas; the whole input where it is seen, nan where unknown.
    start, stop : ndarray
        First and last input position that reaches the unit.
    jump : ndarray
        Input positions from one unit to the next; nan where the map has no such axis.
    minimal, minimal_input : ndarray
        Field along the shortest path, of the output and of what the layer reads.
    centre : ndarray
        Middle of the field, which need not be the middle of the input.
    """

    name: str
    kind: str
    status: str
    reason: str
    positions: int
    size: np.ndarray
    size_without_gates: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    jump: np.ndarray
    minimal: np.ndarray
    minimal_input: np.ndarray
    centre: np.ndarray


@dataclass(frozen=True)
class Survey:
    """Fields of all layers, in the order in which they ran.

    Parameters
    ----------
    layers : tuple of LayerField
        Modules without children that returned floating-point numbers.
    place : Place
        Axes of the input that fields are measured along.
    input_size : tuple of int
        Positions along each.
    unlisted : int
        Further calls of modules that are called more than ``max_calls`` times.
    fallback : str
        Why the pass ran on real tensors; empty if it was symbolic.
    """

    layers: tuple[LayerField, ...]
    place: Place
    input_size: tuple[int, ...]
    unlisted: int
    fallback: str

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes."""
        return AXES[len(self.input_size)]


def survey(subject: Subject, max_calls: int) -> Survey:
    """Measure the theoretical field of every layer; call it inside ``taps.untouched``.

    Parameters
    ----------
    subject : Subject
        Its first batch is used, one sample of it.
    max_calls : int
        Calls listed of a module that is called more than once.

    Raises
    ------
    NotApplicable
        There is no convolution, or none that reads the inputs position by position.
    """
    batch = next(iter(subject), None)
    if batch is None:
        raise AnalyzerError("there is no batch to measure on: the data is empty")
    sample = _Sample.of(subject, batch)
    try:
        return _survey(subject.model, sample, max_calls, FakeTensorMode(allow_non_fake_inputs=True))
    except NOT_SYMBOLIC as error:
        reason = first_line(error)
    return _survey(subject.model, sample, max_calls, None, reason)


@dataclass(frozen=True)
class _Sample:
    """One sample, taken apart into its leaves."""

    leaves: list[Any]
    structure: TreeSpec
    batch_axis: int

    @classmethod
    def of(cls, subject: Subject, batch: Batch) -> "_Sample":
        """Take the first sample of ``batch``."""
        axis = subject.batch_axis
        return cls(*flat_inputs(part_of(batch, axis, subject.batch_size(batch), 0, 1)), axis)

    def inputs(self, fake: FakeTensorMode | None) -> tuple[Any, list[Any]]:
        """Make inputs to call the model with, and their leaves; they can be written to."""

        def fresh(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            # The copy is nobody's view: what a forward writes to it reaches nothing else.
            return leaf.clone() if fake is None else fake.from_tensor(leaf.clone())

        leaves = [fresh(leaf) for leaf in self.leaves]
        return tree_unflatten(leaves, self.structure), leaves


def _survey(
    model: nn.Module,
    sample: _Sample,
    max_calls: int,
    fake: FakeTensorMode | None,
    fallback: str = "",
) -> Survey:
    """Find the axes, then the fields of all layers."""
    place = _locate(model, sample, fake)
    inputs, leaves = sample.inputs(fake)
    shape = leaves[place.leaf].shape
    mode = FieldMode()
    mode.seed(leaves[place.leaf], tuple(seed(shape, dim) for dim in place.dims))
    size = tuple(int(shape[dim]) for dim in place.dims)
    book = _Book(mode, size, max_calls)
    _run(model, inputs, mode, fake, book)
    return Survey(tuple(book.layers), place, size, book.unlisted, fallback)


class _FoundAxesError(Exception):
    """Ends a pass once the first convolution has shown where the positions are."""

    def __init__(self, axes: list[int]) -> None:
        super().__init__()
        self.axes = axes


def _locate(model: nn.Module, sample: _Sample, fake: FakeTensorMode | None) -> Place:
    """See which axes of the inputs run along the dimensions of the first convolution."""
    inputs, leaves = sample.inputs(fake)
    axes = [
        (number, dim)
        for number, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor)
        for dim in range(leaf.dim())
        if dim != sample.batch_axis
    ]

    def watch(source: Tensor, weight: Tensor, fields: Fields) -> None:
        found = _axes_of(fields[0], range(source.dim() - weight.dim() + 2, source.dim()))
        if found:
            raise _FoundAxesError(found)

    mode = FieldMode(watch)
    for number, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            nothing = Span(*empty(leaf.dim()), minimal=np.inf)
            field = (seed(leaf.shape, dim) if at == number else nothing for at, dim in axes)
            mode.seed(leaf, tuple(field))
    try:
        _run(model, inputs, mode, fake)
    except _FoundAxesError as found:
        leaf = axes[found.axes[0]][0]
        return Place(leaf, tuple(axes[axis][1] for axis in found.axes if axes[axis][0] == leaf))
    if mode.convolutions:
        raise NotApplicable("no convolution reads the inputs position by position")
    raise NotApplicable(
        "the model has no convolution: only layers that slide over their input see just a part of "
        "it"
    )


def _axes_of(field: Field, dims: Sequence[int]) -> list[int]:
    """Axes that run along ``dims``, in their order; those that run along nothing else first."""
    found: list[int] = []
    for dim in dims:
        along = [axis for axis, span in enumerate(field) if dim in span.dims and axis not in found]
        along.sort(key=lambda axis: len(field[axis].dims))
        found += along[:1]
    return found


def _run(
    model: nn.Module,
    inputs: Any,
    mode: FieldMode,
    fake: FakeTensorMode | None,
    book: "_Book | None" = None,
) -> None:
    """Call the model under the mode, with hooks that know which module is running."""
    with ExitStack() as stack:
        stack.enter_context(_attributes(model))
        stack.enter_context(_slow_attention())
        stack.enter_context(torch.no_grad())
        for name, module in model.named_modules():
            for handle in _watched(name, module, mode, book):
                stack.callback(handle.remove)
        if fake is not None:
            stack.enter_context(fake)
        stack.enter_context(mode)
        stack.enter_context(RecurrentMode(mode))
        call(model, inputs)


@contextmanager
def _attributes(model: nn.Module) -> Iterator[None]:
    """Take back what the forward stored on modules: fake tensors would break the next call."""
    before = {module: dict(module.__dict__) for module in model.modules()}
    try:
        yield
    finally:
        for module, attributes in before.items():
            module.__dict__.clear()
            module.__dict__.update(attributes)


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Have attention run as ordinary operators, not as one fused one."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _watched(name: str, module: nn.Module, mode: FieldMode, book: "_Book | None") -> list[Any]:
    """Hooks that keep track of the running module, and enter layers into the book."""
    outer: list[str] = []

    def enter(_module: nn.Module, _args: Any) -> None:
        outer.append(mode.where)
        mode.where = name

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        mode.where = outer.pop()
        if book is not None and is_layer(module):
            book.enter(name, module, tree_leaves((args, kwargs)), first_float(output))

    return [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, with_kwargs=True),
    ]


def is_layer(module: nn.Module) -> bool:
    """Whether a module has no children, but for parametrizations of its weights."""
    return all(name == "parametrizations" for name, _ in module.named_children())


def kind_of(module: nn.Module) -> str:
    """Class name, without what a parametrization puts in front of it."""
    name = type(module).__name__
    return name.removeprefix("Parametrized") if hasattr(module, "parametrizations") else name


class _Book:
    """Layers in the order in which they finish."""

    def __init__(self, mode: FieldMode, input_size: tuple[int, ...], max_calls: int) -> None:
        self.mode = mode
        self.size = np.array(input_size, dtype=np.float64)
        self.max_calls = max_calls
        self.calls: dict[str, int] = {}
        self.layers: list[LayerField] = []
        self.unlisted = 0

    def enter(self, name: str, module: nn.Module, inputs: list[Any], output: Tensor | None) -> None:
        """List a layer that depends on the input."""
        read = [fields for fields in map(self.mode.fields, inputs) if fields is not None]
        fields = self.mode.fields(output)
        if output is None or (fields is None and not read):
            return
        self.calls[name] = self.calls.get(name, 0) + 1
        if self.calls[name] > self.max_calls:
            self.unlisted += 1
            return
        if fields is None:
            fields = self._lost(output)
        label = label_of(name, self.calls[name])
        self.layers.append(self._layer(label, kind_of(module), tuple(output.shape), fields, read))

    def _lost(self, output: Tensor) -> Fields:
        """Fields of an output that came out of nowhere."""
        shape = (1,) * output.dim()
        spans = (
            Span(
                np.zeros(shape),
                np.full(shape, size - 1),
                frozenset(),
                np.nan,
                np.inf,
                UNSEEN,
                False,
            )
            for size in self.size
        )
        field = tuple(spans)
        self.mode.seed(output, field)
        return field, field, field

    def _layer(
        self, name: str, kind: str, shape: tuple[int, ...], fields: Fields, read: list[Fields]
    ) -> LayerField:
        """Read off the centre unit."""
        extended, ungated, clipped = fields
        dims = _map_dims(extended, shape)
        low, high = _centre_unit(clipped, dims, shape)
        seen = low <= high
        minimal = [np.array([span.minimal for span in field[0]]) for field in read]
        status = _status(extended)
        return LayerField(
            name=name,
            kind=kind,
            status=status,
            reason=_reason(extended, dims, shape, status),
            positions=int(np.prod([shape[dim] for dim in dims])),
            size=self._sizes(extended, dims, shape),
            size_without_gates=self._sizes(ungated, dims, shape),
            start=np.where(seen, low.clip(min=0), np.nan),
            stop=np.where(seen, np.minimum(high, self.size - 1), np.nan),
            jump=np.array([abs(span.jump) if span.dims else np.nan for span in extended]),
            minimal=self._finite(np.array([span.minimal for span in extended])),
            minimal_input=self._finite(np.min(minimal, axis=0) if minimal else np.ones(len(shape))),
            centre=self._centre(ungated, dims, shape),
        )

    def _sizes(self, field: Field, dims: frozenset[int], shape: tuple[int, ...]) -> np.ndarray:
        """Size along each axis: of the centre unit, of the whole input, or nan."""
        low, high = _centre_unit(field, dims, shape)
        sizes = np.where(low <= high, high - low + 1, 0.0)
        sizes = np.where([bool(span.cause) for span in field], self.size, sizes)
        return np.where([span.known for span in field], sizes, np.nan)

    def _finite(self, minimal: np.ndarray) -> np.ndarray:
        """Replace the infinite field behind a global operation by the input size."""
        return np.where(np.isinf(minimal), self.size, minimal)

    def _centre(self, field: Field, dims: frozenset[int], shape: tuple[int, ...]) -> np.ndarray:
        """Middle of the field, or of the cell that the centre unit covers if it sees all."""
        low, high = _centre_unit(field, dims, shape)
        middles = []
        for axis, span in enumerate(field):
            places = [(shape[dim] // 2 + 0.5) / shape[dim] for dim in span.dims]
            share = places[0] if len(places) == 1 else 0.5
            whole = share * self.size[axis] - 0.5
            exact = not span.cause and bool(np.isfinite(low[axis]))
            middles.append((low[axis] + high[axis]) / 2 if exact else whole)
        return np.array(middles)


def _map_dims(field: Field, shape: tuple[int, ...]) -> frozenset[int]:
    """Dimensions of a feature map that are positions and not channels.

    After a rearrangement of space to depth, channels run along the axes too: they stay channels.
    """
    channels = {1} if len(shape) == len(field) + 2 and all(s.dims - {1} for s in field) else set()
    return frozenset().union(*(span.dims for span in field)) - channels


def _centre_unit(
    field: Field, dims: frozenset[int], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Hull of the centre unit along each axis, over all channels."""
    lows, highs = [], []
    for span in field:
        where = tuple(
            slice(size // 2, size // 2 + 1) if dim in dims and have > 1 else slice(None)
            for dim, (size, have) in enumerate(zip(shape, span.low.shape, strict=True))
        )
        lows.append(float(span.low[where].min()))
        highs.append(float(span.high[where].max()))
    return np.array(lows), np.array(highs)


def _status(field: Field) -> str:
    """Worst status of all axes."""
    if not all(span.known for span in field):
        return UNKNOWN
    return WHOLE_INPUT if any(span.cause for span in field) else EXACT


def _reason(field: Field, dims: frozenset[int], shape: tuple[int, ...], status: str) -> str:
    """Say why, along which axes; of an exact field, whether it is the same everywhere."""
    names = AXES[len(field)]
    if status == EXACT:
        said = [_variation(span, dims, shape) for span in field]
    else:
        said = [span.cause for span in field]
    if len(set(said)) == 1:
        return said[0]
    return "; ".join(f"{axis}: {words}" for axis, words in zip(names, said, strict=True) if words)


def _variation(span: Span, dims: frozenset[int], shape: tuple[int, ...]) -> str:
    """Say how the size differs over the middle half of the map; empty if it does not."""
    if len(span.dims) != 1:
        return ""
    (dim,) = span.dims
    others = tuple(other for other in range(span.low.ndim) if other != dim)
    sizes = span.high.max(axis=others) - span.low.min(axis=others) + 1
    middle = sizes[len(sizes) // 4 : len(sizes) - len(sizes) // 4]
    if np.ptp(middle) < 1:
        return ""
    return f"depends on the position: {middle.min():g} to {middle.max():g}"
