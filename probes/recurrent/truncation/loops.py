"""Cells that a model calls in a loop, as one layer over time.

A loop is plain if each call is handed the very states that the one before it returned, and if what
it reads depends on no recurrent layer but on plain loops below it. Only then is what arrives at its
states, when the length of the chunks changes, known before any of its calls is differentiated.

Shapes: T timestep (call), B sample, I input feature, P hidden state, H unit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from probes.recurrent.backward.chunks import Change, Chunks
from probes.recurrent.backward.record import Site
from probes.recurrent.backward.recordings import Chunking, Recordings

_VIEWS = ("UnsqueezeBackward0", "SelectBackward0")
"""What is between the state that a call of a cell returns and the next one takes."""


@dataclass(eq=False)
class Loop:
    """One plain loop, whose calls are differentiated together.

    Parameters
    ----------
    keys : list of int
        Of its calls, in order.
    given : list of tuple of Tensor
        What each call was given: input and states.
    leads : bool
        Whether what it was given depends on another loop.
    """

    keys: list[int]
    given: list[tuple[Tensor, ...]]
    leads: bool
    chunks: Chunks = field(init=False)
    arrived: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict, init=False)
    """By the number of the call: what has arrived at its states from outside."""

    def take_over(self, chunking: Chunking) -> bool:
        """Put the chunks of one timestep that a first pass left together, if it reached the loop.

        Returns
        -------
        bool
            Whether it did.
        """
        # Calls whose states nothing depends on are at the end.
        self.keys = [key for key in self.keys if key in chunking.chunks]
        if not self.keys:
            return False
        self.chunks = Chunks.joined([chunking.chunks[key] for key in self.keys])
        for place, key in enumerate(self.keys):
            chunking.chunks[key] = _Call(self, place)  # type: ignore[assignment]
        return True

    def join(self, chunking: Chunking, anchor: Tensor) -> None:
        """Make chunks of the size that is due, and pass on what changes below."""
        hidden_TBP, cell_TBH = self._outside()
        change = self.chunks.join(chunking.size, hidden_TBP, cell_TBH, needs_x=self.leads)
        if change.factors:
            chunking.receive(self.keys[0], change.factors)
        if self.leads:
            self._pass_on(change, anchor)

    def _outside(self) -> tuple[Tensor | None, Tensor | None]:
        """Put what has arrived in the order of time: (T, B, P) and (T, B, H); None if nothing."""
        arrived, self.arrived = self.arrived, {}
        if not arrived:
            return None, None
        hidden_TBP = torch.zeros_like(self.chunks.past.hidden)
        first = self.chunks.past.c0
        cells = {place: cell for place, (_, cell) in arrived.items() if cell is not None}
        cell_TBH = None
        if cells and first is not None:
            cell_TBH = first.new_zeros(len(hidden_TBP), *first.shape)
            for place, cell in cells.items():
                cell_TBH[place] = cell[0]
        for place, (hidden, _) in arrived.items():
            hidden_TBP[place] = hidden[0]
        return hidden_TBP, cell_TBH

    def _pass_on(self, change: Change, anchor: Tensor) -> None:
        """Differentiate what the calls were given."""
        pairs: list[tuple[Tensor, Tensor]] = []
        if change.x is not None:
            calls = zip(self.given, torch.split(change.x, 1), strict=False)
            pairs += [(given[0], gradient) for given, gradient in calls]
        for state, gradient in zip(self.given[0][1:], (change.h0, change.c0), strict=False):
            if gradient is not None:
                pairs.append((state, gradient.unsqueeze(0)))
        known = [pair for pair in pairs if pair[0].requires_grad]
        if known:
            torch.autograd.grad(
                [given for given, _ in known],
                [anchor],
                [gradient for _, gradient in known],
                retain_graph=True,
                allow_unused=True,
            )


class _Call:
    """One call of a plain loop: it leaves to the loop what arrives at its states."""

    def __init__(self, loop: Loop, place: int) -> None:
        self._loop, self._place = loop, place
        whole = loop.chunks.past
        self.past = whole.part(slice(place, place + 1), whole.c0)

    def join(
        self, size: int, hidden: Tensor | None, cell: Tensor | None, *, needs_x: bool
    ) -> Change:
        """Take what arrives, as :meth:`probes.recurrent.backward.chunks.Chunks.join` does."""
        if hidden is not None:
            self._loop.arrived[self._place] = hidden, cell
        return Change()


def plain_loops(recordings: Recordings) -> list[Loop]:
    """Find the plain loops, those above others before them."""
    assert recordings.pulses is not None
    nodes = {pulse.grad_fn: key for key, pulse in recordings.pulses.items()}
    waiting = {
        site: keys for site, keys in _calls(recordings).items() if _chained(recordings, keys, nodes)
    }
    reached = {site: _reached(_read(recordings, keys), nodes) for site, keys in waiting.items()}
    found: list[Loop] = []
    below: set[int] = set()
    while ready := [site for site in waiting if reached[site] <= below]:
        for site in ready:
            keys = waiting.pop(site)
            given = [recordings.given[key] for key in keys]
            found.append(Loop(keys, given, bool(reached[site])))
        below = {key for loop in found for key in loop.keys}
    return found[::-1]


def stepwise(recordings: Recordings) -> list[Site]:
    """List what reads one timestep at a time in another loop than a plain one."""
    plain = {recordings.segments[loop.keys[0]].site for loop in plain_loops(recordings)}
    return [site for site in _calls(recordings) if site not in plain]


def _calls(recordings: Recordings) -> dict[Site, list[int]]:
    """List the calls of every layer that reads one timestep at a time, more than once."""
    calls: dict[Site, list[int]] = {}
    for key, segment in enumerate(recordings.segments):
        calls.setdefault(segment.site, []).append(key)
    return {
        site: keys
        for site, keys in calls.items()
        if len(keys) > 1 and all(recordings.segments[key].timesteps == 1 for key in keys)
    }


def _chained(recordings: Recordings, keys: Sequence[int], nodes: dict[Any, int]) -> bool:
    """Whether each call was handed the states that the one before it returned."""
    for before, key in pairwise(keys):
        if key not in recordings.given:
            return False
        for place, state in enumerate(recordings.given[key][1:], start=1):
            if _origin(state, nodes) != (before, place):
                return False
    return keys[0] in recordings.given


def _origin(state: Tensor, nodes: dict[Any, int]) -> tuple[int | None, int]:
    """Call that a state comes from as it is, and its place among what the call returned."""
    node, place = state.grad_fn, 0
    while node is not None and node.name() in _VIEWS:
        node, place = node.next_functions[0]
    return nodes.get(node), place


def _read(recordings: Recordings, keys: Sequence[int]) -> list[Tensor]:
    """List what a loop takes from outside: all inputs, and the states at its start."""
    inputs = [recordings.given[key][0] for key in keys]
    return [*inputs, *recordings.given[keys[0]][1:]]


def _reached(tensors: Iterable[Tensor], nodes: dict[Any, int]) -> set[int]:
    """Find the calls of recurrent layers that tensors depend on directly."""
    found: set[int] = set()
    waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = {*waiting}
    while waiting:
        node = waiting.pop()
        if node in nodes:
            found.add(nodes[node])
            continue
        following = {after for after, _ in node.next_functions if after is not None} - seen
        seen |= following
        waiting += following
    return found
