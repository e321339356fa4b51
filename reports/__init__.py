"""Render: datasets and findings in, a PDF out; never torch.

>>> record = analyzer.load("traces.nc")
>>> reports.render(record, analyzer.judge(record), "report.pdf")

The heavy parts (typst, matplotlib) are imported when a report is rendered, so that importing this
package costs nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

    from analyzer.findings import FailOn, Finding

__all__ = ["render", "render_comparison", "render_index", "save_junit", "save_markdown"]


def render(
    record: "xr.DataTree",
    findings: "Iterable[Finding]",
    path: str | PathLike[str],
    *,
    limits: Mapping[str, Mapping[str, Any]] | None = None,
    paper: str = "a4",
) -> None:
    """Write the report of one record as a tagged PDF (PDF/UA-1 and PDF/A-3a).

    The same record, findings and limits give the same bytes; ``path`` holds either the old file or
    the whole new one.

    Parameters
    ----------
    record : DataTree
        One group per probe; root attributes say where the traces come from.
    findings : iterable of Finding
        What was concluded from the record.
    path : str or path
        The PDF to write.
    limits : mapping, optional
        Limits in force, by name: ``{"value": ..., "source": ..., "overridden": ...}``.
    paper : str
        "a4" or "us-letter".

    Raises
    ------
    AnalyzerError
        typst is not installed, the paper is unknown, or the file cannot be written.
    """
    from analyzer.files import replacing
    from reports.document import compose

    pdf = compose(record, tuple(findings), limits=limits or {}, paper=paper)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(pdf)


def render_comparison(
    audits: "Mapping[str, xr.DataTree]",
    findings: "Mapping[str, Sequence[Finding]]",
    path: str | PathLike[str],
    *,
    paper: str = "a4",
) -> None:
    """Write two or more records on shared axes as a PDF: what differs beyond noise.

    Parameters
    ----------
    audits : mapping of DataTree
        By the name that the reader sees; the others are compared with the first.
    findings : mapping of sequence of Finding
        Of each record, judged by the same limits.
    path : str or path
        The PDF to write.
    paper : str
        "a4" or "us-letter".

    Raises
    ------
    AnalyzerError
        There are fewer than two records, typst is not installed, the paper is unknown, or the
        file cannot be written.
    """
    from analyzer.files import replacing
    from reports.comparison import compose

    pdf = compose(audits, findings, paper=paper)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(pdf)


def render_index(
    rows: "Sequence[Mapping[str, Any]]", path: str | PathLike[str], *, paper: str = "a4"
) -> None:
    """Write the results of a batch as a PDF: one row for each checkpoint.

    Parameters
    ----------
    rows : sequence of mapping
        ``name``, ``status``, ``verdict``, ``reason`` and ``findings`` of each job, worst first.
    path : str or path
        The PDF to write, in the folder that holds the folders of the jobs.
    paper : str
        "a4" or "us-letter".

    Raises
    ------
    AnalyzerError
        typst is not installed, the paper is unknown, or the file cannot be written.
    """
    from analyzer.files import replacing
    from reports.index import compose

    pdf = compose(rows, paper=paper)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(pdf)


def save_junit(
    findings: "Sequence[Finding]", facts: Mapping[Any, Any], fail_on: "FailOn", path: Path
) -> None:
    """Write :func:`reports.junit.junit` to a file.

    Raises
    ------
    AnalyzerError
        The file cannot be written.
    """
    from analyzer.files import replacing
    from reports.junit import junit

    with replacing(path) as temporary:
        temporary.write_text(junit(findings, facts, fail_on), encoding="utf-8")


def save_markdown(findings: "Sequence[Finding]", facts: Mapping[Any, Any], path: Path) -> None:
    """Write :func:`reports.markdown.markdown` to a file.

    Raises
    ------
    AnalyzerError
        The file cannot be written.
    """
    from analyzer.files import replacing
    from reports.markdown import markdown

    with replacing(path) as temporary:
        temporary.write_text(markdown(findings, facts), encoding="utf-8")
