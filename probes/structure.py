"""What models return: tensors in tuples, lists and mappings, and in dataclasses of their own."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map


def packed(value: Any) -> bool:
    """Whether this is a packed sequence."""
    return isinstance(value, PackedSequence)


def leaves(value: Any) -> Iterator[Any]:
    """Yield what is in nested containers, in order; packed sequences whole."""
    for leaf in tree_leaves(opened(value), is_leaf=packed):
        yield from leaves(leaf) if opened(leaf) is not leaf else (leaf,)


def tensors(value: Any) -> list[Tensor]:
    """List the tensors in nested containers."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def opened(value: Any) -> Any:
    """Return a mapping or dataclass as a plain dictionary, anything else as it is."""
    if isinstance(value, Mapping):
        return dict(value)
    return _parts(value) if _own(value) else value


def mapped(value: Any, visit: Callable[[Any], Any]) -> Any:
    """Apply a function to what is in nested containers; packed sequences are handed over whole."""

    def each(leaf: Any) -> Any:
        return mapped(leaf, visit) if _own(leaf) else visit(leaf)

    if _own(value):
        return replace(value, **{name: mapped(part, visit) for name, part in _parts(value).items()})
    return tree_map(each, value, is_leaf=packed)


def _own(value: Any) -> bool:
    """Whether this is an instance of a dataclass that is no mapping."""
    return is_dataclass(value) and not isinstance(value, type | Mapping)


def _parts(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that its constructor takes."""
    return {entry.name: getattr(value, entry.name) for entry in fields(value) if entry.init}
