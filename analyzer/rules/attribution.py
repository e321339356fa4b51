"""Verdicts on which part of the input decisions come from."""

from collections.abc import Callable, Iterator
from functools import partial
from math import isnan, nan
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from analyzer.findings import Finding, Severity
from analyzer.limits import AttributionLimits, source_of
from analyzer.rules.verdicts import Estimate, at_least, at_most
from analyzer.statistics import Values, bootstrap_interval

PROBE = "attribution"


def attribution(trace: xr.Dataset, limits: AttributionLimits) -> Iterator[Finding]:
    """Say where decisions come from, and judge whether that can be relied on.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.attribution.Attribution`.
    limits : AttributionLimits
        All are used.

    Yields
    ------
    Finding
        The lag or radius that holds 90 % of the decision, and the reliability.
    """
    yield _extent(trace, limits)
    yield _reliability(trace, limits)


def place_dim(trace: xr.Dataset) -> str:
    """Return "lag" or "distance"."""
    return "lag" if "lag" in trace.dims else "distance"


def magnitudes(trace: xr.Dataset) -> Values:
    """Magnitude of the attribution by place, of the samples where it is finite: (sample, place)."""
    values = trace["magnitude"].transpose("sample", place_dim(trace)).to_numpy()
    return np.asarray(values[np.isfinite(values).all(1)], np.float64)


def holding(trace: xr.Dataset, share: float) -> Estimate:
    """Find the first place up to which ``share`` of the attribution lies, counted from 0."""
    values = magnitudes(trace)

    def found(counts: Values) -> Values:
        held = (counts @ values).cumsum(-1)
        return np.asarray((held >= share * held[..., -1:]).argmax(-1), np.float64)

    if not values.sum() > 0:
        return Estimate(samples=len(values))
    return _estimate(found, len(values))


def cumulative(trace: xr.Dataset) -> tuple[Values, Values, Values]:
    """Share of the attribution up to each place, and both ends of its 95 % interval."""
    values = magnitudes(trace)

    def found(counts: Values) -> Values:
        held = (counts @ values).cumsum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(held / held[..., -1:])

    low, high = _interval(found, len(values))
    return found(np.ones(len(values))), low, high


def completeness(trace: xr.Dataset) -> Estimate:
    """Compare what contributions miss with what they should add up to, all samples together."""
    pair = np.stack([trace["delta"].to_numpy(), trace["difference"].to_numpy()], 1)
    return _ratio(np.abs(pair[np.isfinite(pair).all(1)]))


def window_contributions(trace: xr.Dataset) -> tuple[Values, Values]:
    """Contributions of each window by integrated gradients and by occlusion: (sample, window).

    Samples that have not all windows take part with those that they have.
    """
    contribution = trace["contribution"].transpose("sample", place_dim(trace)).to_numpy()
    occlusion = trace["occlusion"].transpose("sample", "window").to_numpy()
    start, stop = trace["start"].to_numpy(), trace["stop"].to_numpy()
    summed = np.pad(contribution, ((0, 0), (1, 0))).cumsum(1)
    integrated = summed[:, stop] - summed[:, start]
    occlusion = np.where(np.isnan(occlusion) & (integrated == 0), 0, occlusion)
    known = np.isfinite(integrated).all(1) & np.isfinite(occlusion).all(1)
    return integrated[known], occlusion[known]


def overlap(trace: xr.Dataset) -> float:
    """Share of the attribution that both methods put into the same windows."""
    sums = [np.abs(values).sum(0) for values in window_contributions(trace)]
    with np.errstate(invalid="ignore", divide="ignore"):
        one, other = (total / total.sum() for total in sums)
    return float(np.minimum(one, other).sum())


