"""Backpropagation through time of one recurrent layer in one direction, every state kept.

The scans run backwards over the timesteps and only do there what cannot be done for all timesteps
at once: one matrix product and a few elementwise operations.

Shapes: as in :mod:`probes.recurrent.backward.cells`; V scalar that is differentiated, where
there are several.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from probes.recurrent.backward.cells import Gates, Weights


@dataclass(frozen=True, eq=False)
class Past:
    """What one direction of a layer read and returned, in the order in which it reads.

    Parameters
    ----------
    x : Tensor, shape (T, B, I)
        Inputs.
    hidden : Tensor, shape (T, B, P)
        Hidden state after every timestep.
    h0 : Tensor, shape (B, P)
        Hidden state before the first timestep.
    c0 : Tensor, shape (B, H), optional
        Cell state of an LSTM before the first timestep.
    """

    x: Tensor
    hidden: Tensor
    h0: Tensor
    c0: Tensor | None = None

    @cached_property
    def before(self) -> Tensor:
        """Hidden state before every timestep: (T, B, P)."""
        return torch.cat([self.h0.unsqueeze(0), self.hidden[:-1]])

    def part(self, span: slice, c0: Tensor | None) -> "Past":
        """Take some timesteps, before which the cell state is ``c0``."""
        h0 = self.hidden[span.start - 1] if span.start else self.h0
        return Past(self.x[span], self.hidden[span], h0, c0)


class Adjoint(NamedTuple):
    """Total derivatives of a scalar: over every path through time, layers and outputs."""

    hidden: Tensor
    """d / d h_t, shape (T, B, P); of an LSTM with a projection, of the projected state."""
    cell: Tensor | None
    """d / d c_t, its path through h_t included, shape (T, B, H); only of an LSTM."""
    recurrent_side: Tensor
    """d / d(W_hh h_{t-1} + b_hh), all gates, shape (T, B, G)."""
    h0: Tensor
    """d / d(hidden state before the first timestep), shape (B, P)."""
    c0: Tensor | None = None
    """d / d(cell state before the first timestep), shape (B, H); only of an LSTM."""


class Local(NamedTuple):
    """What a scan backwards needs of what a layer computed."""

    slopes: Tensor
    """As in :class:`probes.recurrent.backward.cells.Gates`, shape (T, B, K, H); used up by the scan
    of one scalar."""
    through: Tensor | None = None
    """Likewise, shape (T, B, H)."""
    carry: Tensor | None = None
    """What passes the state straight on, shape (T, B, H): forget gate (LSTM), update gate (GRU)."""
    unprojected: Tensor | None = None
    """Hidden state before the projection of an LSTM that has one, shape (T, B, H)."""

    @classmethod
    def of(cls, kind: str, gates: Gates, weights: Weights) -> "Local":
        """Pick it out of the gates of a layer."""
        # A copy: a view would keep the other gates in memory.
        carry_TBH = gates.activations[:, :, 1].clone() if kind in ("lstm", "gru") else None
        unprojected_TBH = None
        if weights.w_hr is not None and gates.cell is not None:
            unprojected_TBH = gates.activations[:, :, 3] * gates.cell.tanh()
        return cls(gates.slopes, gates.through, carry_TBH, unprojected_TBH)


class Factor(NamedTuple):
    """Gradient of one weight: outer products, summed over timesteps and samples."""

    weight: str
    """Name that torch gives it, without layer and direction: "weight_ih"."""
    left: Tensor
    """Gradient of what the weight adds to, shape (T, B, G)."""
    right: Tensor | None
    """What the weight is applied to, shape (T, B, I); None of a bias, where it is 1."""

    def summed(self) -> Tensor:
        """Gradient of the weight: (G, I), or (G,) of a bias."""
        if self.right is None:
            return self.left.sum((0, 1))
        return self.left.flatten(0, 1).t() @ self.right.flatten(0, 1)


def bundled(factors: Iterable[Factor]) -> list[list[Factor]]:
    """Put together the weights whose products have the left factor in common."""
    bundles: dict[int, list[Factor]] = {}
    for factor in factors:
        bundles.setdefault(factor.left.data_ptr(), []).append(factor)
    return [*bundles.values()]


@dataclass(frozen=True, eq=False)
class Scan:
    """One direction of a layer after its backward pass.

    Parameters
    ----------
    kind : str
        "lstm", "gru", "rnn_tanh" or "rnn_relu".
    weights : Weights
        Of this layer and direction.
    x, before : Tensor, shape (T, B, I), (T, B, P)
        What it read, and the hidden state before every timestep.
    local : Local
        What it computed; the slopes are used up.
    adjoint : Adjoint
        Gradients.
    """

    kind: str
    weights: Weights
    x: Tensor
    before: Tensor
    local: Local
    adjoint: Adjoint

    @cached_property
    def input_side(self) -> Tensor:
        """Gradient of W_ih x_t + b_ih, all gates; only in a GRU not that of the recurrent side."""
        if self.kind != "gru" or self.local.through is None:
            return self.adjoint.recurrent_side
        shared = 2 * self.adjoint.hidden.shape[-1]
        candidate_TBH = self.adjoint.hidden * self.local.through
        return torch.cat([self.adjoint.recurrent_side[..., :shared], candidate_TBH], -1)

    def x_gradient(self) -> Tensor:
        """Gradient of the inputs: (T, B, I)."""
        return self.input_side @ self.weights.w_ih

    def factors(self) -> tuple[Factor, ...]:
        """Gradients of the weights that there are, in the order of torch."""
        adjoint = self.adjoint
        found = [
            Factor("weight_ih", self.input_side, self.x),
            Factor("weight_hh", adjoint.recurrent_side, self.before),
        ]
        if self.weights.b_ih is not None:
            found.append(Factor("bias_ih", self.input_side, None))
            found.append(Factor("bias_hh", adjoint.recurrent_side, None))
        if self.local.unprojected is not None:
            found.append(Factor("weight_hr", adjoint.hidden, self.local.unprojected))
        return tuple(found)


def backpropagate(
    kind: str,
    weights: Weights,
    local: Local,
    hidden_TBP: Tensor,
    cell_TBH: Tensor | None = None,
) -> Adjoint:
    """Propagate what arrives from outside the layer back through its timesteps.

    Parameters
    ----------
    kind : str
        "lstm", "gru", "rnn_tanh" or "rnn_relu".
    weights : Weights
        Of this layer and direction.
    local : Local
        What the layer computed; the slopes are overwritten.
    hidden_TBP : Tensor, shape (T, B, P)
        What arrives at every hidden state from the outputs and from the final state
        [loss / state]; overwritten with the total. For several scalars of shape (T, V, B, P); then
        what the layer computed is of shape (T, 1, B, ...), and is not overwritten.
    cell_TBH : Tensor, shape (T, B, H), optional
        What arrives at every cell state of an LSTM, likewise; overwritten with the total.

    Returns
    -------
    Adjoint
        Totals [loss / state].

    References
    ----------
    .. [1] Werbos, Backpropagation through time: what it does and how to do it (1990).
    """
    if kind == "lstm":
        assert cell_TBH is not None
        return _lstm(local, weights, hidden_TBP, cell_TBH)
    return (_gru if kind == "gru" else _rnn)(local, weights, hidden_TBP)


def _lstm(local: Local, weights: Weights, hidden_TBP: Tensor, cell_TBH: Tensor) -> Adjoint:
    """Scan an LSTM backwards."""
    slopes_TBKH, through_TBH, forget_TBH, _ = local
    assert through_TBH is not None
    assert forget_TBH is not None
    delta_TBKH = _room(slopes_TBKH, hidden_TBP)
    delta_TBG = delta_TBKH.flatten(-2)
    per_step = (
        hidden_TBP,
        hidden_TBP.flatten(1, -2),
        cell_TBH,
        through_TBH,
        forget_TBH,
        slopes_TBKH[..., :3, :],
        slopes_TBKH[..., 3, :],
        delta_TBKH[..., :3, :],
        delta_TBKH[..., 3, :],
        delta_TBG.flatten(1, -2),
    )
    later: tuple[Tensor, Tensor, Tensor] | None = None
    for h_BP, rows, c_BH, through, forget, inner, output, inner_B3H, output_BH, delta in _backwards(
        per_step
    ):
        if later is not None:
            rows.addmm_(later[0], weights.w_hh)
            c_BH.addcmul_(later[1], later[2])
        m_BH = h_BP if weights.w_hr is None else h_BP @ weights.w_hr
        c_BH.addcmul_(m_BH, through)
        torch.mul(inner, c_BH.unsqueeze(-2), out=inner_B3H)
        torch.mul(output, m_BH, out=output_BH)
        later = delta, c_BH, forget
    h0_BP = delta_TBG[0] @ weights.w_hh
    return Adjoint(hidden_TBP, cell_TBH, delta_TBG, h0_BP, cell_TBH[0] * forget_TBH[0])


def _gru(local: Local, weights: Weights, hidden_TBH: Tensor) -> Adjoint:
    """Scan a GRU backwards; its update gate also carries the state straight on."""
    update_TBH = local.carry
    assert update_TBH is not None
    delta_TBKH = _room(local.slopes, hidden_TBH)
    delta_TBG = delta_TBKH.flatten(-2)
    rows_TNH, delta_TNG = hidden_TBH.flatten(1, -2), delta_TBG.flatten(1, -2)
    per_step = (hidden_TBH, rows_TNH, local.slopes, delta_TBKH, delta_TNG, update_TBH)
    later: tuple[Tensor, Tensor, Tensor] | None = None
    for h_BH, rows_NH, slopes, delta_BKH, delta_NG, update in _backwards(per_step):
        if later is not None:
            h_BH.addcmul_(later[0], later[1])
            rows_NH.addmm_(later[2], weights.w_hh)
        torch.mul(slopes, h_BH.unsqueeze(-2), out=delta_BKH)
        later = h_BH, update, delta_NG
    h0_BH = delta_TBG[0] @ weights.w_hh + hidden_TBH[0] * update_TBH[0]
    return Adjoint(hidden_TBH, None, delta_TBG, h0_BH)


def _rnn(local: Local, weights: Weights, hidden_TBH: Tensor) -> Adjoint:
    """Scan an Elman network backwards."""
    slopes_TBH = local.slopes.flatten(-2)
    delta_TBH = _room(slopes_TBH, hidden_TBH)
    rows_TNH, delta_TNH = hidden_TBH.flatten(1, -2), delta_TBH.flatten(1, -2)
    later: Tensor | None = None
    for h_BH, rows_NH, slopes, delta_BH, delta_NH in _backwards(
        (hidden_TBH, rows_TNH, slopes_TBH, delta_TBH, delta_TNH)
    ):
        if later is not None:
            rows_NH.addmm_(later, weights.w_hh)
        torch.mul(slopes, h_BH, out=delta_BH)
        later = delta_NH
    return Adjoint(hidden_TBH, None, delta_TBH, delta_TBH[0] @ weights.w_hh)


def _room(slopes: Tensor, arriving: Tensor) -> Tensor:
    """Where gradients of pre-activations go: over the slopes, unless several scalars need these."""
    if slopes.shape[1 : arriving.dim() - 1] == arriving.shape[1:-1]:
        return slopes
    return slopes.new_empty(*arriving.shape[:-1], *slopes.shape[arriving.dim() - 1 :])


def _backwards(per_step: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """List views of every timestep, the last first; all at once, which is cheaper than indexing."""
    return [*zip(*(values.unbind(0) for values in per_step), strict=True)][::-1]
