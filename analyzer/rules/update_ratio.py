"""Verdicts on the size of the optimizer's updates beside the weights."""

from collections.abc import Iterator
from functools import partial
from math import isnan, nan

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import UpdateRatioLimits, source_of
from analyzer.rules.verdicts import listed

PROBE = "update_ratio"


def update_ratio(trace: xr.Dataset, limits: UpdateRatioLimits) -> Iterator[Finding]:
    """Judge the last update of every layer against the layer.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.update_ratio.UpdateRatio`.
    limits : UpdateRatioLimits
        All are used.

    Yields
    ------
    Finding
        One.
    """
    ratios = by_layer(trace)
    known = {layer: ratio for layer, ratio in ratios.items() if not isnan(ratio)}
    finding = partial(Finding, code="update-ratio", probe=PROBE, title="Updates beside weights")
    if not known:
        yield finding(
            severity=Severity.INCONCLUSIVE,
            message="no layer has a norm and an update that are known",
            meaning="All weights are zero, or the moments or the learning rate are undefined.",
            action="Check the optimizer's state in the checkpoint.",
        )
        return
    value = float(np.median([*known.values()]))
    large = [layer for layer, ratio in known.items() if ratio > limits.high]
    small = [layer for layer, ratio in known.items() if ratio < limits.low]
    farthest = max(known, key=lambda layer: abs(np.log10(max(known[layer], 1e-300) / value)))
    message = (
        f"the last update changes a layer by {value:.1e} of its norm (median of {len(known)}; "
        f"{min(known.values()):.1e} to {max(known.values()):.1e}, farthest off {farthest}), "
        f"as {trace.attrs['optimizer']} at a learning rate of {_rate(trace)}"
    )
    severity, meaning, action = _judged(large, small, decayed(trace, limits))
    unknown = [layer for layer in ratios if layer not in known]
    if unknown and severity is Severity.PASS:
        severity = Severity.INCONCLUSIVE
        meaning = (
            f"Of {listed(unknown)} nothing is known: the weights are zero, or the moments nan."
        )
        action = "Check these layers in the checkpoint."
    beyond = limits.high if large or not small else limits.low
    yield finding(
        severity=severity,
        message=message + _outside(large, small, limits),
        meaning=meaning,
        action=action,
        value=_worst(known, large, small, value),
        limit=beyond,
        relation=">=" if small and not large else "<=",
        limit_source=source_of(limits, "high" if beyond == limits.high else "low"),
        where=(*large, *small),
    )


def by_layer(trace: xr.Dataset) -> dict[str, float]:
    """Norm of the update of all parameters of a layer over that of the parameters; nan for zero."""
    squares: dict[str, tuple[float, float]] = {}
    columns = (trace[name].to_numpy() for name in ("layer", "update", "weight"))
    for layer, update, weight in zip(*columns, strict=True):
        before = squares.get(str(layer), (0.0, 0.0))
        squares[str(layer)] = before[0] + update**2, before[1] + weight**2
    return {
        layer: float(np.sqrt(update / weight)) if weight > 0 else nan
        for layer, (update, weight) in squares.items()
    }


def decayed(trace: xr.Dataset, limits: UpdateRatioLimits) -> bool:
    """Whether a schedule has brought the learning rate to its end."""
    rate, initial = (trace[name].to_numpy() for name in ("rate", "initial_rate"))
    return bool(np.nanmax(rate, initial=0) < limits.decayed * np.nanmax(initial, initial=0))


def _rate(trace: xr.Dataset) -> str:
    """Write the learning rates."""
    rates = np.unique(trace["rate"].to_numpy())
    return " to ".join(dict.fromkeys(f"{rate:.3g}" for rate in (rates[0], rates[-1])))


def _outside(large: list[str], small: list[str], limits: UpdateRatioLimits) -> str:
    """Name the layers that are outside of the band."""
    parts = [f"above {limits.high:g}: {listed(large)}"] * bool(large)
    parts += [f"below {limits.low:g}: {listed(small)}"] * bool(small)
    return f"; {'; '.join(parts)}" if parts else ""


def _worst(known: dict[str, float], large: list[str], small: list[str], middle: float) -> float:
    """Choose the ratio that the verdict rests on."""
    if large:
        return max(known[layer] for layer in large)
    return min(known[layer] for layer in small) if small else middle


def _judged(large: list[str], small: list[str], ended: bool) -> tuple[Severity, str, str]:
    """Severity, meaning and action."""
    if large:
        meaning = "A step of this size throws away what the layer had learnt."
        return Severity.WARN, meaning, f"Lower the learning rate, at least of {listed(large)}."
    if small and ended:
        meaning = "The schedule had lowered the learning rate to its end: updates are meant small."
        return Severity.INFO, meaning, "Audit a checkpoint from the middle of training."
    if small:
        meaning = "These layers hardly learn any more, or never did."
        return (
            Severity.WARN,
            meaning,
            f"Raise the learning rate of {listed(small)}, or freeze them.",
        )
    return Severity.PASS, "Every layer was learning at a usual pace when this was saved.", "None."
