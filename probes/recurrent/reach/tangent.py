"""Tangents of recurrent states: how small changes of a state grow or fade along its trajectory.

The state map of a layer takes the state before a timestep to the state after it, with the inputs
as they were. Its derivative is applied to directions here, never formed.

Shapes: as in :mod:`probes.recurrent.backward.cells`; V direction, S state (hidden and cell state
together).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from probes.recurrent.backward.cells import Weights
from probes.recurrent.watching.reading import Reading, Replay


class Local(NamedTuple):
    """What the derivative of the state map is made of at one timestep; samples come first."""

    slopes: Tensor
    """Shape (B, K, H), as of :class:`probes.recurrent.backward.cells.Gates`."""
    carried: Tensor | None
    """What the state is multiplied by on its direct way: forget gate (LSTM), update gate (GRU);
    shape (B, H)."""
    through: Tensor | None
    """LSTM: d m_t / d c_t. GRU: slope of the candidate on the input side. Shape (B, H)."""


def locals_of(replay: Replay, kind: str) -> list[Local]:
    """List the local derivatives of every timestep.

    Parameters
    ----------
    replay : Replay
        Of the layer.
    kind : str
        "lstm", "gru", "rnn_tanh" or "rnn_relu".
    """
    nothing = [None] * len(replay.slopes)
    carried = replay.activations[:, :, 1].unbind(0) if kind in ("lstm", "gru") else nothing
    through = nothing if replay.through is None else replay.through.unbind(0)
    return [Local(*parts) for parts in zip(replay.slopes.unbind(0), carried, through, strict=True)]


def advance(
    kind: str,
    weights: Weights,
    at: Local,
    tangent_BVS: Tensor,
    entering_BVI: Tensor | None = None,
) -> Tensor:
    """Apply the derivative of the state map of one timestep to directions.

    Parameters
    ----------
    kind : str
        "lstm", "gru", "rnn_tanh" or "rnn_relu".
    weights : Weights
        Of the layer.
    at : Local
        Local derivatives at this timestep.
    tangent_BVS : Tensor, shape (B, V, S)
        Changes of the state before it: of the hidden state, then of the cell state of an LSTM.
    entering_BVI : Tensor, shape (B, V, I), optional
        Changes of the input; none if not given.

    Returns
    -------
    Tensor, shape (B, V, S)
        Changes of the state after it.
    """
    if kind == "lstm":
        return _advance_lstm(weights, at, tangent_BVS, entering_BVI)
    change_BVKH = _gated(tangent_BVS, weights.w_hh, at.slopes)
    if entering_BVI is not None:
        change_BVKH = change_BVKH + _gated(entering_BVI, weights.w_ih, _input_slopes(kind, at))
    if kind == "gru":
        assert at.carried is not None
        return torch.addcmul(change_BVKH.sum(2), at.carried.unsqueeze(1), tangent_BVS)
    return change_BVKH.squeeze(2)


def _advance_lstm(
    weights: Weights, at: Local, tangent_BVS: Tensor, entering_BVI: Tensor | None
) -> Tensor:
    """Apply the derivative of an LSTM step, whose cell state does not go through the weights."""
    assert at.carried is not None
    assert at.through is not None
    units = weights.w_hh.shape[1]
    hidden_BVP, cell_BVH = tangent_BVS[..., :units], tangent_BVS[..., units:]
    change_BVKH = _gated(hidden_BVP, weights.w_hh, at.slopes)
    if entering_BVI is not None:
        change_BVKH = change_BVKH + _gated(entering_BVI, weights.w_ih, at.slopes)
    i, f, g, o = change_BVKH.unbind(2)
    cell_BVH = torch.addcmul(i + f + g, at.carried.unsqueeze(1), cell_BVH)
    m_BVH = torch.addcmul(o, at.through.unsqueeze(1), cell_BVH)
    hidden_BVP = m_BVH if weights.w_hr is None else m_BVH @ weights.w_hr.t()
    return torch.cat([hidden_BVP, cell_BVH], -1)


def _input_slopes(kind: str, at: Local) -> Tensor:
    """Slopes on the input side, which in a GRU are not those of the recurrent one: (B, K, H)."""
    if kind != "gru":
        return at.slopes
    assert at.through is not None
    return torch.cat([at.slopes[:, :2], at.through.unsqueeze(1)], 1)


def _gated(values_BVI: Tensor, weight_GI: Tensor, slopes_BKH: Tensor) -> Tensor:
    """Change of the state by way of every gate: (B, V, K, H)."""
    gates_BVG = values_BVI @ weight_GI.t()
    return gates_BVG.view(*values_BVI.shape[:2], *slopes_BKH.shape[1:]) * slopes_BKH.unsqueeze(1)


class Spectrum(NamedTuple):
    """Lyapunov exponents of some trajectories."""

    exponents: Tensor
    """Largest first, shape (B, V); nan where no timestep counts [1 / timestep]."""
    first_half: Tensor
    """Likewise from the first half of the timesteps that count."""
    steps: Tensor
    """How many timesteps count, shape (B,)."""


def spectrum(
    reading: Reading, replay: Replay, count: int, transient: float, generator: torch.Generator
) -> Spectrum:
    """Estimate the largest Lyapunov exponents of the driven state map of one layer.

    Random orthonormal directions are taken along the trajectory and made orthonormal again at
    every timestep; an exponent is the mean logarithm of what a direction grew by.

    Parameters
    ----------
    reading, replay : Reading, Replay
        Of the layer.
    count : int
        How many exponents; at most the size of the state.
    transient : float
        Share of the timesteps that is left for the directions to turn to where they grow.
    generator : torch.Generator
        Of the first directions; on the CPU.

    References
    ----------
    .. [1] Benettin et al., Lyapunov characteristic exponents for smooth dynamical systems (1980).
    .. [2] Engelken, Wolf and Abbott, Lyapunov spectra of chaotic recurrent neural networks (2023).
    """
    kind, weights = reading.site.kind, reading.weights
    size = reading.hidden.shape[-1] + (reading.cells[0].shape[-1] if reading.cells else 0)
    samples, hidden = reading.hidden.shape[1], reading.hidden
    start = torch.randn(samples, size, min(count, size), generator=generator, dtype=torch.float64)
    basis_BSV = torch.linalg.qr(start)[0].to(hidden)
    grown = []
    for at in locals_of(replay, kind):
        tangent_BVS = advance(kind, weights, at, basis_BSV.transpose(1, 2))
        basis_BSV, r_BVV = torch.linalg.qr(tangent_BVS.transpose(1, 2))
        grown.append(r_BVV.diagonal(dim1=1, dim2=2))
    # A direction that is mapped to zero has shrunk by all that can be told apart.
    tiny = torch.finfo(hidden.dtype).tiny
    log_TBV = torch.stack(grown).abs().double().clamp_min(tiny).log()
    return _averaged(log_TBV, reading.valid, transient)


def _averaged(log_TBV: Tensor, valid_TB: Tensor, transient: float) -> Spectrum:
    """Average growth over the timesteps that count, and over the first half of them."""
    place_TB = valid_TB.cumsum(0)
    length_B = valid_TB.sum(0)
    skipped_B = (transient * length_B).ceil()
    middle_B = skipped_B + (length_B - skipped_B) / 2
    counted_TB = valid_TB & (place_TB > skipped_B)

    def mean(mask_TB: Tensor) -> Tensor:
        total_BV = (log_TBV * mask_TB.unsqueeze(-1)).sum(0)
        return (total_BV / mask_TB.sum(0)[:, None]).sort(-1, descending=True)[0]

    return Spectrum(mean(counted_TB), mean(counted_TB & (place_TB <= middle_B)), counted_TB.sum(0))
