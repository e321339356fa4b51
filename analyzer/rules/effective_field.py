"""Verdicts on the effective receptive field."""

from collections.abc import Iterator
from functools import partial
from math import isnan

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import EffectiveFieldLimits, source_of
from analyzer.rules.receptive_field import by
from analyzer.rules.verdicts import Estimate, at_least

PROBE = "effective_field"


def effective_field(trace: xr.Dataset, limits: EffectiveFieldLimits) -> Iterator[Finding]:
    """Judge the effective field of the last convolution.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.effective_field.EffectiveField`.
    limits : EffectiveFieldLimits
        ``required`` and ``convergence`` are used.

    Yields
    ------
    Finding
        One.
    """
    measured = np.flatnonzero(~np.isnan(trace["diameter"].to_numpy()))
    finding = partial(Finding, code="effective-field", probe=PROBE, title="Effective field")
    samples = int(trace.attrs["samples"])
    if not len(measured):
        yield finding(
            severity=Severity.INCONCLUSIVE,
            message="the centre units have no gradient with respect to the input",
            meaning="They are dead on these samples, or the input is cut off from them.",
            action="Audit other samples.",
            samples=samples,
        )
        return
    last = trace.isel(layer=measured[-1])
    value, low, high = (float(last[key]) for key in _FIELD)
    field = Estimate(value, low, high, samples)
    name = str(last["layer"].item())
    severity, meaning, action = _judged(field, _change(last), limits)
    theoretical, inputs = last["theoretical"].to_numpy(), last["input_size"].to_numpy()
    yield finding(
        severity=severity,
        message=f"the centre unit of {name} draws on a diameter of {field.value:.3g} positions; "
        f"its theoretical field is {by(theoretical)}, the input {by(inputs)}",
        meaning=meaning,
        action=action,
        value=field.value,
        low=field.low,
        high=field.high,
        unit="positions",
        limit=limits.required,
        relation="" if isnan(limits.required) else ">=",
        limit_source="" if isnan(limits.required) else source_of(limits, "required"),
        samples=samples,
        where=(name,),
    )


_FIELD = ("diameter", "diameter_low", "diameter_high")


def _change(layer: xr.Dataset) -> float:
    """Relative change of the field from half of the samples to all of them."""
    whole, half = layer["sigma"].to_numpy(), layer["half_sample_sigma"].to_numpy()
    return float(np.max(np.abs(half / whole - 1)))


def _judged(
    field: Estimate, change: float, limits: EffectiveFieldLimits
) -> tuple[Severity, str, str]:
    """Severity, meaning and action."""
    if not change <= limits.convergence:
        meaning = f"Half of the samples give a field {change:.0%} different: it has not converged."
        return Severity.INCONCLUSIVE, meaning, "Raise the probe's setting samples."
    meaning = "What lies further out hardly moves this unit, whatever the theoretical field."
    if isnan(limits.required):
        return Severity.INFO, meaning, "None."
    severity = at_least(field, limits.required)
    enlarge = "Enlarge the field: more depth, stride, dilation or larger kernels."
    return severity, meaning, enlarge if severity is Severity.WARN else "None."
