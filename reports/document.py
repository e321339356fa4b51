"""From a record and its findings to the bytes of a PDF: lays out the data, then calls typst."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import xarray as xr

from analyzer import record as records
from analyzer.findings import Finding, Severity, to_json, verdict
from probes.errors import AnalyzerError
from reports import style, summary
from reports.appendix import all_layers, listed
from reports.figures import SECTIONS, reach, section
from reports.section import Plate, Section, Table
from reports.text import DEJAVU, FONTS, UNNAMED, number, safe, safe_tree, tied

PAPERS = ("a4", "us-letter")
STANDARDS = ("ua-1", "a-3a")
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""Date inside a PDF whose record has none: a clock would change the bytes."""

_TEMPLATE = Path(__file__).parent / "template"


def compose(
    record: xr.DataTree, findings: Sequence[Finding], *, limits: Mapping[str, Any], paper: str
) -> bytes:
    """Typeset the report.

    Parameters
    ----------
    record : DataTree
    findings : sequence of Finding
    limits : mapping
        Name -> value, source, overridden.
    paper : str
        One of ``PAPERS``.

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
    attached = to_json(findings, record.attrs, limits)
    data, files = lay_out(record, findings, limits)
    data |= {"paper": paper, "report": sha256(attached.encode()).hexdigest()[:12]}
    files["findings.json"] = attached.encode()
    return typeset(source("report.typ", data) | files, moment(record.attrs))


def require(paper: str) -> None:
    """Check what typesetting needs, before figures are drawn in vain.

    Raises
    ------
    AnalyzerError
        The paper is unknown, or typst is not installed.
    """
    if paper not in PAPERS:
        raise AnalyzerError(f"unknown paper {paper!r}: use {' or '.join(PAPERS)}")
    _typst()


def source(template: str, data: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of a document without its figures and attachments.

    Parameters
    ----------
    template : str
        Name of the template that is compiled.
    data : mapping
        JSON-like, of strings of any origin; made printable here.
    """
    files = {path.name: path.read_bytes() for path in sorted(_TEMPLATE.glob("*.typ"))}
    files["main.typ"] = files.pop(template)
    files["data.json"] = json.dumps(safe_tree(data), ensure_ascii=False).encode()
    return files


def typeset(files: Mapping[str, bytes], when: datetime) -> bytes:
    """Compile ``main.typ`` among ``files``; a warning is an error.

    Raises
    ------
    AnalyzerError
        typst is not installed, or refuses the document.
    """
    typst = _typst()
    try:
        pdf, warnings = typst.compile_with_warnings(
            {**files}, font_paths=_fonts(), pdf_standards=[*STANDARDS], timestamp=when
        )
    except typst.TypstError as error:
        raise AnalyzerError(f"the report cannot be typeset: {error.message}") from error
    if warnings:
        said = "; ".join(warning.message for warning in warnings)
        raise AnalyzerError(f"the report cannot be typeset cleanly: {said}")
    return _packed(bytes(pdf))


def _packed(pdf: bytes) -> bytes:
    """Write the objects of a PDF together and compressed: half the size or less."""
    import pikepdf

    stream = io.BytesIO()
    with pikepdf.open(io.BytesIO(pdf)) as document:
        document.save(
            stream,
            object_stream_mode=pikepdf.ObjectStreamMode.generate,
            recompress_flate=True,
            deterministic_id=True,
        )
    return stream.getvalue()


def _typst() -> ModuleType:
    """Import typst, which has no wheel on a few platforms."""
    try:
        return import_module("typst")
    except ImportError as error:
        raise AnalyzerError(
            "the PDF needs typst, which is not installed (pip install 'typst>=0.15,<0.16'); "
            "traces and findings are complete without it"
        ) from error


@cache
def _fonts() -> Any:
    """Load the report's fonts and those inside the typst wheel, never the machine's."""
    return _typst().Fonts(
        include_system_fonts=False,
        include_embedded_fonts=True,
        font_paths=[str(FONTS), str(DEJAVU)],
    )


def moment(facts: Mapping[Any, Any]) -> datetime:
    """Return when the record was measured, or a fixed date where it does not say."""
    try:
        when = datetime.fromisoformat(str(facts["date"]))
    except (KeyError, ValueError):
        return EPOCH
    return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)


