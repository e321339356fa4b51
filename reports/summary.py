"""First pages of the report: verdict, first actions, diagnostics, provenance."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from analyzer.findings import Finding, Severity, verdict
from reports.text import count, interval, number, quantity, sentence, shorten, tied

ACTIONS = 4
"""How many actions stand on the first page."""

_ASKING = (Severity.FAIL, Severity.ERROR, Severity.WARN, Severity.INCONCLUSIVE, Severity.INFO)
_RELATIONS = {">=": "\u2265", "<=": "\u2264", "": "limit"}
_WIDE = {
    "checkpoint": ("Checkpoint", True),
    "checkpoint_sha256": ("SHA-256", True),
    "command": ("Command", True),
    "data": ("Audit data", True),
    "data_sha256": ("SHA-256", True),
    "held_out": ("Held-out data", True),
    "held_out_sha256": ("SHA-256", True),
    "trained_on": ("Training data", True),
    "trained_on_sha256": ("SHA-256", True),
    "loader": ("Loader", False),
    "objective": ("Objective", False),
    "determinism": ("Determinism", False),
}
_NARROW = {
    "tool": "Tool",
    "tool_version": "Tool version",
    "torch": "PyTorch",
    "python": "Python",
    "platform": "Platform",
    "device": "Device",
    "dtype": "Precision",
    "mode": "Mode",
    "seed": "Seed",
    "samples": "Samples",
    "time_budget": "Time budget",
    "memory_budget": "Memory budget",
    "parameters": "Parameters",
    "date": "Date (UTC)",
}
_ELSEWHERE = ("schema", "model", "partial")


def word(severity: Severity) -> str:
    """Write a severity as the reader sees it."""
    return severity.value.replace("_", " ")


def diagnostic(finding: Finding) -> dict[str, Any]:
    """Write one finding as text."""
    limit = ""
    if number(finding.limit) != number(float("nan")):
        sign = _RELATIONS.get(finding.relation, finding.relation)
        limit = f"{sign} {quantity(finding.limit, finding.unit)}"
    return {
        "status": word(finding.severity),
        "probe": finding.probe,
        "title": finding.title,
        "value": quantity(finding.value, finding.unit),
        "interval": interval(finding.low, finding.high),
        "limit": limit,
        "source": finding.limit_source if limit else "",
        "origin": origin(finding.limit_source) if limit else "",
        "samples": count(finding.samples, "sample") if finding.samples else "",
        "message": sentence(finding.message),
        "meaning": sentence(finding.meaning),
        "action": sentence(finding.action) or "None.",
        "where": list(finding.where),
    }


def origin(source: str) -> str:
    """Name whose a limit is, without the reasons: what comes before a colon or semicolon."""
    heads = (source[: end.start()] for end in re.finditer("[:;] ", source))
    return next((head for head in heads if head.count("(") == head.count(")")), source)


def diagnostics(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings that are verdicts, worst first; the summary of the reach is none."""
    return sorted(
        (finding for finding in findings if finding.code != "reach"),
        key=lambda finding: finding.severity.rank,
    )


def headline(findings: Sequence[Finding]) -> dict[str, Any]:
    """Say in words how the network fares, and count the verdicts."""
    judged = diagnostics(findings)
    worst = verdict(judged)
    first = next((finding for finding in judged if finding.severity is worst), None)
    counts = [(severity, sum(f.severity is severity for f in judged)) for severity in Severity]
    title, body = _conclusion(worst, first)
    if worst is Severity.PASS:
        passed = dict(counts)[Severity.PASS]
        title = f"{count(passed, 'diagnostic')} inside their limits" if passed > 1 else title
    return {
        "status": word(worst),
        "headline": title,
        "sentence": body,
        "reach": next((sentence(f.message) for f in findings if f.code == "reach"), ""),
        "counts": [{"status": word(severity), "count": n} for severity, n in counts if n],
    }


def _conclusion(worst: Severity, first: Finding | None) -> tuple[str, str]:
    """Return the headline and the sentence below it."""
    if first is None:
        return "nothing was judged", "No finding was made. This is not a pass."
    if worst is Severity.PASS:
        return tied(first.message), "No diagnostic found a reason to act."
    if worst is Severity.INFO:
        return "measured, not judged", "No limit applies: the measurements are below."
    return tied(first.message), sentence(first.meaning)


def actions(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Return what to do first: the actions of the worst findings, each once."""
    chosen: dict[str, str] = {}
    for severity in _ASKING:
        for finding in diagnostics(findings):
            action = sentence(finding.action)
            if finding.severity is severity and action not in ("", "None."):
                chosen.setdefault(action, finding.probe)
    return [{"text": text, "probe": probe} for text, probe in [*chosen.items()][:ACTIONS]]


def provenance(facts: Mapping[Any, Any]) -> dict[str, Any]:
    """List everything the record says of its origin: long entries, then short ones."""
    known = {str(key): _fact(value) for key, value in facts.items() if _fact(value)}
    wide = [
        {"key": label, "value": known[key], "mono": mono}
        for key, (label, mono) in _WIDE.items()
        if key in known
    ]
    narrow = [{"key": label, "value": known[key]} for key, label in _NARROW.items() if key in known]
    listed = {*_WIDE, *_NARROW, *_ELSEWHERE}
    for key in sorted(set(known) - listed):
        entry = {"key": key.replace("_", " ").capitalize(), "value": known[key]}
        narrow.append(entry) if len(known[key]) <= 40 else wide.append(entry | {"mono": False})
    return {"wide": wide, "narrow": narrow}


def _fact(value: Any) -> str:
    """Write one root attribute."""
    if isinstance(value, str):
        return value.strip()
    return number(float(value)) if not hasattr(value, "__len__") else ", ".join(map(str, value))


def partial_note(facts: Mapping[Any, Any]) -> str:
    """Say that weights are missing, where the loader left some out."""
    if not facts.get("partial"):
        return ""
    return str(facts.get("loader", "")) or "the loader does not say which weights are missing"


def file_name(facts: Mapping[Any, Any]) -> str:
    """Return the name of the checkpoint file without its folder."""
    name = str(facts.get("checkpoint", "")).replace("\\", "/").rsplit("/", 1)[-1]
    return shorten(name, 60) if name else ""
