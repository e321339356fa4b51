"""What a file of weights may call with which arguments: what ``torch.save`` writes, no more.

Every rule takes ``call``, which follows a call within its arguments, and the arguments; it returns
what stands for the result.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.serialization import StorageType

KEY_PARTS = 16
"""Entries of a tuple that is a key; hashing more, or nested ones, can take forever."""

AXES = 64
"""More axes than any operation of torch takes."""


class Unusual(Exception):
    """What no file of weights does; the message says it."""


class Name(str):
    """A dotted name that a file imports."""


@dataclass(frozen=True, eq=False, slots=True)
class Thing:
    """Stands for an object that nothing here depends on."""

    tensor: bool = False


@dataclass(eq=False, slots=True)
class Table:
    """Stands for a mapping; only its keys matter."""

    kind: type = dict
    keys: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, eq=False)
class Storage:
    """Stands for the memory that tensors are views of [byte]."""

    kind: str
    size: int
    itemsize: int

    @classmethod
    def of(cls, kind: str, count: int) -> "Storage":
        """Return the storage of ``count`` numbers of a kind, such as ``torch.FloatStorage``."""
        if count < 0:
            raise Unusual(f"a storage of {count} numbers")
        name = kind.rpartition(".")[2]
        itemsize = 1 if name == "UntypedStorage" else _stored(name).itemsize
        return cls(kind, count * itemsize, itemsize)


def _stored(name: str) -> torch.dtype:
    """Return the type of number that a kind of storage holds."""
    kind: torch.dtype = StorageType(name).dtype  # type: ignore[no-untyped-call]
    return kind


def check_keys(keys: Iterable[Any]) -> None:
    """Refuse keys that cannot be hashed in a short time."""
    for key in keys:
        parts = key if isinstance(key, tuple) else (key,)
        if len(parts) > KEY_PARTS or any(isinstance(part, tuple) for part in parts):
            raise Unusual("a key of nested or long tuples")


def check_attributes(state: Any, kind: type) -> None:
    """Refuse attributes that hide what objects of a kind have of their own."""
    for table in state if isinstance(state, tuple) else (state,):
        if table is None:
            continue
        hidden = [key for key in table.keys if not isinstance(key, str) or hasattr(kind, key)]
        if hidden:
            raise Unusual(f"an attribute {hidden[0]!r} of {kind.__name__} replaced")


def _mapping(kind: type) -> Callable[..., Table]:
    """Return the rule of a kind of mapping, made of nothing, a mapping, or a list of pairs."""

    def rule(_: Any, *args: Any) -> Table:
        keys = []
        for held in args:
            keys += held.keys if isinstance(held, Table) else [key for key, _ in held]
        check_keys(keys)
        return Table(kind, keys)

    return rule


def _set(_: Any, items: list[Any]) -> Thing:
    """``set([...])``."""
    check_keys(items)
    return Thing()


def _plain(_: Any, *args: Any) -> Thing:
    """Let a small object be made."""
    return Thing()


def _bytes(_: Any, text: str, encoding: str) -> Thing:
    """``_codecs.encode(text, 'latin1')``, which is how bytes are written."""
    if encoding != "latin1" or not isinstance(text, str):
        raise Unusual("an encoding that is not of bytes")
    return Thing()


def _bytearray(_: Any, *args: Any) -> Thing:
    """``bytearray(b'...')``; a number in its place is a size."""
    if any(isinstance(arg, int) for arg in args):
        raise Unusual("a bytearray by its size")
    return Thing()


def _tensor(
    _: Any,
    storage: Any,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    hooks: Any = None,
    *rest: Any,
) -> Thing:
    """``_rebuild_tensor`` and ``_rebuild_tensor_v2``."""
    _check_extent(storage, offset, size, stride, getattr(storage, "itemsize", 1))
    _check_hooks(hooks)
    return Thing(tensor=True)


def _typed_tensor(
    _: Any,
    storage: Any,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: Any,
    dtype: str,
    *rest: Any,
) -> Thing:
    """``_rebuild_tensor_v3``, which says the type that its storage does not."""
    kind = getattr(torch, dtype.removeprefix("torch."))
    _check_extent(storage, offset, size, stride, kind.itemsize)
    _check_hooks(hooks)
    return Thing(tensor=True)


def _quantized(
    _: Any,
    storage: Any,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    quantizer: tuple[Any, ...],
    requires_grad: bool,
    hooks: Any,
) -> Thing:
    """``_rebuild_qtensor``, which makes a tensor of this size before it gives it the storage."""
    _check_extent(storage, offset, size, stride, storage.itemsize)
    if prod(size) > storage.size:
        raise Unusual("a quantised tensor larger than its storage")
    _check_hooks(hooks)
    return Thing(tensor=True)


def _sparse(_: Any, layout: Any, data: tuple[Any, ...]) -> Thing:
    """``_rebuild_sparse_tensor``: whether indices fit their tensor is not known before."""
    if not all(isinstance(part, Thing | tuple | bool) for part in data):
        raise Unusual("a sparse tensor of no tensors")
    return Thing(tensor=True)


def _parameter(
    _: Any, data: Any, requires_grad: bool = True, hooks: Any = None, state: Any = None
) -> Thing:
    """``Parameter``, ``_rebuild_parameter`` and ``_rebuild_parameter_with_state``."""
    _check_hooks(hooks)
    check_attributes(state, Tensor)
    return Thing(tensor=True)


def _subclassed(
    call: Callable[..., Any], function: Any, kind: Any, args: tuple[Any, ...], state: Any
) -> Any:
    """``_rebuild_from_type_v2``, which calls another one."""
    check_attributes(state, Tensor)
    return call(function, args)


def _check_extent(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], itemsize: int
) -> None:
    """Refuse a tensor that is not within its storage."""
    if len(size) > AXES:
        raise Unusual(f"a tensor of {len(size)} axes")
    if min((offset, *size, *stride)) < 0:
        raise Unusual("a tensor with a negative size, stride or offset")
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    last = sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if all(size) and (offset + last + 1) * itemsize > storage.size:
        raise Unusual(f"a tensor beyond its storage of {storage.size} bytes")


def _check_hooks(hooks: Any) -> None:
    """Refuse hooks, which are code; torch writes an empty mapping."""
    if hooks is not None and not (isinstance(hooks, Table) and not hooks.keys):
        raise Unusual("a tensor with hooks")


CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping(OrderedDict),
    "collections.Counter": _mapping(Counter),
    "builtins.set": _set,
    "torch.Size": _plain,
    "torch.device": _plain,
    "builtins.complex": _plain,
    "torch.serialization._get_layout": _plain,
    "_codecs.encode": _bytes,
    "builtins.bytearray": _bytearray,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": lambda *_: Thing(tensor=True),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda *_: Thing(tensor=True),
    "torch._utils._rebuild_device_tensor_from_numpy": lambda *_: Thing(tensor=True),
    "torch._tensor._rebuild_from_type_v2": _subclassed,
}
"""What weights and what is saved beside them are made with."""
