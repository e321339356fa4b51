"""Verdicts on units behind activation functions: never active, or always at an end."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyzer.findings import Finding, Severity
from analyzer.limits import WidthLimits, source_of
from analyzer.rules.jackknife import jackknife_interval
from analyzer.rules.verdicts import Estimate, at_most, listed
from analyzer.statistics import Values

PROBE = "width"

Test = Callable[[Values, float], NDArray[np.bool_]]
"""Of the counts of units over samples, and how many samples there are: which units do nothing."""


class Idle(NamedTuple):
    """Units behind one activation function of one layer that do nothing."""

    layer: str
    function: str
    share: Estimate
    """Of the units."""
    units: int

    def __str__(self) -> str:
        """Say how many there are."""
        return f"{round(self.share.value * self.units)} of {self.units} behind {self.function}"


def dead(trace: xr.Dataset) -> list[Idle]:
    """Units that are never above zero, behind every ReLU."""
    active = trace["active"].transpose("group", "response", "response_unit").to_numpy()
    return _idle(trace, active, lambda count, _: np.asarray(count == 0))


def saturated(trace: xr.Dataset, stuck: float) -> list[Idle]:
    """Units that are at either end for ``stuck`` of the time, behind every tanh and sigmoid."""
    ends = trace["at_end"].transpose("group", "response", "response_unit", "end").to_numpy()
    read = trace["read"].to_series()
    found = _idle(trace, ends, lambda time, samples: np.asarray(time.sum(-1) >= stuck * samples))
    # The last sigmoid is the answer: it should be near one of its ends.
    return [one for one in found if read.get(one.layer, 1)]


def _idle(trace: xr.Dataset, counts: Values, test: Test) -> list[Idle]:
    """Count the units that pass a test, over all samples and without each group."""
    seen = trace["seen"].transpose("group", "response").to_numpy()
    found = []
    for at, layer in enumerate(trace["response_layer"].to_numpy()):
        own = counts[:, at]
        units = ~np.isnan(own.reshape(len(own), own.shape[1], -1)).any((0, 2))
        groups = seen[:, at] > 0
        if not units.any() or not groups.any():
            continue
        own, samples = own[groups][:, units], seen[groups, at]
        total = test(own.sum(0), samples.sum()).mean()
        others = [
            test(own.sum(0) - part, samples.sum() - count).mean()
            for part, count in zip(own, samples, strict=True)
            if count < samples.sum()
        ]
        low, high = jackknife_interval(total, others, samples if others else None)
        share = Estimate(
            float(total), max(float(low), 0.0), min(float(high), 1.0), int(samples.sum())
        )
        name = str(trace["response"].to_numpy()[at])
        found.append(Idle(str(layer), name, share, int(units.sum())))
    return found


def dead_units(trace: xr.Dataset, limits: WidthLimits) -> Iterator[Finding]:
    """Judge units that are never active; nothing where there is no ReLU."""
    found = dead(trace)
    if not found:
        return
    samples = found[0].share.samples
    severity, named = _judged(found, limits.dead, limits.most_dead)
    few = samples * limits.rare < 3
    if few:
        severity = Severity.INCONCLUSIVE
    some = [one for one in named if one.share.value > 0]
    said = (
        f"{listed([str(one) for one in some], 3)} are never above zero"
        if some
        else "every unit is above zero at some time"
    )
    finding = _finding(severity, named, limits.dead, source_of(limits, "dead"))
    yield finding(
        code="dead-units",
        title="Dead units",
        message=f"{said} in {samples} samples",
        meaning=f"{samples} samples are too few: a unit unseen in them may be active in "
        f"{min(3 / samples, 1):.0%} of others."
        if few
        else "No gradient reaches a unit that is not active, so that it does not recover. With "
        f"95 % confidence each is active in fewer than {3 / samples:.2%} of such samples (rule of "
        "three)."
        if some
        else "Every unit takes part.",
        action=f"Audit at least {3 / limits.rare:.0f} samples."
        if few
        else "Lower the learning rate, use a leaky activation, or remove these units."
        if severity in (Severity.WARN, Severity.FAIL)
        else "None.",
    )


def saturated_units(trace: xr.Dataset, limits: WidthLimits) -> Iterator[Finding]:
    """Judge units that stay at the ends of a tanh or sigmoid; nothing where there is none."""
    found = saturated(trace, limits.stuck_time)
    if not found:
        return
    samples = found[0].share.samples
    severity, named = _judged(found, limits.stuck_units)
    if samples < limits.min_samples:
        severity = Severity.INCONCLUSIVE
    some = [one for one in named if one.share.value > 0]
    said = f"{listed([str(one) for one in some], 3)} are" if some else "no unit is"
    finding = _finding(severity, named, limits.stuck_units, source_of(limits, "stuck_units"))
    yield finding(
        code="saturated-units",
        title="Saturated units",
        message=f"{said} at an end of the function for {limits.stuck_time:.0%} of the time",
        meaning="Such a unit is a switch at best, and passes hardly any gradient."
        if some
        else "Every unit moves.",
        action=f"Audit at least {limits.min_samples:g} samples."
        if samples < limits.min_samples
        else "Normalize what the layer reads, or decay its weights."
        if severity is Severity.WARN
        else "None.",
    )


def _judged(found: list[Idle], warn: float, fail: float = float("nan")) -> "_Judged":
    """Find the worst severity, and the functions that have it (all of them in a pass)."""
    sides = [at_most(one.share, warn, fail) for one in found]
    worst = min(sides, key=lambda side: side.rank)
    named = [one for one, side in zip(found, sides, strict=True) if side is worst]
    return _Judged(worst, sorted(named, key=lambda one: -one.share.value))


class _Judged(NamedTuple):
    """What a limit says."""

    severity: Severity
    named: list[Idle]
    """Those with this severity, the worst first."""


def _finding(severity: Severity, named: list[Idle], limit: float, source: str) -> partial[Finding]:
    """Fill in what findings on units share."""
    share = named[0].share
    return partial(
        Finding,
        probe=PROBE,
        severity=severity,
        value=share.value,
        low=share.low,
        high=share.high,
        limit=limit,
        relation="<=",
        limit_source=source,
        samples=share.samples,
        where=() if severity is Severity.PASS else tuple(dict.fromkeys(o.layer for o in named)),
    )
