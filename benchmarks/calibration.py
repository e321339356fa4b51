"""How often every rule alarms on healthy networks and on faults, and what limits lie between."""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from math import isnan
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest

from analyzer import record as records
from analyzer.findings import Finding, Severity
from analyzer.limits import Limits
from analyzer.pipeline import measure
from analyzer.rules import judge
from benchmarks.margins import numbers
from benchmarks.planted import FAULTS, HEALTHY, Planted
from benchmarks.rates import write
from benchmarks.timing import RESULTS

RATES = ("network", "finding", "alarms", "undecided", "networks", "rate", "low", "high")
MARGINS = ("network", "limit", "networks", "least", "2.5 %", "median", "97.5 %", "most")

KINDS = {kind.name: kind for kind in (*HEALTHY, *FAULTS)}

TOLD_BY = {kind.code: kind.probes for kind in FAULTS}
"""Every finding that can alarm -> the probes that it takes."""

OF_THE_AUDIT = ("attribution-unreliable", "field-mismatch")
"""Findings that the audit itself cannot be relied on: never a warning about the network."""

Rows = dict[str, list[tuple[str, ...]]]


class Audited(NamedTuple):
    """What was concluded about one network."""

    severities: dict[str, Severity | None]
    """Of every finding that could have been told; None where it was not."""
    numbers: dict[str, float]
    """What was held against the limits."""


def alarmed(finding: Finding) -> Severity:
    """Count what is certain that the audit cannot be relied on as an alarm.

    Parameters
    ----------
    finding : Finding

    Returns
    -------
    Severity
        Of the finding, but WARN for one of :data:`OF_THE_AUDIT` that is INCONCLUSIVE with its whole
        interval beyond the limit.
    """
    if finding.code not in OF_THE_AUDIT or finding.severity is not Severity.INCONCLUSIVE:
        return finding.severity
    ends = finding.low, finding.high
    low, high = (finding.value if isnan(end) else end for end in ends)
    beyond = low > finding.limit if finding.relation == "<=" else high < finding.limit
    return Severity.WARN if beyond else Severity.INCONCLUSIVE


def audit(name: str, seed: int) -> Audited:
    """Train, audit and judge one network."""
    torch.set_num_threads(1)
    kind = KINDS[name]
    record, limits = measure(kind.make(seed), kind.probes or None), Limits.of(kind.limits)
    traces, findings = records.measured(record), judge(record, limits)
    severities: dict[str, Severity | None] = {
        code: None for code, probes in TOLD_BY.items() if {*probes} <= {*traces}
    }
    # Worst first, so that the worst of a code is kept.
    severities |= {finding.code: alarmed(finding) for finding in reversed(findings)}
    return Audited(severities, numbers(traces, findings, limits))


def rates(kind: Planted, found: Sequence[Audited]) -> list[tuple[str, ...]]:
    """Count the alarms of every finding, with the 95 % interval of Wilson."""
    told = {code for one in found for code in one.severities}
    return [_rate(kind, code, found) for code in ([kind.code] if kind.code else sorted(told))]


def _rate(kind: Planted, code: str, found: Iterable[Audited]) -> tuple[str, ...]:
    """Count the alarms of one finding."""
    severities = Counter(one.severities.get(code) for one in found)
    total = sum(severities.values())
    alarms = severities[Severity.WARN] + severities[Severity.FAIL]
    interval = binomtest(alarms, total).proportion_ci(method="wilson")
    counts = (alarms, severities[Severity.INCONCLUSIVE], total)
    shares = (alarms / total, interval.low, interval.high)
    return kind.name, code, *map(str, counts), *(f"{share:.3f}" for share in shares)


def margins(kind: Planted, found: Sequence[Audited]) -> list[tuple[str, ...]]:
    """Say where the numbers lie that limits are held against; of a fault, those it is beyond."""
    values = defaultdict[str, list[float]](list)
    for one in found:
        for name, value in one.numbers.items():
            if kind in HEALTHY or name in kind.beyond:
                values[name].append(value)
    ends = (0, 0.025, 0.5, 0.975, 1)
    with np.errstate(invalid="ignore"):  # between infinities
        quantiles = {name: np.quantile(own, ends) for name, own in values.items()}
    return [
        (kind.name, name, str(len(values[name])), *(f"{value:.6g}" for value in own))
        for name, own in quantiles.items()
    ]


def run(seeds: int, names: Sequence[str] = ()) -> None:
    """Measure, and write ``results/calibration*.csv`` and the tables.

    Parameters
    ----------
    seeds : int
        Networks of each kind.
    names : sequence of str
        Kinds; all if empty. What was published of the others stays.
    """
    chosen = [*names] or [*KINDS]
    jobs = [*product(chosen, range(seeds))]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = [*pool.map(audit, *zip(*jobs, strict=True))]
    found: dict[str, list[Audited]] = {name: [] for name in chosen}
    for (name, _), one in zip(jobs, results, strict=True):
        found[name].append(one)
    told = {name: rates(KINDS[name], each) for name, each in found.items()}
    held = {name: margins(KINDS[name], each) for name, each in found.items()}
    write(_kept("calibration", RATES, told), _kept("calibration_limits", MARGINS, held))


def _kept(name: str, columns: tuple[str, ...], rows: Rows) -> Rows:
    """Write the rows of some kinds, and leave those of the others as they are."""
    every = {**published(name), **rows}
    every = {kind: every[kind] for kind in KINDS if kind in every}
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *(row for own in every.values() for row in own)])
    return every


def published(name: str) -> Rows:
    """Read the rows of every kind."""
    path, found = RESULTS / f"{name}.csv", defaultdict[str, list[tuple[str, ...]]](list)
    if path.exists():
        with path.open(newline="") as file:
            for row in [*csv.reader(file)][1:]:
                found[row[0]].append(tuple(row))
    return found


if __name__ == "__main__":
    import sys

    run(int(sys.argv[1]) if len(sys.argv) > 1 else 50, sys.argv[2:])
