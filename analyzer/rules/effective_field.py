"""Verdicts on the effective receptive field."""

from collections.abc import Iterator
from functools import partial
from math import isnan

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import EffectiveFieldLimits, source_of
from analyzer.rules.field_growth import another, growth_finding
from analyzer.rules.receptive_field import by, onwards, seconds
from analyzer.rules.verdicts import Estimate, at_least, listed

PROBE = "effective_field"


def effective_field(trace: xr.Dataset, limits: EffectiveFieldLimits) -> Iterator[Finding]:
    """Judge the effective field of the last convolution, and report its shape and growth.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.effective_field.EffectiveField`.
    limits : EffectiveFieldLimits
        All are used.

    Yields
    ------
    Finding
        The size; the law of growth; where it is clear, the elongation; where there is one, a
        contradiction to the theoretical field.
    """
    measured = np.flatnonzero(~np.isnan(trace["diameter"].to_numpy()))
    if not len(measured):
        yield Finding(
            code="effective-field",
            probe=PROBE,
            severity=Severity.INCONCLUSIVE,
            title="Effective field",
            message="the centre units have no gradient with respect to the input",
            meaning="They are dead on these samples, or the input is cut off from them.",
            action="Audit other samples.",
            samples=int(trace.attrs["samples"]),
        )
        return
    last = trace.isel(layer=measured[-1])
    yield _size(last, limits)
    yield growth_finding(trace, limits, PROBE)
    yield from _elongated(last, limits)
    yield from _contradicted(trace, limits)


def _size(last: xr.Dataset, limits: EffectiveFieldLimits) -> Finding:
    """Judge the diameter of one layer."""
    samples = int(last.attrs["samples"])
    value, low, high = (float(last[key]) for key in _FIELD)
    field = Estimate(value, low, high, samples)
    name = str(last["layer"].item())
    severity, meaning, action = _judged(field, _change(last), limits)
    theoretical, inputs = last["theoretical"].to_numpy(), last["input_size"].to_numpy()
    known = "unknown" if np.isnan(theoretical).any() else by(theoretical)
    return Finding(
        code="effective-field",
        probe=PROBE,
        severity=severity,
        title="Effective field",
        message=f"the centre unit of {name} draws on a diameter of {field.value:.3g} positions"
        f"{seconds(last, field.value)}; its theoretical field is {known}, the input {by(inputs)}"
        + _selection(last),
        meaning=" ".join(
            filter(None, [meaning, against_untrained(last, limits)[1], onwards(last)])
        ),
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


def _selection(trace: xr.Dataset) -> str:
    """Say that not all convolutions were measured."""
    total, number = int(trace.attrs["layers_total"]), int(trace.attrs["layers_measured"])
    if number == total:
        return ""
    return f" ({number} of {total} convolutions were measured, evenly spaced)"


def against_untrained(layer: xr.Dataset, limits: EffectiveFieldLimits) -> tuple[Estimate, str]:
    """Compare the diameter of one layer with that of copies with random weights.

    Parameters
    ----------
    layer : Dataset
        One layer of a trace of :class:`probes.effective_field.EffectiveField`.
    limits : EffectiveFieldLimits
        ``untrained`` is used.

    Returns
    -------
    Estimate
        Ratio to the geometric mean of the copies; its interval is that of the samples, against
        the range in which one more copy would lie.
    str
        What that means; empty if no copy was asked for.
    """
    if "null_diameter" not in layer:
        reason = str(layer.attrs["null_absent"])
        return Estimate(), f"There is no untrained copy to compare with: {reason}." * bool(reason)
    copies = layer["null_diameter"].to_numpy()
    copies = copies[np.isfinite(copies)]
    if not len(copies):
        return Estimate(), "Untrained copies have no field at this layer to compare with."
    value, low, high = (float(layer[key]) for key in _FIELD)
    usual = float(np.exp(np.log(copies).mean()))
    least, most = np.exp(another(np.log(copies)))
    ratio = Estimate(value / usual, low / most, high / least)
    several = len(copies) != 1
    noun = "copies" if several else "copy"
    times = f"{ratio.value:.2g} times that of {len(copies)} untrained {noun}"
    kept = str(layer.attrs["null_kept"])
    if kept:
        times += f" (which {'keep' if several else 'keeps'} {kept} as trained)"
    if ratio.low > 1 + limits.untrained:
        return ratio, f"Training widened the field: it is {times}."
    if ratio.high < 1 - limits.untrained:
        return ratio, f"Training narrowed the field: it is {times}."
    if abs(ratio.value - 1) <= limits.untrained:
        return ratio, f"Training hardly changed its size: it is {times}."
    return ratio, f"Whether training changed its size is not certain: it is {times}."


def _change(layer: xr.Dataset) -> float:
    """Relative change of the field from half of the samples to all of them."""
    whole, half = layer["sigma"].to_numpy(), layer["half_sample_sigma"].to_numpy()
    # A field of one position is as wide from half of the samples: no width at all.
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(half == whole, 0.0, np.abs(half / whole - 1))))


