"""What the commands print, and how they end."""

import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analyzer.findings import Finding
    from analyzer.jobs import Outcome
    from analyzer.options import Options
    from analyzer.pipeline import Watch
    from probes.base import Progress

FOUND, FAILED = 1, 2
"""Exit codes: findings at or above --fail-on; a probe raised."""


def exit_code(findings: "list[Finding]", options: "Options", baseline: Path | None) -> int:
    """Exit code of a judged audit; with a baseline only what got worse since counts."""
    from analyzer.findings import Severity

    if any(finding.severity is Severity.ERROR for finding in findings):
        return FAILED
    if baseline is not None:
        from analyzer import record as records
        from analyzer.baseline import worsened
        from analyzer.rules import judge

        findings = worsened(findings, judge(records.load(baseline), options.limits))
    return FOUND if any(options.fail_on.met_by(finding.severity) for finding in findings) else 0


def command_line() -> str:
    """Return the command as it can be typed again."""
    return shlex.join(["analyzer", *sys.argv[1:]])


def say(text: str, quiet: bool) -> None:
    """Print unless told not to."""
    if not quiet:
        print(text)


@contextmanager
def progress(quiet: bool) -> "Iterator[Watch | None]":
    """Draw a bar for each probe, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True)) as bars:

        def watch(name: str) -> "Progress":
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield watch


def followed(outcomes: "Iterable[Outcome]", total: int, quiet: bool) -> "Iterator[Outcome]":
    """Pass outcomes on as they come, with a line for each and, on a terminal, a bar."""
    with progress(quiet) as watch:
        advance = watch("audits") if watch else None
        for done, outcome in enumerate(outcomes, 1):
            if not quiet:
                print(f"{outcome.verdict:12} {outcome.name} {outcome.reason}".rstrip(), flush=True)
            if advance:
                advance(done, total)
            yield outcome


def summarize(findings: "list[Finding]", folder: Path, quiet: bool) -> None:
    """Print the findings as a table, the verdict last."""
    if quiet:
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from analyzer.findings import verdict

    table = Table(box=None, pad_edge=False)
    for heading in ("", "diagnostic", "what was seen"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(finding.severity, finding.title, escape(finding.message))
    console = Console()
    console.print(table)
    console.print(f"\n{verdict(findings)}: see {folder}/report.pdf", highlight=False, markup=False)
