"""The results of a batch as one table."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from analyzer.files import replacing
from analyzer.jobs import Outcome, ranked
from reports import render_index

INDEX, OVERVIEW = "index.csv", "index.pdf"


def table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Return one row for each job, the worst first; one column for each value that was judged."""
    return pd.DataFrame([_row(outcome) for outcome in ranked(outcomes)])


def save_index(outcomes: Sequence[Outcome], folder: Path) -> Iterator[Path]:
    """Write the table as ``index.csv``, then ``index.pdf`` with links to the reports.

    Yields
    ------
    path
        Of each file, once it is complete.

    Raises
    ------
    AnalyzerError
        A file cannot be written, or typst is not installed.
    """
    path = folder / INDEX
    with replacing(path) as temporary:
        table(outcomes).to_csv(temporary, index=False)
    yield path
    path = folder / OVERVIEW
    render_index([asdict(outcome) for outcome in ranked(outcomes)], path)
    yield path


def _row(outcome: Outcome) -> dict[str, Any]:
    """Write one job."""
    counts = {
        severity.lower(): sum(f["severity"] == severity for f in outcome.findings)
        for severity in ("FAIL", "WARN", "INCONCLUSIVE")
    }
    first = outcome.findings[0]["message"] if outcome.findings else ""
    values = {
        f"{finding['code']} [{finding['unit']}]": finding["value"]
        for finding in outcome.findings
        if finding["value"] is not None
    }
    return {
        "name": outcome.name,
        "status": str(outcome.status),
        "verdict": str(outcome.verdict),
        **counts,
        "worst": outcome.reason or first,
        **values,
    }
