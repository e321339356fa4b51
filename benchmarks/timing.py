"""Time functions against each other, and write what was found as a table."""

import csv
import ctypes
import gc
import os
import platform
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
PATIENCE = 120
"""Seconds to wait for a measurement of memory."""

BARE = "forward + backward (bare)"
"""Name of what everything is compared with."""

Function = Callable[[], object]

COLUMNS = ("case", "what", "ratio", "low", "high", "wall ratio", "extra MiB", "note")


@dataclass(frozen=True)
class Row:
    """One function on one case; ratios are to the first function of the case.

    Parameters
    ----------
    case, what : str
        On what was measured, and what.
    ratio, low, high : float
        CPU time over that of the first function in the same round: median and range over rounds.
    wall : float
        Likewise of wall-clock time.
    peak : float
        Memory at the peak beyond that before [MiB].
    note : str
        What the numbers do not say, or why there are none.
    """

    case: str
    what: str
    ratio: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    wall: float = float("nan")
    peak: float = float("nan")
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """Text of each column."""
        numbers = (self.ratio, self.low, self.high, self.wall)
        texts = ["" if number != number else f"{number:.2f}" for number in numbers]
        peak = "" if self.peak != self.peak else f"{self.peak:.0f}"
        return self.case, self.what, *texts, peak, self.note


def compare(
    case: str,
    functions: Mapping[str, Function],
    rounds: int,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """Run functions in turn, round after round, so that a busy machine slows all of them alike.

    Parameters
    ----------
    case : str
        Name of what they run on.
    functions : mapping of str to callable
        The first is what the others are compared with. One that raises gets a row with the reason.
    rounds : int
        Beside one to warm up.
    notes : mapping, optional
        By name of the function.
    """
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    failed: dict[str, str] = {}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            if name in failed:
                continue
            try:
                spent[name].append(_timed(function))
            except Exception as error:  # noqa: BLE001 - of other tools, whatever they raise
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    first = spent[next(iter(functions))][1:]
    rows = []
    for name, function in functions.items():
        note = (notes or {}).get(name, "")
        if name in failed:
            rows.append(Row(case, name, note=f"does not run: {failed[name]}"))
            continue
        own = spent[name][1:]
        ratio, wall = (
            [mine[kind] / theirs[kind] for mine, theirs in zip(own, first, strict=True)]
            for kind in (0, 1)
        )
        middle = statistics.median
        rows.append(
            Row(
                case,
                name,
                middle(ratio),
                min(ratio),
                max(ratio),
                middle(wall),
                peak(function),
                note,
            )
        )
    return rows


def installed(tool: str, make: Callable[[], Function]) -> Function:
    """Prepare another tool, or what says that it is not there."""

    def missing() -> None:
        raise ImportError(f"{tool} is not installed")

    def prepared() -> None:
        raise failure

    if find_spec(tool) is None:
        return missing
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - whatever it raises on this network is the result
        failure = error
        return prepared


def _timed(function: Function) -> tuple[float, float]:
    """CPU and wall-clock time [s], what waits on a GPU included."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def peak(function: Function) -> float:
    """Memory at the peak of a function beyond that before it, in a process of its own [MiB]."""
    if platform.system() != "Linux" or torch.cuda.is_available():
        return float("nan")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        # Whatever happens, the copy must not go on with the program, nor wait for ever for
        # threads of other tools, which were not copied.
        signal.alarm(PATIENCE)
        try:
            os.write(writing, str(_peak(function)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return float(text) / 2**10 if text else float("nan")


def _peak(function: Function) -> int:
    """Memory at the peak beyond that before, in this process [KiB]."""
    gc.collect()
    # What was used before and is free now would hide what is used next.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    function()
    return _memory("VmHWM") - before


def _memory(kind: str) -> int:
    """Memory of this process [KiB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))


def write(topic: str, rows: Iterable[Row], about: str) -> None:
    """Write rows to ``results/TOPIC.csv`` and ``results/TOPIC.md``."""
    RESULTS.mkdir(exist_ok=True)
    cells = [row.cells() for row in rows]
    with (RESULTS / f"{topic}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *cells])
    lines = [COLUMNS, ("---",) * len(COLUMNS), *cells]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    (RESULTS / f"{topic}.md").write_text(f"# {topic.capitalize()}\n\n{about}\n\n{table}\n")
