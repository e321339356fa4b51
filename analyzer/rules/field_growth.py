"""By which power of depth the effective field grows."""

from dataclasses import dataclass, field
from math import isnan, nan, sqrt

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyzer.findings import Finding, Severity
from analyzer.limits import EffectiveFieldLimits
from analyzer.rules.verdicts import Estimate
from analyzer.statistics import COVERAGE, Values

Places = NDArray[np.intp]

RANDOM = 0.5
"""Exponent of independent random weights without strides."""


_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Growth:
    """Power law of the diameter against the theoretical field, which grows with depth.

    Parameters
    ----------
    exponent : Estimate
        With its interval over samples; undefined where no law applies.
    untrained : tuple of float
        Exponents of the copies with random weights.
    layers : int
        Convolutions it rests on.
    reason : str
        Why no law applies; empty if one does.
    """

    exponent: Estimate = field(default_factory=Estimate)
    untrained: tuple[float, ...] = ()
    layers: int = 0
    reason: str = ""


def another(values: Values) -> tuple[float, float]:
    """Range in which one more value of the same kind lies with a probability of 95 %.

    Parameters
    ----------
    values : ndarray, shape (copy,)
        Of a few copies, taken as normal.

    Returns
    -------
    low, high : float
        Undefined for fewer than two.
    """
    count = len(values)
    if count < 2:
        return nan, nan
    quantile = _STUDENT[min(count - 1, len(_STUDENT)) - 1]
    half = quantile * float(values.std(ddof=1)) * sqrt(1 + 1 / count)
    return float(values.mean()) - half, float(values.mean()) + half


def growth(trace: xr.Dataset, limits: EffectiveFieldLimits) -> Growth:
    """Fit the exponent of the diameter over the theoretical field less one.

    In a stack of equal kernels that is the number of layers, whatever 1x1 convolutions lie between
    them. It is fitted to layers of one stride whose field does not come near the borders of the
    input. Where dilations make the theoretical field grow ever faster, both fields follow them
    rather than depth, and there is no such law.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.effective_field.EffectiveField`.
    limits : EffectiveFieldLimits
        ``border``, ``untrained`` and those whose names start with ``growth`` are used.

    References
    ----------
    .. [1] Luo et al., Understanding the Effective Receptive Field in Deep CNNs (2016), section 2.
    """
    chosen = _one_stride(trace, _inside(trace, limits))
    if len(chosen) < limits.growth_layers:
        return Growth(
            layers=len(chosen),
            reason=f"strides and the borders of the input leave {len(chosen)} of the measured "
            "convolutions to fit one to",
        )
    reach = trace["theoretical"].mean("axis").to_numpy()[chosen] - 1
    reason = _uneven(trace["number"].to_numpy()[chosen], reach, limits)
    if reason:
        return Growth(layers=len(chosen), reason=reason)
    squares = np.square(trace["resampled_sigma"].transpose("layer", "resample", "axis").to_numpy())
    low, high = _ends(_exponents(reach, np.sqrt(squares[chosen].mean(axis=-1))))
    value = float(_exponents(reach, trace["diameter"].to_numpy()[chosen, None])[0])
    untrained = _untrained(trace.isel(layer=chosen), reach, limits)
    samples = int(trace.attrs["samples"])
    return Growth(Estimate(value, low, high, samples), untrained, len(chosen))


def _untrained(trace: xr.Dataset, reach: Values, limits: EffectiveFieldLimits) -> tuple[float, ...]:
    """Exponents of the copies, over those of the layers at which they are measured."""
    if "null_diameter" not in trace:
        return ()
    copies = trace["null_diameter"].transpose("layer", "null").to_numpy()
    known = np.flatnonzero(np.isfinite(copies).all(axis=1))
    if len(known) < limits.growth_layers - 1:
        return ()
    return tuple(float(slope) for slope in _exponents(reach[known], copies[known]))


