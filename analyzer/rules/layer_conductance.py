"""Verdicts on how much of a decision flows through each layer."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import LayerConductanceLimits
from analyzer.rules.verdicts import Estimate, listed
from analyzer.statistics import Values, bootstrap_interval

PROBE = "layer_conductance"


def layer_conductance(trace: xr.Dataset, limits: LayerConductanceLimits) -> Iterator[Finding]:
    """Say which layers the decision goes around.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.layer_conductance.LayerConductance`.
    limits : LayerConductanceLimits
        All are used.

    Yields
    ------
    Finding
        Exactly one.
    """
    share, wrong = layer_shares(trace), integration_error(trace)
    sure = [place for place, error in enumerate(wrong) if error <= limits.tolerance]
    samples = share[0].samples
    finding = partial(
        Finding, code="layer-share", probe=PROBE, title="Decision over depth", samples=samples
    )
    if not sure or samples < limits.min_samples:
        yield _unsure(trace, finding(severity=Severity.INCONCLUSIVE, message=""), limits)
        return
    around = [place for place in sure if _bypassed(share[place], limits.tolerance)]
    around.sort(key=lambda place: share[place].value)
    left_out = _left_out(trace, wrong, limits)
    if around:
        names = [str(name) for name in trace["layer"].to_numpy()]
        least = share[around[0]]
        yield finding(
            severity=Severity.INFO,
            message=f"{len(around)} of {len(sure)} layers are bypassed by other paths; the least "
            f"flows through {names[around[0]]}, {least.value:.0%} of the decision{left_out}",
            meaning="The rest takes skip connections and other branches. A negative share works "
            "against the decision.",
            action="Before removing a layer that carries little, ablate it: it may matter for few "
            "samples.",
            value=least.value,
            low=least.low,
            high=least.high,
            where=tuple(names[place] for place in around),
        )
    else:
        yield finding(
            severity=Severity.INFO,
            message=f"nothing goes around any of {len(sure)} layers: each carries the whole "
            f"decision{left_out}",
            meaning="They are a chain: none can be skipped.",
        )


def layer_shares(trace: xr.Dataset) -> list[Estimate]:
    """Share of the decision that flows through each layer, samples weighted by what they explain.

    Samples whose conductance or difference is not finite are left out.
    """
    conductance, difference = _finite(trace)
    signed = conductance * np.sign(difference)[:, None]
    total = np.abs(difference)
    if not total.sum() > 0:
        return [Estimate(samples=len(total))] * trace.sizes["layer"]

    def found(rows: Any, axis: int) -> Values:
        drawn = rows.astype(int)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(signed[drawn].sum(axis) / total[drawn].sum(axis)[..., None])

    value = found(np.arange(len(total))[None], 1)[0]
    if len(total) < 2:
        return [Estimate(float(v), samples=len(total)) for v in value]
    low, high = bootstrap_interval(np.arange(len(total)), found)
    return [
        Estimate(float(v), float(a), float(b), len(total))
        for v, a, b in zip(value, low, high, strict=True)
    ]


def integration_error(trace: xr.Dataset) -> Values:
    """Difference that twice the step makes to each layer, as a share of the decision."""
    conductance, difference = _finite(trace)
    coarse = trace["coarse"].transpose("sample", "layer").to_numpy()[_known(trace)]
    total = np.abs(difference).sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.abs(conductance - coarse).sum(0) / total)


def _known(trace: xr.Dataset) -> Values:
    """Which samples are finite in all layers that were measured."""
    conductance = trace["conductance"].transpose("sample", "layer").to_numpy()
    measured = trace["reason"].to_numpy() == ""
    finite = np.isfinite(conductance[:, measured]).all(1)
    return np.asarray(finite & np.isfinite(trace["difference"].to_numpy()))


def _finite(trace: xr.Dataset) -> tuple[Values, Values]:
    """Conductance and difference of those samples."""
    known = _known(trace)
    conductance = trace["conductance"].transpose("sample", "layer").to_numpy()
    return conductance[known], trace["difference"].to_numpy()[known]


def _bypassed(share: Estimate, tolerance: float) -> bool:
    """Whether a layer surely does not carry exactly the whole."""
    return share.high < 1 - tolerance or share.low > 1 + tolerance


def _left_out(trace: xr.Dataset, wrong: Values, limits: LayerConductanceLimits) -> str:
    """Name the layers that were not measured, or not well enough."""
    names = trace["layer"].to_numpy().astype(str)
    reasons = trace["reason"].to_numpy().astype(str)
    absent = [f"{name} ({why})" for name, why in zip(names, reasons, strict=True) if why]
    coarse = [
        str(name) for name, error in zip(names, wrong, strict=True) if error > limits.tolerance
    ]
    said = f"; not measured: {listed(absent)}" if absent else ""
    return said + (f"; too coarsely integrated: {listed(coarse)}" if coarse else "")


def _unsure(trace: xr.Dataset, finding: Finding, limits: LayerConductanceLimits) -> Finding:
    """Word a result that says nothing."""
    if not np.abs(_finite(trace)[1]).sum() > 0:
        return replace(
            finding,
            message="no decision differs from that at the baseline, or none is finite",
            meaning="The output may not depend on the input.",
            action="Check the model's output on these data.",
        )
    if finding.samples < limits.min_samples:
        return replace(
            finding,
            message=f"the decisions on {finding.samples} samples were followed",
            meaning="They are too few to tell how much flows through a layer.",
            action=f"Audit at least {limits.min_samples:g} samples.",
        )
    steps = int(trace.attrs["steps"])
    return replace(
        finding,
        message=f"no layer's conductance is integrated to within {limits.tolerance:.0%} of the "
        "decision",
        meaning="The path from the baseline to the sample is too coarse for this model.",
        action=f"Raise the setting layer_conductance.steps, which is {steps}, to {4 * steps}.",
    )