def rank_correlation(trace: xr.Dataset) -> Estimate:
    """Correlate both methods over the windows of each sample (Spearman); median over samples.

    Samples to which either gives the same everywhere are left out.
    """
    one, other = (rankdata(values, axis=1) for values in window_contributions(trace))
    one, other = (ranks - ranks.mean(1, keepdims=True) for ranks in (one, other))
    size = np.sqrt((one**2).sum(1) * (other**2).sum(1))
    known = (one * other).sum(1)[size > 0] / size[size > 0]
    if not len(known):
        return Estimate()
    low, high = bootstrap_interval(known)
    return Estimate(float(np.median(known)), low, high, len(known))


def _ratio(pair: Values) -> Estimate:
    """Total of the first column over that of the second."""

    def found(counts: Values) -> Values:
        totals = counts @ pair
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(totals[..., 0] / totals[..., 1])

    return _estimate(found, len(pair))


def _estimate(statistic: Callable[[Values], Values], samples: int) -> Estimate:
    """Estimate a number that depends on how often each sample was drawn."""
    if not samples:
        return Estimate()
    low, high = _interval(statistic, samples)
    return Estimate(float(statistic(np.ones(samples))), low, high, samples)


def _interval(statistic: Callable[[Values], Values], samples: int) -> tuple[Any, Any]:
    """Bootstrap a statistic of how often each sample was drawn: (..., sample) -> (...)."""

    def drawn(rows: Values, axis: int) -> Values:
        counts = [np.bincount(row, minlength=samples) for row in rows.astype(int)]
        return statistic(np.stack(counts).astype(np.float64))

    if samples < 2:
        nothing = np.full_like(statistic(np.ones(samples)), nan)
        return nothing, nothing
    return bootstrap_interval(np.arange(samples), drawn)


def _extent(trace: xr.Dataset, limits: AttributionLimits) -> Finding:
    """Report the place up to which 90 % of the decision lies."""
    most, half = holding(trace, 0.9), holding(trace, 0.5)
    in_time = place_dim(trace) == "lag"
    finding = partial(
        Finding,
        code="decision-lag" if in_time else "decision-radius",
        probe=PROBE,
        title="Attribution of the decision",
        unit="timesteps" if in_time else "positions",
        samples=most.samples,
    )
    if isnan(most.value):
        return finding(
            severity=Severity.INCONCLUSIVE,
            message=f"no sample's decision owes anything to the difference between it and the "
            f"{trace.attrs['baseline']} baseline",
            meaning="The output may not depend on the input, or is not finite.",
            action="Check the model's output on these data.",
        )
    complete = at_most(completeness(trace), limits.tolerance) is Severity.PASS
    enough = most.samples >= limits.min_samples
    return finding(
        severity=Severity.INFO if complete and enough else Severity.INCONCLUSIVE,
        message=_in_time(trace, most, half) if in_time else _in_space(trace, most, half),
        meaning=_meaning(complete, most.samples, in_time),
        action=_remedy(trace, complete, enough, limits),
        value=most.value,
        low=most.low,
        high=most.high,
    )


def _in_time(trace: xr.Dataset, most: Estimate, half: Estimate) -> str:
    """Say how far back decisions come from."""
    return (
        f"90 % of the decision comes from the last {most.value + 1:g} of "
        f"{int(trace.attrs['extent'])} inputs, half of it from the last {half.value + 1:g} "
        f"(against the {trace.attrs['baseline']} baseline)"
    )


def _in_space(trace: xr.Dataset, most: Estimate, half: Estimate) -> str:
    """Say from how far around the centre decisions come."""
    inside = area(trace)
    return (
        f"90 % of the decision comes from within {most.value + 1:g} positions of the centre "
        f"({inside[int(most.value)]:.0%} of the input), half of it from within "
        f"{half.value + 1:g} ({inside[int(half.value)]:.0%}; against the "
        f"{trace.attrs['baseline']} baseline)"
    )


def area(trace: xr.Dataset) -> Values:
    """Share of the input positions up to each place: where attribution would be if it were even."""
    count = trace["positions"].transpose("sample", place_dim(trace)).to_numpy().sum(0)
    return np.asarray(count.cumsum() / count.sum())


