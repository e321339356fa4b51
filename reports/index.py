"""A batch of audits in one PDF: one row for each checkpoint, the worst first."""

from collections.abc import Mapping, Sequence
from math import ceil, isnan, nan
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.findings import Severity
from reports import summary
from reports.document import EPOCH, draw, plate_words, require, source, typeset
from reports.section import Plate
from reports.style import BLUE, LIMIT, MUTED, RED, note
from reports.text import count, listed, number, quantity, sentence

Row = Mapping[str, Any]
"""How one job ended, as its receipt says it."""

PANELS = 8
_COLUMNS = 4


def compose(rows: Sequence[Row], *, paper: str) -> bytes:
    """Typeset the index.

    Parameters
    ----------
    rows : sequence of mapping
        ``name``, ``status``, ``verdict``, ``reason`` and ``findings`` of each job, worst first.
    paper : str
        As in :func:`reports.document.compose`.

    Returns
    -------
    bytes
        A PDF; the same for the same arguments.

    Raises
    ------
    AnalyzerError
        typst or the paper is missing, or typst refuses the document.
    """
    require(paper)
    overview = _overview(rows)
    verdicts = [Severity(row["verdict"]) for row in rows]
    counts = [(severity, verdicts.count(severity)) for severity in Severity]
    title = f"Audit of {count(len(rows), 'checkpoint')}"
    told = listed([f"{number} {summary.word(severity)}" for severity, number in counts if number])
    data = {
        "title": title,
        "description": told,
        "keywords": ["index"],
        "model": title,
        "sha256": "",
        "tool": "",
        "date": "",
        "moment": [*EPOCH.timetuple()[:6]],
        "paper": paper,
        "counts": [{"status": summary.word(s), "count": number} for s, number in counts if number],
        "overview": plate_words(overview) if overview else None,
        "rows": [_row(row) for row in rows],
    }
    figures = draw([overview]) if overview else {}
    files = {f"{name}.svg": image for name, image in figures.items()}
    return typeset(source("index.typ", data) | files, EPOCH)


def _row(row: Row) -> dict[str, Any]:
    """Write one checkpoint."""
    asking = [f for f in row["findings"] if f["severity"] in ("FAIL", "ERROR", "WARN")]
    reach = next((f["message"] for f in row["findings"] if f["code"] == "reach"), "")
    return {
        "name": row["name"],
        "status": summary.word(Severity(row["verdict"])),
        "link": "" if row["reason"] else f"{row['name']}/report.pdf",
        "worst": row["reason"] or (sentence(asking[0]["message"]) if asking else ""),
        "more": len(asking) - 1,
        "reach": sentence(reach),
    }


def _overview(rows: Sequence[Row]) -> Plate | None:
    """Word the figure of all judged values; None where nothing was judged."""
    codes = _judged(rows)
    if not codes:
        return None
    values = {code: _values(rows, code) for code in codes}
    titles = {code: _first(rows, code)["title"] for code in codes}
    units = {code: _first(rows, code)["unit"] for code in codes}
    ranges = "; ".join(
        f"{titles[code]} from {number(float(np.nanmin(found[0])))} to "
        f"{quantity(float(np.nanmax(found[0])), units[code])}"
        for code, found in values.items()
    )
    return Plate(
        "overview",
        8 + 34 * ceil(len(codes) / _COLUMNS),
        lambda figure: _draw(figure, values, titles, units),
        lead="Every judged value of every checkpoint, in the order of the table.",
        body="Points: values; bars: 95 % intervals; dotted: the limit; red: beyond it for certain. "
        "Every panel has its own scale.",
        alt=f"{count(len(codes), 'panel')} of points. {ranges}.",
    )


def _judged(rows: Sequence[Row]) -> list[str]:
    """List the diagnostics with a limit, those with most findings first."""
    every = [f for row in rows for f in row["findings"] if f["relation"] and f["value"] is not None]
    held = [finding["code"] for finding in every]
    bad = [f["code"] for f in every if f["severity"] in ("FAIL", "WARN")]
    return sorted(dict.fromkeys(held), key=lambda code: -bad.count(code))[:PANELS]


def _first(rows: Sequence[Row], code: str) -> Row:
    """Return the first finding of a diagnostic."""
    found: Row = next(f for row in rows for f in row["findings"] if f["code"] == code)
    return found


def _values(rows: Sequence[Row], code: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return value, low, high, limit and whether it is bad, of every checkpoint: (5, rows)."""
    columns = []
    for row in rows:
        finding: Row = next((f for f in row["findings"] if f["code"] == code), {})
        numbers = [finding.get(name) for name in ("value", "low", "high", "limit")]
        bad = finding.get("severity") in ("FAIL", "WARN")
        columns.append([nan if value is None else float(value) for value in [*numbers, bad]])
    return np.array(columns, dtype=np.float64).T


def _draw(
    figure: Figure,
    values: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]],
    titles: Mapping[str, str],
    units: Mapping[str, str],
) -> None:
    """Draw one small panel for each diagnostic."""
    lines = ceil(len(values) / _COLUMNS)
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
    for ax in axes[len(values) :]:
        ax.set_visible(False)
    for ax, (code, found) in zip(axes, values.items(), strict=False):
        _panel(ax, found)
        ax.set_title(titles[code], loc="left", parse_math=False)
        ax.set_ylabel("" if units[code] == "1" else units[code])


def _panel(ax: Axes, found: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    """Draw the values of one diagnostic."""
    value, low, high, limit, bad = found
    places = np.arange(value.size)
    for mark, color in ((0, BLUE), (1, RED)):
        own = bad == mark
        ax.vlines(places[own], low[own], high[own], color=color, lw=0.8, alpha=0.6)
        ax.plot(places[own], value[own], "o", color=color, ms=2.6)
    held = limit[np.isfinite(limit)]
    if held.size and not isnan(held[0]):
        ax.axhline(held[0], color=MUTED, ls=LIMIT, lw=0.8)
        note(
            ax,
            1,
            held[0],
            f"limit {number(held[0])}",
            ha="right",
            va="bottom",
            fontsize=6.5,
            transform=ax.get_yaxis_transform(),
        )
    ax.set_xlim(-0.7, value.size - 0.3)
    ax.set_xticks([])
