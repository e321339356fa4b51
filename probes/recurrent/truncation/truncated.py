"""Gradients of truncated backpropagation through time: for powers of two, or for one K."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from probes.errors import AnalyzerError
from probes.recurrent.backward.bptt import Factor
from probes.recurrent.backward.record import Site
from probes.recurrent.backward.recordings import Chunking, Recordings
from probes.recurrent.truncation.loops import plain_loops

Add = Callable[[Site, tuple[Factor, ...]], None]
"""``add(site, factors)``: what goes on top of the gradients of one layer and direction."""


def truncated(
    recordings: Recordings,
    loss: Tensor,
    add: Add,
    *,
    from_end: bool = False,
) -> Iterator[int]:
    """Differentiate with the recurrent states detached every 1, 2, 4, ... timesteps.

    The forward pass is that of the whole sequence: states are handed on, gradients are not. Each
    direction is cut in the order in which it reads. What one module hands to another, such as an
    encoder's last state to a decoder, is not cut. Each step costs about half a backward pass
    through the recurrent layers, the first a whole one; of bidirectional layers below another, and
    of cells called in a loop that is not plain (:mod:`probes.recurrent.truncation.loops`), every
    one.

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
    pulses = recordings.pulses
    assert pulses is not None
    longest = recordings.longest
    chunking = _chunking(recordings, add, 1 << (longest - 1).bit_length() if from_end else 0)
    recordings.chunking = chunking
    try:
        _first_pass(recordings, loss, chunking)
        loops = [loop for loop in plain_loops(recordings) if loop.take_over(chunking)]
        together = {key for loop in loops for key in loop.keys}
        roots = [pulses[key] for key in pulses if key in chunking.chunks and key not in together]
        yield chunking.size
        while chunking.size < longest:
            chunking.size *= 2
            if roots:
                torch.autograd.grad(
                    roots, [recordings.anchor], retain_graph=True, allow_unused=True
                )
            for loop in loops:
                loop.join(chunking, recordings.anchor)
            yield chunking.size
    finally:
        recordings.chunking = None
        pulses.clear()
        recordings.given.clear()


def truncated_at(
    recordings: Recordings, loss: Tensor, add: Add, size: int, *, from_end: bool = False
) -> None:
    """Differentiate with the recurrent states detached every ``size`` timesteps, of any number.

    A backward pass of its own, before or instead of those of :func:`truncated`, whose parameters
    and errors these are. What is added is the whole gradient with these chunks.
    """
    chunking = _chunking(recordings, add, -(-recordings.longest // size) * size if from_end else 0)
    chunking.size = size
    recordings.chunking = chunking
    try:
        _first_pass(recordings, loss, chunking)
    finally:
        recordings.chunking = None


def _chunking(recordings: Recordings, add: Add, whole: int) -> Chunking:
    """Lay the grid of chunks; counted from the end if there is a ``whole`` that all end on."""
    segments = recordings.segments
    offsets, begins = _grid(recordings, whole)
    return Chunking(lambda key, factors: add(segments[key].site, factors), offsets, begins)


def _first_pass(recordings: Recordings, loss: Tensor, chunking: Chunking) -> None:
    """Differentiate the loss, which must reach some recurrent layer."""
    if loss.requires_grad:
        torch.autograd.grad(loss.sum(), [recordings.anchor], retain_graph=True, allow_unused=True)
    if not chunking.chunks:
        names = ", ".join(dict.fromkeys(segment.site.label for segment in recordings.segments))
        raise AnalyzerError(f"the loss does not depend on the states of {names}")


def _grid(recordings: Recordings, whole: int) -> tuple[list[int], list[bool]]:
    """Where every call begins in the grid of chunks, and whether it begins its sequence.

    With ``whole``, whole chunks that no sequence exceeds, all sequences end on the grid.
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
