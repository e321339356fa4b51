"""What one backward pass leaves behind, for every recurrent layer, direction and timestep.

Shapes: as in :mod:`probes.recurrent.backward.cells`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from probes.recurrent.backward.bptt import Factor

Keep = Literal["norms", "factors", "all"]
"""How much of a backward pass is kept: norms over units, the factors of the weights' gradients as
well, or every tensor."""


@dataclass(frozen=True)
class Site:
    """One layer of a recurrent module in one direction, over one sequence that it read.

    Parameters
    ----------
    module : str
        Its name in ``named_modules()``; empty for the model itself.
    kind : str
        "lstm", "gru", "rnn_tanh" or "rnn_relu".
    layer : int
        Layer within the module, from 0.
    reverse : bool
        Whether this direction reads the data from its end.
    sequence : int
        0 for the first sequence the module read. Calls that go on from the state of the previous
        call are one sequence.
    """

    module: str
    kind: str
    layer: int = 0
    reverse: bool = False
    sequence: int = 0

    @property
    def label(self) -> str:
        """Name as traces show it, such as "encoder.l1.reverse" or "encoder.call2.l0"."""
        parts = [self.module] if self.module else []
        parts += [f"call{self.sequence + 1}"] if self.sequence else []
        parts += [f"l{self.layer}"]
        parts += ["reverse"] if self.reverse else []
        return ".".join(parts)


@dataclass(frozen=True)
class Segment:
    """Part of a sequence: one layer and direction during one call of its module."""

    site: Site
    timesteps: int
    units: int
    """Size of the hidden state."""
    cells: int
    """Size of the cell state; 0 without one."""
    lengths: Tensor
    """Valid timesteps of each sample [timestep]."""


class Trajectory(NamedTuple):
    """States, gates and their gradients of one layer and direction, in the order of the data."""

    x: Tensor
    """Inputs, shape (T, B, I)."""
    before: Tensor
    """Hidden state before each timestep, shape (T, B, P): before in the order of reading."""
    hidden: Tensor
    """Hidden state, shape (T, B, P)."""
    gates: Tensor
    """Activated gates, shape (T, B, K, H): i, f, g, o (LSTM); r, z, n (GRU); h_t (RNN)."""
    hidden_gradient: Tensor
    """dL/dh_t, shape (T, B, P)."""
    input_side_gradient: Tensor
    """dL/d(W_ih x_t + b_ih), shape (T, B, G)."""
    recurrent_side_gradient: Tensor
    """dL/d(W_hh h_{t-1} + b_hh), shape (T, B, G)."""
    cell_before: Tensor | None = None
    """Cell state of an LSTM before each timestep, shape (T, B, H)."""
    cell: Tensor | None = None
    """Cell state of an LSTM, shape (T, B, H)."""
    cell_gradient: Tensor | None = None
    """dL/dc_t, shape (T, B, H)."""


class Measured(NamedTuple):
    """What a backward pass leaves of one layer and direction."""

    hidden: Tensor
    """L2 norm over units of dL/dh_t, shape (T, B), in the order of the data [loss / state]."""
    cell: Tensor | None
    """Likewise of dL/dc_t; None but of an LSTM."""
    gate: Tensor
    """L2 norm of dL/d(W_hh h_{t-1} + b_hh) over all gates, shape (T, B)."""
    state: Tensor
    """L2 norm of h_t itself, shape (T, B)."""
    residual: Tensor
    """Largest difference of replayed and real hidden states, as a share of the largest [1]."""
    trajectory: Trajectory | None = None
    """Every tensor; only with ``keep="all"``, and where a gradient arrived at every call."""
    factors: tuple[Factor, ...] = ()
    """Gradients of the weights, in the order of the data; only with ``keep="factors"``."""


class StateGradients(NamedTuple):
    """Total derivatives of a loss with respect to the states of one site."""

    site: Site
    """Where."""
    units: int
    """Size of the hidden state."""
    cells: int
    """Size of the cell state; 0 without one."""
    lengths: Tensor
    """Valid timesteps of each sample, shape (B,) [timestep]."""
    reached: bool
    """Whether a gradient arrived at all; if not, everything measured is nan."""
    measured: Measured
    """Norms over units, in float64 on the CPU."""


def joined(segments: list[Segment], measured: list[Measured | None]) -> StateGradients:
    """Put the calls that make up one sequence one after the other."""
    first = segments[0]
    reached = any(part is not None for part in measured)
    parts = [
        part or _without_gradient(segment, 0.0 if reached else torch.nan)
        for segment, part in zip(segments, measured, strict=True)
    ]
    trajectories = [part.trajectory for part in parts if part.trajectory is not None]
    joined = Measured(
        torch.cat([part.hidden for part in parts]),
        _along_time([part.cell for part in parts]),
        torch.cat([part.gate for part in parts]),
        torch.cat([part.state for part in parts]),
        torch.stack([part.residual for part in parts]).amax(),
        _trajectory(trajectories) if len(trajectories) == len(parts) else None,
        _factors(parts),
    )
    lengths_B = torch.stack([segment.lengths for segment in segments]).sum(0)
    return StateGradients(first.site, first.units, first.cells, lengths_B, reached, joined)


def _without_gradient(segment: Segment, value: float) -> Measured:
    """Fill in for a call that no gradient arrived at."""
    shape = (segment.timesteps, len(segment.lengths))
    norms_TB = torch.full(shape, value, dtype=torch.float64)
    cell_TB = norms_TB if segment.cells else None
    state_TB = torch.full_like(norms_TB, torch.nan)
    return Measured(norms_TB, cell_TB, norms_TB, state_TB, norms_TB[0, 0])


def _trajectory(parts: list[Trajectory]) -> Trajectory:
    """Join trajectories along time."""
    return Trajectory(*(_along_time(list(column)) for column in zip(*parts, strict=True)))  # type: ignore[arg-type]


def _factors(parts: list[Measured]) -> tuple[Factor, ...]:
    """Join factors along time; a call that no gradient arrived at adds nothing to the weights."""
    known = next((part.factors for part in parts if part.factors), ())
    if len(parts) == 1:
        return known
    factors = []
    for index, like in enumerate(known):
        own = [
            part.factors[index] if part.factors else _nothing(like, len(part.hidden))
            for part in parts
        ]
        right = _along_time([factor.right for factor in own])
        factors.append(Factor(like.weight, torch.cat([factor.left for factor in own]), right))
    return tuple(factors)


def _nothing(like: Factor, timesteps: int) -> Factor:
    """Fill in for a call that adds nothing to the gradient of a weight."""
    left, right = (
        None if values is None else values.new_zeros(timesteps, *values.shape[1:])
        for values in (like.left, like.right)
    )
    assert left is not None
    return Factor(like.weight, left, right)


def _along_time(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Join tensors along time; None where they are None."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None
