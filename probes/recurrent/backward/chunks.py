"""Backpropagation through time cut into chunks, whose size doubles from pass to pass.

Between chunks the state is detached, as in truncated training. Joining every two chunks changes the
gradient in the earlier of them alone, by what now enters it from the later one. So after a first
pass with chunks of one timestep, each further power of two costs about half a backward pass.

Shapes: as in :mod:`probes.recurrent.backward.cells`; M chunk, W timestep of a chunk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from probes.recurrent.backward.bptt import Factor, Local, Past, Scan, backpropagate
from probes.recurrent.backward.cells import Weights
from probes.recurrent.backward.windows import Joined, Windows

Receive = Callable[[int, tuple[Factor, ...]], None]
"""``receive(key, factors)``: what one direction of a layer adds to the gradients of its weights."""


class Change(NamedTuple):
    """What a pass adds to the gradients of one direction of a layer; None is zero."""

    x: Tensor | None = None
    """Of its inputs, shape (T, B, I)."""
    h0: Tensor | None = None
    """Of the hidden state it began with, shape (B, P)."""
    c0: Tensor | None = None
    """Of the cell state it began with, shape (B, H)."""
    factors: tuple[Factor, ...] = ()
    """Of its weights; their timesteps are those that changed, in no particular order."""


class _Entering(NamedTuple):
    """Gradient of the state that enters every chunk, whether or not it is passed on."""

    hidden: Tensor
    """Shape (M, B, P)."""
    cell: Tensor | None
    """Shape (M, B, H); only of an LSTM."""


@dataclass(eq=False)
class Chunks:
    """One direction of a layer during one call of its module.

    Parameters
    ----------
    kind : str
        "lstm", "gru", "rnn_tanh" or "rnn_relu".
    weights : Weights
        Of this layer and direction.
    past : Past
        What it read and returned.
    local : Local
        What it computed.
    offset : int
        Where its first timestep is in the grid of chunks.
    begins : bool
        Whether no timestep comes before: the state it is given then is never detached.
    """

    kind: str
    weights: Weights
    past: Past
    local: Local
    offset: int
    begins: bool
    starts: list[int] = field(default_factory=list, init=False)
    """First timestep of every chunk."""
    entering: _Entering = field(init=False)

    @classmethod
    def joined(cls, calls: Sequence["Chunks"]) -> "Chunks":
        """Put calls of one timestep, one after the other and each a chunk, together."""
        first = calls[0]
        found = cls(
            first.kind,
            first.weights,
            Past(
                torch.cat([one.past.x for one in calls]),
                torch.cat([one.past.hidden for one in calls]),
                first.past.h0,
                first.past.c0,
            ),
            Local(*map(_along_time, zip(*(one.local for one in calls), strict=True))),  # type: ignore[arg-type]
            first.offset,
            first.begins,
        )
        found.starts = [*range(len(calls))]
        hidden = torch.cat([one.entering.hidden for one in calls])
        found.entering = _Entering(hidden, _along_time([one.entering.cell for one in calls]))
        return found

    def cut(
        self, size: int, hidden_TBP: Tensor, cell_TBH: Tensor | None, *, needs_x: bool
    ) -> Change:
        """Detach the state between chunks of ``size``.

        Parameters
        ----------
        size : int
            Of the chunks [timestep].
        hidden_TBP, cell_TBH : Tensor
            What arrives at every state from outside the layer; overwritten.
        needs_x : bool
            Whether the gradient of the inputs is wanted.
        """
        if size == 1:
            scan, x_TBI = self._cut_everywhere(hidden_TBP, cell_TBH, needs_x=needs_x)
        else:
            scan, x_TBI = self._cut_apart(size, hidden_TBP, cell_TBH, needs_x=needs_x)
        shape = (len(self.starts), *hidden_TBP.shape[1:2], -1)
        h0, c0 = scan.adjoint.h0, scan.adjoint.c0
        self.entering = _Entering(h0.view(shape), None if c0 is None else c0.view(shape))
        factors = _by_sample(scan, hidden_TBP.shape[1])
        if not self.begins and self.offset % size == 0:
            return Change(x_TBI, factors=factors)
        return Change(x_TBI, self.entering.hidden[0], _row(self.entering.cell), factors)

    def _cut_everywhere(
        self, hidden_TBP: Tensor, cell_TBH: Tensor | None, *, needs_x: bool
    ) -> tuple[Scan, Tensor | None]:
        """Scan one timestep with a row for every timestep of every sample."""
        slopes, *others = self.local
        scan = self._scanned(
            _one_row(self.past.x),
            _one_row(self.past.before),
            Local(_one_row(slopes).clone(), *(v if v is None else _one_row(v) for v in others)),
            _one_row(hidden_TBP),
            None if cell_TBH is None else _one_row(cell_TBH),
        )
        self.starts = [*range(len(hidden_TBP))]
        return scan, scan.x_gradient().view(*hidden_TBP.shape[:2], -1) if needs_x else None

    def _cut_apart(
        self, size: int, hidden_TBP: Tensor, cell_TBH: Tensor | None, *, needs_x: bool
    ) -> tuple[Scan, Tensor | None]:
        """Scan chunks side by side, into which nothing enters."""
        timesteps = len(hidden_TBP)
        self.starts = [t for t in range(timesteps) if not t or (t + self.offset) % size == 0]
        windows = Windows.apart(self.starts, timesteps)
        self.entering = _Entering(hidden_TBP, cell_TBH)
        scan = self._windowed(windows, hidden_TBP, cell_TBH)
        return scan, windows.spread(scan.x_gradient(), self.past.x) if needs_x else None

    def join(
        self, size: int, hidden_TBP: Tensor | None, cell_TBH: Tensor | None, *, needs_x: bool
    ) -> Change:
        """Make chunks of ``size`` out of chunks of half of it.

        Parameters
        ----------
        size : int
            Of the new chunks [timestep].
        hidden_TBP, cell_TBH : Tensor, optional
            What arrives at the states from outside beyond what arrived before.
        needs_x : bool
            Whether the gradient of the inputs is wanted.

        Returns
        -------
        Change
            Beyond what was returned before.
        """
        joined = Joined.of(self.starts, len(self.past.x), self.offset, size)
        was_cut = not self.begins and (self.offset % (size // 2) == 0)
        if cell_TBH is None and joined.holds(hidden_TBP):
            windows = joined.earlier()
        else:
            windows = joined.whole()
        scan = self._windowed(windows, hidden_TBP, cell_TBH) if windows.chunk else None
        added = self._entered(joined, windows, scan)
        self.starts = joined.starts
        x_TBI = None
        if scan is not None and needs_x:
            x_TBI = windows.spread(scan.x_gradient(), self.past.x)
        factors = () if scan is None else _by_sample(scan, self.past.x.shape[1])
        if not self.begins and self.offset % size == 0:
            return Change(x_TBI, factors=factors)
        handed = self.entering if was_cut else added
        if handed is None:
            return Change(x_TBI, factors=factors)
        return Change(x_TBI, handed.hidden[0], _row(handed.cell), factors)

    def _windowed(
        self, windows: Windows, hidden_TBP: Tensor | None, cell_TBH: Tensor | None
    ) -> Scan:
        """Scan parts of the sequence side by side, with what enters their earlier chunks."""
        index_WM, inside_WM = windows.index(self.past.x.device)
        size, parts = index_WM.shape
        samples = self.past.x.shape[1]

        def taken(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            # Selecting whole timesteps copies memory in one piece; indexing with (W, M) does not.
            rows = values.index_select(0, index_WM.flatten())
            return rows.view(size, parts * samples, *values.shape[2:])

        def arriving(values: Tensor | None, entering_MBP: Tensor) -> Tensor:
            if values is None:
                found = entering_MBP.new_zeros(size, parts, samples, entering_MBP.shape[-1])
            else:
                found = values[index_WM]
                found[~inside_WM] = 0
            found[windows.places, windows.paired] += entering_MBP[windows.later]
            return found.flatten(1, 2)

        hidden, cell = self.entering
        x, before = taken(self.past.x), taken(self.past.before)
        assert x is not None
        assert before is not None
        return self._scanned(
            x,
            before,
            Local(*(taken(values) for values in self.local)),  # type: ignore[arg-type]
            arriving(hidden_TBP, hidden),
            None if cell is None else arriving(cell_TBH, cell),
        )

    def _scanned(
        self, x: Tensor, before: Tensor, local: Local, hidden: Tensor, cell: Tensor | None
    ) -> Scan:
        """Scan rows of any meaning backwards."""
        adjoint = backpropagate(self.kind, self.weights, local, hidden, cell)
        return Scan(self.kind, self.weights, x, before, local, adjoint)

    def _entered(self, joined: Joined, windows: Windows, scan: Scan | None) -> _Entering | None:
        """Update what enters the chunks; return by how much."""
        old, firsts = self.entering, joined.firsts
        kept = _Entering(old.hidden[firsts], None if old.cell is None else old.cell[firsts])
        self.entering = kept
        if scan is None:
            return None
        added: list[Tensor | None] = []
        for total, part in zip(kept, (scan.adjoint.h0, scan.adjoint.c0), strict=True):
            if total is None or part is None:
                added.append(None)
                continue
            change = torch.zeros_like(total)
            change[windows.chunk] = part.view(len(windows.chunk), *total.shape[1:])
            total += change
            added.append(change)
        assert added[0] is not None
        return _Entering(added[0], added[1])


def _along_time(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Join along time; None where they are None."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _one_row(values: Tensor) -> Tensor:
    """(T, B, ...) as one timestep of T * B rows."""
    return values.flatten(0, 1).unsqueeze(0)


def _row(values: Tensor | None) -> Tensor | None:
    """First row, where there are any."""
    return None if values is None else values[0]


def _by_sample(scan: Scan, samples: int) -> tuple[Factor, ...]:
    """Factors with rows of samples: (anything, B, ...)."""

    def rows(values: Tensor) -> Tensor:
        return values.reshape(-1, samples, values.shape[-1])

    return tuple(
        Factor(weight, rows(left), None if right is None else rows(right))
        for weight, left, right in scan.factors()
    )
