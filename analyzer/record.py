"""Traces of all probes and where they come from, as one labelled tree and one netCDF-4 file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from analyzer.files import replacing
from probes.errors import AnalyzerError

SCHEMA = 1
"""Version of the layout; bumped when a reader of the older one would be misled."""

MEASURED, NOT_APPLICABLE, ERROR, STOPPED = "measured", "not_applicable", "error", "stopped"
"""Outcomes of a probe, in the attribute ``outcome`` of its group."""


def assemble(traces: Mapping[str, xr.Dataset], provenance: Mapping[str, Any]) -> xr.DataTree:
    """Put the traces of all probes under one root that says where they come from."""
    root = xr.Dataset(attrs={"schema": SCHEMA, **provenance})
    return xr.DataTree.from_dict(
        {"/": root, **{f"/{name}": trace for name, trace in traces.items()}}
    )


def absent(outcome: str, reason: str) -> xr.Dataset:
    """Return the empty trace of a probe that did not measure, with the reason."""
    return xr.Dataset(attrs={"outcome": outcome, "reason": reason})


def traces(record: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the trace of every probe by its name, measured or not."""
    return {str(name): node.to_dataset() for name, node in record.children.items()}


def measured(record: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the traces of the probes that measured something."""
    found = traces(record)
    return {name: found[name] for name in found if found[name].attrs["outcome"] == MEASURED}


def save(record: xr.DataTree, path: str | Path) -> None:
    """Write the record as netCDF-4; the same record gives the same bytes.

    Raises
    ------
    AnalyzerError
        The file cannot be written.
    """
    # In memory first: HDF5 ends the process where it runs out of disk.
    data = record.to_netcdf(engine="h5netcdf")
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(data)


def load(path: str | Path) -> xr.DataTree:
    """Read a record.

    Raises
    ------
    AnalyzerError
        The file is missing, is no record, or was written by a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise AnalyzerError(f"{path}: no such record file")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as opened:
            record = opened.load()
    except Exception as error:
        # HDF5 has a word of its own for everything that can be damaged.
        raise AnalyzerError(f"{path}: not a record of this tool (netCDF-4 expected)") from error
    schema = record.attrs.get("schema")
    if schema is None:
        raise AnalyzerError(f"{path}: a netCDF file, but not a record of this tool")
    if schema > SCHEMA:
        raise AnalyzerError(
            f"{path}: record schema {schema} is newer than this version reads ({SCHEMA}): "
            "upgrade gradient-memory-analyzer"
        )
    return record


def settings(trace: xr.Dataset) -> dict[str, Any]:
    """Read back the settings a probe ran with."""
    found: dict[str, Any] = json.loads(trace.attrs.get("settings", "{}"))
    return found
