"""Render: datasets and findings in, a PDF out; never torch.

>>> record = analyzer.load("traces.nc")
>>> reports.render(record, analyzer.judge(record), "report.pdf")

The heavy parts (typst, matplotlib) are imported when a report is rendered, so that importing this
package costs nothing.
"""

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

    from analyzer.findings import Finding

__all__ = ["render"]


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
