"""Verdicts on what every recurrent layer of a stack adds."""

from collections.abc import Iterator
from functools import partial
from math import isnan

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import StackedLayersLimits, source_of
from analyzer.rules.idle import described, judged, shares
from analyzer.rules.verdicts import Estimate, listed
from analyzer.statistics import horizon_interval

PROBE = "stacked_layers"

HALF = 0.5
"""Share of the change of a layer's last state that defines how far back it reaches."""


def stacked_layers(trace: xr.Dataset, limits: StackedLayersLimits) -> Iterator[Finding]:
    """Name layers that a linear map can replace, and say how states change over the stack.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.stacked_layers.StackedLayers`.
    limits : StackedLayersLimits
        ``idle`` and ``min_samples`` are used.

    Yields
    ------
    Finding
        Layers that add nothing, and the states by layer.
    """
    yield _depth(trace, limits)
    yield _states(trace)


def contributions(trace: xr.Dataset) -> dict[str, Estimate]:
    """Change of the loss with a linear map for each layer, as a share of the loss."""
    names = [str(name) for name in trace["layer"].to_numpy()]
    return dict(zip(names, shares(trace["loss_change"], trace["intact_loss"]), strict=True))


def half_reach(trace: xr.Dataset) -> dict[str, Estimate]:
    """Count the last inputs that decide less than half of each layer's last state."""
    names = [str(name) for name in trace["layer"].to_numpy()]
    kept = trace["kept"].to_numpy()
    found = {}
    for at, name in enumerate(names):
        values = trace["state_change"].isel(layer=at).transpose("sample", "kept").to_numpy()
        known = values[~np.isnan(values[:, :1]).any(1)]
        if not known.size:
            found[name] = Estimate()
            continue
        half = horizon_interval(known, kept, HALF)
        found[name] = Estimate(half.value, half.low, half.high, len(known))
    return found


def _depth(trace: xr.Dataset, limits: StackedLayersLimits) -> Finding:
    """Judge the layers that were left out."""
    layers = {name: part for name, part in contributions(trace).items() if part.samples}
    verdict = judged(layers, limits.idle, limits.min_samples)
    samples, total = verdict.estimate.samples, trace.sizes["layer"]
    finding = partial(
        Finding,
        code="stack-depth",
        probe=PROBE,
        severity=verdict.severity,
        title="Stack depth",
        value=verdict.estimate.value,
        low=verdict.estimate.low,
        high=verdict.estimate.high,
        unit="1",
        limit=limits.idle,
        relation=">=",
        limit_source=source_of(limits, "idle"),
        samples=samples,
        where=verdict.named,
    )
    if not layers:
        return finding(
            message="no layer can be judged: the loss is not above zero, or none was replaced",
            meaning="A share of the loss means nothing here.",
            action="Audit samples with a loss above zero.",
        )
    loss = described(layers, verdict.named or [min(layers, key=lambda name: layers[name].value)])
    if verdict.severity is Severity.PASS:
        return finding(
            message=f"replacing any of {len(layers)} recurrent layers by a linear map of what it "
            f"reads raises the loss by more than {limits.idle:.0%}: least {loss}",
            meaning="Every layer's memory or nonlinearity is used.",
            action="None.",
        )
    if verdict.severity is Severity.WARN:
        each = "each " if len(verdict.named) > 1 else ""
        return finding(
            message=f"{len(verdict.named)} of {total} recurrent layers can {each}be replaced by a "
            f"linear map of what it reads; the loss rises by less than {limits.idle:.0%} or "
            f"falls: {loss}",
            meaning="Their memory and nonlinearity add nothing on these data: the layer above "
            "could take over the linear map.",
            action=f"Train with {_fewer(len(verdict.named), total)} and compare.",
        )
    few = samples < limits.min_samples
    return finding(
        message=f"{len(verdict.named)} of {total} recurrent layers may be worth no more than a "
        f"linear map of what they read: {loss} of the loss",
        meaning=f"{samples} samples are too few to judge an ablation."
        if few
        else "Their intervals reach from less to more than the limit.",
        action=f"Audit at least {limits.min_samples:g} samples." if few else "Audit more samples.",
    )


def _fewer(idle: int, total: int) -> str:
    """Suggest a depth: layers that are idle one by one need not be so together."""
    return f"{total - 1} layers" if idle == 1 else f"{max(total - idle, 1)} to {total - 1} layers"


def _states(trace: xr.Dataset) -> Finding:
    """Report rank and reach of the states by layer."""
    names = [str(name) for name in trace["layer"].to_numpy()]
    reach = half_reach(trace)
    widths, ranks = trace["units"].to_numpy(), trace["effective_rank"].to_numpy()
    short = [
        f"{name} ({float(seen):.0f} of {10 * width:g} independent positions)"
        for name, seen, width, rank in zip(
            names, trace["independent"].to_numpy(), widths, ranks, strict=True
        )
        if isnan(rank)
    ]
    filled = [
        f"{name} {'an unknown number' if isnan(rank) else f'{rank:.1f}'} of {width}"
        for name, rank, width in zip(names, ranks, widths, strict=True)
    ]
    far = [f"{name} {part.value:g}" for name, part in reach.items() if not isnan(part.value)]
    inputs = f"; last inputs that decide less than half of the last state: {listed(far, 6)}"
    nothing = np.isnan(ranks).all() and all(isnan(part.value) for part in reach.values())
    return Finding(
        code="stack-states",
        probe=PROBE,
        severity=Severity.INCONCLUSIVE if nothing else Severity.INFO,
        title="States over the stack",
        message=f"directions that the states fill: {listed(filled, 6)}{inputs if far else ''}",
        meaning="A layer that fills more directions or reaches further back than the one below "
        "builds on it; one that fills fewer condenses."
        + (f" Too few to tell the rank: {listed(short)}." if short else ""),
        action="Audit more samples to have the rank measured." if short else "None.",
        value=float(ranks[-1]),
        unit="unit",
        samples=trace.sizes["sample"],
        where=tuple(names),
    )
