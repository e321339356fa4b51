"""Bars and curves of the memory, and the marks of the updates, read back from hand-made traces."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from analyzer.findings import Finding, Severity
from analyzer.rules.memory_growth import GIB, Growth
from reports import style
from reports.figures import memory_footprint, section, update_ratio
from reports.section import Section

MIB = 2.0**20


def footprint(layers: int = 3, steps: bool = True) -> xr.Dataset:
    samples = np.array([4.0, 8, 16, 4, 4][: 5 if steps else 3])
    timesteps = np.array([40.0, 40, 40, 20, 30][: samples.size])
    weights = np.arange(1, layers + 1)
    saved = samples[:, None] * timesteps[:, None] * weights / 10
    held: dict[str, Any] = {
        "parameters": weights, "gradients": weights, "moments": 2 * weights, "buffers": 0 * weights,
    }  # fmt: skip
    variables: dict[str, Any] = {
        name: (("layer",), values * MIB) for name, values in held.items()
    } | {
        "saved": (("pass", "layer"), saved * MIB),
        "passing": (("pass", "layer"), saved * MIB / 8),
        "saved_per_timestep": (("layer",), np.where(weights == 1, 3072.0, np.nan)),
    }
    for name in ("inputs", "training_live"):
        variables[name] = (("pass",), samples * timesteps * MIB / 20)
    for name in ("forward_live", "serving_live"):
        variables[name] = (("pass", "module"), (samples * timesteps * MIB / 20)[:, None])
    for name in ("training_allocated", "serving_allocated"):
        variables[name] = (("pass",), np.full(samples.size, np.nan))
    facts = {
        "mode": "train", "optimizer": "in the checkpoint: exp_avg", "step": 1, "batch": 32,
        "not_shortened": "" if steps else "images have no time",
        "device": "cpu", "dtype": "float32", "gib": 2.0,
    }  # fmt: skip
    return xr.Dataset(
        variables,
        {
            "layer": [f"layer.{index}" for index in range(layers)],
            "module": ["layer.0"],
            "kind": ("layer", ["Linear"] * layers),
            "samples": ("pass", samples),
            "timesteps": ("pass", timesteps if steps else np.full(samples.size, np.nan)),
        },
        facts,
    )


def updates(ratios: list[float]) -> xr.Dataset:
    count = len(ratios)
    columns = {"weight": [2.0] * count, "update": [2 * ratio for ratio in ratios]}
    columns |= {"rate": [0.1] * count, "initial_rate": [0.1] * count, "steps": [9.0] * count}
    names = [f"layer{index}.weight" for index in range(count)]
    return xr.Dataset(
        {name: ("parameter", values) for name, values in columns.items()},
        {"parameter": names, "layer": ("parameter", [name.split(".")[0] for name in names])},
        {"optimizer": "Adam"},
    )


def axes(laid_out: Section, plate: int) -> list[Any]:
    with style.sheet():
        figure = Figure(figsize=(6, 3))
        laid_out.plates[plate].draw(figure)
    return [*figure.axes]


def test_bars_add_up_to_the_budgets() -> None:
    trace = footprint()
    growth = Growth(trace)
    top, bottom = axes(section("memory_footprint", trace, []), 0)
    whole = {0: growth.training(32).total, 1: growth.serving(32).total}
    for row, total in whole.items():
        bars = [bar for bar in top.patches if bar.get_y() == pytest.approx(row - 0.31)]
        assert max(bar.get_x() + bar.get_width() for bar in bars) == pytest.approx(total / MIB)
    heights = [bar.get_height() for bar in bottom.patches]
    np.testing.assert_allclose(heights, 32 * 40 * np.arange(1, 4) / 10)
    assert bottom.get_ylabel() == "Saved (MiB)"


def test_curves_pass_through_the_budgets_and_the_memory_is_drawn() -> None:
    trace = footprint()
    growth = Growth(trace)
    batch, length = axes(section("memory_footprint", trace, []), 1)
    for ax, axis in ((batch, "samples"), (length, "timesteps")):
        training, serving, budget, own = ax.lines
        x = training.get_xdata()
        expected = [
            growth.training(*((v,) if axis == "samples" else (32, v))).total / GIB for v in x
        ]
        np.testing.assert_allclose(training.get_ydata(), expected)
        assert set(budget.get_ydata()) == {2.0}
        assert set(own.get_xdata()) == {32.0 if axis == "samples" else 40.0}
        assert (np.asarray(serving.get_ydata()) < training.get_ydata()).all()


def test_the_memory_that_the_user_set_is_drawn() -> None:
    finding = Finding("training-memory", "memory_footprint", Severity.WARN, "", "", limit=0.5)
    assert memory_footprint.budget_of(footprint(), [finding]) == 0.5
    assert memory_footprint.budget_of(footprint(), []) == 2.0


def test_tables_say_what_fits() -> None:
    trace = footprint()
    growth = Growth(trace)
    fits, layers = section("memory_footprint", trace, []).tables
    assert [row[0] for row in fits.rows] == ["8", "16", "24", "40", "80"]
    assert float(fits.rows[0][1]) == growth.largest_batch(8 * GIB)
    assert float(fits.rows[0][2]) == growth.longest(8 * GIB)
    assert layers.rows[0] == ("layer.0", "Linear", "1", "1", "2", "0", "128", "3")
    assert layers.rows[1][-1] == "\u2013"


def test_without_a_length_there_is_one_panel_and_the_reason() -> None:
    laid_out = section("memory_footprint", footprint(steps=False), [])
    assert len(axes(laid_out, 1)) == 1
    assert "The length was not varied: images have no time." in laid_out.plates[1].body
    assert len(laid_out.tables[0].columns) == 3
    assert laid_out.tiles[3].label == "Estimate"


@pytest.mark.parametrize("layers", [1, 3, 120])
def test_any_number_of_layers_can_be_drawn(layers: int) -> None:
    laid_out = section("memory_footprint", footprint(layers), [])
    assert len(axes(laid_out, 0)[1].patches) == layers
    assert bool(laid_out.appendix) == (layers == 120)
    for plate in laid_out.plates:
        assert "nan" not in plate.alt + plate.lead + plate.body


def test_layers_outside_of_the_band_are_marked() -> None:
    laid_out = section("update_ratio", updates([1e-3, 0.3, 2e-3, 1e-6]), [])
    (ax,) = axes(laid_out, 0)
    inside, outside = [line for line in ax.lines if line.get_marker() in ("o", "D")]
    assert [*inside.get_xdata()] == [0, 2]
    assert [*outside.get_ydata()] == pytest.approx([0.3, 1e-6])
    assert laid_out.plates[0].lead.endswith("2 layers outside of the usual band.")
    assert laid_out.layers["Update / weight"]["layer1"] == "0.3"


@pytest.mark.parametrize("count", [1, 120])
def test_updates_of_any_number_of_layers_can_be_drawn(count: int) -> None:
    laid_out = section("update_ratio", updates([1e-3] * count), [])
    assert len(axes(laid_out, 0)) == 1
    assert bool(laid_out.appendix) == (count == 120)
    assert "every layer within the usual band" in laid_out.plates[0].lead


def test_updates_that_are_not_known_are_no_numbers() -> None:
    trace = updates([np.nan])
    laid_out = section("update_ratio", trace, [])
    assert len(axes(laid_out, 0)) == 1
    assert "none known" in laid_out.plates[0].alt
    assert not update_ratio.beyond(np.array([np.nan])).any()
