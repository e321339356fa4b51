"""What a layer computed, anew, in blocks of timesteps that stay in the processor's cache.

Shapes: as in :mod:`probes.recurrent.backward.cells`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from probes.recurrent.backward.bptt import Local, Past
from probes.recurrent.backward.cells import Gates, Weights, gru_gates, lstm_gates, rnn_gates
from probes.recurrent.backward.clock import Clock

FEW, MANY = 2**18, 2**20
"""Numbers in the gates of a block of timesteps. The few stay in the cache of a processor, where
there are many elementwise operations; the many are for a scan, which has matrix products."""

ACCELERATED = 2**23
"""Likewise on an accelerator, where only memory limits them."""


class Replayed(NamedTuple):
    """One layer in one direction."""

    local: Local
    residual: Tensor
    """Largest error of the replay as a share of the largest hidden state: a scalar."""
    activations: Tensor | None
    """Activated gates, shape (T, B, K, H); only if everything was asked for."""
    cell: Tensor | None
    """Cell state of an LSTM, shape (T, B, H); likewise."""


def replayed(
    kind: str, weights: Weights, past: Past, clock: Clock, *, everything: bool = False
) -> Replayed:
    """Compute what a layer did again from what it read and returned.

    Parameters
    ----------
    kind : str
        "lstm", "gru", "rnn_tanh" or "rnn_relu".
    weights : Weights
        Of this layer and direction.
    past : Past
        What the layer read and returned.
    clock : Clock
        Of the call: padding does not count in the residual.
    everything : bool
        Whether the gates and cell states are wanted too.
    """
    spans = blocks(past.before, len(weights.w_hh), FEW)
    valid_TB1 = clock.valid(past.hidden)
    whole: _Whole = {}
    c_BH, errors, sizes = past.c0, [], []
    for span in spans:
        part = Past(past.x[span], past.before[span], past.hidden[span], c_BH)
        gates = gates_of(kind, weights, part, len(spans))
        c_BH = None if gates.cell is None else gates.cell[-1]
        valid = None if valid_TB1 is None else valid_TB1[span][:: gates.every]
        errors.append(_error(gates, part.hidden, valid))
        sizes.append(torch.linalg.vector_norm(part.hidden, torch.inf))
        values = Local.of(kind, gates, weights)._asdict()
        if everything:
            values |= {"activations": gates.activations, "cell": gates.cell}
        _put(whole, values, span, len(past.hidden))
    largest = torch.stack(sizes).amax()
    residual = torch.stack(errors).amax() / largest.clamp_min(torch.finfo(largest.dtype).tiny)
    activations, cell = whole.pop("activations", None), whole.pop("cell", None)
    return Replayed(Local(**whole), residual.cpu().double(), activations, cell)


def blocks(like_TBP: Tensor, rows: int, numbers: int) -> list[slice]:
    """Cut timesteps with ``rows`` numbers for each sample into blocks of up to ``numbers``."""
    timesteps, samples = like_TBP.shape[:2]
    numbers = numbers if like_TBP.device.type == "cpu" else ACCELERATED
    size = max(1, numbers // (samples * rows))
    return [slice(start, start + size) for start in range(0, timesteps, size)]


_Whole = dict[str, Tensor]


def _put(whole: _Whole, values: Mapping[str, Tensor | None], span: slice, timesteps: int) -> None:
    """Copy a block to its place; one that is all there is needs no copy."""
    for name, value in values.items():
        if value is None:
            continue
        if len(value) == timesteps:
            whole[name] = value
            continue
        if name not in whole:
            whole[name] = value.new_empty(timesteps, *value.shape[1:])
        whole[name][span] = value


def gates_of(kind: str, weights: Weights, past: Past, parts: int = 1) -> Gates:
    """Compute the gates of a block, which is one of ``parts`` of a sequence."""
    if kind == "lstm":
        assert past.c0 is not None
        return lstm_gates(past.x, past.before, past.c0, weights)
    if kind == "gru":
        return gru_gates(past.x, past.before, weights)
    relu = kind == "rnn_relu"
    return rnn_gates(past.x, past.before, past.hidden, weights, relu=relu, parts=parts)


def _error(gates: Gates, hidden_TBP: Tensor, valid_TB1: Tensor | None) -> Tensor:
    """Largest error of the replay: a scalar."""
    error_TBP = gates.replayed - hidden_TBP[:: gates.every]
    if valid_TB1 is not None:
        error_TBP *= valid_TB1
    largest: Tensor = torch.linalg.vector_norm(error_TBP, torch.inf)
    return largest
