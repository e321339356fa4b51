"""Judge: from traces to findings, by one rule per probe and a few that look at several traces.

A rule never sees a model, never prints, and says something about every trace it is given.
"""

from collections.abc import Callable, Iterator, Mapping

import xarray as xr

from analyzer import record as records
from analyzer.findings import Finding, Severity
from analyzer.limits import Limits
from analyzer.rules.attribution import attribution
from analyzer.rules.depth_contribution import depth_contribution
from analyzer.rules.effective_field import effective_field
from analyzer.rules.gates import gates
from analyzer.rules.generalization import generalization
from analyzer.rules.gradient_flow import gradient_flow
from analyzer.rules.lag_profile import lag_profile
from analyzer.rules.layer_conductance import layer_conductance
from analyzer.rules.layers_or_time import layers_or_time
from analyzer.rules.lyapunov import lyapunov
from analyzer.rules.memory_capacity import memory_capacity
from analyzer.rules.memory_footprint import memory_footprint
from analyzer.rules.memory_horizon import memory_horizon
from analyzer.rules.reach import reach
from analyzer.rules.receptive_field import receptive_field
from analyzer.rules.sequence_length import sequence_length
from analyzer.rules.spare_capacity import spare_capacity
from analyzer.rules.stacked_layers import stacked_layers
from analyzer.rules.state_reach import state_reach
from analyzer.rules.timestep_contribution import timestep_contribution
from analyzer.rules.timestep_gradient import timestep_gradient
from analyzer.rules.truncation import truncation
from analyzer.rules.unproductive_depth import unproductive_depth
from analyzer.rules.update_ratio import update_ratio
from analyzer.rules.width import width

Rule = Callable[[xr.Dataset, Limits], Iterator[Finding]]

RULES: dict[str, Rule] = {
    "gradient_flow": lambda trace, limits: gradient_flow(trace, limits.gradient_flow),
    "timestep_gradient": lambda trace, limits: timestep_gradient(trace, limits.timestep_gradient),
    "memory_horizon": lambda trace, limits: memory_horizon(trace, limits.memory_horizon),
    "receptive_field": lambda trace, limits: receptive_field(trace, limits.receptive_field),
    "effective_field": lambda trace, limits: effective_field(trace, limits.effective_field),
    "lag_profile": lambda trace, limits: lag_profile(trace, limits.lag_profile),
    "sequence_length": lambda trace, limits: sequence_length(trace, limits.sequence_length),
    "state_reach": lambda trace, limits: state_reach(trace, limits.state_reach),
    "attribution": lambda trace, limits: attribution(trace, limits.attribution),
    "layer_conductance": lambda trace, limits: layer_conductance(trace, limits.layer_conductance),
    "depth_contribution": lambda trace, limits: depth_contribution(
        trace, limits.depth_contribution
    ),
    "stacked_layers": lambda trace, limits: stacked_layers(trace, limits.stacked_layers),
    "gates": lambda trace, limits: gates(trace, limits.gates),
    "lyapunov": lambda trace, limits: lyapunov(trace, limits.lyapunov),
    "memory_capacity": lambda trace, limits: memory_capacity(trace, limits.memory_capacity),
    "timestep_contribution": lambda trace, limits: timestep_contribution(
        trace, limits.timestep_contribution
    ),
    "truncation": lambda trace, limits: truncation(trace, limits.truncation),
    "generalization": lambda trace, limits: generalization(trace, limits.generalization),
    "width": lambda trace, limits: width(trace, limits.width),
    "memory_footprint": lambda trace, limits: memory_footprint(trace, limits.memory_footprint),
    "update_ratio": lambda trace, limits: update_ratio(trace, limits.update_ratio),
}
"""Probe name -> the rule for its trace."""

TITLES = {
    "gradient_flow": "Gradient over depth",
    "timestep_gradient": "Gradient over time",
    "memory_horizon": "Memory horizon",
    "receptive_field": "Theoretical field",
    "effective_field": "Effective field",
    "lag_profile": "Lags in use",
    "sequence_length": "Other lengths",
    "state_reach": "State reach",
    "attribution": "Attribution of the decision",
    "layer_conductance": "Decision over depth",
    "depth_contribution": "Contribution of every block",
    "stacked_layers": "Stacked recurrent layers",
    "gates": "Gates",
    "lyapunov": "State stability",
    "memory_capacity": "Linear memory capacity",
    "timestep_contribution": "Timesteps that train",
    "truncation": "Truncation",
    "generalization": "Generalization",
    "width": "Width",
    "memory_footprint": "Memory of training",
    "update_ratio": "Updates beside weights",
}
"""What the diagnostic of a probe that did not run is called."""


def judge(record: xr.DataTree, limits: Limits | None = None) -> list[Finding]:
    """Turn a record into findings, worst first.

    Parameters
    ----------
    record : DataTree
        Measured by :func:`analyzer.pipeline.measure`.
    limits : Limits, optional
        The default ones if unset.

    Returns
    -------
    list of Finding
        At least one for every probe in the record.
    """
    limits = limits or Limits()
    measured = records.measured(record)
    findings = [*reach(measured, limits), *layers_or_time(measured, limits.layers_or_time)]
    findings += unproductive_depth(measured, limits)
    for name, trace in records.traces(record).items():
        if name in measured:
            findings += RULES[name](trace, limits)
        else:
            findings.append(_absent(name, trace.attrs))
    findings += spare_capacity(findings)
    return sorted(findings, key=lambda finding: finding.severity.rank)


def _absent(name: str, facts: Mapping[str, str]) -> Finding:
    """Say that a probe did not measure, and why."""
    code, severity, meaning, action = _ABSENT[facts["outcome"]]
    return Finding(
        code=code,
        probe=name,
        severity=severity,
        title=TITLES.get(name, name),
        message=facts["reason"],
        meaning=meaning,
        action=action,
    )


_ABSENT = {
    records.ERROR: (
        "probe-error",
        Severity.ERROR,
        "This was not measured; it is not a pass.",
        "Report the message with the model's code, or leave the probe out.",
    ),
    records.STOPPED: (
        "probe-stopped",
        Severity.INCONCLUSIVE,
        "This was not measured; it is not a pass.",
        "Raise the time budget, or run fewer probes.",
    ),
    records.NOT_APPLICABLE: (
        "not-applicable",
        Severity.NOT_APPLICABLE,
        "This diagnostic has nothing to say about this network.",
        "None.",
    ),
}
"""Outcome of a probe that did not measure -> code, severity, meaning, action."""
