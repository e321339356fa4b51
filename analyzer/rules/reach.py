"""Where the network's reach ends, in one sentence: over layers, over time, over the input."""

from collections.abc import Iterator, Mapping

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import Limits
from analyzer.rules.gradient_flow import depth_decades, weighted
from analyzer.rules.memory_horizon import functional_horizon
from analyzer.rules.timestep_gradient import entrance, time_decades


def reach(traces: Mapping[str, xr.Dataset], limits: Limits) -> Iterator[Finding]:
    """Sum up how far the network reaches, for the head of the report.

    Parameters
    ----------
    traces : mapping
        Whatever was measured; what was not is left out of the sentence.
    limits : Limits
        Those that define the horizon.

    Yields
    ------
    Finding
        One, or none where nothing was measured.
    """
    parts = [part(traces[name], limits) for name, part in _PARTS.items() if name in traces]
    said = [part for part in parts if part]
    if said:
        yield Finding(
            code="reach",
            probe="summary",
            severity=Severity.INFO,
            title="Reach",
            message="; ".join(said),
        )


def _layers(trace: xr.Dataset, limits: Limits) -> str:
    """Say how the gradient fares over depth."""
    loss, layers = depth_decades(trace), weighted(trace).sizes["layer"]
    if np.isnan(loss.value):
        return ""
    kept = loss.high <= limits.gradient_flow.warn_decades
    reaches = "reaches the first" if kept else "fades before the first"
    return f"layers: the gradient {reaches} of {layers} layers ({_times(loss.value)})"


def _steps(trace: xr.Dataset, limits: Limits) -> str:
    """Say how the gradient fares over time."""
    losses = time_decades(trace)
    layer = entrance(losses)
    if not layer:
        return ""
    lost, steps = losses[layer].value, int(np.nanmax(trace["length"].to_numpy()))
    kept = lost <= limits.timestep_gradient.warn_decades
    reaches = "reaches the first" if kept else "fades before the first"
    return f"time: the gradient {reaches} of {steps} timesteps ({_times(lost)})"


def _memory(trace: xr.Dataset, limits: Limits) -> str:
    """Say how many inputs the output depends on."""
    horizon, length = (
        functional_horizon(trace, limits.memory_horizon),
        int(trace.attrs["sequence_length"]),
    )
    if np.isnan(horizon.value):
        return ""
    return f"memory: inputs up to {horizon.value:g} of {length - 1} timesteps back matter"


def _field(trace: xr.Dataset, limits: Limits) -> str:
    """Say how much of the input a unit of the last convolution draws on."""
    measured = np.flatnonzero(~np.isnan(trace["diameter"].to_numpy()))
    if not len(measured):
        return ""
    last = trace.isel(layer=measured[-1])
    inputs = " x ".join(f"{size:g}" for size in last["input_size"].to_numpy())
    return (
        f"input: a unit of the last convolution draws on {float(last['diameter']):.3g} of "
        f"{inputs} positions"
    )


def _times(decades: float) -> str:
    """Write a change over decades as a factor."""
    factor = 10 ** abs(decades)
    return f"{factor:.3g} times {'smaller' if decades > 0 else 'larger'}"


_PARTS = {
    "gradient_flow": _layers,
    "timestep_gradient": _steps,
    "memory_horizon": _memory,
    "effective_field": _field,
}
