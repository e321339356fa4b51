"""Gradients of truncated backpropagation through time, for every power of two at once."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from probes.errors import AnalyzerError
from probes.recurrent.bptt import Factor
from probes.recurrent.record import Chunking, Recordings, Site

Add = Callable[[Site, tuple[Factor, ...]], None]
"""``add(site, factors)``: what goes on top of the gradients of one layer and direction."""


def truncated(
    recordings: Recordings, loss: Tensor, add: Add, *, from_end: bool = False
) -> Iterator[int]:
    """Differentiate with the recurrent states detached every 1, 2, 4, ... timesteps.

    The forward pass is that of the whole sequence: states are handed on, gradients are not. Each
    direction is cut in the order in which it reads. What one module hands to another, such as an
    encoder's last state to a decoder, is not cut. Each step costs about half a backward pass
    through the recurrent layers, the first a whole one; of bidirectional layers below another, and
    of cells called in a loop, every one.

    Parameters
    ----------
    recordings : Recordings
        Of one forward pass, with pulses.
    loss : Tensor
        Summed if it has several elements.
    add : callable
        Told, during each step, what it adds to the gradients of the step before.
    from_end : bool
        Whether chunks are counted from the last timestep rather than the first.

    Yields
    ------
    int
        Timesteps of a chunk, after what belongs to it has been added; the last is no truncation.

    Raises
    ------
    AnalyzerError
        The loss does not depend on any recurrent layer through differentiable operations.
    """
    segments, pulses = recordings.segments, recordings.pulses
    assert pulses is not None
    longest = recordings.longest
    whole = 1 << (longest - 1).bit_length()
    offsets, begins = _grid(recordings, whole if from_end else 0)
    chunking = Chunking(lambda key, factors: add(segments[key].site, factors), offsets, begins)
    recordings.chunking = chunking
    try:
        if loss.requires_grad:
            torch.autograd.grad(
                loss.sum(), [recordings.anchor], retain_graph=True, allow_unused=True
            )
        roots = [pulse for key, pulse in pulses.items() if key in chunking.chunks]
        if not roots:
            names = ", ".join(dict.fromkeys(segment.site.label for segment in segments))
            raise AnalyzerError(f"the loss does not depend on the states of {names}")
        yield chunking.size
        while chunking.size < longest:
            chunking.size *= 2
            torch.autograd.grad(roots, [recordings.anchor], retain_graph=True, allow_unused=True)
            yield chunking.size
    finally:
        recordings.chunking = None
        pulses.clear()


def _grid(recordings: Recordings, whole: int) -> tuple[list[int], list[bool]]:
    """Where every call begins in the grid of chunks, and whether it begins its sequence.

    With ``whole``, a power of two that no sequence exceeds, all sequences end on the grid.
    """
    totals: dict[Site, int] = {}
    starts = []
    for segment in recordings.segments:
        starts.append(totals.get(segment.site, 0))
        totals[segment.site] = starts[-1] + segment.timesteps
    offsets = [
        start + (whole - totals[segment.site] if whole else 0)
        for start, segment in zip(starts, recordings.segments, strict=True)
    ]
    return offsets, [start == 0 for start in starts]
