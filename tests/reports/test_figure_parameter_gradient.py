"""Gradients of single samples beside those of the mean loss, drawn and tabulated."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from analyzer.rules.gradient_noise import by_parameter
from reports import style
from reports.figures import parameter_gradient, section
from reports.figures.parameter_gradient import parameters, sample_gradient, tables

Make = Callable[..., Any]


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(3, 2)).subplots()


@pytest.fixture
def trace(make_flow: Make) -> xr.Dataset:
    """Three layers, six parameters; of the last one no single samples."""
    found: xr.Dataset = make_flow(["a", "b", "c"], ["Linear"] * 3, 0.1, 24)
    typical = 4 * found["parameter_gradient"].to_numpy()
    single = typical * np.random.default_rng(5).lognormal(0, 0.3, (24, 6))
    single[:, 5] = np.nan
    attributes = {"long_name": "norm", "units": "1"}
    found["parameter_gradient_per_sample"] = (("sample", "parameter"), single, attributes)
    reasons = ["", "", "", "", "", "it runs under autocast"]
    return found.assign_coords(not_per_sample=("parameter", reasons))


def test_dashes_are_the_root_mean_square_of_the_samples(ax: Axes, trace: xr.Dataset) -> None:
    parameters(ax, trace)
    norm = trace["parameter_norm"].to_numpy()
    single = trace["parameter_gradient_per_sample"].to_numpy() / norm
    (dots,) = [line for line in ax.lines if line.get_marker() == "o"]
    (dashes,) = [line for line in ax.lines if line.get_marker() == "_"]
    np.testing.assert_allclose(dashes.get_ydata(), np.sqrt((single**2).mean(0)))
    np.testing.assert_allclose(dots.get_ydata(), trace["parameter_gradient"].to_numpy() / norm)
    (bars,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    ends = np.array([segment[:, 1] for segment in bars.get_segments() if len(segment)])
    np.testing.assert_allclose(ends, sample_gradient(trace)[1:, :5].T)
    assert [text.get_text() for text in ax.texts] == ["of one sample (rms)", "of the mean loss"]


def test_older_records_have_dots_alone(ax: Axes, trace: xr.Dataset) -> None:
    old = trace.drop_vars(["parameter_gradient_per_sample", "not_per_sample"])
    parameters(ax, old)
    assert [line.get_marker() for line in ax.lines] == ["o"]
    assert not ax.collections
    assert not ax.texts
    plate = section("gradient_flow", old, []).plates[1]
    assert "single samples" not in plate.body
    assert plate.body.endswith("one dot per tensor.")
    (table,) = tables(old)
    assert {row[4:] for row in table.rows} == {("\u2013", "", "\u2013")}


def test_the_table_sets_single_samples_against_the_mean(trace: xr.Dataset) -> None:
    (table,) = tables(trace)
    assert table.columns[4:] == ("One sample", "95 %", "Agreement")
    assert table.note.endswith("Not measured for single samples: c.bias (it runs under autocast).")
    value, low, high = by_parameter(trace)
    mean = float(trace["parameter_gradient"][0])
    assert table.rows[0][4] == parameter_gradient.number(value[0])
    assert table.rows[0][5] == parameter_gradient.interval(low[0], high[0])
    assert table.rows[0][6] == parameter_gradient.number(mean / value[0], 2)
    assert table.rows[5][4:] == ("\u2013", "", "\u2013")


def test_the_figure_says_what_it_shows(trace: xr.Dataset) -> None:
    plate = section("gradient_flow", trace, []).plates[1]
    assert plate.body.endswith(
        "one dot per tensor; dashes: root mean square of the gradients of single samples instead, "
        "with its 95 % interval."
    )
    assert " Dashes of single samples from " in plate.alt


def test_the_gain_of_every_layer_is_listed(trace: xr.Dataset) -> None:
    trace["gain"] = (("sample", "layer"), np.full((24, 3), [0.5, np.nan, 2.0]))
    assert section("gradient_flow", trace, []).layers["Gain"] == {
        "a": "0.5",
        "b": "\u2013",
        "c": "2",
    }
