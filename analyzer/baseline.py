"""What got worse since an earlier audit, beyond what the samples can explain."""

from collections.abc import Iterable
from math import isnan

from analyzer.findings import Finding, Severity


def worsened(findings: Iterable[Finding], before: Iterable[Finding]) -> list[Finding]:
    """Pick the findings that are worse than they were.

    A finding that is held against a limit is worse if its interval lies wholly on the bad side of
    its interval before; without two intervals, or without a limit, a worse severity decides. What
    was not found before is worse.

    Parameters
    ----------
    findings, before : iterable of Finding
        Judged by the same limits.
    """
    known = {(finding.code, finding.probe): finding for finding in before}
    return [
        finding
        for finding in findings
        if _is_worse(finding, known.get((finding.code, finding.probe)))
    ]


def _is_worse(now: Finding, before: Finding | None) -> bool:
    """Whether a finding got worse beyond its interval."""
    if before is None or now.severity is Severity.ERROR:
        return before is None or before.severity is not Severity.ERROR
    if any(isnan(edge) for edge in (now.low, now.high, before.low, before.high)):
        return now.severity.rank < before.severity.rank
    if now.relation == "<=":
        return now.low > before.high
    if now.relation == ">=":
        return now.high < before.low
    return now.severity.rank < before.severity.rank
