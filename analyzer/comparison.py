"""What differs between two audits, and whether the samples can explain it.

The interval of a difference follows from the two intervals by the method of variance estimates
recovery, which needs no symmetry.

References
----------
.. [1] Donner and Zou, Closed-form confidence intervals for functions of the normal mean and
   standard deviation (2012), section 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import hypot, isnan, nan

from analyzer.findings import Finding, Severity


class Change(StrEnum):
    """What became of a diagnostic."""

    LARGER = "larger"
    SMALLER = "smaller"
    NOISE = "within noise"
    VERDICT = "other verdict"
    SAME = "the same"
    ONLY_ONE = "not in both"
    UNKNOWN = "no interval"


_ORDER = (*Change,)
_ABSENT = (Severity.NOT_APPLICABLE, Severity.ERROR)


@dataclass(frozen=True)
class Difference:
    """One diagnostic in two audits.

    Parameters
    ----------
    first, second : Finding, optional
        What each audit found; None where it did not look.
    change : Change
    value, low, high : float
        Second less first with its 95 % interval, nan where one of them has no value or interval.
    """

    first: Finding | None
    second: Finding | None
    change: Change
    value: float = nan
    low: float = nan
    high: float = nan

    @property
    def finding(self) -> Finding:
        """Either finding: for what they have in common."""
        found = self.first or self.second
        assert found is not None
        return found


def differences(first: Sequence[Finding], second: Sequence[Finding]) -> list[Difference]:
    """Compare the findings of two audits, judged by the same limits.

    Parameters
    ----------
    first, second : sequence of Finding
        Codes that an audit gives once are compared; the summary of the reach is not.

    Returns
    -------
    list of Difference
        What changed for certain first, then what is in one of them only, then the rest.
    """
    ours, theirs = _by_code(first), _by_code(second)
    found = [_difference(ours.get(key), theirs.get(key)) for key in dict.fromkeys([*ours, *theirs])]
    return sorted(found, key=lambda difference: _ORDER.index(difference.change))


def _by_code(findings: Sequence[Finding]) -> Mapping[tuple[str, str], Finding]:
    """Key findings by what they judge."""
    judged = [finding for finding in findings if finding.severity not in _ABSENT]
    return {(f.code, f.probe): f for f in reversed(judged) if f.code != "reach"}


def _difference(first: Finding | None, second: Finding | None) -> Difference:
    """Compare one diagnostic."""
    if first is None or second is None:
        return Difference(first, second, Change.ONLY_ONE)
    if first.unit != second.unit or isnan(first.value) or isnan(second.value):
        return Difference(first, second, _by_verdict(first, second))
    value = second.value - first.value
    edges = (first.low, first.high, second.low, second.high)
    if any(isnan(edge) for edge in edges):
        change = _by_verdict(first, second) if value else Change.SAME
        return Difference(first, second, change, value)
    low = value - hypot(second.value - second.low, first.high - first.value)
    high = value + hypot(second.high - second.value, first.value - first.low)
    if low > 0:
        return Difference(first, second, Change.LARGER, value, low, high)
    change = Change.SMALLER if high < 0 else Change.NOISE
    return Difference(first, second, change, value, low, high)


def _by_verdict(first: Finding, second: Finding) -> Change:
    """Compare findings that have no interval."""
    if first.severity is not second.severity:
        return Change.VERDICT
    return Change.SAME if isnan(first.value) and isnan(second.value) else Change.UNKNOWN
