"""Backpropagation through time of one recurrent layer in one direction, every state kept.

The scans run backwards over the timesteps and only do there what cannot be done for all timesteps
at once: one matrix product and a few elementwise operations.

Shapes: as in :mod:`probes.recurrent.cells`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from probes.recurrent.cells import Gates, Weights, gru_gates, lstm_gates, rnn_gates


class Past(NamedTuple):
    """What one direction of a layer read and returned, in the order in which it reads."""

    x: Tensor
    """Inputs, shape (T, B, I)."""
    before: Tensor
    """Hidden state before every timestep, shape (T, B, P)."""
    hidden: Tensor
    """Hidden state after every timestep, shape (T, B, P)."""
    c0: Tensor | None = None
    """Cell state of an LSTM before the first timestep, shape (B, H)."""


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


@dataclass(frozen=True, eq=False)
class Scan:
    """One direction of a layer after its backward pass.

    Parameters
    ----------
    kind : str
        "lstm", "gru", "rnn_tanh" or "rnn_relu".
    weights : Weights
        Of this layer and direction.
    past : Past
        What it read and returned.
    gates : Gates
        What it computed; the slopes are used up.
    adjoint : Adjoint
        Gradients.
    """

    kind: str
    weights: Weights
    past: Past
    gates: Gates
    adjoint: Adjoint

    @cached_property
    def input_side(self) -> Tensor:
        """Gradient of W_ih x_t + b_ih, all gates; only in a GRU not that of the recurrent side."""
        if self.kind != "gru" or self.gates.through is None:
            return self.adjoint.recurrent_side
        shared = 2 * self.adjoint.hidden.shape[-1]
        candidate_TBH = self.adjoint.hidden * self.gates.through
        return torch.cat([self.adjoint.recurrent_side[..., :shared], candidate_TBH], -1)

    def x_gradient(self) -> Tensor:
        """Gradient of the inputs: (T, B, I)."""
        return self.input_side @ self.weights.w_ih

    def weight_gradients(self) -> list[Tensor]:
        """Gradients of the weights that there are, in the order of torch."""
        past, adjoint = self.past, self.adjoint
        gradients = [
            _summed_outer(self.input_side, past.x),
            _summed_outer(adjoint.recurrent_side, past.before),
        ]
        if self.weights.b_ih is not None:
            gradients.append(self.input_side.sum((0, 1)))
            gradients.append(adjoint.recurrent_side.sum((0, 1)))
        if self.weights.w_hr is not None and self.gates.cell is not None:
            unprojected_TBH = self.gates.activations[:, :, 3] * self.gates.cell.tanh()
            gradients.append(_summed_outer(adjoint.hidden, unprojected_TBH))
        return gradients


def backpropagate(
    kind: str, weights: Weights, past: Past, hidden_TBP: Tensor, cell_TBH: Tensor | None = None
) -> Scan:
    """Propagate what arrives from outside the layer back through its timesteps.

    Parameters
    ----------
    kind : str
        "lstm", "gru", "rnn_tanh" or "rnn_relu".
    weights : Weights
        Of this layer and direction.
    past : Past
        What the layer read and returned.
    hidden_TBP : Tensor, shape (T, B, P)
        What arrives at every hidden state from the outputs and from the final state
        [loss / state]; overwritten with the total.
    cell_TBH : Tensor, shape (T, B, H), optional
        What arrives at every cell state of an LSTM; overwritten with the total.

    Returns
    -------
    Scan
        Totals [loss / state].

    References
    ----------
    .. [1] Werbos, Backpropagation through time: what it does and how to do it (1990).
    """
    x_TBI, before_TBP, returned_TBP, c0_BH = past
    if kind == "lstm":
        assert c0_BH is not None
        assert cell_TBH is not None
        gates = lstm_gates(x_TBI, before_TBP, c0_BH, weights)
        adjoint = _lstm(gates, weights, hidden_TBP, cell_TBH)
    elif kind == "gru":
        gates = gru_gates(x_TBI, before_TBP, weights)
        adjoint = _gru(gates, weights, hidden_TBP)
    else:
        relu = kind == "rnn_relu"
        gates = rnn_gates(x_TBI, before_TBP, returned_TBP, weights, relu=relu)
        adjoint = _rnn(gates, weights, hidden_TBP)
    return Scan(kind, weights, past, gates, adjoint)


def _lstm(gates: Gates, weights: Weights, hidden_TBP: Tensor, cell_TBH: Tensor) -> Adjoint:
    """Scan an LSTM backwards."""
    assert gates.through is not None
    delta_TBG = gates.slopes.flatten(2)
    forget_TBH = gates.activations[:, :, 1]
    per_step = (
        hidden_TBP,
        cell_TBH,
        gates.through,
        forget_TBH,
        gates.slopes[:, :, :3],
        gates.slopes[:, :, 3],
        delta_TBG,
    )
    later: tuple[Tensor, Tensor, Tensor] | None = None
    for h_BP, c_BH, through_BH, forget_BH, inner_B3H, output_BH, delta_BG in _backwards(per_step):
        if later is not None:
            h_BP.addmm_(later[0], weights.w_hh)
            c_BH.addcmul_(later[1], later[2])
        m_BH = h_BP if weights.w_hr is None else h_BP @ weights.w_hr
        c_BH.addcmul_(m_BH, through_BH)
        inner_B3H.mul_(c_BH.unsqueeze(1))
        output_BH.mul_(m_BH)
        later = delta_BG, c_BH, forget_BH
    h0_BP = delta_TBG[0] @ weights.w_hh
    return Adjoint(hidden_TBP, cell_TBH, delta_TBG, h0_BP, cell_TBH[0] * forget_TBH[0])


def _gru(gates: Gates, weights: Weights, hidden_TBH: Tensor) -> Adjoint:
    """Scan a GRU backwards; its update gate also carries the state straight on."""
    delta_TBG = gates.slopes.flatten(2)
    update_TBH = gates.activations[:, :, 1]
    per_step = (hidden_TBH, gates.slopes, delta_TBG, update_TBH)
    later: tuple[Tensor, Tensor, Tensor] | None = None
    for h_BH, slopes_BGH, delta_BG, update_BH in _backwards(per_step):
        if later is not None:
            h_BH.addcmul_(later[0], later[1]).addmm_(later[2], weights.w_hh)
        slopes_BGH.mul_(h_BH.unsqueeze(1))
        later = h_BH, update_BH, delta_BG
    h0_BH = torch.addmm(hidden_TBH[0] * update_TBH[0], delta_TBG[0], weights.w_hh)
    return Adjoint(hidden_TBH, None, delta_TBG, h0_BH)


def _rnn(gates: Gates, weights: Weights, hidden_TBH: Tensor) -> Adjoint:
    """Scan an Elman network backwards."""
    delta_TBH = gates.slopes.flatten(2)
    later_BH: Tensor | None = None
    for h_BH, delta_BH in _backwards((hidden_TBH, delta_TBH)):
        if later_BH is not None:
            h_BH.addmm_(later_BH, weights.w_hh)
        later_BH = delta_BH.mul_(h_BH)
    return Adjoint(hidden_TBH, None, delta_TBH, delta_TBH[0] @ weights.w_hh)


def _backwards(per_step: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """List views of every timestep, the last first; all at once, which is cheaper than indexing."""
    return [*zip(*(values.unbind(0) for values in per_step), strict=True)][::-1]


def _summed_outer(left_TBG: Tensor, right_TBI: Tensor) -> Tensor:
    """Sum of the outer products over timesteps and samples: (G, I)."""
    return left_TBG.flatten(0, 1).t() @ right_TBI.flatten(0, 1)