def _inside(trace: xr.Dataset, limits: EffectiveFieldLimits) -> Places:
    """Layers that have a field, which does not come near the borders of the input."""
    near = (4 * trace["sigma"] <= limits.border * trace["input_size"]).all("axis")
    wide = trace["theoretical"].mean("axis", skipna=False) > 1
    return np.flatnonzero((near & wide & (trace["diameter"] > 0)).to_numpy())


def _one_stride(trace: xr.Dataset, places: Places) -> Places:
    """Longest run of layers between two changes of the stride: the first of several."""
    jump = trace["jump"].transpose("layer", "axis").to_numpy()
    changed = (jump[1:] != jump[:-1]).any(axis=1)
    run = np.concatenate([[0], np.cumsum(changed)])[places]
    runs = [places[run == number] for number in np.unique(run)]
    return max(runs, key=len, default=places)


def _ends(drawn: Values) -> tuple[float, float]:
    """Interval of what was drawn again; nan where some of it is undefined."""
    if not len(drawn) or not np.isfinite(drawn).all():
        return nan, nan
    low, high = np.quantile(drawn, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def _uneven(number: Values, reach: Values, limits: EffectiveFieldLimits) -> str:
    """Say why the theoretical field does not grow in proportion to depth; empty if it does."""
    order = np.argsort(number, kind="stable")
    number, widest = number[order], np.maximum.accumulate(reach[order])
    if widest[-1] < limits.growth_range * reach.min():
        return (
            f"the theoretical field grows by less than {limits.growth_range:g} times over the "
            f"{len(reach)} convolutions of one stride whose field is well inside the input"
        )
    middle = np.interp((number[0] + number[-1]) / 2, number, widest)
    first, second = middle - widest[0], widest[-1] - middle
    if max(first, second) > limits.growth_evenness * min(first, second):
        pace = "faster" if second > first else "more slowly"
        return (
            f"dilations or kernels make the theoretical field grow {pace} in the second "
            "half of the convolutions than in the first"
        )
    return ""


def _exponents(reach: Values, sizes: Values) -> Values:
    """Least-squares slopes of the logarithms, one per column of ``sizes``: (layer, column)."""
    x = np.log(reach) - np.log(reach).mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.log(sizes)
        slopes: Values = x @ y / (x @ x)
    return slopes


def growth_finding(trace: xr.Dataset, limits: EffectiveFieldLimits, probe: str) -> Finding:
    """Report the law of growth, or why there is none."""
    found = growth(trace, limits)
    title = "Growth of the field"
    if found.reason:
        return Finding(
            code="field-growth",
            probe=probe,
            severity=Severity.NOT_APPLICABLE,
            title=title,
            message=f"no power of depth describes the field: {found.reason}",
            meaning="Compare the sizes of single layers with the theoretical field instead.",
        )
    exponent = found.exponent
    copies = ""
    if found.untrained:
        ends = sorted({f"{min(found.untrained):.2f}", f"{max(found.untrained):.2f}"})
        copies = f" (untrained copies: {' to '.join(ends)})"
    return Finding(
        code="field-growth",
        probe=probe,
        severity=Severity.INFO,
        title=title,
        message=f"over {found.layers} convolutions the field grows with the power "
        f"{exponent.value:.2f} of depth{copies}",
        meaning=_meaning(found, limits),
        value=exponent.value,
        low=exponent.low,
        high=exponent.high,
        samples=exponent.samples,
    )


def _meaning(found: Growth, limits: EffectiveFieldLimits) -> str:
    """Compare with the powers that are known."""
    known = "Independent random weights give 1/2, the theoretical field 1."
    exponent = found.exponent
    if isnan(exponent.low):
        return known
    least, most = RANDOM * (1 - limits.untrained), RANDOM * (1 + limits.untrained)
    others = "with random weights"
    if found.untrained:
        least, most = another(np.array(found.untrained))
        others = "in untrained copies"
    if exponent.low > most:
        return f"{known} Here depth pays with more context than {others}."
    if exponent.high < least:
        return f"{known} Here depth pays with less context than {others}."
    return f"{known} It does not differ for certain from the power {others}."
