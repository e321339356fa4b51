"""Traces as flat tables for other tools: one for each probe and set of axes."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import xarray as xr

from analyzer import record as records
from analyzer.files import replacing
from probes.errors import AnalyzerError


def tables(trace: xr.Dataset) -> Iterator[tuple[str, pd.DataFrame]]:
    """Flatten a trace.

    Parameters
    ----------
    trace : Dataset
        Of one probe.

    Yields
    ------
    str, DataFrame
        The axes, joined by ``-``, and one row for each point of their grid: its coordinates, then
        every variable on exactly these axes. Scalars come under the name ``scalar``.
    """
    axes = dict.fromkeys(variable.dims for variable in trace.data_vars.values())
    for dims in axes:
        names = [name for name in trace.data_vars if trace[name].dims == dims]
        if dims:
            yield "-".join(map(str, dims)), trace[names].to_dataframe().reset_index()
        else:
            yield "scalar", pd.DataFrame({str(name): [trace[name].item()] for name in names})


def export(record: xr.DataTree, folder: Path, form: str) -> Iterator[Path]:
    """Write all measured traces as ``PROBE.AXES.csv`` or ``.parquet``.

    Parameters
    ----------
    record : DataTree
    folder : path
        Made if it does not exist.
    form : "csv" or "parquet"

    Yields
    ------
    path
        Of each file, once it is complete.

    Raises
    ------
    AnalyzerError
        A file cannot be written, or pyarrow is not installed.
    """
    for probe, trace in records.measured(record).items():
        for axes, table in tables(trace):
            path = folder / f"{probe}.{axes}.{form}"
            with replacing(path) as temporary:
                _write(table, temporary, form)
            yield path


def _write(table: pd.DataFrame, path: Path, form: str) -> None:
    """Write one table."""
    if form == "csv":
        table.to_csv(path, index=False)
        return
    try:
        table.to_parquet(path, index=False, engine="pyarrow")
    except ImportError as error:
        raise AnalyzerError("Parquet needs pyarrow: pip install pyarrow") from error
