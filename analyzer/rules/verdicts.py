"""From a value with its interval and a limit to a severity."""

from dataclasses import dataclass
from math import isnan, nan

from analyzer.findings import Severity


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and how many samples it rests on."""

    value: float = nan
    low: float = nan
    high: float = nan
    samples: int = 0


def at_most(estimate: Estimate, warn: float, fail: float = nan) -> Severity:
    """Judge a value that should not exceed a limit.

    Parameters
    ----------
    estimate : Estimate
        Beyond a limit only if the whole interval is.
    warn, fail : float
        Limits of the two severities; nan where there is none.

    Returns
    -------
    Severity
        INCONCLUSIVE where the interval straddles the limit or something is undefined.
    """
    if isnan(estimate.value) or isnan(warn):
        return Severity.INCONCLUSIVE
    if estimate.low > fail:
        return Severity.FAIL
    if estimate.low > warn:
        return Severity.WARN
    return Severity.PASS if estimate.high <= warn else Severity.INCONCLUSIVE


def at_least(estimate: Estimate, warn: float) -> Severity:
    """Judge a value that should reach a limit, as :func:`at_most` does."""
    mirrored = Estimate(-estimate.value, -estimate.high, -estimate.low, estimate.samples)
    return at_most(mirrored, -warn)


def listed(names: list[str], most: int = 4) -> str:
    """Write names as a sentence has them, the first few of many."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
