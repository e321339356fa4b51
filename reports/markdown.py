"""Findings as Markdown, for a pull request or a chat."""

import re
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from analyzer.findings import Finding, Severity, verdict
from reports.text import interval, number, quantity, safe

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#|~@&!])")
_QUIET = (Severity.PASS, Severity.NOT_APPLICABLE)


def markdown(findings: Sequence[Finding], facts: Mapping[Any, Any]) -> str:
    """Write the verdict, a table of what needs a reader, and a list of the rest.

    Parameters
    ----------
    findings : sequence of Finding
        Worst first.
    facts : mapping
        Root attributes of the record.
    """
    told = [finding for finding in findings if finding.severity not in _QUIET]
    lines = [f"## {_shown(verdict(findings))}: {_escaped(_subject(facts))}", ""]
    if told:
        lines += ["| | diagnostic | value | what was seen | what to do |", "|---|---|---|---|---|"]
        lines += [_row(finding) for finding in told]
        lines.append("")
    for severity in _QUIET:
        titles = [_escaped(finding.title) for finding in findings if finding.severity is severity]
        if titles:
            lines += [f"{_shown(severity)}: {', '.join(titles)}.", ""]
    return "\n".join([*lines, _origin(facts)]) + "\n"


def _row(finding: Finding) -> str:
    """Write one finding as a row of the table."""
    limit = f" ({finding.relation} {number(finding.limit)})" if finding.relation else ""
    value = "" if isnan(finding.value) else quantity(finding.value, finding.unit)
    spread = interval(finding.low, finding.high)
    cells = (
        _shown(finding.severity),
        _escaped(finding.title),
        _escaped(f"{value} {spread}{limit}".strip()),
        _escaped(finding.message),
        _escaped(finding.action),
    )
    return f"| {' | '.join(cells)} |"


def _shown(severity: Severity) -> str:
    """Write a severity as words."""
    return f"**{severity.replace('_', ' ')}**"


def _subject(facts: Mapping[Any, Any]) -> str:
    """Name what was audited."""
    model, checkpoint = str(facts.get("model", "model")), str(facts.get("checkpoint", ""))
    return f"{model}, {checkpoint}" if checkpoint else model


def _origin(facts: Mapping[Any, Any]) -> str:
    """Say what the numbers rest on."""
    parts = [
        f"{facts['samples']} samples" if "samples" in facts else "",
        f"objective: {facts['objective']}" if "objective" in facts else "",
        f"checkpoint {str(facts['checkpoint_sha256'])[:12]}"
        if "checkpoint_sha256" in facts
        else "",
        f"{facts.get('tool', 'analyzer')} {facts.get('tool_version', '')}".strip(),
    ]
    return _escaped("; ".join(part for part in parts if part))


def _escaped(text: str) -> str:
    """Make text of any origin show as it is: no markup, no mention of people, no line breaks."""
    return _SPECIAL.sub(r"\\\1", safe(text))
