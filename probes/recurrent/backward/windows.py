"""Which parts of a sequence chunks are, and which of them are scanned side by side.

Shapes: T timestep, B sample, I feature, M window, W timestep of a window.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Parts of a sequence that are scanned side by side.

    Parameters
    ----------
    chunk : list of int
        The new chunk that each begins.
    start, stop : list of int
        Timesteps.
    paired, places, later : list of int
        Windows into which something enters, at which of their timesteps, from which old chunk.
    """

    chunk: list[int]
    start: list[int]
    stop: list[int]
    paired: list[int]
    places: list[int]
    later: list[int]

    @classmethod
    def apart(cls, starts: list[int], timesteps: int) -> "Windows":
        """Take the chunks that begin at ``starts``, with nothing that enters them."""
        return cls([*range(len(starts))], starts, [*starts[1:], timesteps], [], [], [])

    def index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Timesteps (W, M) of the windows side by side, and which of them are inside."""
        start_M, stop_M = (torch.tensor(v, device=device) for v in (self.start, self.stop))
        size = max(b - a for a, b in zip(self.start, self.stop, strict=True))
        index_WM = torch.arange(size, device=device)[:, None] + start_M
        return torch.minimum(index_WM, stop_M - 1), index_WM < stop_M

    def spread(self, values: Tensor, like_TBI: Tensor) -> Tensor:
        """Put values of the windows (W, M * B, I) where they belong: (T, B, I)."""
        index_WM, _ = self.index(like_TBI.device)
        found_TBI = torch.zeros_like(like_TBI, memory_format=torch.contiguous_format)
        # Past the end of a window the values are zero, so that adding them at its end is harmless.
        rows = values.reshape(index_WM.numel(), *like_TBI.shape[1:])
        return found_TBI.index_add_(0, index_WM.flatten(), rows)


@dataclass(frozen=True)
class Joined:
    """How chunks go together in pairs.

    Parameters
    ----------
    starts, stops : list of int
        Of the new chunks [timestep].
    firsts : list of int
        Old chunk that each begins with.
    middles : list of int or None
        Where the second old chunk of each begins [timestep]; None where there is no second.
    """

    starts: list[int]
    stops: list[int]
    firsts: list[int]
    middles: list[int | None]

    @classmethod
    def of(cls, starts: list[int], timesteps: int, offset: int, size: int) -> "Joined":
        """Keep the boundaries at multiples of ``size``."""
        firsts = [
            old for old, start in enumerate(starts) if not start or (start + offset) % size == 0
        ]
        kept = [starts[old] for old in firsts]
        ends = [*firsts[1:], len(starts)]
        middles = [
            starts[old + 1] if end - old == 2 else None
            for old, end in zip(firsts, ends, strict=True)
        ]
        return cls(kept, [*kept[1:], timesteps], firsts, middles)

    def holds(self, values_TBP: Tensor | None) -> bool:
        """Whether what arrives from outside is zero but in the earlier chunk of each pair."""
        if values_TBP is None:
            return True
        late_T = torch.ones(len(values_TBP), dtype=torch.bool, device=values_TBP.device)
        for start, middle in zip(self.starts, self.middles, strict=True):
            if middle is not None:
                late_T[start:middle] = False
        return not bool(values_TBP[late_T].any())

    def earlier(self) -> Windows:
        """Take the earlier chunk of every pair."""
        return self._windows([j for j, middle in enumerate(self.middles) if middle is not None])

    def whole(self) -> Windows:
        """Take all new chunks."""
        return self._windows([*range(len(self.starts))], self.stops)

    def _windows(self, chosen: list[int], stops: list[int] | None = None) -> Windows:
        """Take windows over some of the new chunks, up to the middle unless ``stops`` are given."""
        entered = [(m, j, self.middles[j]) for m, j in enumerate(chosen)]
        pairs = [(m, j, middle) for m, j, middle in entered if middle is not None]
        ends = stops or [middle or 0 for middle in self.middles]
        return Windows(
            chosen,
            [self.starts[j] for j in chosen],
            [ends[j] for j in chosen],
            [m for m, _, _ in pairs],
            [middle - 1 - self.starts[j] for _, j, middle in pairs],
            [self.firsts[j] + 1 for _, j, _ in pairs],
        )
