"""What a layer computed, anew, in blocks of timesteps that stay in the processor's cache.

Shapes: as in :mod:`probes.recurrent.backward.cells`.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from probes.recurrent.backward.bptt import Local, Past
from probes.recurrent.backward.cells import Gates, Weights, gru_gates, lstm_gates, rnn_gates
from probes.recurrent.backward.clock import Clock

BLOCK = 2**18
"""Numbers in the gates of a block of timesteps, which stay in the cache of a processor."""

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
    spans = blocks(past.hidden, len(weights.w_hh))
    checked = _Checked(clock.valid(past.hidden))
    whole: _Whole = {}
    c_BH = past.c0
    for span in spans:
        gates = checked.gates(kind, weights, past.part(span, c_BH), span, len(spans))
        c_BH = None if gates.cell is None else gates.cell[-1]
        values = Local.of(kind, gates, weights)._asdict()
        if everything:
            values |= {"activations": gates.activations, "cell": gates.cell}
        _put(whole, values, span, len(past.hidden))
    activations, cell = whole.pop("activations", None), whole.pop("cell", None)
    return Replayed(Local(**whole), checked.residual(), activations, cell)


class Backwards:
    """What a layer computed, anew, block after block of timesteps, the last one first.

    Parameters
    ----------
    kind, weights, past, clock
        As of :func:`replayed`.

    Attributes
    ----------
    residual : Tensor
        As of :class:`Replayed`, once all blocks are through.
    """

    residual: Tensor

    def __init__(self, kind: str, weights: Weights, past: Past, clock: Clock) -> None:
        self._layer, self._clock = (kind, weights, past), clock

    def __iter__(self) -> Iterator[tuple[slice, Local]]:
        """Hand over the blocks; an LSTM is replayed first, as its cell states follow forwards."""
        kind, weights, past = self._layer
        spans = blocks(past.hidden, len(weights.w_hh))
        if kind == "lstm":
            found = replayed(kind, weights, past, self._clock)
            self.residual = found.residual
            for span in spans[::-1]:
                yield span, Local(*(v if v is None else v[span] for v in found.local))  # type: ignore[arg-type]
            return
        checked = _Checked(self._clock.valid(past.hidden))
        for span in spans[::-1]:
            gates = checked.gates(kind, weights, past.part(span, None), span, len(spans))
            yield span, Local.of(kind, gates, weights)
        self.residual = checked.residual()


class _Checked:
    """Gates of blocks, whose hidden states are compared with the real ones."""

    def __init__(self, valid_TB1: Tensor | None) -> None:
        self._valid_TB1 = valid_TB1
        self._errors: list[Tensor] = []
        self._sizes: list[Tensor] = []

    def gates(self, kind: str, weights: Weights, part: Past, span: slice, parts: int) -> Gates:
        """Compute those of one of ``parts`` blocks."""
        gates = gates_of(kind, weights, part, parts)
        valid = None if self._valid_TB1 is None else self._valid_TB1[span][:: gates.every]
        self._errors.append(_error(gates, part.hidden, valid))
        self._sizes.append(torch.linalg.vector_norm(part.hidden, torch.inf))
        return gates

    def residual(self) -> Tensor:
        """Largest error as a share of the largest hidden state: a scalar."""
        largest = torch.stack(self._sizes).amax()
        share = torch.stack(self._errors).amax() / largest.clamp_min(
            torch.finfo(largest.dtype).tiny
        )
        return share.cpu().double()


def blocks(like_TBP: Tensor, rows: int) -> list[slice]:
    """Cut timesteps into blocks, by how many numbers the gates of a sample are."""
    timesteps, samples = like_TBP.shape[:2]
    numbers = BLOCK if like_TBP.device.type == "cpu" else ACCELERATED
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
