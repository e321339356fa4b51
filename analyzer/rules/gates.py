"""Verdicts on the gates of recurrent layers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import GatesLimits, source_of
from analyzer.rules.resampling import interval
from analyzer.rules.verdicts import Estimate, at_most, listed
from analyzer.statistics import Values

PROBE = "gates"

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles over units at which timescales are told."""

BY_DESIGN = (("forget", "open"), ("update", "open"))
"""Gates and ends that are no fault: a unit that hardly forgets holds its state on purpose."""

BOTH_ENDS = ("candidate", "state")
"""Activations that are saturated at either end of the tanh."""


@dataclass(frozen=True)
class Stuck:
    """Units of a layer whose gate stays at one end all the time."""

    layer: str
    gate: str
    end: str
    """Open, closed, saturated or zero."""
    share: Estimate = field(default_factory=Estimate)
    """Of the layer's units."""
    units: int = 0
    """How many units the layer has."""

    @property
    def count(self) -> int:
        """How many units are stuck."""
        return round(self.share.value * self.units)

    @property
    def what(self) -> str:
        """What it is that does not move."""
        return self.gate if self.gate in BOTH_ENDS else f"{self.gate} gate"

    def __str__(self) -> str:
        """Say it as a part of a sentence."""
        units = f"{self.count} of {self.units} units in {self.layer}"
        return f"{self.what} of {units} {_ENDS[self.end]}"


_ENDS = {
    "open": "always open",
    "closed": "always closed",
    "saturated": "always at the end of its tanh",
    "zero": "always zero",
}


def gates(trace: xr.Dataset, limits: GatesLimits) -> Iterator[Finding]:
    """Judge gates that never move, and tell the timescales of the units.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.gates.Gates`.
    limits : GatesLimits
        ``stuck_time``, ``stuck_units`` and ``min_samples`` are used.

    Yields
    ------
    Finding
        Saturation, and timescales.
    """
    yield _saturation(trace, limits)
    yield _timescales(trace)


def stuck(trace: xr.Dataset, limits: GatesLimits) -> list[Stuck]:
    """List every layer, gate and end with the share of units that stay there.

    A unit is stuck where its gate is at that end for ``limits.stuck_time`` of the time, averaged
    over the samples; the interval is over samples drawn again.
    """
    found = []
    for layer in map(str, trace["layer"].to_numpy()):
        for gate in map(str, trace["gate"].to_numpy()):
            found += _stuck(trace.sel(layer=layer, gate=gate), layer, gate, limits)
    return found


def timescales(trace: xr.Dataset) -> dict[str, list[Estimate]]:
    """Timescale of each layer's units at :data:`QUANTILES`, with intervals over samples.

    Layers without a forget or update gate are left out.
    """
    found = {}
    for layer in map(str, trace["layer"].to_numpy()):
        for gate in ("forget", "update"):
            if gate not in trace["gate"]:
                continue
            held = _known(trace["mean"].sel(layer=layer, gate=gate))
            if held.size:
                found[layer] = _quantiles(held)
    return found


def _stuck(own: xr.Dataset, layer: str, gate: str, limits: GatesLimits) -> list[Stuck]:
    """Count the stuck units of one gate of one layer, end by end."""
    opened, closed = _known(own["open"]), _known(own["closed"])
    if not closed.size:
        return []
    if not opened.size:
        ends = {"zero": closed}
    elif gate in BOTH_ENDS:
        ends = {"saturated": opened + closed}
    else:
        ends = {"open": opened, "closed": closed}
    return [
        Stuck(layer, gate, end, _share(time, limits.stuck_time), time.shape[1])
        for end, time in ends.items()
        if (gate, end) not in BY_DESIGN
    ]


def _known(values: xr.DataArray) -> Values:
    """Rows and columns that were measured: (sample, unit)."""
    table = values.transpose("sample", "unit").to_numpy().astype(np.float64)
    known = ~np.isnan(table)
    return table[np.ix_(known.any(1), known.any(0))]


def _share(time: Values, most: float) -> Estimate:
    """Share of the units that spend at least ``most`` of the time there; (sample, unit) given."""
    # A hair below, as shares of the time are stored in single precision.
    (found,) = _estimates(time, lambda mean: (mean >= most - 1e-6).mean(-1)[..., None])
    return found


def _quantiles(held: Values) -> list[Estimate]:
    """Quantiles over units of the timescale of (sample, unit) mean gates."""

    def scales(mean: Values) -> Values:
        with np.errstate(divide="ignore"):
            found = np.quantile(1 / np.abs(np.log(mean)), QUANTILES, axis=-1)
        return np.asarray(np.moveaxis(found, 0, -1))

    return _estimates(held, scales)


def _estimates(values: Values, statistic: Callable[[Values], Values]) -> list[Estimate]:
    """Statistics of the mean over samples of (sample, unit), with intervals over samples."""
    samples = len(values)
    found = statistic(values.mean(0))
    low, high = interval(lambda weights: statistic(weights @ values), samples)
    return [
        Estimate(float(middle), float(least), float(most), samples)
        for middle, least, most in zip(found, low, high, strict=True)
    ]


