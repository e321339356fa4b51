"""Verdicts on how far back the output depends on its inputs."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import inf, isnan

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import MemoryHorizonLimits, source_of
from analyzer.rules.verdicts import Estimate, at_least
from analyzer.statistics import bootstrap_interval, horizon_interval

PROBE = "memory_horizon"


def memory_horizon(trace: xr.Dataset, limits: MemoryHorizonLimits) -> Iterator[Finding]:
    """Judge the functional horizon, and set the gradient's reach beside it.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.memory_horizon.MemoryHorizon`.
    limits : MemoryHorizonLimits
        All are used.

    Yields
    ------
    Finding
        The horizon, and the gradient reach.
    """
    yield _horizon(trace, limits)
    yield _gradient_reach(trace)


def functional_horizon(trace: xr.Dataset, limits: MemoryHorizonLimits) -> Estimate:
    """Find the lag of the oldest input that the output needs.

    The largest number of kept inputs at which replacing all older ones by another sample's still
    costs more than ``limits.share`` of what replacing everything costs; nan where replacing
    everything does not raise the loss for certain.
    """
    excess = trace["excess_loss"].transpose("sample", "kept").to_numpy()
    known = excess[~np.isnan(excess[:, 0])]
    if not len(known) or not bootstrap_interval(known[:, 0], np.mean)[0] > 0:
        return Estimate(samples=len(known))
    found = horizon_interval(known, trace["kept"].to_numpy(), limits.share)
    return Estimate(found.value, found.low, found.high, len(known))


def gradient_reach(trace: xr.Dataset, mass: float = 0.95) -> Estimate:
    """Find the lag within which ``mass`` of the final output's input gradient lies."""
    reach = trace["reach"].transpose("sample", "lag").fillna(0).to_numpy()
    totals = reach.sum(1)
    alive = reach[(totals > 0) & np.isfinite(totals)]
    if not len(alive):
        return Estimate()
    share = alive.cumsum(1) / alive.sum(1, keepdims=True)
    lags = (share >= mass).argmax(1).astype(float)
    low, high = bootstrap_interval(lags)
    return Estimate(float(np.median(lags)), low, high, len(lags))


def _horizon(trace: xr.Dataset, limits: MemoryHorizonLimits) -> Finding:
    """Judge the functional horizon against the one the task needs, if the user named one."""
    horizon, length = functional_horizon(trace, limits), int(trace.attrs["sequence_length"])
    finding = partial(
        Finding,
        code="memory-horizon",
        probe=PROBE,
        title="Memory horizon",
        unit="timesteps",
        samples=horizon.samples,
    )
    if isnan(horizon.value):
        return finding(
            severity=Severity.INCONCLUSIVE,
            message="replacing the whole input by another sample's does not raise the loss for "
            f"certain ({horizon.samples} samples)",
            meaning="The output may not depend on the input, or the samples are too few or alike.",
            action="Audit more samples, with targets if there are any.",
        )
    seen_to_end = horizon.high < length
    coarse = functional_horizon(trace, replace(limits, share=limits.coarse))
    at_coarse = f"{limits.coarse:.0%} horizon: {_censored(coarse, length)}"
    message = (
        f"the final output depends on inputs up to {horizon.value:g} timesteps back, of "
        f"{length - 1}: replacing older ones costs less than {limits.share:.0%} of replacing all "
        f"({at_coarse})"
        if seen_to_end
        else f"the final output depends on inputs {horizon.value:g} or more timesteps back, of "
        f"{length - 1} ({at_coarse})"
    )
    severity, meaning, action = _judged(horizon, length, limits)
    return finding(
        severity=severity,
        message=message,
        meaning=meaning if seen_to_end else f"The sequences are too short to see it end. {meaning}",
        action=action,
        value=horizon.value,
        low=horizon.low,
        high=horizon.high,
        limit=limits.required,
        relation="" if isnan(limits.required) else ">=",
        limit_source="" if isnan(limits.required) else source_of(limits, "required"),
    )


def _censored(horizon: Estimate, length: int) -> str:
    """Write a horizon, with ">=" where the sequences may be too short to see it end."""
    return f"{'' if horizon.high < length else '>= '}{horizon.value:g}"


def _judged(
    horizon: Estimate, length: int, limits: MemoryHorizonLimits
) -> tuple[Severity, str, str]:
    """Severity, meaning and action."""
    if horizon.samples < limits.min_samples:
        meaning = f"{horizon.samples} samples are too few for a horizon to be judged."
        return Severity.INCONCLUSIVE, meaning, f"Audit at least {limits.min_samples:g} samples."
    if isnan(limits.required):
        meaning = "Whether that is enough depends on the task: declare its longest dependency."
        return Severity.INFO, meaning, "Set the limit memory_horizon.required to have it judged."
    # What lasts to the end of the sequences may last longer.
    seen = horizon if horizon.high < length else replace(horizon, high=inf)
    severity = at_least(seen, limits.required)
    if severity is Severity.WARN:
        meaning = "The network forgets before the task's longest dependency."
        return severity, meaning, "Train on longer sequences, or with a larger forget-gate bias."
    if severity is Severity.PASS:
        return severity, "The network uses inputs as far back as the task needs.", "None."
    if limits.required >= length:
        meaning = f"The dependency of {limits.required:g} is longer than the sequences."
        return severity, meaning, "Audit longer sequences."
    meaning = "Whether the network uses inputs as far back as the task needs is uncertain."
    return severity, meaning, "Audit more samples."


def _gradient_reach(trace: xr.Dataset) -> Finding:
    """Report how far back the gradient with respect to the inputs reaches: not memory."""
    reach = gradient_reach(trace)
    finding = partial(
        Finding, code="gradient-reach", probe=PROBE, title="Gradient reach", unit="timesteps"
    )
    if isnan(reach.value):
        return finding(
            severity=Severity.INCONCLUSIVE,
            message="the final output has no gradient with respect to any input",
            meaning="Its loss is zero on these samples, or the inputs are cut off from it.",
            action="Audit samples with a loss above zero.",
            samples=trace.sizes["sample"],
        )
    return finding(
        severity=Severity.INFO,
        message=f"95 % of the final output's input gradient lies within the last "
        f"{reach.value + 1:g} of {int(trace.attrs['sequence_length'])} inputs",
        meaning="This is how far back small changes matter and training signals reach, not what "
        "the network remembers.",
        value=reach.value,
        low=reach.low,
        high=reach.high,
        samples=reach.samples,
    )
