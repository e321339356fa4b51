"""The number of one audited network that every limit is held against."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan, nan
from typing import NamedTuple

import numpy as np
import xarray as xr

from analyzer.findings import Finding
from analyzer.limits import Limits
from analyzer.rules.attribution import completeness, rank_correlation
from analyzer.rules.lyapunov import largest, timesteps
from analyzer.rules.update_ratio import by_layer
from analyzer.rules.width import loss_share

Number = Callable[[xr.Dataset], float]


class Held(NamedTuple):
    """What is held against a limit."""

    relation: str
    """Of the number to the limit where all is well: ">=" or "<="."""
    source: str
    """Code of the finding whose value it is, or name of the probe whose trace has it."""
    number: Number | None = None
    """Reads it from the trace; None for the value of a finding."""


def _growth(trace: xr.Dataset) -> float:
    """Largest exponent of a layer times its timesteps, where there are enough."""
    steps, least = timesteps(trace), Limits().lyapunov.min_steps
    known = [
        one.value * steps[name] for name, one in largest(trace).items() if steps[name] >= least
    ]
    return max((value for value in known if not isnan(value)), default=nan)


def _largest(name: str) -> Number:
    """Largest of a variable."""
    return lambda trace: float(np.nanmax(trace[name].to_numpy(), initial=-np.inf))


HELD: dict[str, Held] = {
    "gradient_flow.warn_decades": Held("<=", "gradient-over-depth"),
    "timestep_gradient.warn_decades": Held("<=", "gradient-over-time"),
    "effective_field.outside": Held("<=", "effective_field", _largest("outside")),
    "attribution.tolerance": Held("<=", "attribution", lambda trace: completeness(trace).value),
    "attribution.agreement": Held(">=", "attribution", lambda trace: rank_correlation(trace).value),
    "gates.stuck_units": Held("<=", "gate-saturation"),
    "lyapunov.growth": Held("<=", "lyapunov", _growth),
    "depth_contribution.idle": Held(">=", "idle-blocks"),
    "stacked_layers.idle": Held(">=", "stack-depth"),
    "unproductive_depth.similar": Held("<=", "depth_contribution", _largest("similarity_low")),
    "timestep_contribution.conflict": Held(">=", "timestep-conflict"),
    "truncation.cosine": Held(">=", "truncation-loss"),
    "sequence_length.lost": Held("<=", "longer-sequences"),
    "generalization.warn_lost": Held("<=", "generalization-gap"),
    "generalization.fail_lost": Held("<=", "generalization-gap"),
    "width.layers": Held("<=", "width-wasted"),
    "width.idle": Held(">=", "width", lambda trace: loss_share(trace).value),
    "width.redundant": Held("<=", "redundant-units"),
    "width.dead": Held("<=", "dead-units"),
    "width.stuck_units": Held("<=", "saturated-units"),
    "update_ratio.low": Held(">=", "update_ratio", lambda trace: min(by_layer(trace).values())),
    "update_ratio.high": Held("<=", "update_ratio", lambda trace: max(by_layer(trace).values())),
}
"""Limit -> what is held against it, for every limit that alone can turn a verdict."""


def limit(name: str, limits: Limits) -> float:
    """Return the limit of this name."""
    group, _, entry = name.partition(".")
    return float(getattr(getattr(limits, group), entry))


def numbers(
    traces: Mapping[str, xr.Dataset], findings: Sequence[Finding], limits: Limits
) -> dict[str, float]:
    """Find the number of every limit that something was held against.

    Parameters
    ----------
    traces : mapping
        Of the probes that measured something.
    findings : sequence of Finding
        Worst first.
    limits : Limits
        Those that were used.
    """
    told = {finding.code: finding for finding in reversed(findings)}
    values = {}
    for name, held in HELD.items():
        if held.number is None:
            finding = told.get(held.source)
            # Without a limit of the user's a finding can be about something else.
            values[name] = finding.value if finding and not isnan(finding.limit) else nan
        elif held.source in traces:
            values[name] = held.number(traces[held.source])
    return {name: value for name, value in values.items() if np.isfinite(value)}