def _meaning(complete: bool, samples: int, in_time: bool) -> str:
    """Say what it means, or why it cannot be told."""
    if not complete:
        return "The attributions do not add up to what they explain closely enough."
    if in_time:
        return (
            "This is what the network does use. How far gradients reach is what it could use, and "
            "the memory horizon what it keeps."
        )
    return (
        f"This is what the network does use for these {samples} decisions. Its theoretical field "
        "is what it could use."
    )


def _remedy(trace: xr.Dataset, complete: bool, enough: bool, limits: AttributionLimits) -> str:
    """Say what to do."""
    if not complete:
        return _more_steps(trace)
    if not enough:
        return f"Audit at least {limits.min_samples:g} samples."
    return "Compare with where the evidence is that the task is about."


def _more_steps(trace: xr.Dataset) -> str:
    """Say how to make the integration finer."""
    steps = int(trace.attrs["steps"])
    return f"Raise the setting attribution.steps, which is {steps}, to {4 * steps}."


def _reliability(trace: xr.Dataset, limits: AttributionLimits) -> Finding:
    """Judge whether contributions add up, and whether occlusion agrees."""
    missed, same = completeness(trace), rank_correlation(trace)
    finding = partial(
        Finding,
        code="attribution-unreliable",
        probe=PROBE,
        title="Reliability of the attribution",
        samples=missed.samples,
    )
    adds_up = at_most(missed, limits.tolerance)
    agrees = at_least(same, limits.agreement)
    if isnan(missed.value) or isnan(same.value):
        return finding(
            severity=Severity.INCONCLUSIVE,
            message="the attributions are zero or undefined in every sample",
            meaning="There is nothing to compare.",
            action="Check the model's output on these data.",
        )
    said = (
        f"contributions miss {100 * missed.value:.2g} % of what they explain; their rank "
        f"correlation with occlusion is {same.value:.2f} in the median sample, and "
        f"{overlap(trace):.0%} of both lies in the same parts of the input"
    )
    if adds_up is not Severity.PASS:
        return finding(
            severity=Severity.INCONCLUSIVE,
            message=said,
            meaning="The path from the baseline to the sample is too coarse for this model.",
            action=_more_steps(trace),
            value=missed.value,
            low=missed.low,
            high=missed.high,
            limit=limits.tolerance,
            relation="<=",
            limit_source=source_of(limits, "tolerance"),
        )
    sure = agrees is Severity.PASS and missed.samples >= limits.min_samples
    return finding(
        severity=Severity.PASS if sure else Severity.INCONCLUSIVE,
        message=said,
        meaning=_agreement(agrees, missed.samples, limits),
        action="None." if sure else _second_look(agrees, missed.samples, limits),
        value=same.value,
        low=same.low,
        high=same.high,
        limit=limits.agreement,
        relation=">=",
        limit_source=source_of(limits, "agreement"),
    )


def _agreement(agrees: Severity, samples: int, limits: AttributionLimits) -> str:
    """Say what the comparison of both methods means."""
    if agrees is Severity.WARN:
        return "Two methods disagree: parts of the input stand in for one another, or interact."
    if agrees is Severity.INCONCLUSIVE:
        return "Whether two methods agree cannot be told from these samples."
    if samples < limits.min_samples:
        return f"{samples} samples are too few to tell."
    return "Two methods, one by gradients and one without, find the same."


def _second_look(agrees: Severity, samples: int, limits: AttributionLimits) -> str:
    """Say what to do where both methods do not surely agree."""
    if agrees is Severity.WARN:
        return "Try the other baseline, and trust only what both methods show."
    if samples < limits.min_samples:
        return f"Audit more samples, at least {limits.min_samples:g}."
    return f"Measure more than these {samples} samples: raise attribution.samples."