def _saturation(trace: xr.Dataset, limits: GatesLimits) -> Finding:
    """Judge the gate in which most units are stuck, and name all that are beyond the limit."""
    found = sorted(stuck(trace, limits), key=lambda one: one.share.value, reverse=True)
    worst, samples = found[0], max(one.share.samples for one in found)
    severity = at_most(worst.share, limits.stuck_units)
    told = [one for one in found if at_most(one.share, limits.stuck_units) is severity]
    if samples < limits.min_samples:
        severity, told = Severity.INCONCLUSIVE, [worst]
        meaning = f"{samples} samples are too few to say that a gate never moves."
        action = f"Audit at least {limits.min_samples:g} samples."
    elif severity is Severity.WARN:
        meaning, action = _MEANING[worst.gate, worst.end], _ACTION[worst.gate, worst.end]
        action = f"In {worst.layer}: {action}"
    elif severity is Severity.INCONCLUSIVE:
        meaning, action = "The samples disagree too much to tell.", "Audit more samples."
    else:
        meaning, action, told = "Every gate moves in most of the units.", "None.", [worst]
    return Finding(
        code="gate-saturation",
        probe=PROBE,
        severity=severity,
        title="Gate saturation",
        message=listed([str(one) for one in told])
        if worst.count
        else "no gate of any unit stays at one end all the time",
        meaning=meaning,
        action=action,
        value=worst.share.value,
        low=worst.share.low,
        high=worst.share.high,
        limit=limits.stuck_units,
        relation="<=",
        limit_source=source_of(limits, "stuck_units"),
        samples=samples,
        where=tuple(dict.fromkeys(one.layer for one in told)),
    )


_MEANING = {
    ("input", "open"): "These units take in everything: the gate selects nothing.",
    ("input", "closed"): "These units take nothing in: they hold what they began with.",
    ("forget", "closed"): "These cells forget everything at every timestep: the layer remembers "
    "only by way of its hidden state.",
    ("output", "open"): "These units pass everything on: the gate selects nothing.",
    ("output", "closed"): "What these units hold never leaves them.",
    ("candidate", "saturated"): "These units write one of two values whatever comes in, and a "
    "saturated tanh passes hardly any gradient.",
    ("reset", "open"): "New values always see the whole state: the gate selects nothing.",
    ("reset", "closed"): "New values never see the state before.",
    ("update", "closed"): "These units replace their state at every timestep: nothing is carried "
    "on directly.",
    ("state", "saturated"): "These units are switches: a saturated tanh passes hardly any "
    "gradient from timestep to timestep.",
    ("state", "zero"): "These units are dead: they say nothing, and no gradient reaches them.",
}

_PLAINER = "let its bias decay in training if the task needs it, or try a layer without it."

_ACTION = {
    ("input", "open"): _PLAINER,
    ("input", "closed"): "start the input gates with a larger bias, or remove these units.",
    ("forget", "closed"): "start the forget gates with a bias of 1 or more, if the task needs "
    "memory.",
    ("output", "open"): _PLAINER,
    ("output", "closed"): "start the output gates with a larger bias, or remove these units.",
    ("candidate", "saturated"): "normalize the inputs of the layer, or decay its weights.",
    ("reset", "open"): _PLAINER,
    ("reset", "closed"): "start the reset gates with a larger bias, or remove these units.",
    ("update", "closed"): "start the update gates with a bias of 1 or more, if the task needs "
    "memory.",
    ("state", "saturated"): "normalize its inputs, decay its weights, or use an LSTM or GRU.",
    ("state", "zero"): "lower the learning rate, start with smaller recurrent weights, or remove "
    "these units.",
}


def _timescales(trace: xr.Dataset) -> Finding:
    """Tell the timescales of the units: not how long the network remembers."""
    title, length = "Gate timescales", float(trace["length"].max())
    found = timescales(trace)
    if not found:
        return Finding(
            code="gate-timescales",
            probe=PROBE,
            severity=Severity.NOT_APPLICABLE,
            title=title,
            message="the recurrent layers have neither a forget nor an update gate",
            meaning="Timescales are those of the gates of an LSTM or GRU.",
        )
    slowest = max(found, key=lambda layer: found[layer][2].value)
    medians = listed([f"{found[layer][2].value:.3g} in {layer}" for layer in found])
    middle, last = found[slowest][2], max(found, key=lambda layer: found[layer][-1].value)
    return Finding(
        code="gate-timescales",
        probe=PROBE,
        severity=Severity.INFO,
        title=title,
        message=f"the median timescale of the units is {medians}; the slowest twentieth of {last} "
        f"hold their state for {found[last][-1].value:.3g} timesteps or longer, of {length:g}",
        meaning="How fast each unit alone forgets. Units feed each other, so this is neither a "
        "lower nor an upper bound of what the network remembers: see the memory horizon.",
        value=middle.value,
        low=middle.low,
        high=middle.high,
        unit="timesteps",
        samples=middle.samples,
        where=(slowest,),
    )
