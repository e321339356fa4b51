"""What the analyzer concludes, in plain data: no color, no markup, no printing."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from analyzer.files import replacing
from probes.errors import AnalyzerError

SCHEMA = 1
"""Version of the JSON document; bumped when a reader of the older one would be misled."""


class Severity(StrEnum):
    """What a finding asks of the reader."""

    FAIL = "FAIL"
    ERROR = "ERROR"
    WARN = "WARN"
    INCONCLUSIVE = "INCONCLUSIVE"
    INFO = "INFO"
    PASS = "PASS"
    NOT_APPLICABLE = "NOT_APPLICABLE"

    @property
    def rank(self) -> int:
        """Position from worst (0) to least."""
        return tuple(Severity).index(self)


class FailOn(StrEnum):
    """Severity from which on an audit counts as failed."""

    FAIL = "fail"
    WARN = "warn"
    INCONCLUSIVE = "inconclusive"
    NEVER = "never"

    def met_by(self, severity: Severity) -> bool:
        """Whether a finding of this severity is one."""
        return self is not FailOn.NEVER and severity.rank <= Severity[self.name].rank


@dataclass(frozen=True)
class Finding:
    """One verdict: what was seen, the limit it was held against, what to do.

    Parameters
    ----------
    code : str
        Kebab-case name of the verdict; stable, documented in the README.
    probe : str
        Name of the probe whose trace it rests on.
    severity : Severity
        NaN is never PASS; an interval that straddles the limit is INCONCLUSIVE.
    title : str
        Name of the diagnostic, as a heading.
    message, meaning, action : str
        What was seen, what it means, and what to do ("None." where nothing).
    value, low, high : float
        The number judged and its 95 % interval, in ``unit``; nan where there is none.
    unit : str
        "1" for a ratio.
    limit : float
        What the value was held against, nan where nothing was.
    relation : str
        How the value relates to the limit where all is well: ">=" or "<=".
    limit_source : str
        Where the limit comes from.
    samples : int
        How many samples the value rests on.
    where : tuple of str
        Names of the layers concerned.
    """

    code: str
    probe: str
    severity: Severity
    title: str
    message: str
    meaning: str = ""
    action: str = "None."
    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    unit: str = "1"
    limit: float = float("nan")
    relation: str = ""
    limit_source: str = ""
    samples: int = 0
    where: tuple[str, ...] = ()


def verdict(findings: Iterable[Finding]) -> Severity:
    """Return the worst severity; INFO and NOT_APPLICABLE alone do not make a PASS worse."""
    seen = {finding.severity for finding in findings}
    judged = seen - {Severity.INFO, Severity.NOT_APPLICABLE}
    if judged:
        return min(judged, key=lambda severity: severity.rank)
    return Severity.INFO if Severity.INFO in seen else Severity.NOT_APPLICABLE


def to_json(findings: Iterable[Finding], provenance: Mapping[Any, Any], limits: Any) -> str:
    """Write findings as a JSON document; undefined numbers become null.

    Parameters
    ----------
    findings : iterable of Finding
    provenance : mapping
        Root attributes of the record.
    limits : mapping
        Limits in force, as :meth:`analyzer.limits.Limits.table` lists them.
    """
    found = [*findings]
    document = {
        "schema": SCHEMA,
        "verdict": verdict(found),
        "findings": [asdict(finding) for finding in found],
        "limits": limits,
        "provenance": dict(provenance),
    }
    return json.dumps(_plain(document), indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def save(
    findings: Iterable[Finding], provenance: Mapping[Any, Any], limits: Any, path: Path
) -> None:
    """Write the document of :func:`to_json` to a file."""
    with replacing(path) as temporary:
        temporary.write_text(to_json(findings, provenance, limits), encoding="utf-8")


def from_json(text: str) -> list[Finding]:
    """Read the findings of a document that :func:`to_json` wrote.

    Raises
    ------
    AnalyzerError
        The text is no such document, or of a newer schema.
    """
    try:
        document = json.loads(text)
        schema, rows = document["schema"], document["findings"]
    except (ValueError, KeyError, TypeError) as error:
        raise AnalyzerError("not a findings document of this tool") from error
    if schema > SCHEMA:
        raise AnalyzerError(f"findings schema {schema} is newer than this version reads ({SCHEMA})")
    return [_finding(row) for row in rows]


def _finding(row: Mapping[str, Any]) -> Finding:
    """Read one finding; null becomes nan again."""
    values: dict[str, Any] = {
        key: float("nan") if value is None else value for key, value in row.items()
    }
    severity, where = Severity(values.pop("severity")), tuple(values.pop("where"))
    return Finding(severity=severity, where=where, **values)


def _plain(value: Any) -> Any:
    """Replace what JSON has no word for: nan and infinity, and numbers of numpy."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, str | bool) or value is None:
        return value
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None
