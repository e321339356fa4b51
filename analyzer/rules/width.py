"""Verdicts on the width of every layer: how much of it is used, and what the output needs."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import isnan, nan

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import WidthLimits, source_of
from analyzer.rules.idle import shares
from analyzer.rules.redundancy import constant_units, measured, redundant_units
from analyzer.rules.units import dead_units, saturated_units
from analyzer.rules.verdicts import Estimate, at_least, at_most, listed

PROBE = "width"

RESOLUTION = 0.5
"""A count of directions is known to half a direction, however alike the groups of samples are."""


def width(trace: xr.Dataset, limits: WidthLimits) -> Iterator[Finding]:
    """Judge how many directions every layer fills, and units that say nothing of their own.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.width.Width`.
    limits : WidthLimits
        All are used.

    Yields
    ------
    Finding
        Directions, redundant units, and, where there are such layers, wasted width and its
        parameters, constant units, dead and saturated units behind activation functions.
    """
    used = filled(trace)
    yield _use(trace, used)
    if used:
        yield _wasted(trace, used, limits)
        yield _parameters(trace, used)
    yield redundant_units(trace, limits)
    yield from constant_units(trace, limits)
    yield from dead_units(trace, limits)
    yield from saturated_units(trace, limits)


def filled(trace: xr.Dataset) -> dict[str, Estimate]:
    """Share of the directions that its weights allow that each layer fills, where it is known.

    What a layer reads bounds its directions before the activation function: that is no waste.
    Layers that nothing reads are left out: the task decides how wide they are.
    """
    most, read = (trace[name].to_series() for name in ("most", "read"))
    return {
        layer: _share(one, most[layer])
        for layer, one in measured(trace, "directions").items()
        if read[layer] and not isnan(one.value)
    }


def _share(count: Estimate, most: int) -> Estimate:
    """Express a count of directions as a share of those possible."""
    low = max(min(count.low, count.value - RESOLUTION) / most, 0.0)
    high = min(max(count.high, count.value + RESOLUTION) / most, 1.0)
    if isnan(count.low):
        low = high = nan
    return Estimate(count.value / most, low, high, count.samples)


def loss_share(trace: xr.Dataset) -> Estimate:
    """Change of the loss with all layers restricted to their directions, as a share of it."""
    if not trace.sizes["sample"]:
        return Estimate()
    (found,) = shares(trace["loss_change"].expand_dims(part=["all"]), trace["intact_loss"])
    return found


def restricted_layers(trace: xr.Dataset) -> list[str]:
    """Name the layers that were restricted."""
    return [layer for layer in str(trace.attrs["restricted"]).split(", ") if layer]


def short(trace: xr.Dataset) -> list[str]:
    """Say of each layer with too few positions how many there are and how many are needed."""
    power, known = int(trace.attrs["power"]), ~np.isnan(trace["directions"].to_numpy())
    return [
        f"{layer} ({seen:.0f} of {power * wide})"
        for layer, seen, wide, enough, read in zip(
            trace["layer"].to_numpy(),
            trace["independent"].to_numpy(),
            trace["width"].to_numpy(),
            known,
            trace["read"].to_numpy(),
            strict=True,
        )
        if read and not enough and seen < power * wide
    ]


def _use(trace: xr.Dataset, used: Mapping[str, Estimate]) -> Finding:
    """Report the directions of all layers."""
    few, level = short(trace), f"{trace.attrs['level']:.0%}"
    finding = partial(Finding, code="width-use", probe=PROBE, title="Width in use")
    lacking = (
        f" Too few independent positions for {len(few)}: {listed(few)}, that is "
        f"{trace.attrs['power']} for each unit."
        if few
        else ""
    )
    if not used:
        return finding(
            severity=Severity.INCONCLUSIVE,
            message="no layer whose width could be another one has enough independent positions "
            "to count its directions",
            meaning=f"The rank of so few positions would say little.{lacking}",
            action="Audit more samples." if few else "None.",
        )
    allowed = trace["most"].to_series()
    least, most = (pick(used, key=lambda layer: used[layer].value) for pick in (min, max))
    middle = float(np.median([one.value for one in used.values()]))
    beside = untrained(trace, [*used])
    null = f"; untrained copies {beside:.0%}" if not isnan(beside) else ""
    return finding(
        severity=Severity.INFO,
        message=f"{middle:.0%} of the directions that its weights allow hold {level} of the "
        f"variance of what a layer returns (median of {len(used)} layers{null}): least in {least}, "
        f"{used[least].value * allowed[least]:.0f} of {allowed[least]}, most in {most}, "
        f"{used[most].value * allowed[most]:.0f} of {allowed[most]}",
        meaning="Adding features to a layer has little effect where few directions hold the "
        f"variance already. Small directions can matter all the same.{lacking}",
        value=middle,
        samples=used[least].samples,
        where=(least,),
    )


def untrained(trace: xr.Dataset, layers: Sequence[str]) -> float:
    """Median share of those directions in copies with new random weights; nan without any."""
    own = trace.sel(layer=[*layers])
    values = (own["untrained_directions"] / own["most"]).to_numpy()
    return float(np.nanmedian(values)) if np.isfinite(values).any() else nan


def _wasted(trace: xr.Dataset, used: Mapping[str, Estimate], limits: WidthLimits) -> Finding:
    """Judge whether most layers are wider than they need to be."""
    loss, tested = loss_share(trace), restricted_layers(trace)
    judged = {layer: used[layer] for layer in tested if layer in used} or dict(used)
    sides = {layer: at_least(one, limits.filled) for layer, one in judged.items()}
    narrow = [layer for layer, side in sides.items() if side is Severity.WARN]
    open_ = [layer for layer, side in sides.items() if side is Severity.INCONCLUSIVE]
    total, samples = len(judged), int(trace.attrs["samples"])
    below = sum(one.value < limits.filled for one in judged.values())
    share = Estimate(
        below / total, len(narrow) / total, (len(narrow) + len(open_)) / total, samples
    )
    severity = at_most(share, limits.layers)
    if samples < limits.min_samples:
        severity = Severity.INCONCLUSIVE
    needs = at_least(loss, limits.idle)
    if severity is Severity.WARN and not isnan(loss.value):
        severity = {Severity.PASS: Severity.INFO}.get(needs, needs)
    elif severity is Severity.WARN:
        severity = Severity.INFO
    meaning, action = _meaning(severity, loss, samples, narrow, limits)
    states = _recurrent(trace, narrow)
    if severity is Severity.WARN and states:
        meaning += _PASSED_ON
        if (len(narrow) - len(states)) / total <= limits.layers:
            severity, meaning, action = Severity.INFO, _READ + _PASSED_ON, _COMPARE
    return Finding(
        code="width-wasted",
        probe=PROBE,
        severity=severity,
        title="Wasted width",
        message=f"{len(narrow)} of {total} layers fill less than {limits.filled:.0%} of the "
        f"directions that their weights allow{_named(judged, narrow)}{_tested(loss, trace)}",
        meaning=meaning,
        action=action,
        value=share.value,
        low=share.low,
        high=share.high,
        limit=limits.layers,
        relation="<=",
        limit_source=source_of(limits, "layers"),
        samples=samples,
        where=tuple(narrow),
    )


_READ = "What reads these layers needs no more than their directions."

_PASSED_ON = (
    " Of recurrent layers what they pass on was restricted: their recurrence kept all of the "
    "state, and may need it."
)

_COMPARE = "Train a narrower network and compare."


def _recurrent(trace: xr.Dataset, layers: Sequence[str]) -> list[str]:
    """Name the recurrent layers among some."""
    kinds = trace["kind"].to_series()
    return [layer for layer in layers if kinds[layer].startswith(("LSTM", "GRU", "RNN"))]


def _named(judged: Mapping[str, Estimate], narrow: Sequence[str]) -> str:
    """Name narrow layers, the narrowest first."""
    ordered = sorted(narrow, key=lambda layer: judged[layer].value)
    return f": {listed([f'{layer} ({judged[layer].value:.0%})' for layer in ordered])}" * bool(
        narrow
    )


def _tested(loss: Estimate, trace: xr.Dataset) -> str:
    """Say what the loss does when layers keep their directions only."""
    if isnan(loss.value):
        return ""
    count = len(restricted_layers(trace))
    which = f"all {count} layers" if count > 1 else "the layer"
    return (
        f"; with {which} before the output restricted to these directions at once the loss changes "
        f"by {loss.value:+.1%} [{loss.low:+.1%}, {loss.high:+.1%}]"
    )


def _meaning(
    severity: Severity, loss: Estimate, samples: int, narrow: Sequence[str], limits: WidthLimits
) -> tuple[str, str]:
    """Say what follows from directions and loss."""
    if severity is Severity.WARN:
        return (
            "Most layers are wider than these data need: the directions that they leave nearly "
            "empty change nothing in the output. Time and memory grow with the square of the "
            "width.",
            f"Train with {listed([*narrow])} narrower by half and compare; spend the parameters on "
            "depth or memory if the task asks for them.",
        )
    if severity is Severity.PASS:
        return "Most layers use their width.", "None."
    if severity is Severity.INFO and not isnan(loss.value):
        return "Directions with little variance carry what the output needs.", "None."
    if severity is Severity.INFO:
        return (
            "Most layers are wider than the variance of their states asks for. Whether the output "
            "needs the rest was not tested, or the mean loss is not above zero.",
            _COMPARE,
        )
    few = samples < limits.min_samples
    return (
        f"{samples} samples are too few to judge."
        if few
        else "The intervals reach across a limit.",
        f"Audit at least {limits.min_samples:g} samples." if few else "Audit more samples.",
    )


def _parameters(trace: xr.Dataset, used: Mapping[str, Estimate]) -> Finding:
    """Say what the unused width costs."""
    total, kept = (float(trace[name].sum()) for name in ("parameters", "kept_parameters"))
    spared = (
        (trace["parameters"] - trace["kept_parameters"]).to_series().sort_values(ascending=False)
    )
    most = [f"{layer} {number:,.0f}" for layer, number in spared.items() if number > 0]
    return Finding(
        code="unused-parameters",
        probe=PROBE,
        severity=Severity.INFO,
        title="Parameters of unused width",
        message=f"{1 - kept / total:.0%} of the {total:,.0f} parameters of the layers would go if "
        f"each were as wide as its directions{': ' * bool(most)}{listed(most)}",
        meaning="Counted are the weights into and out of directions beyond those that hold the "
        "variance; layers that are summed keep the directions of all of them. It is an upper end "
        "of what can be saved, and only where the loss does not need the small directions; a "
        "narrower network has to be trained anew.",
        value=1 - kept / total,
        samples=int(trace.attrs["samples"]),
        where=tuple(str(layer) for layer in spared.index[: min(3, len(most))]),
    )
