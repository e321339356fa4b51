"""How strongly the final state of recurrent layers depends on earlier states and inputs.

Rows of the Jacobian are carried backwards over time through all layers of a stack in lock-step, so
that no product of Jacobians is ever formed. They are divided by their norm at every step, whose
logarithm is kept: values far below the smallest float32 come out.

Time is counted back from the end, which is the last timestep that a direction reads: lag 0.

Shapes: B sample, K lag, L layer, V row of the Jacobian, I input feature, P hidden state, H unit,
Q gate, G rows of all gates (Q * H).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from probes.recurrent.backward.cells import Weights
from probes.recurrent.watching.reading import Reading

GATES = 2**22
"""Numbers in the gates that are computed anew together."""


class State(NamedTuple):
    """Rows of derivatives by the state of one layer."""

    hidden: Tensor
    """Shape (B, V, P)."""
    cell: Tensor | None
    """By the cell state at a given hidden state, shape (B, V, H); only of an LSTM."""


class _At(NamedTuple):
    """What a layer is linearized to at one lag, the same for all rows."""

    slopes: Tensor
    """Shape (B, 1, Q, H)."""
    carry: Tensor
    """Shape (B, 1, H); none of an Elman network."""
    through: Tensor
    """Likewise."""


@dataclass(frozen=True, eq=False)
class Linearized:
    """One layer in one direction, linearized along what it did: the end first.

    Parameters
    ----------
    kind : str
        "lstm", "gru", "rnn_tanh" or "rnn_relu".
    weights : Weights
        Of this layer and direction.
    slopes : Tensor, shape (K, B, Q, H)
        d(state) / d(pre-activation on the recurrent side), as in
        :mod:`probes.recurrent.backward.cells`.
    carry : Tensor, shape (K, B, H), optional
        What passes the state straight on: forget gate (LSTM) or update gate (GRU).
    through : Tensor, shape (K, B, H), optional
        LSTM: d m_t / d c_t. GRU: slope of the candidate on the input side.
    """

    kind: str
    weights: Weights
    slopes: Tensor
    carry: Tensor | None = None
    through: Tensor | None = None

    def before(self, lag: int, state: State, *, inputs: bool = True) -> tuple[State, Tensor | None]:
        """Pull rows at the state after a step back to the state before it and to its input.

        Parameters
        ----------
        lag : int
            Of the step.
        state : State
            Rows by the state after it.
        inputs : bool
            Whether those by the input are wanted too.

        Returns
        -------
        State
            Rows by the state before.
        Tensor, shape (B, V, I)
            Rows by the input of the step; None if not wanted.
        """
        if self.kind == "gru":
            return self._gru(self._at[lag], state.hidden, inputs=inputs)
        cell_BVH = None
        if self.kind == "lstm":
            delta_BVG, cell_BVH = self._lstm(self._at[lag], state)
        else:
            delta_BVG = state.hidden * self._at[lag].slopes[:, :, 0]
        x_BVI = delta_BVG @ self.weights.w_ih if inputs else None
        return State(delta_BVG @ self.weights.w_hh, cell_BVH), x_BVI

    @cached_property
    def _at(self) -> list[_At]:
        """Views of every lag, which to take one by one is slow."""
        nothing = [None] * len(self.slopes)
        columns = (
            nothing if values is None else values.unsqueeze(2).unbind(0)
            for values in (self.slopes, self.carry, self.through)
        )
        return [_At(*values) for values in zip(*columns, strict=True)]

    def _lstm(self, at: _At, state: State) -> tuple[Tensor, Tensor]:
        """Rows by the pre-activations, and by the cell state before."""
        assert state.cell is not None
        w_hr = self.weights.w_hr
        unprojected = state.hidden if w_hr is None else state.hidden @ w_hr
        cell_BVH = torch.addcmul(state.cell, unprojected, at.through)
        delta = cell_BVH.new_empty(*cell_BVH.shape[:2], *at.slopes.shape[2:])
        torch.mul(at.slopes[:, :, :3], cell_BVH.unsqueeze(2), out=delta[:, :, :3])
        torch.mul(at.slopes[:, :, 3], unprojected, out=delta[:, :, 3])
        return delta.flatten(2), cell_BVH.mul_(at.carry)

    def _gru(self, at: _At, hidden_BVH: Tensor, *, inputs: bool) -> tuple[State, Tensor | None]:
        """Pull back through a GRU, whose candidate has another slope on the input side."""
        delta_BVQH = at.slopes * hidden_BVH.unsqueeze(2)
        before_BVH = delta_BVQH.flatten(2) @ self.weights.w_hh
        before_BVH.addcmul_(hidden_BVH, at.carry)
        if not inputs:
            return State(before_BVH, None), None
        torch.mul(hidden_BVH, at.through, out=delta_BVQH[:, :, 2])
        return State(before_BVH, None), delta_BVQH.flatten(2) @ self.weights.w_ih


class Reach(NamedTuple):
    """Natural logarithms of norms of derivatives of the final hidden state of the last layer."""

    state: Tensor
    """Frobenius norm by the hidden and cell state of every layer, shape (K, L, B)."""
    input: Tensor
    """Frobenius norm by the input of the first layer, shape (K, B)."""
    spectral: dict[int, Tensor]
    """Lag -> spectral norm by the state of all layers together, (B,); of the lags asked for."""


def reach(layers: Sequence[Linearized], rows: Tensor, spectral: Collection[int] = ()) -> Reach:
    """Follow rows of the final hidden state back over all lags.

    Parameters
    ----------
    layers : sequence of Linearized
        From the one that reads the input to the one whose final state is meant.
    rows : Tensor, shape (B, V, P)
        Left factors of the Jacobian: :func:`all_rows`, or :func:`random_rows` for an estimate.
    spectral : collection of int
        Lags at which the spectral norm is wanted too; it is that of ``rows @ Jacobian``.

    References
    ----------
    .. [1] Pascanu et al., On the difficulty of training recurrent neural networks (2013), for the
       product of Jacobians.
    """
    count = len(layers[0].slopes)
    states = [zero_state(layer, rows) for layer in layers]
    states[-1] = State(rows, states[-1].cell)
    cells = any(state.cell is not None for state in states)
    # Norms of the rows as they are kept, divided by the sizes of all lags before.
    state_KLNB = rows.new_zeros(count, len(layers), 1 + cells, len(rows), dtype=torch.float64)
    input_KB = torch.empty_like(state_KLNB[:, 0, 0])
    largest = {}
    for lag in range(count):
        states, earlier, x_BVI = step_back(layers, lag, states, inputs=True)
        assert x_BVI is not None
        norms_LNB = state_KLNB[lag]
        for own_NB, state in zip(norms_LNB, states, strict=True):
            for norm_B, part in zip(own_NB, state, strict=False):
                if part is not None:
                    _length(part, norm_B)
        _length(x_BVI, input_KB[lag])
        if lag in spectral:
            largest[lag] = _spectral_norm(states).log()
        states = _divided(earlier, sized(torch.linalg.vector_norm(norms_LNB, dim=(0, 1))))
    size_KB = sized(torch.linalg.vector_norm(state_KLNB, dim=(1, 2)))
    log_KB = torch.cat([torch.zeros_like(size_KB[:1]), size_KB[:-1].log().cumsum(0)])
    return Reach(
        torch.linalg.vector_norm(state_KLNB, dim=2).log() + log_KB.unsqueeze(1),
        input_KB.log() + log_KB,
        {lag: log_B + log_KB[lag] for lag, log_B in largest.items()},
    )


def step_back(
    layers: Sequence[Linearized], lag: int, states: Sequence[State], *, inputs: bool
) -> tuple[list[State], list[State], Tensor | None]:
    """Go one step back in all layers, from the last one to the first.

    Parameters
    ----------
    layers : sequence of Linearized
        From the one that reads the input.
    lag : int
        Of the step.
    states : sequence of State
        Rows by the states after the step, but for what the layers above read of them in it.
    inputs : bool
        Whether the rows by the input of the first layer are wanted.

    Returns
    -------
    list of State
        Rows by the states after the step, in all.
    list of State
        Rows by those before it, but for what the layers above read of them.
    Tensor, shape (B, V, I)
        Rows by the input of the first layer; None if not wanted.
    """
    here, earlier = list(states), list(states)
    x_BVI: Tensor | None = None
    for place in reversed(range(len(layers))):
        if x_BVI is not None:
            here[place] = State(here[place].hidden + x_BVI, here[place].cell)
        wanted = inputs or place > 0
        earlier[place], x_BVI = layers[place].before(lag, here[place], inputs=wanted)
    return here, earlier, x_BVI


def all_rows(samples: int, like: Tensor, units: int) -> Tensor:
    """All rows of the Jacobian: (B, P, P)."""
    identity_PP = torch.eye(units, dtype=like.dtype, device=like.device)
    return identity_PP.expand(samples, units, units)


def random_rows(
    samples: int, count: int, like: Tensor, units: int, generator: torch.Generator
) -> Tensor:
    """Random orthonormal combinations of the rows, drawn anew for every sample: (B, V, P).

    The squared Frobenius norm of what they leave of a Jacobian is that of the whole in the mean.
    """
    normal = torch.randn(samples, units, count, dtype=torch.float64, generator=generator)
    rows_BVP: Tensor = torch.linalg.qr(normal).Q.mT * (units / count) ** 0.5
    return rows_BVP.contiguous().to(like)


def linearized(reading: Reading, count: int) -> tuple[Linearized, float]:
    """Linearize one layer and direction along what it did in the last timesteps it read.

    Parameters
    ----------
    reading : Reading
        Of the layer.
    count : int
        Timesteps, counted back from the last valid one of every sample; the first one is repeated
        where there are fewer.

    Returns
    -------
    Linearized
        Of shape (K, B, ...) with ``count`` lags.
    float
        Largest error of the replay as a share of the largest hidden state.
    """
    parts = [_lagged(chunk, count) for chunk in reading.chunks(GATES)]
    slopes, carry, through = (
        None if column[0] is None else torch.cat(column, 1)
        for column in zip(*(part[:3] for part in parts), strict=True)
    )
    assert slopes is not None
    weights, residual = reading.weights, max(part.residual for part in parts)
    return Linearized(reading.site.kind, weights, slopes, carry, through), residual


class _Lagged(NamedTuple):
    """What some samples of a layer computed, the end first."""

    slopes: Tensor
    carry: Tensor | None
    through: Tensor | None
    residual: float


def _lagged(reading: Reading, count: int) -> _Lagged:
    """Turn round what a layer computed, and align it at the end of every sample."""
    timesteps = len(reading.valid)
    step_T1 = torch.arange(timesteps, device=reading.valid.device)[:, None]
    last_B = torch.where(reading.valid, step_T1, 0).amax(0)
    first_B = torch.where(reading.valid, step_T1, timesteps).amin(0)
    lag_K1 = torch.arange(count, device=last_B.device)[:, None]
    at_KB = torch.maximum(last_B - lag_K1, first_B.clamp_max(timesteps - 1))
    # Several times as fast as indexing with timesteps and samples.
    row_N = (at_KB * len(last_B) + torch.arange(len(last_B), device=last_B.device)).flatten()
    replay = reading.replay()

    def aligned(values_TB: Tensor) -> Tensor:
        picked = values_TB.flatten(0, 1).index_select(0, row_N)
        return picked.view(*at_KB.shape, *values_TB.shape[2:])

    gated = reading.site.kind in ("lstm", "gru")
    return _Lagged(
        aligned(replay.slopes),
        aligned(replay.activations[:, :, 1]) if gated else None,
        None if replay.through is None else aligned(replay.through),
        replay.residual,
    )


def zero_state(layer: Linearized, rows: Tensor) -> State:
    """Give the rows of a layer that nothing has reached yet."""
    units, hidden = layer.slopes.shape[-1], layer.weights.w_hh.shape[1]
    cell = rows.new_zeros(*rows.shape[:2], units) if layer.kind == "lstm" else None
    return State(rows.new_zeros(*rows.shape[:2], hidden), cell)


def sized(size_B: Tensor) -> Tensor:
    """Sizes to divide by: 1 where there is nothing to divide, or no number."""
    return torch.where(size_B > 0, size_B, 1.0)


def _divided(states: Sequence[State], size_B: Tensor) -> list[State]:
    """Divide the rows of every sample by its size, in place."""
    factor_B11 = size_B.reciprocal()[:, None, None].to(states[0].hidden.dtype)
    for state in states:
        for part in state:
            if part is not None:
                part.mul_(factor_B11)
    return list(states)


def _length(rows_BVI: Tensor, out_B: Tensor) -> None:
    """Write the Frobenius norm in float64, whose squares do not underflow."""
    torch.linalg.vector_norm(rows_BVI.flatten(1), dim=1, dtype=torch.float64, out=out_B)


def _spectral_norm(states: Sequence[State]) -> Tensor:
    """Largest singular value of the rows by the states of all layers: (B,); nan of nan."""
    parts = [part for state in states for part in state if part is not None]
    rows_BVS = torch.cat(parts, -1).double()
    gram_BVV = rows_BVS @ rows_BVS.mT
    # LAPACK fails on the whole batch for one sample.
    finite_B = gram_BVV.isfinite().flatten(1).all(1)
    values_BV = torch.linalg.eigvalsh(gram_BVV.where(finite_B[:, None, None], 0))
    norms_B: Tensor = values_BV[:, -1].clamp_min(0).sqrt().where(finite_B, torch.nan)
    return norms_B
