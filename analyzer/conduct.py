"""Measure, judge and render in one go, into a folder that never holds half a result."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from analyzer import record as records
from analyzer.findings import FailOn, Finding, save
from analyzer.limits import Limits
from analyzer.pipeline import Watch, measure
from analyzer.rules import judge
from reports import render, save_junit, save_markdown

if TYPE_CHECKING:
    from probes.base import Subject

TRACES, FINDINGS, REPORT = "traces.nc", "findings.json", "report.pdf"
JUNIT, SUMMARY = "junit.xml", "summary.md"
FILES = (TRACES, FINDINGS, REPORT, JUNIT, SUMMARY)
"""Names of the files in the output folder."""


@dataclass(frozen=True)
class Audit:
    """What an audit found, and where it is written."""

    record: xr.DataTree
    findings: list[Finding]
    folder: Path


def audit(
    subject: "Subject",
    out: str | Path,
    *,
    probes: Iterable[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    limits: Limits | None = None,
    provenance: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
    fail_on: FailOn = FailOn.FAIL,
    junit: bool = False,
    summary: bool = False,
    seconds: float | None = None,
    memory: float | None = None,
    null_seeds: int | None = None,
) -> Audit:
    """Audit a subject: write ``traces.nc``, ``findings.json`` and ``report.pdf`` into ``out``.

    Each file is written when it is complete, in this order, so that a report that cannot be
    rendered costs neither traces nor findings.

    Parameters
    ----------
    subject : Subject
        The model is left as it was found.
    out : path
        Made if it does not exist.
    probes, settings, provenance, watch, seconds, memory, null_seeds
        As in :func:`analyzer.pipeline.measure`.
    limits : Limits, optional
        The default ones if unset.
    fail_on : FailOn
        Severity from which on ``junit.xml`` calls a finding a failure.
    junit, summary : bool
        Whether to write ``junit.xml`` and ``summary.md`` too.

    Raises
    ------
    AnalyzerError
        The audit cannot be run, or a file cannot be written.
    """
    folder, limits = Path(out), limits or Limits()
    settings = with_limits(settings or {}, limits)
    record = measure(subject, probes, settings, provenance, watch, seconds, memory, null_seeds)
    records.save(record, folder / TRACES)
    findings = judge(record, limits)
    write_verdicts(
        record, findings, folder, limits=limits, fail_on=fail_on, junit=junit, summary=summary
    )
    render(record, findings, folder / REPORT, limits=limits.table())
    return Audit(record, findings, folder)


def with_limits(
    settings: Mapping[str, Mapping[str, Any]], limits: Limits
) -> dict[str, Mapping[str, Any]]:
    """Have measured what a limit is going to judge: the chunk length used in training."""
    used = limits.truncation.trained_with
    # A number below 1 is for the rule to refuse.
    wanted = {} if not used >= 1 or isinf(used) else {"trained_with": int(used)}
    own = wanted | dict(settings.get("truncation", {}))
    return {**settings, "truncation": own} if own else dict(settings)


def write_verdicts(
    record: xr.DataTree,
    findings: list[Finding],
    folder: Path,
    *,
    limits: Limits,
    fail_on: FailOn,
    junit: bool,
    summary: bool,
) -> None:
    """Write ``findings.json`` and, if asked for, ``junit.xml`` and ``summary.md``.

    Raises
    ------
    AnalyzerError
        A file cannot be written.
    """
    save(findings, record.attrs, limits.table(), folder / FINDINGS)
    if junit:
        save_junit(findings, record.attrs, fail_on, folder / JUNIT)
    if summary:
        save_markdown(findings, record.attrs, folder / SUMMARY)
