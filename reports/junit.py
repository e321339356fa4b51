"""Findings as JUnit XML, which continuous-integration servers show test by test."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from analyzer.findings import FailOn, Finding, Severity
from reports.text import safe

_SKIPPED = (Severity.INCONCLUSIVE, Severity.NOT_APPLICABLE)


def junit(findings: Sequence[Finding], facts: Mapping[Any, Any], fail_on: FailOn) -> str:
    """Write one test case for each finding.

    Parameters
    ----------
    findings : sequence of Finding
    facts : mapping
        Root attributes of the record: the suite is named after the checkpoint or the model.
    fail_on : FailOn
        Findings from this severity on are failures; what was not decided is skipped, never passed.
    """
    suite = ET.Element("testsuite", name=_name(facts), tests=str(len(findings)))
    outcomes = [_case(suite, finding, fail_on) for finding in findings]
    for kind in ("error", "failure", "skipped"):
        suite.set(
            {"failure": "failures", "error": "errors"}.get(kind, kind), _count(outcomes, kind)
        )
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _name(facts: Mapping[Any, Any]) -> str:
    """Name what was audited."""
    return safe(str(facts.get("checkpoint") or facts.get("model") or "audit"))


def _count(outcomes: Sequence[str], kind: str) -> str:
    """Count the cases of one outcome."""
    return str(outcomes.count(kind))


def _case(suite: ET.Element, finding: Finding, fail_on: FailOn) -> str:
    """Add one test case and return its outcome."""
    case = ET.SubElement(
        suite, "testcase", classname=safe(finding.probe), name=safe(finding.code), time="0"
    )
    outcome = _outcome(finding.severity, fail_on)
    text = safe(f"{finding.severity}: {finding.message}")
    if outcome:
        ET.SubElement(case, outcome, message=text, type=finding.severity).text = _told(finding)
    else:
        ET.SubElement(case, "system-out").text = f"{text}\n{_told(finding)}"
    return outcome


def _outcome(severity: Severity, fail_on: FailOn) -> str:
    """Return the element that says how a case ended, empty if it passed."""
    if severity is Severity.ERROR:
        return "error"
    if fail_on.met_by(severity):
        return "failure"
    return "skipped" if severity in _SKIPPED else ""


def _told(finding: Finding) -> str:
    """Say what it means and what to do."""
    where = ", ".join(finding.where)
    lines = (finding.meaning, f"Action: {finding.action}", f"Layers: {where}" if where else "")
    return "\n".join(safe(line) for line in lines if line)
