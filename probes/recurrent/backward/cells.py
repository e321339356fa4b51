"""Closed forms of the gates of recurrent layers, and of their local derivatives.

Everything here is one layer in one direction, time first, in the order in which the layer reads.
The states are taken from what the layer returned, so that nothing is recomputed step by step but
the cell state of an LSTM, and the derivatives are those of the trajectory that really ran.

Shapes: T timestep, B sample, I input feature, P hidden state, H unit (P = H unless an LSTM has a
projection), K gate: input, forget, candidate, output (LSTM), reset, update, candidate (GRU), or one
(RNN), in the order of torch; G rows of all gates (K * H).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

OPEN, CLOSED = 0.9, 0.1
"""Beyond these a gate is open or closed; a tanh is at one of its ends beyond 0.9."""

REPLAYED = 16
"""Timesteps of an Elman network that are replayed as a check."""


class Weights(NamedTuple):
    """Parameters of one layer in one direction, as torch names them."""

    w_ih: Tensor
    """Shape (G, I)."""
    w_hh: Tensor
    """Shape (G, P)."""
    b_ih: Tensor | None = None
    """Shape (G,)."""
    b_hh: Tensor | None = None
    """Shape (G,)."""
    w_hr: Tensor | None = None
    """Projection of an LSTM, shape (P, H)."""

    @classmethod
    def of(cls, flat: Sequence[Tensor], direction: int, directions: int) -> "Weights":
        """Pick those of one direction out of the flat list that torch hands to a layer."""
        count = len(flat) // directions
        own = list(flat[direction * count : (direction + 1) * count])
        w_hr = own.pop() if len(own) % 2 else None
        b_ih, b_hh = own[2:] or (None, None)
        return cls(own[0], own[1], b_ih, b_hh, w_hr)


class Gates(NamedTuple):
    """What a layer computed at every timestep, and the slopes that a gradient is scaled by."""

    activations: Tensor
    """Activated gates, shape (T, B, K, H); of an RNN its hidden state."""
    slopes: Tensor
    """d(state) / d(pre-activation on the recurrent side), shape (T, B, K, H), in memory of its own.
    The state is h_t (GRU, RNN), c_t (LSTM) or, for the output gate of an LSTM, m_t, which is the
    hidden state before the projection."""
    replayed: Tensor
    """Hidden state as computed here, at every ``every``-th timestep, shape (T / every, B, P)."""
    every: int = 1
    """Distance of the replayed timesteps [timestep]."""
    cell: Tensor | None = None
    """Cell state of an LSTM, shape (T, B, H)."""
    through: Tensor | None = None
    """LSTM: d m_t / d c_t. GRU: d h_t / d(pre-activation of the candidate on the input side).
    Shape (T, B, H)."""


def lstm_gates(x_TBI: Tensor, before_TBP: Tensor, c0_BH: Tensor, weights: Weights) -> Gates:
    """Replay an LSTM from its inputs and from the hidden state before every timestep.

    Parameters
    ----------
    x_TBI : Tensor, shape (T, B, I)
        Inputs.
    before_TBP : Tensor, shape (T, B, P)
        h_{t-1} for every t.
    c0_BH : Tensor, shape (B, H)
        Cell state before the first timestep.
    weights : Weights
        Of this layer and direction.

    Returns
    -------
    Gates
        With i, f, g, o along the gate axis.

    References
    ----------
    .. [1] Hochreiter and Schmidhuber, Long Short-Term Memory (1997); with the forget gate of Gers
       et al. (2000), as :class:`torch.nn.LSTM` documents it.
    """
    bias = None if weights.b_ih is None or weights.b_hh is None else weights.b_ih + weights.b_hh
    gates_TBG = _rows(x_TBI, weights.w_ih, bias)
    gates_TBG.view(-1, gates_TBG.shape[-1]).addmm_(before_TBP.flatten(0, 1), weights.w_hh.t())
    gates_TBKH = gates_TBG.view(*gates_TBG.shape[:2], 4, -1)
    gates_TBKH[:, :, :2].sigmoid_()
    gates_TBKH[:, :, 2].tanh_()
    gates_TBKH[:, :, 3].sigmoid_()
    i, f, g, o = gates_TBKH.unbind(2)
    c_TBH = i * g
    last_BH = c0_BH
    for c_BH, f_BH in zip(c_TBH.unbind(0), f.unbind(0), strict=True):
        last_BH = c_BH.addcmul_(f_BH, last_BH)
    tanh_TBH = c_TBH.tanh()
    m_TBH = o * tanh_TBH
    slopes_TBKH = torch.addcmul(gates_TBKH, gates_TBKH, gates_TBKH, value=-1)
    slopes_TBKH[:, :, 0] *= g
    slopes_TBKH[0, :, 1] *= c0_BH
    slopes_TBKH[1:, :, 1] *= c_TBH[:-1]
    slopes_TBKH[:, :, 2] = torch.addcmul(i, i * g, g, value=-1)
    slopes_TBKH[:, :, 3] *= tanh_TBH
    through_TBH = torch.addcmul(o, m_TBH, tanh_TBH, value=-1)
    replayed_TBP = m_TBH if weights.w_hr is None else functional.linear(m_TBH, weights.w_hr)
    return Gates(gates_TBKH, slopes_TBKH, replayed_TBP, cell=c_TBH, through=through_TBH)


def gru_gates(x_TBI: Tensor, before_TBH: Tensor, weights: Weights) -> Gates:
    """Replay a GRU; parameters as of :func:`lstm_gates`, r, z, n along the gate axis.

    The slopes are those of the recurrent side, W_hh h + b_hh, where the reset gate scales the
    candidate; on the input side that of the candidate is ``through_TBH``.

    References
    ----------
    .. [1] Cho et al., Learning Phrase Representations using RNN Encoder-Decoder (2014), with the
       reset gate applied after the product, as :class:`torch.nn.GRU` documents it.
    """
    shape = (*before_TBH.shape[:2], 3, -1)
    gates_TBKH = _rows(x_TBI, weights.w_ih, weights.b_ih).view(shape)
    recurrent_TBKH = _rows(before_TBH, weights.w_hh, weights.b_hh).view(shape)
    gates_TBKH[:, :, :2].add_(recurrent_TBKH[:, :, :2]).sigmoid_()
    r, z, n = gates_TBKH.unbind(2)
    q = recurrent_TBKH[:, :, 2]
    n.addcmul_(r, q).tanh_()
    step_TBH = before_TBH - n
    through_TBH = 1 - z
    through_TBH.addcmul_(through_TBH * n, n, value=-1)
    slopes_TBKH = torch.addcmul(gates_TBKH, gates_TBKH, gates_TBKH, value=-1)
    slopes_TBKH[:, :, 0].mul_(through_TBH).mul_(q)
    slopes_TBKH[:, :, 1].mul_(step_TBH)
    torch.mul(through_TBH, r, out=slopes_TBKH[:, :, 2])
    replayed_TBH = torch.addcmul(n, z, step_TBH)
    return Gates(gates_TBKH, slopes_TBKH, replayed_TBH, through=through_TBH)


def rnn_gates(
    x_TBI: Tensor,
    before_TBH: Tensor,
    hidden_TBH: Tensor,
    weights: Weights,
    *,
    relu: bool,
    parts: int = 1,
) -> Gates:
    """Slopes of an Elman network with tanh or ReLU, from its hidden state (T, B, H) alone.

    Nothing has to be replayed for them; some timesteps are, as a check: fewer of each of several
    parts of a sequence.
    """
    every = -(-len(hidden_TBH) * parts // REPLAYED)
    replayed_TBH = _rows(x_TBI[::every], weights.w_ih, weights.b_ih)
    replayed_TBH += _rows(before_TBH[::every], weights.w_hh, weights.b_hh)
    replayed_TBH = replayed_TBH.relu_() if relu else replayed_TBH.tanh_()
    slopes_TBH = (hidden_TBH > 0).to(hidden_TBH) if relu else 1 - hidden_TBH.square()
    return Gates(hidden_TBH.unsqueeze(2), slopes_TBH.unsqueeze(2), replayed_TBH, every)


def _rows(values_TBI: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One matrix product for all timesteps: (T, B, G), in memory of its own."""
    rows = functional.linear(values_TBI.flatten(0, 1), weight, bias)
    return rows.view(*values_TBI.shape[:2], -1)
