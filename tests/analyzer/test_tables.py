"""Traces as flat tables."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from analyzer import record as records
from analyzer.tables import export


@pytest.fixture
def record():
    trace = xr.Dataset(
        {
            "gradient": (("sample", "layer"), [[1.0, 2.0], [3.0, np.nan]]),
            "loss": ("sample", [0.5, 0.25]),
            "height": (("sample", "layer"), [[5.0, 6.0], [7.0, 8.0]]),
            "total": ((), 9.0),
        },
        {"layer": ["a", "b,c"], "kind": ("layer", ["Conv1d", "Linear"])},
        {"outcome": records.MEASURED},
    )
    absent = records.absent(records.NOT_APPLICABLE, "nothing of the kind")
    return records.assemble({"probe": trace, "other": absent}, {})


def test_one_table_for_each_set_of_axes(record, tmp_path):
    paths = [*export(record, tmp_path / "new", "csv")]
    assert [path.name for path in paths] == [
        "probe.sample-layer.csv",
        "probe.sample.csv",
        "probe.scalar.csv",
    ]
    grid = pd.read_csv(paths[0])
    assert [*grid] == ["sample", "layer", "gradient", "height", "kind"]
    assert [*grid["layer"]] == ["a", "b,c", "a", "b,c"]
    np.testing.assert_array_equal(grid["gradient"], [1, 2, 3, np.nan])
    np.testing.assert_array_equal(grid["height"], [5, 6, 7, 8])
    assert [*pd.read_csv(paths[1])["loss"]] == [0.5, 0.25]
    assert pd.read_csv(paths[2])["total"].item() == 9


def test_parquet_holds_the_same(record, tmp_path):
    pytest.importorskip("pyarrow", reason="pip install .[parquet]")
    for csv, parquet in zip(
        export(record, tmp_path, "csv"), export(record, tmp_path, "parquet"), strict=True
    ):
        pd.testing.assert_frame_equal(pd.read_csv(csv), pd.read_parquet(parquet), check_dtype=False)
