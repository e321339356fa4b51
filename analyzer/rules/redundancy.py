"""Verdicts on units of a layer that repeat another one, or that never vary."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import WidthLimits, source_of
from analyzer.rules.jackknife import jackknife_interval
from analyzer.rules.verdicts import Estimate, at_most, listed

PROBE = "width"


def measured(trace: xr.Dataset, name: str) -> dict[str, Estimate]:
    """Estimate a number of every layer, with its interval over groups of samples."""
    names = [str(layer) for layer in trace["layer"].to_numpy()]
    values = trace[name].to_numpy()
    without = trace[f"{name}_without"].transpose("group", "layer").to_numpy()
    found = {}
    for at, layer in enumerate(names):
        low, high = jackknife_interval(values[at], without[~np.isnan(without[:, at]), at])
        found[layer] = Estimate(
            float(values[at]), float(low), float(high), int(trace.attrs["samples"])
        )
    return found


def redundant_units(trace: xr.Dataset, limits: WidthLimits) -> Finding:
    """Judge units that say the same as another one."""
    found, counts = _copies(trace), measured(trace, "copies")
    sides = {layer: at_most(one, limits.redundant) for layer, one in found.items()}
    worst = min(sides.values(), key=lambda side: side.rank)
    samples = int(trace.attrs["samples"])
    if samples < limits.min_samples:
        worst = Severity.INCONCLUSIVE
    named = [layer for layer in found if sides[layer] is worst] or [*found]
    named.sort(key=lambda layer: -np.nan_to_num(found[layer].value))
    widths = trace["width"].to_series()
    texts = [
        f"{counts[layer].value:.0f} of {widths[layer]} units in {layer}{_groups(trace, layer)}"
        for layer in named
        if counts[layer].value > 0
    ]
    said = f"{listed(texts, 3)} repeat another unit" if texts else "no unit repeats another one"
    top = found[named[0]]
    return Finding(
        code="redundant-units",
        probe=PROBE,
        severity=worst,
        title="Redundant units",
        message=f"{said} of the layer (correlation above {trace.attrs['correlated']:g} in "
        f"magnitude){_dependent(trace)}",
        meaning="They are the same but for scale and offset, before an activation function. Where "
        "these agree, or no such function follows, they can be merged without loss."
        if texts
        else "Every unit says something of its own.",
        action=f"Make {listed(named, 3)} narrower, or merge these units and train on."
        if worst is Severity.WARN
        else f"Audit at least {max(limits.min_samples, samples + 1):g} samples."
        if worst is Severity.INCONCLUSIVE
        else "None.",
        value=top.value,
        low=top.low,
        high=top.high,
        limit=limits.redundant,
        relation="<=",
        limit_source=source_of(limits, "redundant"),
        samples=samples,
        where=() if worst is Severity.PASS else tuple(named),
    )


def _copies(trace: xr.Dataset) -> dict[str, Estimate]:
    """Share of the units of every layer that repeat another one; of all layers if none is read."""
    widths, read = trace["width"].to_series(), trace["read"].to_series()
    found = {}
    for layer, one in measured(trace, "copies").items():
        ends = (float(end / widths[layer]) for end in (one.value, one.low, one.high))
        value, low, high = ends
        found[layer] = Estimate(value, max(low, 0.0), high, one.samples)
    return {layer: one for layer, one in found.items() if read[layer]} or found


def _dependent(trace: xr.Dataset) -> str:
    """Name layers with units that are exact linear combinations of others."""
    still = trace["constant"].sum("unit").to_numpy()
    free = np.minimum(trace["most"].to_numpy(), trace["width"].to_numpy() - still)
    rank, names = trace["rank"].to_numpy(), trace["layer"].to_numpy()
    texts = [
        f"{name} varies in {own:.0f} directions of {most:.0f} that its weights allow"
        for name, own, most in zip(names, rank, free, strict=True)
        if own < most
    ]
    return f"; exact linear dependence: {listed(texts, 3)}" if texts else ""


def twin_groups(trace: xr.Dataset, layer: str) -> list[list[int]]:
    """List the groups of units of a layer that say the same, the largest first."""
    twin = trace["twin"].sel(layer=layer).to_numpy()
    groups: dict[int, list[int]] = {}
    for unit, first in enumerate(twin[~np.isnan(twin)].astype(int)):
        groups.setdefault(int(first), []).append(unit)
    return sorted((g for g in groups.values() if len(g) > 1), key=len, reverse=True)


def _groups(trace: xr.Dataset, layer: str, most: int = 3) -> str:
    """Name the groups of a layer."""
    groups = twin_groups(trace, layer)
    texts = [" = ".join(map(str, group[:6])) + " ..." * (len(group) > 6) for group in groups]
    return f" ({listed(texts, most)})" if texts else ""


def constant_units(trace: xr.Dataset, limits: WidthLimits) -> Iterator[Finding]:
    """Name units that never vary, where there are any."""
    still = trace["constant"].fillna(0).sum("unit").to_series()
    named = [str(layer) for layer in still.index if still[layer] > 0]
    if not named:
        return
    widths, samples = trace["width"].to_series(), int(trace.attrs["samples"])
    top = max(named, key=lambda layer: still[layer] / widths[layer])
    share = float(still[top] / widths[top])
    texts = [f"{still[layer]:.0f} of {widths[layer]} units in {layer}" for layer in named]
    yield Finding(
        code="constant-units",
        probe=PROBE,
        severity=Severity.WARN if share > limits.dead and samples >= limits.min_samples
        else Severity.INFO,
        title="Constant units",
        message=f"{listed(texts)} return one and the same number in all {samples} samples",
        meaning=f"With 95 % confidence a unit that is constant in {samples} independent samples "
        f"varies in fewer than {min(3 / samples, 1):.2%} of such samples. A constant unit is a "
        "bias of the next layer.",
        action="Remove these units and add them to the bias of the next layer.",
        value=share,
        limit=limits.dead,
        relation="<=",
        limit_source=source_of(limits, "dead"),
        samples=samples,
        where=tuple(named),
    )  # fmt: skip