def _judged(
    field: Estimate, change: float, limits: EffectiveFieldLimits
) -> tuple[Severity, str, str]:
    """Severity, meaning and action."""
    if field.samples < 2:
        meaning = "One sample says nothing about how much the field varies."
        return Severity.INCONCLUSIVE, meaning, "Audit 8 samples or more of the same size."
    if not change <= limits.convergence:
        meaning = f"Half of the samples give a field {change:.0%} different: it has not converged."
        return Severity.INCONCLUSIVE, meaning, "Raise the probe's setting samples."
    meaning = "What lies further out hardly moves this unit, whatever the theoretical field."
    if isnan(limits.required):
        return Severity.INFO, meaning, "None."
    severity = at_least(field, limits.required)
    enlarge = "Enlarge the field: more depth, stride, dilation or larger kernels."
    return severity, meaning, enlarge if severity is Severity.WARN else "None."


def _elongated(last: xr.Dataset, limits: EffectiveFieldLimits) -> Iterator[Finding]:
    """Report a field that is clearly longer along one axis than along another."""
    value, low, high = (float(last["anisotropy" + end]) for end in ("", "_low", "_high"))
    if not low > limits.elongation:
        return
    sigma, axes = last["sigma"].to_numpy(), last["axis"].to_numpy().astype(str)
    longest, shortest = int(sigma.argmax()), int(sigma.argmin())
    theoretical, inputs = last["theoretical"].to_numpy(), last["input_size"].to_numpy()
    name = str(last["layer"].item())
    yield Finding(
        code="field-elongation",
        probe=PROBE,
        severity=Severity.INFO,
        title="Shape of the field",
        message=f"the field of {name} is {value:.2g} times as long along {axes[longest]} as along "
        f"{axes[shortest]} (theoretical field: {theoretical[longest] / theoretical[shortest]:.2g} "
        f"times, input: {inputs[longest] / inputs[shortest]:.2g} times)",
        meaning=f"It gathers context along {axes[longest]} first.",
        value=value,
        low=low,
        high=high,
        limit=limits.elongation,
        relation="<=",
        limit_source=source_of(limits, "elongation"),
        samples=int(last.attrs["samples"]),
        where=(name,),
    )


def _contradicted(trace: xr.Dataset, limits: EffectiveFieldLimits) -> Iterator[Finding]:
    """Name layers whose gradient leaves the theoretical field."""
    share = trace["outside"].to_numpy()
    beyond = np.flatnonzero(share > limits.outside)
    if not len(beyond):
        return
    names = [str(name) for name in trace["layer"].to_numpy()[beyond]]
    norms = str(trace.attrs["global_statistics"])
    finding = partial(
        Finding,
        code="field-mismatch",
        probe=PROBE,
        title="Theoretical and effective field",
        message=f"up to {share[beyond].max():.2g} of the gradient's energy lies outside of the "
        f"theoretical field, at {len(names)} convolution{'s' * (len(names) > 1)}: {listed(names)}",
        value=float(share[beyond].max()),
        limit=limits.outside,
        relation="<=",
        limit_source=source_of(limits, "outside"),
        samples=int(trace.attrs["samples"]),
        where=tuple(names),
    )
    if norms:
        yield finding(
            severity=Severity.INFO,
            meaning="Statistics of the whole map carry it, which by convention do not count: "
            f"{listed(norms.split(', '))}.",
        )
        return
    yield finding(
        severity=Severity.INCONCLUSIVE,
        meaning="The theoretical field of these layers is wrong, or the network normalizes over "
        "the whole map in its own code, or a backward pass of its own does not belong to the "
        "forward pass: do not rely on the theoretical numbers.",
        action="Report the operators of these layers, and judge by the effective field.",
    )
