"""Artists read back from hand-made traces."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from analyzer.findings import Finding, Severity
from reports import style
from reports.figures import (
    SECTIONS,
    gradient_flow,
    memory_horizon,
    reach,
    section,
    timestep_gradient,
)

Make = Callable[..., Any]


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(6, 2)).subplots()


def trace_of(tree: xr.DataTree, probe: str) -> xr.Dataset:
    return tree[probe].to_dataset()


def texts(ax: Axes) -> list[str]:
    return [text.get_text().strip() for text in ax.texts]


def test_depth_line_is_the_median_within_its_bands(ax: Axes, make_flow: Make) -> None:
    trace = make_flow(["stem", "body", "head"], ["Conv2d", "ReLU", "Linear"], 0.5, 9)
    gradient_flow.by_layer(ax, trace)
    (line,) = [line for line in ax.lines if len(line.get_xdata()) == 3]
    expected = 4 * np.median(trace["activation_gradient"].to_numpy(), axis=0)
    np.testing.assert_allclose(line.get_ydata(), expected)
    wide, middle = (
        c.get_paths()[0].vertices for c in ax.collections if isinstance(c, PolyCollection)
    )
    assert wide[:, 1].max() > middle[:, 1].max() > expected.max()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["stem", "body", "head"]
    assert ax.get_yscale() == "log"


def test_zero_medians_are_marked_on_the_axis(ax: Axes, make_flow: Make) -> None:
    trace = make_flow(["a", "b", "c"], ["Linear"] * 3, 0.1, 5)
    trace["activation_gradient"][:, 1] = 0
    gradient_flow.by_layer(ax, trace)
    (mark,) = [line for line in ax.lines if line.get_marker() == "v"]
    assert list(mark.get_xdata()) == [1]
    assert texts(ax) == ["zero"]


def test_deep_networks_get_numbers_and_groups_instead_of_names(ax: Axes, make_flow: Make) -> None:
    names = [f"stage{1 + index // 20}.{index}" for index in range(60)]
    gradient_flow.by_layer(ax, make_flow(names, ["Conv2d"] * 60, 0.01, 4))
    assert texts(ax) == ["stage1", "stage2", "stage3"]
    assert ax.get_xlabel() == "Layer number, from input to output"


def test_relative_gradient_is_nan_where_a_parameter_is_zero(make_flow: Make) -> None:
    trace = make_flow(["a"], ["Linear"], 0.1, 2)
    trace["parameter_norm"][:] = [4.0, 0.0]
    trace["parameter_gradient"][:] = [2.0, 3.0]
    np.testing.assert_array_equal(gradient_flow.relative_gradient(trace), [0.5, np.nan])


def test_heat_map_has_one_scale_and_the_layers_in_order(ax: Axes, make_lstm: Make) -> None:
    trace = trace_of(make_lstm(), "timestep_gradient")
    scale = timestep_gradient.heat_map(ax, trace)
    cell = np.median(trace["cell_gradient_final"].to_numpy(), axis=0)
    (image,) = ax.images
    assert image.norm.vmax == pytest.approx(np.log10(cell.max()))
    assert image.norm.vmin == scale.norm.vmin == pytest.approx(np.log10(cell.min()))
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"lstm.l{i}" for i in range(4)]
    assert image.get_extent() == [-0.5, 139.5, 3.5, -0.5]


def test_lines_over_time_are_medians_per_layer(ax: Axes, make_lstm: Make) -> None:
    trace = trace_of(make_lstm(), "timestep_gradient")
    timestep_gradient.over_time(ax, trace, "hidden_gradient")
    np.testing.assert_allclose(
        [line.get_ydata() for line in ax.lines],
        np.median(trace["hidden_gradient"].to_numpy(), axis=0),
    )


def test_total_gradient_gets_its_own_panel_only_where_it_differs(make_lstm: Make) -> None:
    trace = trace_of(make_lstm(), "timestep_gradient")
    assert [kind.label for kind in timestep_gradient.quantities(trace)] == [
        "hidden state",
        "cell state",
    ]
    trace["hidden_gradient"] = 3 * trace["hidden_gradient"]
    assert len(timestep_gradient.quantities(trace)) == 3


def test_excess_loss_is_a_share_with_both_horizons_and_the_length(
    ax: Axes, make_lstm: Make
) -> None:
    trace = trace_of(make_lstm(), "memory_horizon")
    memory_horizon.excess(ax, trace, memory_horizon.curve(trace))
    mean = trace["excess_loss"].mean("sample").to_numpy()
    (curve,) = [line for line in ax.lines if len(line.get_xdata()) == trace.sizes["kept"]]
    np.testing.assert_allclose(curve.get_ydata(), 100 * mean / mean[0])
    kept = trace["kept"].to_numpy()
    expected = [kept[np.flatnonzero(mean > share * mean[0])[-1]] for share in (0.05, 0.01)]
    assert texts(ax) == [f"5\u202f% horizon: {expected[0]}", f"1\u202f% horizon: {expected[1]}"]
    verticals = {line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1}
    assert verticals == {140.0, *map(float, expected)}


def test_horizon_is_undefined_where_other_inputs_do_not_hurt(ax: Axes, make_lstm: Make) -> None:
    trace = trace_of(make_lstm(), "memory_horizon")
    trace["excess_loss"] = -trace["excess_loss"]
    memory_horizon.excess(ax, trace, memory_horizon.curve(trace))
    assert ax.get_ylabel() == "Excess loss"
    (curve,) = [line for line in ax.lines if len(line.get_xdata()) == trace.sizes["kept"]]
    np.testing.assert_allclose(curve.get_ydata(), trace["excess_loss"].mean("sample"))
    assert texts(ax) == ["no horizon: the excess may be zero throughout"]


def test_reach_fills_the_share_of_the_track(make_lstm: Make, make_cnn: Make) -> None:
    traces = {
        "memory_horizon": trace_of(make_lstm(), "memory_horizon"),
        "effective_field": trace_of(make_cnn(), "effective_field"),
    }
    memory, field = reach.tracks(traces)
    assert (
        memory.value == f"{memory_horizon.horizon(traces['memory_horizon'], 0.01):g} of 140 inputs"
    )
    with style.sheet():
        ax = Figure().subplots()
        field.draw(ax)
    diameter = float(traces["effective_field"]["diameter"][-1])
    assert ax.patches[-1].get_width() == pytest.approx(diameter / 140)


def test_alternative_texts_hold_numbers(make_lstm: Make, make_cnn: Make) -> None:
    for tree in (make_lstm(), make_cnn(), make_cnn(2)):
        for probe in (name for name in SECTIONS if name in tree.children):
            trace = trace_of(tree, probe)
            if trace.attrs["outcome"] == "measured":
                laid_out = section(probe, trace, [])
                assert laid_out.plates
                assert laid_out.tiles
                for plate in laid_out.plates:
                    assert any(character.isdigit() for character in plate.alt)
                    assert plate.alt != plate.lead


def test_alternative_text_holds_the_extremes(make_flow: Make) -> None:
    trace = make_flow(["stem", "body", "head"], ["Linear"] * 3, 0.0, 3)
    trace["activation_gradient"][:] = [[5e-5, 1.25e-6, 0.0075]] * 3
    (plate, _) = section("gradient_flow", trace, []).plates
    assert plate.alt == (
        "Line with bands on a logarithmic axis over 3 layers: from 2\u00b710\u207b\u2074 at stem "
        "to 0.03 at head. Lowest 5\u00b710\u207b\u2076 at body, highest 0.03 at head."
    )


def test_marked_layers_come_from_findings_that_complain(make_cnn: Make) -> None:
    trace = trace_of(make_cnn(), "receptive_field")
    quiet = Finding("a", "receptive_field", Severity.PASS, "A", "m", where=("features.2",))
    loud = Finding("b", "receptive_field", Severity.WARN, "B", "m", where=("features.4",))
    assert "triangles" not in section("receptive_field", trace, [quiet]).plates[0].body
    assert "triangles" in section("receptive_field", trace, [quiet, loud]).plates[0].body


def test_a_probe_without_a_module_has_an_empty_section(make_flow: Make) -> None:
    assert section("unheard_of", make_flow(["a"], ["Linear"], 0.1), []).plates == ()


def test_an_svg_is_the_same_twice_and_keeps_its_text(make_flow: Make) -> None:
    plate = section("gradient_flow", make_flow(["$a_b$", "<c>"], ["Linear"] * 2, 0.3), []).plates[0]
    images = []
    for _ in range(2):
        with style.sheet():
            figure = style.canvas(plate.height)
            plate.draw(figure)
            images.append(style.svg(figure))
    assert images[0] == images[1]
    assert b">$a_b$</text>" in images[0]
    assert b">&lt;c&gt;</text>" in images[0]


def test_quantiles_ignore_what_is_not_finite_and_survive_no_samples() -> None:
    found = style.quantiles(np.array([[1.0, np.nan], [3.0, np.inf], [5.0, np.nan]]))
    np.testing.assert_array_equal(found[50], [3.0, np.nan])
    np.testing.assert_array_equal(style.quantiles(np.zeros((0, 2)))[50], [np.nan, np.nan])
