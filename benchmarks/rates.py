"""Tables of how often verdicts are right, and of where limits lie, for the documentation."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.stats import binomtest

from analyzer.limits import Limits
from benchmarks.margins import HELD, limit
from benchmarks.planted import FAULTS, HEALTHY
from benchmarks.timing import RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "calibration.md"

Rows = Mapping[str, Sequence[Sequence[str]]]
"""By the name of the kind; the columns are those of the CSV files."""


class Range(NamedTuple):
    """Where the numbers of some networks lie."""

    least: float
    most: float
    end: float
    """Quantile that 97.5 % of the networks are on the right side of, of the worst kind."""
    networks: int


def write(rates: Rows, margins: Rows) -> None:
    """Write ``results/calibration.md`` and the tables of ``docs/calibration.md``."""
    (RESULTS / "calibration.md").write_text(_every(rates))
    page = PAGE.read_text()
    for name, table in (("rates", by_finding(rates)), ("limits", by_limit(margins))):
        page = _filled(page, name, table)
    PAGE.write_text(page)


def _filled(page: str, name: str, table: str) -> str:
    """Put a table between the two comments of its name."""
    mark, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = page.partition(mark)
    _, _, after = rest.partition(end)
    return f"{before}{mark}\n{table}\n{end}{after}"


def by_finding(rates: Rows) -> str:
    """Tabulate, for every finding that can alarm, how often it does."""
    lines = [["finding", "planted faults found", "95 %", "false alarms", "95 %", "undecided"]]
    for code in dict.fromkeys(kind.code for kind in FAULTS):
        found = _summed([row for kind in FAULTS for row in rates[kind.name] if row[1] == code])
        false = _summed([row for kind in HEALTHY for row in rates[kind.name] if row[1] == code])
        undecided = f"{found[1]}; {false[1]}"
        lines.append([f"`{code}`", *_share(found), *_share(false), undecided])
    return _table(lines)


def _summed(rows: Iterable[Sequence[str]]) -> tuple[int, int, int]:
    """Add up alarms, undecided and networks."""
    counts = [tuple(map(int, row[2:5])) for row in rows]
    alarms, undecided, networks = (sum(part) for part in zip(*counts, strict=True))
    return alarms, undecided, networks


def _share(counts: tuple[int, int, int]) -> tuple[str, str]:
    """Write alarms of networks, and the interval of their rate."""
    alarms, _, networks = counts
    ends = binomtest(alarms, networks).proportion_ci(method="wilson")
    return f"{alarms} of {networks}", f"{ends.low:.2f} to {ends.high:.2f}"


def by_limit(margins: Rows) -> str:
    """Tabulate, for every limit, where the numbers held against it lie."""
    lines = [
        ["limit", "well where", "healthy", "97.5 %", "networks", "planted", "networks", "apart"]
    ]
    for name, held in HELD.items():
        above = held.relation == ">="
        healthy = _range([r for k in HEALTHY for r in margins[k.name] if r[1] == name], above)
        planted = _range(
            [r for k in FAULTS for r in margins.get(k.name, []) if r[1] == name], above
        )
        value = limit(name, Limits())
        ends = (planted.most, healthy.least) if above else (healthy.most, planted.least)
        apart = "yes" if ends[0] <= value <= ends[1] else "no"
        lines.append(
            [
                f"`{name}`",
                f"{held.relation} {value:.4g}",
                f"{healthy.least:.4g} to {healthy.most:.5g}",
                f"{healthy.end:.4g}",
                str(healthy.networks),
                f"{planted.least:.4g} to {planted.most:.4g}",
                str(planted.networks),
                apart,
            ]
        )
    return _table(lines)


def _range(rows: Sequence[Sequence[str]], above: bool) -> Range:
    """Put the networks of several kinds together."""
    numbers = [[float(end) for end in row[3:]] for row in rows]
    ends = min(row[1] for row in numbers) if above else max(row[3] for row in numbers)
    least, most = min(row[0] for row in numbers), max(row[4] for row in numbers)
    return Range(least, most, ends, sum(int(row[2]) for row in rows))


def _every(rates: Rows) -> str:
    """Tabulate every finding of every kind; of healthy ones those that alarm or are undecided."""
    columns = ("network", "finding", "alarms", "undecided", "networks", "rate", "low", "high")
    text = [
        "# Calibration",
        f"Networks of each kind are trained from different seeds; torch {torch.__version__}. An "
        "alarm is WARN or FAIL; undecided is INCONCLUSIVE; low and high are the 95 % interval of "
        "the rate (Wilson). Written by `python -m benchmarks.calibration`.",
    ]
    for title, kinds in {"Planted faults": FAULTS, "Nothing planted": HEALTHY}.items():
        rows = [row for kind in kinds for row in rates.get(kind.name, [])]
        shown = [row for row in rows if kinds is FAULTS or tuple(row[2:4]) != ("0", "0")]
        text += [f"## {title}", _table([columns, *shown])]
    return "\n\n".join(text) + "\n"


def _table(lines: Sequence[Sequence[str]]) -> str:
    """Write a table; the first line is its head."""
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
