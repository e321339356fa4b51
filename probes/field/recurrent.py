"""Rules of recurrent layers and cells, caught before torch takes them apart step by step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from probes.field.intervals import Field, Span, accumulate, contract, everything, union

Lookup = Callable[[Any], Field | None]

LAYERS = frozenset({torch._VF.lstm, torch._VF.gru, torch._VF.rnn_tanh, torch._VF.rnn_relu})
"""Functions behind :class:`torch.nn.LSTM`, ``GRU`` and ``RNN``."""

CELLS = frozenset(
    {
        torch._VF.lstm_cell,
        torch._VF.gru_cell,
        torch._VF.rnn_tanh_cell,
        torch._VF.rnn_relu_cell,
    }
)
"""Functions behind the cells, one timestep at a time."""

EARLIER = "recurrence over every earlier position (causal prefix)"
BOTH = "recurrence over every earlier and later position"


def layer(args: Sequence[Any], lookup: Lookup, outs: list[Tensor], where: str) -> list[Field]:
    """Field of the outputs of a recurrent layer: the sequence, then the final states.

    Each timestep depends on those before it, in a bidirectional layer on all, and every one on the
    initial states. ``args`` are those of ``torch.lstm`` and its relatives, whose last three or four
    say how time is laid out.
    """
    packed = isinstance(args[1], Tensor) and not args[1].is_floating_point()
    both = bool(args[-1] if packed else args[-2])
    time = 0 if packed or not args[-1] else 1
    cause = f"{BOTH if both else EARLIER} in {where or 'the model itself'}"
    own, others = lookup(args[0]), _known(args[1:], lookup)
    parts: list[Field] = []
    if own is not None:
        parts.append(tuple(_unrolled(span, time, cause, both=both) for span in own))
    if others:
        parts.append(_all(others, outs[0].dim(), cause))
    sequence = tuple(union(spans) for spans in zip(*parts, strict=True))
    return [sequence, *(_all([sequence], out.dim(), "") for out in outs[1:])]


def _known(args: Sequence[Any], lookup: Lookup) -> list[Field]:
    """Fields of all tensors among some arguments that have one: states, perhaps weights."""
    fields = (lookup(leaf) for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
    return [field for field in fields if field is not None]


def _all(fields: Sequence[Field], ndim: int, cause: str) -> Field:
    """Depend on all that any element of any tensor depends on; by its own cause if none is told."""
    return tuple(
        everything(spans, ndim, cause or spans[0].cause, known=True)
        for spans in zip(*fields, strict=True)
    )


def _unrolled(span: Span, time: int, cause: str, *, both: bool) -> Span:
    """Combine features, and the timesteps that each one depends on."""
    mixed = contract(span, [span.low.ndim - 1], cause)
    if both:
        return contract(mixed, [time], cause, keep=True)
    return accumulate(mixed, time, cause)


def cell(args: Sequence[Any], lookup: Lookup, outs: list[Tensor], where: str) -> list[Field]:
    """Field of the new states: of the input and of the states before, whatever the unit."""
    cause = f"{EARLIER} in {where or 'the model itself'}"
    now, fields = lookup(args[0]), _known(args[:2], lookup)
    if not fields:
        return [_all(_known(args[2:], lookup), outs[0].dim(), cause)] * len(outs)
    result = []
    for spans in zip(*fields, strict=True):
        flat = [contract(span, [span.low.ndim - 1], cause) for span in spans]
        merged = union(flat)
        if now is not None and not merged.cause and _grows(flat[0], merged):
            merged = replace(merged, cause=cause, minimal=np.inf)
        result.append(merged)
    return [tuple(result)] * len(outs)


def _grows(now: Span, merged: Span) -> bool:
    """Whether a state saw positions that the input of this step does not."""
    return bool((merged.low < now.low).any() or (merged.high > now.high).any())


RECURRENT: Mapping[Any, Callable[..., list[Field]]] = {
    **dict.fromkeys(LAYERS, layer),
    **dict.fromkeys(CELLS, cell),
}
