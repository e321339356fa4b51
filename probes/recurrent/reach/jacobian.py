"""How strongly the final state of recurrent layers depends on earlier states and inputs.

Rows of the Jacobian are carried backwards over time through all layers of a stack in lock-step, so
that no product of Jacobians is ever formed. They are divided by their norm at every step, whose
logarithm is kept: values far below the smallest float32 come out.

Time is counted back from the end, which is the last timestep that a direction reads: lag 0.

Shapes: B sample, K lag, L layer, V row of the Jacobian, I input feature, P hidden state, H unit,
Q gate, G rows of all gates (Q * H).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from probes.recurrent.backward.cells import Weights
from probes.recurrent.backward.record import Site, Trajectory


class State(NamedTuple):
    """Rows of derivatives by the state of one layer."""

    hidden: Tensor
    """Shape (B, V, P)."""
    cell: Tensor | None
    """By the cell state at a given hidden state, shape (B, V, H); only of an LSTM."""


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

    def before(self, lag: int, state: State) -> tuple[State, Tensor]:
        """Pull rows at the state after a step back to the state before it and to its input.

        Parameters
        ----------
        lag : int
            Of the step.
        state : State
            Rows by the state after it.

        Returns
        -------
        State
            Rows by the state before.
        Tensor, shape (B, V, I)
            Rows by the input of the step.
        """
        slopes_B1QH = self.slopes[lag].unsqueeze(1)
        w_ih, w_hh = self.weights.w_ih, self.weights.w_hh
        if self.kind == "lstm":
            delta_BVG, cell_BVH = self._lstm(lag, state, slopes_B1QH)
            return State(delta_BVG @ w_hh, cell_BVH), delta_BVG @ w_ih
        if self.kind == "gru":
            return self._gru(lag, state.hidden, slopes_B1QH)
        delta_BVH = state.hidden * slopes_B1QH[:, :, 0]
        return State(delta_BVH @ w_hh, None), delta_BVH @ w_ih

    def _lstm(self, lag: int, state: State, slopes_B1QH: Tensor) -> tuple[Tensor, Tensor]:
        """Rows by the pre-activations, and by the cell state before."""
        assert state.cell is not None
        assert self.carry is not None
        assert self.through is not None
        w_hr = self.weights.w_hr
        unprojected = state.hidden if w_hr is None else state.hidden @ w_hr
        through_B1H, forget_B1H = self.through[lag].unsqueeze(1), self.carry[lag].unsqueeze(1)
        cell_BVH = torch.addcmul(state.cell, unprojected, through_B1H)
        delta = slopes_B1QH.new_empty(*cell_BVH.shape[:2], *slopes_B1QH.shape[2:])
        torch.mul(slopes_B1QH[:, :, :3], cell_BVH.unsqueeze(2), out=delta[:, :, :3])
        torch.mul(slopes_B1QH[:, :, 3], unprojected, out=delta[:, :, 3])
        return delta.flatten(2), cell_BVH * forget_B1H

    def _gru(self, lag: int, hidden_BVH: Tensor, slopes_B1QH: Tensor) -> tuple[State, Tensor]:
        """Pull back through a GRU, whose candidate has another slope on the input side."""
        assert self.carry is not None
        assert self.through is not None
        delta_BVQH = slopes_B1QH * hidden_BVH.unsqueeze(2)
        straight_BVH = hidden_BVH * self.carry[lag].unsqueeze(1)
        before_BVH = straight_BVH + delta_BVQH.flatten(2) @ self.weights.w_hh
        torch.mul(hidden_BVH, self.through[lag].unsqueeze(1), out=delta_BVQH[:, :, 2])
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
    states = [zero_state(layer, rows) for layer in layers]
    states[-1] = State(rows, states[-1].cell)
    earlier = list(states)
    log_B = rows.new_zeros(len(rows), dtype=torch.float64)
    state_KLB, input_KB, largest = [], [], {}
    for lag in range(len(layers[0].slopes)):
        x_BVI: Tensor | None = None
        for place in reversed(range(len(layers))):
            if x_BVI is not None:
                states[place] = State(states[place].hidden + x_BVI, states[place].cell)
            earlier[place], x_BVI = layers[place].before(lag, states[place])
        assert x_BVI is not None
        norms_LB = torch.stack([_norm(state) for state in states])
        state_KLB.append(norms_LB.log() + log_B)
        input_KB.append(_length(x_BVI).log() + log_B)
        if lag in spectral:
            largest[lag] = _spectral_norm(states).log() + log_B
        size_B = torch.linalg.vector_norm(norms_LB, dim=0)
        size_B = torch.where(size_B > 0, size_B, 1.0)
        states = [_divided(state, size_B) for state in earlier]
        log_B = log_B + size_B.log()
    return Reach(torch.stack(state_KLB), torch.stack(input_KB), largest)


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


def linearized(site: Site, module: nn.Module, trajectory: Trajectory, at: Tensor) -> Linearized:
    """Linearize one layer and direction along its trajectory.

    Parameters
    ----------
    site : Site
        Which.
    module : Module
        That holds its weights.
    trajectory : Trajectory
        What it did, in the order of the data.
    at : Tensor, shape (K, B)
        Timestep in the data of every lag.
    """
    weights = weights_of(module, site)
    rows_B = torch.arange(at.shape[1], device=at.device)

    def lagged(values_TB: Tensor) -> Tensor:
        return values_TB[at, rows_B]

    if site.kind == "lstm":
        assert trajectory.cell is not None
        assert trajectory.cell_before is not None
        cells = lagged(trajectory.cell), lagged(trajectory.cell_before)
        return _linearized_lstm(weights, lagged(trajectory.gates), *cells)
    if site.kind == "gru":
        return _linearized_gru(weights, lagged(trajectory.gates), lagged(trajectory.before))
    hidden_KBH = lagged(trajectory.hidden)
    relu = site.kind == "rnn_relu"
    slopes_KBH = (hidden_KBH > 0).to(hidden_KBH) if relu else 1 - hidden_KBH.square()
    return Linearized(site.kind, weights, slopes_KBH.unsqueeze(2))


def weights_of(module: nn.Module, site: Site) -> Weights:
    """Read the weights of one layer and direction of a recurrent module, or of a cell."""
    suffix = "" if isinstance(module, nn.RNNCellBase) else f"_l{site.layer}"
    suffix += "_reverse" if site.reverse else ""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    found = [getattr(module, name + suffix, None) for name in names]
    return Weights(*(None if weight is None else weight.detach() for weight in found))  # type: ignore[arg-type]


def _linearized_lstm(
    weights: Weights, gates_KBQH: Tensor, cell_KBH: Tensor, before_KBH: Tensor
) -> Linearized:
    """Slopes of an LSTM from its activated gates i, f, g, o and its cell states."""
    i, f, g, o = gates_KBQH.unbind(2)
    tanh_KBH = cell_KBH.tanh()
    slopes = (
        g * i * (1 - i),
        before_KBH * f * (1 - f),
        i * (1 - g.square()),
        tanh_KBH * o * (1 - o),
    )
    through_KBH = o * (1 - tanh_KBH.square())
    return Linearized("lstm", weights, torch.stack(slopes, 2), f.contiguous(), through_KBH)


def _linearized_gru(weights: Weights, gates_KBQH: Tensor, before_KBH: Tensor) -> Linearized:
    """Slopes of a GRU from its activated gates r, z, n and the hidden state before."""
    r, z, n = gates_KBQH.unbind(2)
    units = before_KBH.shape[-1]
    b_hn = None if weights.b_hh is None else weights.b_hh[-units:]
    q_KBH = functional.linear(before_KBH, weights.w_hh[-units:], b_hn)
    through_KBH = (1 - z) * (1 - n.square())
    slopes = through_KBH * q_KBH * r * (1 - r), (before_KBH - n) * z * (1 - z), through_KBH * r
    return Linearized("gru", weights, torch.stack(slopes, 2), z.contiguous(), through_KBH)


def zero_state(layer: Linearized, rows: Tensor) -> State:
    """Give the rows of a layer that nothing has reached yet."""
    units, hidden = layer.slopes.shape[-1], layer.weights.w_hh.shape[1]
    cell = rows.new_zeros(*rows.shape[:2], units) if layer.kind == "lstm" else None
    return State(rows.new_zeros(*rows.shape[:2], hidden), cell)


def _mapped(state: State, function: Callable[[Tensor], Tensor]) -> State:
    """Apply a function to the parts that there are."""
    return State(function(state.hidden), None if state.cell is None else function(state.cell))


def _divided(state: State, size_B: Tensor) -> State:
    """Divide the rows of every sample by its size."""
    factor_B11 = size_B.reciprocal()[:, None, None]
    return _mapped(state, lambda rows: rows * factor_B11.to(rows.dtype))


def _length(rows_BVI: Tensor) -> Tensor:
    """Frobenius norm in float64, whose squares do not underflow: (B,)."""
    lengths_B: Tensor = torch.linalg.vector_norm(rows_BVI.flatten(1), dim=1, dtype=torch.float64)
    return lengths_B


def _norm(state: State) -> Tensor:
    """Frobenius norm by the whole state of a layer: (B,)."""
    hidden_B = _length(state.hidden)
    return hidden_B if state.cell is None else torch.hypot(hidden_B, _length(state.cell))


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
