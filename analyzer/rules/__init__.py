"""Judge: from traces to findings, by one rule per probe and a few that look at several traces.

A rule never sees a model, never prints, and says something about every trace it is given.
"""

from collections.abc import Callable, Iterator, Mapping

import xarray as xr

from analyzer import record as records
from analyzer.findings import Finding, Severity
from analyzer.limits import Limits
from analyzer.rules.effective_field import effective_field
from analyzer.rules.gradient_flow import gradient_flow
from analyzer.rules.layers_or_time import layers_or_time
from analyzer.rules.memory_horizon import memory_horizon
from analyzer.rules.reach import reach
from analyzer.rules.receptive_field import receptive_field
from analyzer.rules.timestep_gradient import timestep_gradient

Rule = Callable[[xr.Dataset, Limits], Iterator[Finding]]

RULES: dict[str, Rule] = {
    "gradient_flow": lambda trace, limits: gradient_flow(trace, limits.gradient_flow),
    "timestep_gradient": lambda trace, limits: timestep_gradient(trace, limits.timestep_gradient),
    "memory_horizon": lambda trace, limits: memory_horizon(trace, limits.memory_horizon),
    "receptive_field": lambda trace, limits: receptive_field(trace, limits.receptive_field),
    "effective_field": lambda trace, limits: effective_field(trace, limits.effective_field),
}
"""Probe name -> the rule for its trace."""

TITLES = {
    "gradient_flow": "Gradient over depth",
    "timestep_gradient": "Gradient over time",
    "memory_horizon": "Memory horizon",
    "receptive_field": "Theoretical field",
    "effective_field": "Effective field",
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
    for name, trace in records.traces(record).items():
        if name in measured:
            findings += RULES[name](trace, limits)
        else:
            findings.append(_absent(name, trace.attrs))
    return sorted(findings, key=lambda finding: finding.severity.rank)


def _absent(name: str, facts: Mapping[str, str]) -> Finding:
    """Say that a probe did not measure, and why."""
    broken = facts["outcome"] == records.ERROR
    return Finding(
        code="probe-error" if broken else "not-applicable",
        probe=name,
        severity=Severity.ERROR if broken else Severity.NOT_APPLICABLE,
        title=TITLES.get(name, name),
        message=facts["reason"],
        meaning="This was not measured; it is not a pass."
        if broken
        else "This diagnostic has nothing to say about this network.",
        action="Report the message with the model's code, or leave the probe out."
        if broken
        else "None.",
    )
