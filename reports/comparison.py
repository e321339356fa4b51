"""Two or more audits in one PDF: what differs beyond noise, on shared axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from analyzer import record as records
from analyzer.comparison import Change, Difference, differences
from analyzer.findings import Finding, Severity, verdict
from probes.errors import AnalyzerError
from reports import summary
from reports.document import EPOCH, draw, moment, plate_words, require, source, typeset
from reports.figures import overlay
from reports.text import count, interval, listed, number, quantity, sentence

CERTAIN = (Change.LARGER, Change.SMALLER, Change.VERDICT)
"""What the samples cannot explain."""


def compose(
    audits: Mapping[str, xr.DataTree], findings: Mapping[str, Sequence[Finding]], *, paper: str
) -> bytes:
    """Typeset the comparison of two or more records with the first of them.

    Parameters
    ----------
    audits : mapping of DataTree
        By the name that the reader sees.
    findings : mapping of sequence of Finding
        Of each record, by the same limits.
    paper : str
        As in :func:`reports.document.compose`.

    Returns
    -------
    bytes
        A PDF; the same for the same arguments.

    Raises
    ------
    AnalyzerError
        There are fewer than two records, typst or the paper is missing, or typst refuses the
        document.
    """
    if len(audits) < 2:
        raise AnalyzerError("a comparison needs two records or more")
    require(paper)
    names = [*audits]
    traces = {name: records.measured(record) for name, record in audits.items()}
    plates = overlay.plates(traces, findings)
    first, *others = names
    pairs = {name: differences(findings[first], findings[name]) for name in others}
    when = max(moment(record.attrs) for record in audits.values())
    title = " against ".join([first, listed(others)])
    data = {
        "title": f"Comparison: {title}",
        "description": _headline(first, pairs),
        "keywords": ["comparison"],
        "model": title,
        "sha256": "",
        "tool": str(audits[first].attrs.get("tool", "")),
        "date": "" if when == EPOCH else when.strftime("%Y-%m-%d %H:%M UTC"),
        "moment": [when.year, when.month, when.day, when.hour, when.minute, when.second],
        "paper": paper,
        "headline": _headline(first, pairs),
        "sides": [_side(name, audits[name].attrs, findings[name]) for name in names],
        "plates": [plate_words(plate) for plate in plates],
        "tables": [_table(first, name, pairs[name]) for name in others],
    }
    figures = {f"{name}.svg": image for name, image in draw(plates).items()}
    return typeset(source("comparison.typ", data) | figures, when)


def _headline(first: str, pairs: Mapping[str, Sequence[Difference]]) -> str:
    """Say how much differs for certain."""
    parts = []
    for name, found in pairs.items():
        certain = [difference for difference in found if difference.change in CERTAIN]
        both = [difference for difference in found if difference.change is not Change.ONLY_ONE]
        parts.append(
            f"{name} differs from {first} in {len(certain)} of "
            f"{count(len(both), 'shared diagnostic')} beyond what the samples can explain"
        )
    return "; ".join(parts)


def _side(name: str, facts: Mapping[Any, Any], findings: Sequence[Finding]) -> dict[str, Any]:
    """Write one of the audits: verdict, reach, and what identifies it."""
    told = {
        "Model": str(facts.get("model", "")),
        "Checkpoint": summary.file_name(facts),
        "SHA-256": str(facts.get("checkpoint_sha256", ""))[:16],
        "Parameters": number(float(facts.get("parameters", "nan"))),
        "Audit data": str(facts.get("data_sha256", ""))[:16],
        "Samples": number(float(facts.get("samples", "nan"))),
        "Objective": str(facts.get("objective", "")),
    }
    reach = next((finding.message for finding in findings if finding.code == "reach"), "")
    return {
        "name": name,
        "status": summary.word(verdict(summary.diagnostics(findings))),
        "reach": sentence(reach),
        "facts": [{"key": key, "value": value} for key, value in told.items() if value],
    }


def _table(first: str, other: str, found: Sequence[Difference]) -> dict[str, Any]:
    """Write the differences between two audits."""
    return {
        "first": first,
        "other": other,
        "rows": [_row(difference) for difference in found],
    }


def _row(difference: Difference) -> dict[str, Any]:
    """Write one difference."""
    finding = difference.finding
    return {
        "title": finding.title,
        "certain": difference.change in CERTAIN,
        "change": str(difference.change),
        "difference": _signed(difference, finding.unit),
        "interval": interval(difference.low, difference.high),
        "sides": [_cell(one) for one in (difference.first, difference.second)],
    }


def _signed(difference: Difference, unit: str) -> str:
    """Write the difference of the values."""
    sign = "+" if difference.value > 0 else ""
    text = quantity(difference.value, unit)
    return sign + text if difference.value == difference.value else ""


def _cell(finding: Finding | None) -> dict[str, str]:
    """Write what one audit found."""
    if finding is None:
        return {"status": summary.word(Severity.NOT_APPLICABLE), "value": "", "interval": ""}
    value = quantity(finding.value, finding.unit) if finding.value == finding.value else ""
    return {
        "status": summary.word(finding.severity),
        "value": value,
        "interval": interval(finding.low, finding.high),
    }
