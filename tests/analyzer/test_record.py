"""Records survive a file, give the same bytes twice, and refuse what is not theirs."""

import numpy as np
import pytest
import xarray as xr

from analyzer import record as records
from probes.errors import AnalyzerError


def trace() -> xr.Dataset:
    return xr.Dataset(
        {"gain": (("sample", "layer"), [[1.0, np.nan], [3.0, 0.0]], {"units": "1"})},
        coords={"layer": ["conv", "\u03b1.\u03b2"]},
        attrs={"outcome": "measured", "settings": '{"points": 3}'},
    )


def record() -> xr.DataTree:
    return records.assemble(
        {"flow": trace(), "field": records.absent(records.ERROR, "it broke")}, {"model": "Net"}
    )


def test_a_record_survives_its_file(tmp_path):
    records.save(record(), tmp_path / "traces.nc")
    back = records.load(tmp_path / "traces.nc")
    xr.testing.assert_identical(back["flow"].to_dataset(), trace())
    assert back.attrs == {"schema": records.SCHEMA, "model": "Net"}
    assert records.settings(back["flow"].to_dataset()) == {"points": 3}
    assert list(records.measured(back)) == ["flow"]
    assert records.traces(back)["field"].attrs == {"outcome": "error", "reason": "it broke"}


def test_two_files_of_one_record_have_the_same_bytes(tmp_path):
    for name in ("a.nc", "b.nc"):
        records.save(record(), tmp_path / name)
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()


def test_saving_leaves_nothing_but_the_file(tmp_path):
    records.save(record(), tmp_path / "new" / "traces.nc")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["traces.nc"]


def test_a_missing_record_is_named(tmp_path):
    path = tmp_path / "none.nc"
    with pytest.raises(AnalyzerError) as raised:
        records.load(path)
    assert str(raised.value) == f"{path}: no such record file"


def test_a_text_file_is_no_record(tmp_path):
    path = tmp_path / "traces.nc"
    path.write_text("hello")
    with pytest.raises(AnalyzerError) as raised:
        records.load(path)
    assert str(raised.value) == f"{path}: not a record of this tool (netCDF-4 expected)"


def test_a_truncated_record_is_no_record(tmp_path):
    path = tmp_path / "traces.nc"
    records.save(record(), path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(AnalyzerError) as raised:
        records.load(path)
    assert str(raised.value) == f"{path}: not a record of this tool (netCDF-4 expected)"


def test_a_foreign_netcdf_file_is_no_record(tmp_path):
    path = tmp_path / "traces.nc"
    xr.Dataset({"x": ("y", [1.0])}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(AnalyzerError) as raised:
        records.load(path)
    assert str(raised.value) == f"{path}: a netCDF file, but not a record of this tool"


def test_a_newer_record_is_refused(tmp_path):
    path = tmp_path / "traces.nc"
    records.save(records.assemble({}, {"schema": records.SCHEMA + 1}), path)
    with pytest.raises(AnalyzerError) as raised:
        records.load(path)
    assert str(raised.value) == (
        f"{path}: record schema {records.SCHEMA + 1} is newer than this version reads "
        f"({records.SCHEMA}): upgrade gradient-memory-analyzer"
    )
