"""What a measurement may take: fewer samples and smaller batches, so that it fits."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from probes.base import Batch, Probe, Progress, Subject, call
from probes.errors import AnalyzerError
from probes.footprint.passes import nbytes
from probes.footprint.sweep import peak
from probes.loss.objective import sample_losses
from probes.model.taps import differentiable_recurrence, untouched
from probes.samples.excerpt import Excerpt

GIB = 2**30

HEADROOM = 3
"""Memory of a probe over that of a training pass: the most in ``benchmarks`` (truncation)."""


class OutOfTimeError(Exception):
    """The time budget is used up."""


class Budget:
    """The time left for measuring, and the memory.

    What probes cost is estimated from a timed pass of the first batch and the passes that they
    state, again before each of them, so that one that takes longer costs the others samples only.

    Parameters
    ----------
    seconds : float, optional
        For all probes together, from now [s]; no end if unset.
    memory : float, optional
        That a probe may take, of the device the model is on [GiB].
    """

    def __init__(self, seconds: float | None = None, memory: float | None = None) -> None:
        self._seconds = seconds
        self._memory = memory
        self._start = time.monotonic()
        self._each = 0.0

    def time(self, subject: Subject) -> None:
        """Find out what a pass of one sample takes."""
        if self._seconds is not None:
            self._each = pass_seconds(subject)

    def divided(self, subject: Subject) -> Subject:
        """Divide batches so that a probe on one fits into the memory.

        It is estimated from passes of one and of two samples.

        Raises
        ------
        AnalyzerError
            One sample does not fit.
        """
        if self._memory is None:
            return subject
        weights = sum(nbytes(weight) for weight in subject.model.parameters())
        one, two = (HEADROOM * (weights + peak(subject, count)) for count in (1, 2))
        room = self._memory * GIB
        if one > room:
            raise AnalyzerError(
                f"measuring one sample takes about {one / GIB:.2g} GiB, more than the memory "
                f"budget of {self._memory:g} GiB: raise --memory-budget or shorten the inputs"
            )
        fitting = 1 + int((room - one) // max(two - one, 1))
        if fitting >= _largest(subject):
            return subject
        return replace(subject, batches=Excerpt(subject, size=fitting))

    def left(self) -> float:
        """Return the time left [s].

        Raises
        ------
        OutOfTimeError
            There is none.
        """
        if self._seconds is None:
            return math.inf
        left = self._seconds - (time.monotonic() - self._start)
        if left <= 0:
            raise OutOfTimeError(f"the time budget of {self._seconds:g} s is used up")
        return left

    def fitted(self, subject: Subject, samples: int, probes: Sequence[Probe]) -> Subject:
        """Leave out samples, evenly over the batches, so that all probes fit into the time left.

        Parameters
        ----------
        subject : Subject
        samples : int
            In the audit data.
        probes : sequence of Probe
            Those still to be run.

        Raises
        ------
        OutOfTimeError
            There is not even time for one sample.
        """
        left = self.left()
        bounds = [(probe.passes, _most(probe, samples)) for probe in probes]
        fitting = samples
        while fitting and self._each * _passes(bounds, fitting) > left:
            fitting = int(0.9 * fitting)
        if not fitting:
            raise OutOfTimeError(
                f"the {left:.3g} s that are left of the time budget do not suffice for one sample"
            )
        share = fitting / samples
        return subject if share == 1 else replace(subject, batches=Excerpt(subject, share))

    def guard(self, progress: Progress) -> Progress:
        """Have a probe stop at the first step that it reports when the time is over."""

        def step(done: int, total: int) -> None:
            progress(done, total)
            if done < total:
                self.left()

        return step


def _most(probe: Probe, samples: int) -> int:
    """Count the samples that a probe measures at most."""
    most: int = getattr(probe, "samples", samples)
    return min(most, samples)


def _passes(bounds: list[tuple[float, int]], samples: int) -> float:
    """Forward and backward passes of single samples that all probes take."""
    return sum(passes * min(most, samples) for passes, most in bounds)


def pass_seconds(subject: Subject) -> float:
    """Time a forward and a backward pass of the first batch, the second of two: per sample [s]."""
    batch = next(iter(subject))
    with untouched(subject.model), differentiable_recurrence(subject.model):
        for _ in range(2):
            start = time.perf_counter()
            _pass(subject, batch)
            if subject.device.type == "cuda":
                torch.cuda.synchronize(subject.device)
            elapsed = time.perf_counter() - start
    return elapsed / subject.batch_size(batch)


def _pass(subject: Subject, batch: Batch) -> None:
    """Run forward, and backward where the loss depends on a weight."""
    with torch.enable_grad():
        losses = sample_losses(subject, call(subject.model, batch.inputs), batch)
        weights = [weight for weight in subject.model.parameters() if weight.requires_grad]
        if losses.requires_grad:
            torch.autograd.grad(losses.sum(), weights, allow_unused=True)


def halved(subject: Subject) -> Subject | None:
    """Halve the largest batch size; None if batches are single samples."""
    largest = _largest(subject)
    if largest == 1:
        return None
    return replace(subject, batches=Excerpt(subject, size=-(-largest // 2)))


def _largest(subject: Subject) -> int:
    """Count the samples of the largest batch."""
    return max(subject.batch_size(Batch.of(item)) for item in subject.batches)
