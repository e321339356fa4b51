"""Verdicts on the memory that training and serving take."""

from collections.abc import Iterator
from functools import partial
from math import isinf, isnan

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import MemoryFootprintLimits, source_of
from analyzer.rules.memory_growth import GIB, Growth, Parts
from analyzer.rules.verdicts import Estimate, at_most, listed

PROBE = "memory_footprint"

KINDS = {"training": "Memory of training", "serving": "Memory of serving"}
"""Budget -> title of its finding."""


def memory_footprint(trace: xr.Dataset, limits: MemoryFootprintLimits) -> Iterator[Finding]:
    """Judge what training and serving take against the memory there is, if the user named it.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.memory_footprint.MemoryFootprint`.
    limits : MemoryFootprintLimits
        All are used.

    Yields
    ------
    Finding
        Training, and serving.
    """
    growth = Growth(trace)
    yield _training(growth, limits)
    yield _serving(growth, limits)


def size(count: float) -> str:
    """Write bytes in GiB, MiB or KiB: powers of 1024."""
    for unit, factor in (("GiB", GIB), ("MiB", 2.0**20)):
        if count >= factor:
            return f"{_short(count / factor)} {unit}"
    return f"{_short(count / 2.0**10)} KiB"


def _short(value: float) -> str:
    """Write a number with three digits, or as many as it has before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _training(growth: Growth, limits: MemoryFootprintLimits) -> Finding:
    """Judge training with the batches of the audit data."""
    parts, trace = growth.training(growth.samples), growth.trace
    held = {
        "parameters": parts.parameters,
        "moments of the optimizer": parts.moments,
        "gradients of parameters": parts.gradients,
        "activations": parts.activations,
        "gradients of activations or the optimizer's step": parts.passing,
        "buffers and inputs": parts.buffers + parts.inputs,
    }
    shares = ", ".join(f"{name} {size(part)}" for name, part in held.items() if part)
    worst = _heaviest(growth)
    message = (
        f"training with batches of {growth.samples}{_long(growth)} takes {size(parts.total)}: "
        f"{shares}; {_room(growth, limits, 'training')}; the estimate is within "
        f"{growth.error():.1%} of the peak in {trace.sizes['pass']} measured passes"
    )
    meaning = (
        f"In {trace.attrs['dtype']}, mode {trace.attrs['mode']}; moments "
        f"{trace.attrs['optimizer']}. {_beside(trace)}{_elsewhere(trace)}"
    )
    action = "Save memory where the activations are: checkpoint " + listed(worst) if worst else ""
    return _finding(growth, limits, "training", parts, message, meaning, action, tuple(worst))


def _serving(growth: Growth, limits: MemoryFootprintLimits) -> Finding:
    """Judge serving with the batches of the audit data."""
    parts = growth.serving(growth.samples)
    place = growth.place(growth.samples)
    message = (
        f"serving batches of {growth.samples}{_long(growth)} takes {size(parts.total)}: parameters "
        f"and buffers {size(parts.parameters + parts.buffers)}, activations at most "
        f"{size(parts.activations)} at once, in {place}; {_room(growth, limits, 'serving')}"
    )
    meaning = f"Without gradients. {_beside(growth.trace)}"
    action = "Serve smaller batches."
    return _finding(growth, limits, "serving", parts, message, meaning, action, (place,))


def _beside(trace: xr.Dataset) -> str:
    """Say what comes on top."""
    if trace.attrs["device"] == "cpu":
        return "What kernels other than convolutions need within themselves comes on top."
    return "What kernels need within themselves and the GPU's driver come on top."


def _elsewhere(trace: xr.Dataset) -> str:
    """Say where a GPU would take another amount."""
    recurrent = bool(trace["saved_per_timestep"].notnull().any())
    if trace.attrs["device"] != "cpu" or not recurrent:
        return ""
    return " Measured on the CPU: on a GPU recurrent layers save other amounts."


def _finding(
    growth: Growth,
    limits: MemoryFootprintLimits,
    kind: str,
    parts: Parts,
    message: str,
    meaning: str,
    action: str,
    where: tuple[str, ...],
) -> Finding:
    """Hold a budget against the memory there is."""
    value, margin = parts.total / GIB, limits.serving_margin
    if kind == "training":
        margin = max(limits.margin, growth.error())
    finding = partial(
        Finding,
        code=f"{kind}-memory",
        probe=PROBE,
        title=KINDS[kind],
        message=message,
        value=value,
        low=value * (1 - margin),
        high=value * (1 + margin),
        unit="GiB",
        samples=int(growth.trace["samples"].max()),
        where=where,
    )
    if isnan(limits.budget_gib):
        advice = "Set the limit memory_footprint.budget_gib to have it judged."
        return finding(severity=Severity.INFO, meaning=meaning, action=advice)
    found = Estimate(value, value * (1 - margin), value * (1 + margin))
    severity = at_most(found, limits.budget_gib)
    fits = growth.largest_batch(limits.budget_gib * GIB / (1 + margin), kind)
    smaller = f"Use batches of {fits:g} or fewer" if fits else "Not even one sample fits: split it"
    advice = {
        Severity.PASS: "None.",
        Severity.INCONCLUSIVE: f"{smaller}, to be sure.",
    }.get(severity, f"{smaller}. {action}{'' if action.endswith('.') else '.'}")
    return finding(
        severity=severity,
        meaning=meaning,
        action=advice,
        limit=limits.budget_gib,
        relation="<=",
        limit_source=source_of(limits, "budget_gib"),
    )


def _long(growth: Growth) -> str:
    """Say how long the sequences are."""
    return "" if isnan(growth.timesteps) else f" sequences of {growth.timesteps:g} timesteps"


def _room(growth: Growth, limits: MemoryFootprintLimits, kind: str) -> str:
    """Say what fits into the memory there is."""
    gib = limits.budget_gib
    if isnan(gib):
        gib = float(growth.trace.attrs["gib"])
    batch, steps = growth.largest_batch(gib * GIB, kind), growth.longest(gib * GIB, kind)
    text = f"into {gib:g} GiB fit batches of {_many(batch)}"
    if isnan(steps):
        return text
    return f"{text}, or sequences of {_many(steps)} timesteps"


def _many(count: float) -> str:
    """Write a number of samples or timesteps."""
    return "any size" if isinf(count) else f"{count:.0f}"


def _heaviest(growth: Growth) -> list[str]:
    """Name the layers that hold half of what is saved for backward, most first."""
    saved = growth.trace["saved"].to_numpy()[2]
    order = np.argsort(-saved, kind="stable")
    total = saved.sum()
    if not total:
        return []
    count = int(np.searchsorted(saved[order].cumsum(), total / 2)) + 1
    return [str(growth.trace["layer"].to_numpy()[i]) for i in order[:count]]