def lay_out(
    record: xr.DataTree, findings: Sequence[Finding], limits: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Write everything the template shows as text, and draw the figures.

    Returns
    -------
    dict
        JSON-like.
    dict
        Name of a file -> a figure as SVG, or a table to attach.
    """
    facts, traces = record.attrs, records.traces(record)
    measured = {
        name: trace
        for name, trace in traces.items()
        if trace.attrs.get("outcome", records.MEASURED) == records.MEASURED
    }
    order = sorted(measured, key=lambda name: (*SECTIONS, name).index(name))
    sections = {name: section(name, measured[name], _of(name, findings)) for name in order}
    overview = reach.plate(measured, findings)
    plates = [plate for laid_out in sections.values() for plate in laid_out.plates]
    outcome = summary.headline(findings)
    appendix = [listed(table) for one in sections.values() for table in one.appendix]
    layers, rest = listed(all_layers(sections))
    tables = {
        name: file
        for files in (*(more for _, more in appendix), rest)
        for name, file in files.items()
    }
    data = {
        **_head(facts),
        "description": f"{outcome['status']}: {outcome['headline']}",
        "verdict": outcome,
        "steps": summary.actions(findings),
        "reach": plate_words(overview) if overview else None,
        "diagnostics": [summary.diagnostic(f) for f in summary.diagnostics(findings)],
        "provenance": summary.provenance(facts),
        "sections": [_section(name, sections[name], _of(name, findings)) for name in sections],
        "absent": [
            _absent(name, trace, findings) for name, trace in traces.items() if name not in measured
        ],
        "limits": [_limit(name, entry) for name, entry in sorted(limits.items())],
        "appendix": [_table(table) for table, _ in appendix],
        "layers": _table(layers),
        "attached": [*tables],
    }
    figures = draw([overview, *plates] if overview else plates)
    return data, {f"{name}.svg": image for name, image in figures.items()} | tables


def draw(plates: Sequence[Plate]) -> dict[str, bytes]:
    """Draw the figures in the report's style."""
    images = {}
    with style.sheet():
        for plate in plates:
            figure = style.canvas(plate.height)
            plate.draw(figure)
            images[plate.name] = style.svg(figure)
    return images


def _head(facts: Mapping[Any, Any]) -> dict[str, Any]:
    """Write what identifies the report on every page."""
    when = moment(facts)
    dated = when != EPOCH
    model, digest = str(facts.get("model", "")) or "unnamed model", facts.get("checkpoint_sha256")
    return {
        "title": f"Checkpoint audit: {model}",
        "keywords": [str(digest)] if digest else [],
        "model": model,
        "checkpoint": summary.file_name(facts),
        "sha256": str(digest or ""),
        "tool": " ".join(str(facts[key]) for key in ("tool", "tool_version") if key in facts),
        "date": when.strftime("%Y-%m-%d %H:%M UTC") if dated else "",
        "moment": [when.year, when.month, when.day, when.hour, when.minute, when.second],
        "partial": summary.partial_note(facts),
    }


def _of(probe: str, findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings of one probe, worst first."""
    own = [finding for finding in findings if finding.probe == probe]
    return sorted(own, key=lambda finding: finding.severity.rank)


def _section(probe: str, laid_out: Section, findings: Sequence[Finding]) -> dict[str, Any]:
    """Write one section."""
    return {
        "probe": probe,
        "status": summary.word(verdict(findings) if findings else Severity.INFO),
        "tiles": [asdict(tile) for tile in laid_out.tiles[:4]],
        "findings": [summary.diagnostic(finding) for finding in findings],
        "plates": [plate_words(plate) for plate in laid_out.plates],
        "tables": [_table(table) for table in laid_out.tables],
    }


def plate_words(plate: Plate) -> dict[str, str]:
    """Write a figure's words."""
    return {
        "file": f"{plate.name}.svg",
        "lead": tied(plate.lead),
        "body": tied(plate.body.strip()),
        "todo": tied(plate.todo),
        "alt": plate.alt,
    }


def _table(table: Table) -> dict[str, Any]:
    """Write a table, without columns that say nothing."""
    kept = [
        index
        for index, kind in enumerate(table.align)
        if kind != "text" or any(row[index] for row in table.rows)
    ]
    return {
        "title": table.title,
        "note": table.note,
        "columns": [table.columns[index] for index in kept],
        "align": [table.align[index] for index in kept],
        "rows": [
            [row[index] if row[index].strip() else _blank(table.align[index]) for index in kept]
            for row in table.rows
        ],
    }


def _blank(kind: str) -> str:
    """Write what stands in an empty cell."""
    return UNNAMED if kind == "name" else ""


def _absent(probe: str, trace: xr.Dataset, findings: Sequence[Finding]) -> dict[str, str]:
    """Write why a probe did not measure."""
    own = _of(probe, findings)
    status = _SEVERITIES.get(trace.attrs.get("outcome", ""), Severity.NOT_APPLICABLE)
    return {
        "probe": probe,
        "title": own[0].title if own else probe,
        "status": summary.word(own[0].severity if own else status),
        "reason": str(trace.attrs.get("reason", "")) or "no reason was recorded",
    }


_SEVERITIES = {records.ERROR: Severity.ERROR, records.STOPPED: Severity.INCONCLUSIVE}
"""Outcome of a probe that did not measure -> severity, if no finding tells it."""


def _limit(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Write a limit."""
    value = entry.get("value")
    text = number(float(value)) if isinstance(value, int | float) else safe(str(value))
    return {
        "name": name,
        "value": "not set" if text == number(float("nan")) else text,
        "source": str(entry.get("source", "")),
        "overridden": bool(entry.get("overridden", False)),
    }
