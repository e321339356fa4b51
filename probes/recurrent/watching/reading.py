"""What one recurrent layer read, returned and computed inside, in the order in which it reads.

Shapes: as in :mod:`probes.recurrent.backward.cells`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from probes.recurrent.backward.bptt import Past
from probes.recurrent.backward.cells import Gates, Weights
from probes.recurrent.backward.record import Site
from probes.recurrent.backward.replay import gates_of


class Replay(NamedTuple):
    """What a layer computed at every timestep, in the order in which it reads."""

    activations: Tensor
    """Activated gates, shape (T, B, K, H): i, f, g, o (LSTM); r, z, n (GRU); h_t (RNN)."""
    slopes: Tensor
    """d(state) / d(pre-activation on the recurrent side), as of
    :class:`probes.recurrent.backward.cells.Gates`, shape (T, B, K, H)."""
    through: Tensor | None
    """LSTM: d m_t / d c_t. GRU: slope of the candidate on the input side. Shape (T, B, H)."""
    residual: float
    """Largest difference of replayed and real hidden states, as a share of the largest [1]."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One layer and direction over one sequence of calls, in the order in which it reads.

    Parameters
    ----------
    site : Site
        Where.
    weights : Weights
        Of this layer and direction.
    x, before, hidden : Tensor, shape (T, B, I), (T, B, P), (T, B, P)
        Inputs, and the hidden states before and after every timestep.
    entering : Tensor, shape (T, B, ...)
        Inputs of the module, that is of its first layer, in the order of this direction.
    valid : Tensor of bool, shape (T, B)
        Which timesteps are no padding.
    calls : tuple of int
        Timesteps of each call that the sequence is made of.
    cells : tuple of Tensor, shape (B, H)
        Cell state of an LSTM before each call; empty without one.
    """

    site: Site
    weights: Weights
    x: Tensor
    before: Tensor
    hidden: Tensor
    entering: Tensor
    valid: Tensor
    calls: tuple[int, ...]
    cells: tuple[Tensor, ...]

    @property
    def kind(self) -> str:
        """Class of the layer: LSTM, GRU or RNN."""
        return self.site.kind.partition("_")[0].upper()

    def rows(self, start: int, stop: int) -> "Reading":
        """Take some of the samples."""
        whole = (self.x, self.before, self.hidden, self.entering, self.valid)
        x, before, hidden, entering, valid = (values[:, start:stop] for values in whole)
        cells = tuple(cell[start:stop] for cell in self.cells)
        return replace(
            self, x=x, before=before, hidden=hidden, entering=entering, valid=valid, cells=cells
        )

    def chunks(self, elements: int) -> Iterator["Reading"]:
        """Cut the samples so that their gates have about ``elements`` numbers at most."""
        timesteps, samples, _ = self.hidden.shape
        width = max(1, elements // max(1, timesteps * len(self.weights.w_hh)))
        for start in range(0, samples, width):
            yield self.rows(start, start + width)

    def replay(self) -> Replay:
        """Compute the gates of every timestep anew."""
        if len(self.calls) == 1:
            return self._replay(self.x, self.before, self.hidden, self.valid, self.cells[:1])
        if all(timesteps == 1 for timesteps in self.calls):
            return self._replay_cell()
        starts = [sum(self.calls[:index]) for index in range(len(self.calls))]
        parts = []
        for index, (start, timesteps) in enumerate(zip(starts, self.calls, strict=True)):
            own = slice(start, start + timesteps)
            values = (self.x[own], self.before[own], self.hidden[own], self.valid[own])
            parts.append(self._replay(*values, self.cells[index : index + 1]))
        through = [part.through for part in parts if part.through is not None]
        return Replay(
            torch.cat([part.activations for part in parts]),
            torch.cat([part.slopes for part in parts]),
            torch.cat(through) if through else None,
            max(part.residual for part in parts),
        )

    def _replay_cell(self) -> Replay:
        """Replay all calls of a cell at once: each has its own state, so they are like samples."""
        timesteps, samples = self.hidden.shape[:2]

        def folded(values: Tensor) -> Tensor:
            return values.flatten(0, 1).unsqueeze(0)

        def unfolded(values: Tensor) -> Tensor:
            return values.reshape(timesteps, samples, *values.shape[2:])

        x, before, hidden = map(folded, (self.x, self.before, self.hidden))
        cells = (torch.cat(self.cells),) if self.cells else ()
        found = self._replay(x, before, hidden, folded(self.valid), cells)
        through = None if found.through is None else unfolded(found.through)
        return Replay(unfolded(found.activations), unfolded(found.slopes), through, found.residual)

    def _replay(
        self, x: Tensor, before: Tensor, hidden: Tensor, valid: Tensor, cells: Sequence[Tensor]
    ) -> Replay:
        """Replay timesteps whose states follow from each other."""
        c0_BH = cells[0] if cells else None
        gates = gates_of(self.site.kind, self.weights, Past(x, hidden, before[0], c0_BH))
        residual = _residual(gates, hidden, valid)
        return Replay(gates.activations, gates.slopes, gates.through, residual)


def _residual(gates: Gates, hidden_TBP: Tensor, valid_TB: Tensor) -> float:
    """Largest error of the replay as a share of the largest hidden state."""
    error_TBP = (gates.replayed - hidden_TBP[:: gates.every]).abs()
    largest = hidden_TBP.abs().amax().clamp_min(torch.finfo(hidden_TBP.dtype).tiny)
    return float((error_TBP * valid_TB[:: gates.every].unsqueeze(-1)).amax() / largest)
