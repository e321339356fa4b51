"""What the gradients of single samples say about the mean gradient."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import GradientFlowLimits, source_of
from analyzer.rules.verdicts import Estimate
from analyzer.statistics import bootstrap_interval

PROBE = "gradient_flow"
PER_SAMPLE = "parameter_gradient_per_sample"

Values = npt.NDArray[np.float64]

_NAMED = 5
"""Samples named in a finding."""


def gradient_noise(trace: xr.Dataset, limits: GradientFlowLimits) -> Iterator[Finding]:
    """Judge how many samples carry the gradient, and how far the samples agree.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.gradient_flow.GradientFlow`; records from before the gradients
        of parameters were measured by sample have nothing to judge.
    limits : GradientFlowLimits
        ``min_samples`` is used.

    Yields
    ------
    Finding
        Up to two; none where no parameter was measured by sample.
    """
    squares = _squares(trace)
    if squares is None:
        return
    # A gradient that is not finite is judged as numerical health.
    finite = np.flatnonzero(np.isfinite(squares))
    if finite.size < limits.min_samples:
        needed = int(limits.min_samples)
        yield Finding(
            code="gradient-concentration",
            probe=PROBE,
            severity=Severity.INCONCLUSIVE,
            title="Samples behind the gradient",
            message=f"{finite.size} samples with a finite gradient: {needed} are needed",
            meaning="So few samples cannot show how unevenly the gradient is spread over them.",
            action=f"Audit with at least {needed} samples.",
            limit_source=source_of(limits, "min_samples"),
            samples=finite.size,
        )
        return
    yield _concentration(squares[finite], finite)
    if finite.size == squares.size:
        yield _noise(trace, squares.size)


def by_parameter(trace: xr.Dataset) -> tuple[Values, Values, Values]:
    """Root mean square over the samples of each parameter's gradient, with its 95 % interval.

    Returns
    -------
    value, low, high : ndarray, shape (parameter,)
        nan where the gradient was not measured by sample.
    """
    if PER_SAMPLE not in trace:
        unknown = np.full(trace.sizes.get("parameter", 0), np.nan)
        return unknown, unknown, unknown
    squares = _per_sample(trace) ** 2
    low, high = bootstrap_interval(squares, np.mean)
    return np.sqrt(squares.mean(0)), np.sqrt(low), np.sqrt(high)


def agreement(trace: xr.Dataset) -> Values:
    """Norm of the mean gradient over the root mean square of the samples' own: (parameter,).

    1 where all samples pull in one direction; the root of 1 / samples where their directions have
    nothing in common.

    References
    ----------
    .. [1] Chatterjee and Zielinski, Making Coherence Out of Nothing At All: Measuring the
       Evolution of Gradient Alignment, arXiv:2008.01217 (2020); here the root of their measure,
       over the number of samples.
    """
    mean = trace["parameter_gradient"].to_numpy().astype(np.float64)
    typical = by_parameter(trace)[0]
    with np.errstate(invalid="ignore"):
        return np.asarray(mean / np.where(typical > 0, typical, np.nan))


def noise_scale(trace: xr.Dataset) -> float:
    """Batch size whose mean gradient is as much noise as signal, over the measured parameters.

    Infinite where the samples' gradients cancel so far that no signal is left to be seen.

    References
    ----------
    .. [1] McCandlish, Kaplan, Amodei and the OpenAI Dota Team, An Empirical Model of Large-Batch
       Training, arXiv:1812.06162 (2018): their simple noise scale, appendix A.1, from batches of
       one sample and of all.
    """
    norms = _per_sample(trace)
    known = ~np.isnan(norms).all(0)
    count = len(norms)
    single = float((norms[:, known] ** 2).sum(1).mean())
    whole = float((trace["parameter_gradient"].to_numpy()[known] ** 2).sum())
    signal = (count * whole - single) / (count - 1)
    noise = (single - whole) * count / (count - 1)
    return noise / signal if signal > 0 else float("inf")


def _per_sample(trace: xr.Dataset) -> Values:
    """Norms of the gradients of every sample and parameter."""
    return trace[PER_SAMPLE].transpose("sample", "parameter").to_numpy().astype(np.float64)


def _squares(trace: xr.Dataset) -> Values | None:
    """Square norm of each sample's gradient over all measured parameters: (sample,), or None."""
    if PER_SAMPLE not in trace:
        return None
    norms = _per_sample(trace)
    measured = ~np.isnan(norms).all(0)
    if not measured.any():
        return None
    return np.asarray((norms[:, measured] ** 2).sum(1), np.float64)


def half_share(squares: Values, axis: int = 0) -> Values:
    """Smallest share of the samples that holds half of the sum; nan where the sum is zero."""
    ordered = -np.sort(-squares, axis=axis)
    running = np.cumsum(ordered, axis=axis)
    total = np.take(running, [-1], axis=axis)
    count = (running < 0.5 * total).sum(axis) + 1
    share = count / squares.shape[axis]
    return np.asarray(np.where(np.squeeze(total, axis) > 0, share, np.nan))


def _concentration(squares: Values, indices: npt.NDArray[np.intp]) -> Finding:
    """Say how few samples carry half of the squared gradient, and which they are."""
    finding = partial(
        Finding,
        code="gradient-concentration",
        probe=PROBE,
        title="Samples behind the gradient",
        unit="share of samples",
        samples=squares.size,
    )
    share = Estimate(float(half_share(squares)), *bootstrap_interval(squares, half_share))
    if np.isnan(share.value):
        return finding(
            severity=Severity.INCONCLUSIVE,
            message="the gradient is zero in every sample",
            action="Audit on samples with a loss above zero.",
        )
    few = round(share.value * squares.size)
    largest = indices[np.argsort(-squares, kind="stable")[: min(few, _NAMED)]]
    names = ", ".join(str(index) for index in largest)
    return finding(
        severity=Severity.INFO,
        message=f"half of the squared gradient comes from {few} of {squares.size} samples, the "
        f"largest from sample {names} (counted from 0)",
        meaning="Where few samples carry most of it, training at this point follows those few.",
        action="Look at these samples first: wrong labels and broken inputs show here.",
        value=share.value,
        low=float(share.low),
        high=float(share.high),
    )


def _noise(trace: xr.Dataset, samples: int) -> Finding:
    """Say at which batch size the mean gradient is as much noise as signal."""
    scale = noise_scale(trace)
    seen = (
        f"a batch of about {scale:.3g} samples has as much noise as signal in its gradient"
        if np.isfinite(scale)
        else f"the gradients of {samples} samples cancel: no direction in common is to be seen"
    )
    return Finding(
        code="gradient-noise",
        probe=PROBE,
        severity=Severity.INFO,
        title="Gradient noise",
        message=seen,
        meaning="Smaller batches step mostly at random. The number grows as training nears a "
        "minimum, where the common direction vanishes; it is an estimate without an interval.",
        action="Compare it with the batch size used: far below it, average more samples or lower "
        "the learning rate.",
        value=scale,
        unit="samples",
        samples=samples,
    )
