"""Does the gradient get lost over layers or over time? Both on one scale."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import LayersOrTimeLimits
from analyzer.rules.gradient_flow import depth_decades, weighted
from analyzer.rules.timestep_gradient import entrance, state_gradient, time_decades
from analyzer.rules.verdicts import Estimate
from analyzer.statistics import bootstrap_interval


class Depth(NamedTuple):
    """Gradient lost over layers, over how many, and what they are called."""

    loss: Estimate
    layers: int
    kind: str


def layers_or_time(
    traces: Mapping[str, xr.Dataset], limits: LayersOrTimeLimits
) -> Iterator[Finding]:
    """Compare the gradient lost over depth with the gradient lost over time.

    Depth is that of the stacked recurrent layers; where there is only one, that of the whole
    network. An axis is named only if the 95 % intervals of the two separate.

    Parameters
    ----------
    traces : mapping
        Those of timestep_gradient and gradient_flow are used.
    limits : LayersOrTimeLimits
        ``balanced`` is used.

    Yields
    ------
    Finding
        One, or none where the network has no two axes to compare.
    """
    if "timestep_gradient" not in traces:
        return
    steps = traces["timestep_gradient"]
    times, depth = time_decades(steps), stack_depth(steps) or network_depth(traces)
    layer = entrance(times)
    if depth and layer and not np.isnan(depth.loss.value):
        yield _compared(depth, times[layer], layer, steps, limits)


def stack_depth(trace: xr.Dataset) -> Depth | None:
    """Gradient lost from the last to the first of the layers of the deepest recurrent stack."""
    names = [str(name) for name in trace["layer"].to_numpy() if not str(name).endswith("reverse")]
    stacks: dict[str, list[str]] = {}
    for name in names:
        stacks.setdefault(name.rpartition(".l")[0], []).append(name)
    stack = max(stacks.values(), key=len, default=[])
    if len(stack) < 2:
        return None
    squares: xr.DataArray = state_gradient(trace).sel(layer=[stack[0], stack[-1]]) ** 2
    ends = np.sqrt(squares.mean("timestep").transpose("sample", "layer").to_numpy())
    first, last = np.log10(ends[(ends > 0).all(1)]).T
    if not len(first):
        return Depth(Estimate(), len(stack), "recurrent layers")
    low, high = bootstrap_interval(last - first)
    loss = Estimate(float(np.median(last - first)), low, high, len(first))
    return Depth(loss, len(stack), "recurrent layers")


def network_depth(traces: Mapping[str, xr.Dataset]) -> Depth | None:
    """Gradient lost over all weighted layers."""
    if "gradient_flow" not in traces:
        return None
    trace = traces["gradient_flow"]
    return Depth(depth_decades(trace), weighted(trace).sizes["layer"], "layers")


def _compared(
    depth: Depth, time: Estimate, layer: str, trace: xr.Dataset, limits: LayersOrTimeLimits
) -> Finding:
    """Name the axis over which more gradient is lost, if the intervals allow it."""
    steps = int(np.nanmax(trace["length"].to_numpy()))
    per_step, per_layer = time.value / (steps - 1), depth.loss.value / (depth.layers - 1)
    message = (
        f"over {steps} timesteps (in {layer}) the gradient loses {_decades(time)}, "
        f"{per_step:.2g} a step; over {depth.layers} {depth.kind} {_decades(depth.loss)}, "
        f"{per_layer:.2g} a layer"
    )
    severity, meaning, action = _conclusion(depth.loss, time, limits.balanced)
    return Finding(
        code="layers-or-time",
        probe="timestep_gradient",
        severity=severity,
        title="Layers or time",
        message=message,
        meaning=meaning,
        action=action,
        value=time.value - depth.loss.value,
        low=time.low - depth.loss.high,
        high=time.high - depth.loss.low,
        unit="decades",
        samples=time.samples,
        where=(layer,),
    )


def _conclusion(depth: Estimate, time: Estimate, balanced: float) -> tuple[Severity, str, str]:
    """Say which axis is the bottleneck, and what follows."""
    if max(depth.high, time.high) <= balanced:
        return Severity.INFO, "Neither layers nor time is a bottleneck of the gradient.", "None."
    if time.low > depth.high:
        meaning = (
            "Time is the bottleneck, not depth: the gradient is lost within a layer, over "
            "timesteps."
        )
        return Severity.INFO, meaning, "Work on memory before adding layers."
    if depth.low > time.high:
        meaning = "Depth is the bottleneck, not time: the gradient is lost from layer to layer."
        return Severity.INFO, meaning, "Add skip connections between the recurrent layers."
    meaning = "The two intervals overlap: which axis loses more cannot be told from these samples."
    return Severity.INCONCLUSIVE, meaning, "Audit more samples."


def _decades(loss: Estimate) -> str:
    """Write decades lost with their interval; a negative loss is a gain."""
    return f"{loss.value:.2g} decades [{loss.low:.2g}, {loss.high:.2g}]"
