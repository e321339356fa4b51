"""Follow the fields of all tensors through any forward, one operator at a time.

:class:`FieldMode` sees every operator that torch runs, whatever module, function or control flow
it comes from, and looks up its rule. In-place operators change the field of the tensor itself; what
is written through a view is carried over to the tensor that owns the memory, and to its other
views when they are next read.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from probes.field import memory
from probes.field.intervals import Field
from probes.field.memory import Fields
from probes.field.operation import (
    CLIPPED,
    EXTENDED,
    UNGATED,
    Operation,
    base_name,
    read_values,
    written_names,
)
from probes.field.recurrent import RECURRENT
from probes.field.rules import fields_of
from probes.field.shortcut import shortcut

READINGS = (EXTENDED, UNGATED, CLIPPED)
"""What is worked out at the same time, in the order of :data:`Fields`."""

WINDOWS = "convolution"
"""What the name of every convolution operator has in it."""


class FieldMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Give every tensor that depends on a seeded one its :data:`Fields`.

    Attributes
    ----------
    where : str
        Module that is running, for the words of causes; set from outside.
    watch : callable, optional
        Called with the input of every convolution that depends on a seeded tensor, and its fields.
    """

    def __init__(self, watch: Callable[[Tensor, Tensor, Fields], None] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.where = ""
        self.watch = watch
        self.convolutions = 0
        self._fields: MutableMapping[Tensor, Fields] = WeakIdKeyDictionary()
        self._read: MutableMapping[Tensor, int] = WeakIdKeyDictionary()
        self._written: MutableMapping[Tensor, int] = WeakIdKeyDictionary()
        self._writes = 0
        self._paused = False

    def seed(self, tensor: Tensor, field: Field) -> None:
        """Say what ``tensor``, an input, depends on."""
        self._assign(tensor, (field, field, field))

    def fields(self, tensor: Any) -> Fields | None:
        """Look up what ``tensor`` depends on; None if on no seeded tensor."""
        if not isinstance(tensor, Tensor):
            return None
        if self._writes:
            self._refresh(tensor)
        return self._fields.get(tensor)

    def forget(self, tensor: Tensor) -> None:
        """Let ``tensor`` depend on no seeded tensor."""
        self._fields.pop(tensor, None)

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():
            # There torch neither takes composite operators apart nor keeps track of views.
            with torch.inference_mode(False), torch.no_grad(), self:
                return func(*args, **kwargs)
        shape = _first_shape(args)
        result = shortcut(func, args, kwargs) or func(*args, **kwargs)
        if not self._paused and func.namespace != "prim":
            outs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            if outs:
                self._propagate(func, args, kwargs, shape, outs)
        return result

    def _propagate(
        self,
        func: OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        shape: tuple[int, ...],
        outs: list[Tensor],
    ) -> None:
        """Work out and store the fields of what an operator returned."""
        read = tree_leaves((args, read_values(func, kwargs)))
        sources = [fields for fields in map(self.fields, read) if fields is not None]
        self._notice(func, args)
        changed = [(out, self.fields(out)) for out in _changed(func, args, kwargs, outs)]
        if sources:
            call = Operation(func, args, kwargs, shape, outs, lambda _: None, EXTENDED, self.where)
            self._store(outs, self._answers(call, all(s[0] is s[1] for s in sources)))
        for out, before in changed:
            if not sources:
                self.forget(out)
            if not _same(before, self._fields.get(out)):
                self._write_through(out)

    def _notice(self, func: OpOverload, args: Sequence[Any]) -> None:
        """Count convolutions, and show their inputs to whoever watches."""
        if WINDOWS in base_name(func):
            self.convolutions += 1
            known = self.fields(args[0])
            if self.watch is not None and known is not None:
                self.watch(args[0], args[1], known)

    def _answers(self, call: Operation, agree: bool) -> list[list[Field | None]]:
        """Fields of all outputs in each reading.

        While no gate was met, the fields with and without gates are the same objects, and are
        worked out once.
        """
        answers: list[list[Field | None]] = []
        for index, reading in enumerate(READINGS):
            if reading is UNGATED and agree and not call.gated:
                answers.append(answers[0])
                continue
            call.reading, call.lookup = reading, self._lookup(index)
            answers.append(fields_of(call))
        return answers

    def _lookup(self, index: int) -> Callable[[Tensor], Field | None]:
        """Field of a tensor in one reading."""

        def lookup(tensor: Tensor) -> Field | None:
            known = self.fields(tensor)
            return None if known is None else known[index]

        return lookup

    def _store(self, outs: list[Tensor], answers: list[list[Field | None]]) -> None:
        """Assign fields to outputs."""
        for out, extended, ungated, clipped in zip(outs, *answers, strict=True):
            if extended is None or ungated is None or clipped is None:
                self.forget(out)
            else:
                self._assign(out, (extended, ungated, clipped))

    def _assign(self, tensor: Tensor, fields: Fields) -> None:
        """Set the fields of a tensor as of now."""
        self._fields[tensor] = fields
        self._read[tensor] = self._writes

    def _write_through(self, view: Tensor) -> None:
        """Carry what was written to ``view`` over to the tensor whose memory it shares."""
        owner = view if view._base is None else view._base
        if owner is not view:
            old, new = self._fields.get(owner), self._fields.get(view)
            self._fields[owner] = memory.written(owner, old, view, new)
        self._writes += 1
        self._written[owner] = self._read[owner] = self._read[view] = self._writes

    def _refresh(self, tensor: Tensor) -> None:
        """Read the fields of a view again if its memory was written since."""
        owner = tensor._base
        if owner is None or owner not in self._written:
            return
        if self._read.get(tensor, -1) >= self._written[owner]:
            return
        fields = self._fields.get(owner)
        if fields is None:
            self.forget(tensor)
            return
        self._assign(tensor, memory.viewed(owner, fields, tensor))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let operators pass unseen."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def recur(self, func: Any, args: Sequence[Any], outs: list[Tensor]) -> None:
        """Store the fields of what a recurrent layer or cell returned."""
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        if all(self.fields(tensor) is None for tensor in tensors):
            return
        rule = RECURRENT[func]
        answers = [list(rule(args, self._reader(index), outs, self.where)) for index in range(3)]
        self._store(outs, [[*answer] for answer in answers])

    def _reader(self, index: int) -> Callable[[Any], Field | None]:
        """Like :meth:`_lookup`, for anything."""
        lookup = self._lookup(index)
        return lambda value: lookup(value) if isinstance(value, Tensor) else None


class RecurrentMode(TorchFunctionMode):
    """Catch recurrent layers as a whole, on behalf of a :class:`FieldMode`."""

    def __init__(self, fields: FieldMode) -> None:
        super().__init__()
        self.fields = fields

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func not in RECURRENT:
            return func(*args, **(kwargs or {}))
        with self.fields.paused():
            result = func(*args, **(kwargs or {}))
        outs = [result] if isinstance(result, Tensor) else list(result)
        self.fields.recur(func, args, outs)
        return result


def _first_shape(args: Sequence[Any]) -> tuple[int, ...]:
    """Shape of the first tensor among the arguments."""
    for value in args:
        first = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(first, Tensor):
            return tuple(first.shape)
    return ()


def _changed(
    func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], outs: list[Tensor]
) -> list[Tensor]:
    """Results that were there before: the first argument changed in place, or ``out``."""
    if torch.Tag.inplace_view in func.tags:
        return []
    targets = [*args[:1], *(kwargs.get(name) for name in written_names(func))]
    return [out for out in outs if any(out is target for target in targets)]


def _same(before: Fields | None, after: Fields | None) -> bool:
    """Whether an operator in place left the fields as they were, as a ReLU does."""
    if before is None or after is None:
        return before is after
    pairs = zip(before, after, strict=True)
    return all(a is b for old, new in pairs for a, b in zip(old, new, strict=True))
