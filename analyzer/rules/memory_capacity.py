"""What linear readouts recover of past inputs: told, and not judged."""

from collections.abc import Callable, Iterator
from math import ceil, nan
from typing import NamedTuple

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import MemoryCapacityLimits
from analyzer.rules.resampling import interval
from analyzer.rules.verdicts import Estimate, listed
from analyzer.statistics import Values

PROBE = "memory_capacity"

HALF = 0.5
"""Share of a past input's variance that counts as held."""


class Curve(NamedTuple):
    """Share that is recovered at every lag, with its 95 % interval over samples."""

    value: Values
    low: Values
    high: Values


def memory_capacity(trace: xr.Dataset, limits: MemoryCapacityLimits) -> Iterator[Finding]:
    """Tell the linear memory capacity of every recurrent layer.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.memory_capacity.MemoryCapacity`.
    limits : MemoryCapacityLimits
        ``min_rows`` and ``min_samples`` are used.

    Yields
    ------
    Finding
        One.
    """
    layers = measurable(trace, limits)
    if not layers:
        yield _too_little(trace, limits)
        return
    found = {layer: capacity(trace, layer) for layer in layers}
    most = max(found, key=lambda layer: found[layer].value)
    units = int(trace["units"].sel(layer=most))
    reach = held(trace, most)
    back = (
        f"at least half of the input is recovered up to {reach} timesteps back, beyond what the "
        "present input tells"
        if reach
        else "no past input is recovered by half, beyond what the present input tells"
    )
    others = [f"{found[layer].value:.3g} in {layer}" for layer in found if layer != most]
    yield Finding(
        code="memory-capacity",
        probe=PROBE,
        severity=Severity.INFO,
        title="Linear memory capacity",
        message=f"a linear readout of {most} recovers {found[most].value:.3g} numbers of past "
        f"inputs, of {units} that it could hold ({back})"
        + (f"; {listed(others)}" if others else ""),
        meaning="What each layer stores of its inputs for a linear readout to use. It may store "
        "more in other ways, and what it stores need not be used.",
        value=found[most].value,
        low=found[most].low,
        high=found[most].high,
        unit="numbers",
        samples=found[most].samples,
        where=(most,),
    )


def measurable(trace: xr.Dataset, limits: MemoryCapacityLimits) -> list[str]:
    """List the layers with enough samples, and enough timesteps for the size of their state."""
    rows, needed = trace["rows"].to_numpy(), _needed(trace, limits)
    samples = (~trace["past_energy"].isnull().all("lag")).sum("sample").to_numpy()
    enough = (rows >= needed) & (rows > 0) & (samples >= limits.min_samples)
    return [str(layer) for layer in trace["layer"].to_numpy()[enough]]


def _needed(trace: xr.Dataset, limits: MemoryCapacityLimits) -> Values:
    """Timesteps that a readout of each layer has to be fitted on."""
    sizes = np.maximum(trace["units"].to_numpy(), trace["predictors"].to_numpy())
    return np.asarray(limits.min_rows * sizes, np.float64)


def recovered(trace: xr.Dataset, layer: str, part: str) -> Curve:
    """Share of the past inputs ("past"), or of their new part ("new"), that is recovered."""
    energy, error = (_table(trace, layer, f"{part}_{kind}") for kind in ("energy", "error"))
    return Curve(*_resampled(energy, error, lambda shares: shares))


def told_by_present(trace: xr.Dataset, layer: str) -> Values:
    """Share of the past inputs that a readout of the present input alone recovers."""
    energy = _table(trace, layer, "past_energy").sum(0)
    return _shares(energy, _table(trace, layer, "present_error").sum(0))


def capacity(trace: xr.Dataset, layer: str) -> Estimate:
    """Numbers of past inputs that a linear readout recovers: their new parts, over all lags."""
    energy, error = (_table(trace, layer, f"new_{kind}") for kind in ("energy", "error"))
    numbers = np.nan_to_num(trace["new_numbers"].sel(layer=layer).to_numpy())

    def total(shares: Values) -> Values:
        # Where nothing is new, there is nothing to recover.
        return np.asarray(np.nansum(shares * numbers, axis=-1))

    value, low, high = _resampled(energy, error, total)
    return Estimate(float(value), float(low), float(high), len(energy))


def held(trace: xr.Dataset, layer: str) -> int:
    """Find the last lag at which half of the input is recovered beyond what the present tells."""
    beyond = recovered(trace, layer, "past").value - told_by_present(trace, layer)
    lags = np.flatnonzero(beyond >= HALF)
    return int(lags[-1]) if lags.size else 0


def _table(trace: xr.Dataset, layer: str, name: str) -> Values:
    """Rows of the samples that were measured: (sample, lag)."""
    values = trace[name].sel(layer=layer).transpose("sample", "lag").to_numpy()
    return np.asarray(values[~np.isnan(values[:, 0])], np.float64)


def _shares(energy: Values, error: Values) -> Values:
    """One less the error, as a share of the energy; nan where there is none."""
    return np.asarray(1 - error / np.where(energy > 0, energy, np.nan))


def _resampled(
    energy: Values, error: Values, statistic: Callable[[Values], Values]
) -> tuple[Values, Values, Values]:
    """Compute a statistic of the shares that are recovered, and its interval over samples."""
    value = statistic(_shares(energy.sum(0), error.sum(0)))
    low, high = interval(
        lambda weights: statistic(_shares(weights @ energy, weights @ error)), len(energy)
    )
    return value, low, high


def _too_little(trace: xr.Dataset, limits: MemoryCapacityLimits) -> Finding:
    """Say what is missing."""
    rows, needed = trace["rows"].to_numpy(), _needed(trace, limits)
    samples = trace.sizes["sample"]
    best = int(np.argmax(rows / needed))
    layer = str(trace["layer"].to_numpy()[best])
    short = needed[best] / rows[best] if rows[best] else nan
    count = max(limits.min_samples, ceil(samples * short) if rows[best] else 0)
    return Finding(
        code="memory-capacity",
        probe=PROBE,
        severity=Severity.INCONCLUSIVE,
        title="Linear memory capacity",
        message=f"{samples} samples have {rows[best]:g} timesteps to fit a readout of {layer} on, "
        f"which takes {needed[best]:g}"
        if rows[best]
        else f"{samples} samples are too few, too short or too alike to fit and test a readout on",
        meaning="With fewer, a readout misses what the state holds, and the capacity comes out too "
        "small.",
        action=f"Audit at least {count:g} samples (setting memory_capacity.samples), or longer "
        "ones.",
        samples=samples,
        where=tuple(map(str, trace["layer"].to_numpy())),
    )
