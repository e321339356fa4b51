"""Where in a checkpoint the weights and the optimizer are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Place = tuple[str, ...]
"""Keys, or positions in lists, that lead to an entry of the file."""

NAMES = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "stat_dict",
    "net",
    "network",
    "net_state_dict",
    "module",
    "weights",
    "params",
    "parameters",
    "model_weights",
)
"""What training scripts call the weights, the first one found being taken."""

AVERAGES = ("ema", "model_ema", "ema_state_dict", "params_ema")
"""What they call a running average of the weights, which is second choice."""

OPTIMIZERS = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim", "opt")
"""What they call the optimizer's state."""

DEPTH = 6
"""Levels of nesting that are searched."""

EVERYTHING = "."
"""The state key of the file itself: its own weights, or all below joined by dotted places."""


@dataclass(frozen=True, eq=False)
class Contents:
    """The entries of a checkpoint that matter, with the places they were found at."""

    root: Any
    weights: dict[Place, dict[str, Tensor]]
    optimizers: dict[Place, dict[str, Any]]


def search(payload: Any) -> Contents:
    """Find all state dicts and all optimizer states."""
    found = Contents(payload, {}, {})
    named: dict[Place, dict[str, Tensor]] = {}
    for place, node in _walk(payload, (), set()):
        if _is_optimizer(node):
            found.optimizers[place] = dict(node)
        tensors = _named_tensors(node)
        if any(tensor.dim() for tensor in tensors.values()):
            named[place] = tensors
    found.weights.update(
        (place, tensors) for place, tensors in named.items() if not _is_wrapper(place, named)
    )
    return found


def best(weights: Mapping[Place, object]) -> list[Place]:
    """Choose the weights of the best-known name; more than one if none is better.

    A file that is a state dict itself comes after a well-known name in it, such as ``model``
    beside two tensors of statistics, and before averages and names that nobody knows.
    """
    ranks = {place: _rank(place) for place in weights}
    return [place for place, rank in ranks.items() if rank == min(ranks.values())]


def optimizer(found: Mapping[Place, dict[str, Any]]) -> dict[str, Any] | None:
    """Take the only optimizer, or the only one of a usual name; guess between no two."""
    usual = [state for place, state in found.items() if set(place) & set(OPTIMIZERS)]
    for states in (list(found.values()), usual):
        if len(states) == 1:
            return states[0]
    return None


def places(contents: Contents, key: str) -> Iterator[tuple[Place, Any]]:
    """Yield the entries at a dotted place: more than one if names have dots themselves."""
    for place, node in _walk(contents.root, (), set()):
        if dotted(place) == key:
            yield place, node


def joined(node: Any) -> dict[str, Tensor]:
    """Collect all tensors below an entry, but the optimizers', under their dotted places."""
    return {
        ".".join((*place, name)): tensor
        for place, below in _walk(node, (), set())
        for name, tensor in _named_tensors(below).items()
    }


def dotted(place: Place) -> str:
    """Write a place as ``--state-key`` takes it."""
    return ".".join(place) or EVERYTHING


def children(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an entry holds: items of a mapping, by position those of a list."""
    if isinstance(node, Mapping):
        yield from ((str(key), value) for key, value in node.items())
    elif isinstance(node, Sequence) and not isinstance(node, str | bytes):
        yield from ((str(index), value) for index, value in enumerate(node))


def _walk(node: Any, place: Place, seen: set[int]) -> Iterator[tuple[Place, Any]]:
    """Yield an entry and all below it that could hold weights, a module as its state dict.

    What an optimizer holds could not. What is found at two places is yielded once: a few lists
    that hold each other many times would otherwise take forever.
    """
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, nn.Module):
        node = node.state_dict()
    yield place, node
    if len(place) < DEPTH and not _is_optimizer(node):
        for name, value in children(node):
            if isinstance(value, Mapping | list | tuple | nn.Module) and not _is_empty(value):
                yield from _walk(value, (*place, name), seen)


def _is_empty(node: Any) -> bool:
    """Tell containers without entries, of which hostile files have millions."""
    return not isinstance(node, nn.Module) and not len(node)


def _is_optimizer(node: Any) -> bool:
    """Tell what ``Optimizer.state_dict()`` returns."""
    return isinstance(node, Mapping) and {"state", "param_groups"} <= set(node)


def _is_wrapper(place: Place, named: Mapping[Place, dict[str, Tensor]]) -> bool:
    """Tell whether an entry below has more tensors: then the few here are something else."""
    return any(
        len(tensors) > len(named[place])
        for below, tensors in named.items()
        if below[: len(place)] == place
    )


def _named_tensors(node: Any) -> dict[str, Tensor]:
    """Keep the tensors that a mapping itself holds by name, as plain values."""
    if not isinstance(node, Mapping):
        return {}
    items = node.items()
    return {k: v.detach() for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}


def _rank(place: Place) -> tuple[int, int]:
    """Order places: the usual names, then the file itself, averages, and all others alike."""
    order = (*NAMES, EVERYTHING, *AVERAGES)
    name = place[-1].lower() if place else EVERYTHING
    return (order.index(name), len(place)) if name in order else (len(order), 0)
