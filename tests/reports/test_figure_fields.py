"""Figures and words of both fields, read back from hand-made traces."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle

from reports import style
from reports.figures import field_depth, field_maps, receptive_field, section

Make = Callable[..., Any]


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(6, 2)).subplots()


@pytest.fixture
def figure() -> Iterator[Figure]:
    with style.sheet():
        yield Figure(figsize=(6, 2))


def trace_of(tree: xr.DataTree, probe: str) -> xr.Dataset:
    return tree[probe].to_dataset()


def texts(ax: Axes) -> list[str]:
    return [text.get_text().strip() for text in ax.texts]


def with_copies(trace: xr.Dataset) -> xr.Dataset:
    """Two untrained copies of half the diameter and of a quarter; one is dead at the end."""
    copies = trace["diameter"].to_numpy() * np.array([[0.5], [0.25]])
    copies[1, -1] = np.nan
    return trace.assign(null_diameter=(("null", "layer"), copies))


def test_layers_beyond_the_input_are_hatched_named_ones_marked(ax: Axes, make_cnn: Make) -> None:
    trace = trace_of(make_cnn(), "receptive_field")
    receptive_field.by_layer(ax, trace, ["features.20"])
    (hatched,) = [
        patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_hatch()
    ]
    assert (hatched.get_x(), hatched.get_x() + hatched.get_width()) == (7.5, 11.5)
    (mark,) = [line for line in ax.lines if line.get_marker() == "^"]
    assert list(mark.get_xdata()) == [10]
    (whole,) = [line for line in ax.lines if line.get_marker() == "D"]
    assert list(whole.get_xdata()) == [12]
    assert "input 140" in texts(ax)


def test_axes_of_a_field_share_a_line_only_where_they_agree(ax: Axes, make_cnn: Make) -> None:
    trace = trace_of(make_cnn(2), "receptive_field")
    trace["size"][:, 1] = 2 * trace["size"][:, 1]
    receptive_field.by_layer(ax, trace)
    assert {"y", "x"} <= set(texts(ax))
    assert receptive_field.extent(np.array([7.0, 9.0])) == "7\u00d79"
    assert receptive_field.extent(np.array([np.nan, np.nan])) == "\u2013"


def test_field_map_has_its_two_ellipses_at_the_center_of_gravity(ax: Axes, make_cnn: Make) -> None:
    trace = trace_of(make_cnn(2), "effective_field")
    field_maps.field_map(ax, trace, 3)
    one, two = [patch for patch in ax.patches if isinstance(patch, Ellipse)]
    sigma = trace["sigma"].to_numpy()[3]
    assert (one.width, one.height) == pytest.approx((2 * sigma[1], 2 * sigma[0]))
    assert two.width == pytest.approx(4 * sigma[1])
    assert one.center == pytest.approx((32, 24), abs=0.7)


def test_diameter_by_depth_with_interval_and_input(ax: Axes, make_cnn: Make) -> None:
    trace = trace_of(make_cnn(), "effective_field")
    field_depth.by_layer(ax, trace)
    drawn = [list(line.get_ydata()) for line in ax.lines if len(line.get_xdata()) == 12]
    assert list(trace["diameter"].to_numpy()) in drawn
    assert list(trace["theoretical"].to_numpy()[:, 0]) in drawn
    assert {"input 140", "theoretical", "effective (2\u03c3)"} <= set(texts(ax))


def test_axes_that_agree_share_a_name(ax: Axes, make_cnn: Make) -> None:
    trace = trace_of(make_cnn(3), "receptive_field")
    trace["size"][:, 0] = 0.5 * trace["size"][:, 0]
    receptive_field.by_layer(ax, trace)
    assert {"z", "y, x"} <= set(texts(ax))


def test_the_table_lists_layers_that_change_the_field(make_cnn: Make) -> None:
    trace = trace_of(make_cnn(1, 4), "receptive_field")
    for name in ("size", "jump"):
        trace[name][2] = trace[name][1]
    (table,) = section("receptive_field", trace, []).tables
    assert [row[0] for row in table.rows] == ["features.0", "features.2", "features.6", "pool"]
    assert table.note == "Layers that change the field; all layers are in the appendix."


def test_untrained_copies_are_a_line_of_their_own(ax: Axes, make_cnn: Make) -> None:
    trace = with_copies(trace_of(make_cnn(), "effective_field"))
    field_depth.by_layer(ax, trace)
    diameter = trace["diameter"].to_numpy()
    expected = np.append(0.375 * diameter[:-1], 0.5 * diameter[-1])
    drawn = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 12]
    assert any(np.allclose(line, expected) for line in drawn)
    assert "untrained" in texts(ax)
    laid_out = section("effective_field", trace, [])
    assert [tile.value for tile in laid_out.tiles if tile.label == "Against untrained"] == [
        "2\u00d7"
    ]
    assert [tile.note for tile in laid_out.tiles if tile.label == "Against untrained"] == [
        "1 untrained copy"
    ]
    assert "Dotted line: mean of 2 untrained copies." in laid_out.plates[-1].body


def test_without_copies_nothing_is_said_of_them(ax: Axes, make_cnn: Make) -> None:
    trace = trace_of(make_cnn(), "effective_field")
    field_depth.by_layer(ax, trace)
    assert "untrained" not in texts(ax)
    laid_out = section("effective_field", trace, [])
    assert "Against untrained" not in [tile.label for tile in laid_out.tiles]
    assert "untrained" not in laid_out.plates[-1].body
    assert {row[3] for row in laid_out.tables[0].rows} == {"\u2013"}


def test_axes_of_unequal_inputs_have_panels_of_their_own(figure: Figure, make_cnn: Make) -> None:
    trace = trace_of(make_cnn(2), "effective_field")
    field_depth.draw(figure, trace)
    assert [panel.get_ylabel() for panel in figure.axes] == [
        "Diameter along y (positions)",
        "Diameter along x (positions)",
    ]
    for axis, panel in enumerate(figure.axes):
        drawn = [list(line.get_ydata()) for line in panel.lines]
        assert list(4 * trace["sigma"].to_numpy()[:, axis]) in drawn
        assert f"input {[48, 64][axis]}" in texts(panel)
    share = next(
        tile.value
        for tile in section("effective_field", trace, []).tiles
        if tile.label == "Share of the input"
    )
    y, x = 400 * trace["sigma"].to_numpy()[-1] / [48, 64]
    assert share == f"{y:.0f}\u202f% \u00d7 {x:.0f}\u202f%"


def test_axes_that_agree_share_a_panel(figure: Figure, make_cnn: Make) -> None:
    trace = trace_of(make_cnn(2), "effective_field")
    trace["input_size"][:] = 48
    assert not field_depth.apart(trace)
    trace["anisotropy_low"] = "layer", np.linspace(1, 1.3, 12)
    assert field_depth.apart(trace)


def test_small_fields_are_cut_out_of_a_large_input(ax: Axes, make_cnn: Make) -> None:
    trace = trace_of(make_cnn(), "effective_field")
    trace["sigma"][:] = 2.0
    energy = np.zeros((12, 140), np.float32)
    energy[:, 98:103] = [1, 4, 9, 4, 1]
    energy[3:, 90] = 1e-4
    trace["energy"] = ("layer", "timestep"), energy
    (part,) = field_maps.window(trace, [0, 6, 11])
    assert 100 - 9 <= part.start <= 100 - 6
    assert 100 + 6 <= part.stop <= 100 + 9
    assert field_maps.shown(trace, (part,)) == (
        f" Drawn: {part.stop - part.start} of 140 positions."
    )
    field_maps.profiles(ax, trace, [0, 6, 11], part)
    assert ax.get_xlim() == (part.start - 0.5, part.stop - 0.5)
    steps = [line for line in ax.lines if len(line.get_xdata()) == part.stop - part.start]
    assert max(steps[0].get_ydata()) == pytest.approx(2.82)


@pytest.mark.parametrize(("sigma", "size"), [(12.0, 79), (14.0, 140)])
def test_a_field_of_most_of_the_input_is_not_cut_out(sigma, size, make_cnn: Make) -> None:
    trace = trace_of(make_cnn(), "effective_field")
    trace["sigma"][:] = sigma
    trace["energy"][:] = np.exp(-((np.arange(140) - 70) ** 2) / 8)
    (part,) = field_maps.window(trace, [0, 11])
    assert part.stop - part.start == size


def test_fields_as_large_as_the_input_are_shown_whole(make_cnn: Make) -> None:
    trace = trace_of(make_cnn(2), "effective_field")
    chosen = field_maps.selected(trace)
    assert field_maps.window(trace, chosen) == (slice(0, 48), slice(0, 64))
    assert field_maps.shown(trace, (slice(0, 48), slice(0, 64))) == ""


@pytest.mark.parametrize(
    ("rows", "across"), [(10, 2), (36, 3), (64, 6)], ids=["wide", "lying", "square"]
)
def test_wide_maps_are_stacked(rows: int, across: int, make_cnn: Make) -> None:
    trace = trace_of(make_cnn(2), "effective_field")
    part = (slice(0, rows), slice(0, 64))
    found, height = field_maps.columns_of(trace, [0, 2, 4, 6, 8, 11], part)
    assert found == across
    assert height == pytest.approx(3 + 6 / across * (6 + 152 / across * rows / 64))


def test_three_axes_have_profiles_along_each(figure: Figure, make_cnn: Make) -> None:
    trace = trace_of(make_cnn(3), "effective_field")
    plates = section("effective_field", trace, []).plates
    assert [plate.name for plate in plates] == ["effective-field-depth"]
    for axis, size in zip("zyx", (12, 32, 32), strict=True):
        rows = np.exp(-((np.arange(size) - size / 2) ** 2) / 8) * np.ones((12, 1))
        trace[f"energy_{axis}"] = ("layer", axis), rows
    plates = section("effective_field", trace, []).plates
    assert [plate.name for plate in plates] == ["effective-field-maps", "effective-field-depth"]
    chosen = field_maps.selected(trace)
    field_maps.draw(figure, trace, chosen, field_maps.window(trace, chosen))
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["z", "y", "x"]


def test_seconds_are_told_where_the_rate_is_known(ax: Axes, make_cnn: Make) -> None:
    trace = trace_of(make_cnn(), "effective_field")
    trace.attrs["sample_rate"] = 250.0
    field_maps.profiles(ax, trace, [0, 11], slice(0, 140))
    assert ax.get_xlabel() == "Input position (250 are 1 s)"
    tile = section("effective_field", trace, []).tiles[0]
    assert tile.note.startswith(f"{float(trace['diameter'][-1]) / 250:.3f} s, [")


def test_a_selection_is_told(make_cnn: Make) -> None:
    trace = trace_of(make_cnn(), "effective_field")
    trace.attrs |= {"layers_total": 1003, "layers_measured": 12}
    said = "Measured: 12 of 1003 convolutions, evenly spaced."
    laid_out = section("effective_field", trace, [])
    assert said in laid_out.plates[-1].body
    assert said in laid_out.tables[0].note
    trace.attrs["layers_total"] = 12
    assert "Measured" not in section("effective_field", trace, []).plates[-1].body
