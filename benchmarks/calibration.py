"""How often every rule alarms: on healthy networks, and on networks with a planted fault."""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import torch
from scipy.stats import binomtest

from analyzer.findings import Severity
from analyzer.limits import Limits
from analyzer.pipeline import measure
from analyzer.rules import judge
from benchmarks.planted import FAULTS, HEALTHY, Planted
from benchmarks.timing import RESULTS

ALARM = (Severity.WARN, Severity.FAIL)
COLUMNS = ("network", "finding", "alarms", "undecided", "networks", "rate", "low", "high")

KINDS = {kind.name: kind for kind in (*HEALTHY, *FAULTS)}

Verdicts = dict[str, Severity]


def verdicts(name: str, seed: int) -> Verdicts:
    """Train, audit and judge one network: the worst severity by code."""
    torch.set_num_threads(1)
    kind = KINDS[name]
    subject = kind.make(seed)
    findings = judge(measure(subject, kind.probes or None), Limits.of(kind.limits))
    # Worst first, so that the worst of a code is kept.
    return {finding.code: finding.severity for finding in reversed(findings)}


def row(kind: Planted, code: str, found: Iterable[Verdicts]) -> tuple[str, ...]:
    """Count the alarms of one finding, with the 95 % interval of Wilson."""
    severities = Counter(verdict.get(code) for verdict in found)
    total = sum(severities.values())
    alarms = sum(severities[severity] for severity in ALARM)
    interval = binomtest(alarms, total).proportion_ci(method="wilson")
    numbers = (alarms / total, interval.low, interval.high)
    counts = (alarms, severities[Severity.INCONCLUSIVE], total)
    return kind.name, code, *map(str, counts), *(f"{number:.3f}" for number in numbers)


def run(seeds: int, names: Sequence[str] = ()) -> None:
    """Measure the rates and write them to ``results/calibration.csv`` and ``.md``.

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
        results = [*pool.map(verdicts, *zip(*jobs, strict=True))]
    found: dict[str, list[Verdicts]] = {name: [] for name in chosen}
    for (name, _), verdict in zip(jobs, results, strict=True):
        found[name].append(verdict)
    publish(found)


def publish(found: Mapping[str, Sequence[Verdicts]]) -> None:
    """Write the rates of some kinds, and leave those of the others as they are."""
    rows = {name: own for name, own in _published().items() if name in KINDS}
    for name, own in found.items():
        kind = KINDS[name]
        codes = [kind.code] if kind.code else sorted({code for verdict in own for code in verdict})
        rows[name] = [row(kind, code, own) for code in codes]
    tables = {"Planted faults": FAULTS, "Nothing planted": HEALTHY}
    _write(
        {
            title: [row for kind in kinds for row in rows.get(kind.name, [])]
            for title, kinds in tables.items()
        }
    )


def _published() -> dict[str, list[tuple[str, ...]]]:
    """Read the rows of every kind from the table."""
    path, found = RESULTS / "calibration.csv", dict[str, list[tuple[str, ...]]]()
    if path.exists():
        with path.open(newline="") as file:
            for name, *rest in [*csv.reader(file)][1:]:
                found.setdefault(name, []).append((name, *rest))
    return found


def _write(tables: Mapping[str, list[tuple[str, ...]]]) -> None:
    """Write both tables; what is never an alarm and never undecided is in the CSV only."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "calibration.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *(row for rows in tables.values() for row in rows)])
    text = [
        "# Calibration",
        f"Networks of each kind are trained from different seeds; torch {torch.__version__}. An "
        "alarm is WARN or FAIL; undecided is INCONCLUSIVE; low and high are the 95 % interval of "
        "the rate (Wilson). Written by `python -m benchmarks.calibration`.",
    ]
    for title, rows in tables.items():
        shown = [row for row in rows if title == "Planted faults" or row[2:4] != ("0", "0")]
        lines = [COLUMNS, ("---",) * len(COLUMNS), *shown]
        text += [f"## {title}", "\n".join("| " + " | ".join(line) + " |" for line in lines)]
    (RESULTS / "calibration.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    import sys

    run(int(sys.argv[1]) if len(sys.argv) > 1 else 50, sys.argv[2:])
