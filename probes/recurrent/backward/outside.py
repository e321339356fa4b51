"""What reaches one direction of a layer: its data, and gradients from outside.

Shapes: as in :mod:`probes.recurrent.backward.layer`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from probes.recurrent.backward.bptt import Past
from probes.recurrent.backward.clock import Clock


class Arriving(NamedTuple):
    """Gradients that reach a layer from outside."""

    y: Tensor | None
    """Of its output."""
    h: Tensor | None
    """Of its final hidden states, shape (D, B, P)."""
    c: Tensor | None = None
    """Of its final cell states, shape (D, B, H)."""
    scalars: int = 0
    """Scalars that these are gradients of, along the first axis; 0 without such an axis."""

    @classmethod
    def of(cls, gradients: Sequence[Tensor | None], scalars: int = 0) -> "Arriving":
        """Name gradients of the output, of final hidden states and, of an LSTM, of cell states."""
        y, h, *c = gradients
        return cls(y, h, c[0] if c else None, scalars)


def past_of(
    clock: Clock, direction: int, x: Tensor, y: Tensor, h0_DBP: Tensor, c0_DBH: Tensor | None
) -> Past:
    """Put what one direction saw into the order in which it reads, detached."""
    x, y, h0_DBP = x.detach(), y.detach(), h0_DBP.detach()
    units = h0_DBP.shape[-1]
    own_TBP = clock.padded(y)[..., direction * units : (direction + 1) * units]
    hidden_TBP = clock.turned(own_TBP, direction == 1)
    return Past(
        clock.turned(clock.padded(x), direction == 1),
        hidden_TBP,
        h0_DBP[direction],
        None if c0_DBH is None else c0_DBH[direction].detach(),
    )


def outside(
    clock: Clock, direction: int, like_TBP: Tensor, c0_BH: Tensor | None, arriving: Arriving
) -> tuple[Tensor, Tensor | None]:
    """Gradient that arrives at every hidden and cell state from outside, in memory of its own."""
    last_B = clock.lengths().to(like_TBP.device) - 1
    rows_B = torch.arange(clock.samples, device=last_B.device)
    hidden_TBP = torch.zeros_like(like_TBP, memory_format=torch.contiguous_format)
    if arriving.y is not None:
        units = hidden_TBP.shape[-1]
        own_TBP = clock.padded(arriving.y)[..., direction * units : (direction + 1) * units]
        hidden_TBP.copy_(clock.turned(own_TBP, direction == 1))
    if arriving.h is not None:
        hidden_TBP[last_B, rows_B] += arriving.h[direction]
    if c0_BH is None:
        return hidden_TBP, None
    cell_TBH = c0_BH.new_zeros(clock.timesteps, *c0_BH.shape)
    if arriving.c is not None:
        cell_TBH[last_B, rows_B] += arriving.c[direction]
    return hidden_TBP, cell_TBH


class Several(NamedTuple):
    """Gradients of several scalars that arrive at one direction from outside."""

    clock: Clock
    past: Past
    y: Sequence[Tensor]
    """At every hidden state, shape (T, B, P) of each scalar; empty if there is nothing."""
    h: Tensor | None
    """At the final hidden states, shape (V, B, P)."""
    c: Tensor | None
    """At the final cell states, shape (V, B, H)."""
    scalars: int

    @classmethod
    def of(cls, clock: Clock, direction: int, past: Past, arriving: Arriving) -> "Several":
        """Pick those of one direction, in the order of reading; one scalar is several as well."""
        if not arriving.scalars:
            one = [None if values is None else values.unsqueeze(0) for values in arriving[:3]]
            arriving = Arriving.of(one, 1)
        units = past.hidden.shape[-1]
        own = slice(direction * units, (direction + 1) * units)
        each = () if arriving.y is None else arriving.y
        y = [clock.turned(clock.padded(values)[..., own], direction == 1) for values in each]
        h, c = (None if values is None else values[:, direction] for values in arriving[1:3])
        return cls(clock, past, y, h, c, arriving.scalars)

    def block(self, span: slice) -> tuple[Tensor, Tensor | None]:
        """Those of some timesteps, in memory of their own: (T, V, B, P) and (T, V, B, H)."""
        like_TBP, c0_BH = self.past.hidden[span], self.past.c0
        timesteps, *shape = like_TBP.shape
        if self.y:
            hidden = torch.stack([y_TBP[span] for y_TBP in self.y], 1)
        else:
            hidden = like_TBP.new_zeros(timesteps, self.scalars, *shape)
        self._add(hidden, self.h, span)
        if c0_BH is None:
            return hidden, None
        cell = c0_BH.new_zeros(timesteps, self.scalars, *c0_BH.shape)
        self._add(cell, self.c, span)
        return hidden, cell

    def _add(self, values: Tensor, final: Tensor | None, span: slice) -> None:
        """Add what arrives at the last timestep of each sample, if that is one of these."""
        if final is None:
            return
        place_B = self.clock.lengths().to(values.device) - 1 - span.start
        inside_B = (place_B >= 0) & (place_B < len(values))
        rows_B = torch.arange(self.clock.samples, device=values.device)
        place_B = place_B.clamp(0, len(values) - 1)
        values[place_B, :, rows_B] += (final * inside_B[:, None]).transpose(0, 1)
