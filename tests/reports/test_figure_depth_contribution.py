"""Figures of blocks and of stacked layers, on hand-made traces."""

from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.findings import Finding, Severity
from analyzer.limits import DepthContributionLimits, StackedLayersLimits
from analyzer.rules.depth_contribution import contributions, depth_contribution
from analyzer.rules.stacked_layers import half_reach, stacked_layers
from reports import style
from reports.figures import depth_contribution as blocks_figure
from reports.figures import section
from reports.figures import stacked_layers as stack_figure
from reports.signed import signed_axis


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(6, 2)).subplots()


def depth(blocks: int = 6, samples: int = 80, tried: int = 30) -> xr.Dataset:
    """Blocks that are worth less and less; the first and the last cannot be left out."""
    rng = np.random.default_rng(0)
    loss = rng.uniform(0.2, 0.6, samples)
    share = 3 * 0.4 ** np.arange(blocks) - 0.02
    change = share * loss[:, None] * rng.normal(1, 0.3, (samples, blocks))
    estimate = change * 0.7 + 0.001
    outside = [0, blocks - 1]
    left_out = np.linspace(1, blocks - 2, min(tried, blocks - 2)).astype(int) if blocks > 2 else []
    unknown = np.setdiff1d(np.arange(blocks), left_out)
    estimate[:, outside], change[:, unknown] = np.nan, np.nan
    ratio = rng.lognormal(-1, 0.3, (samples, blocks))
    ratio[:, outside] = np.nan
    names = [f"stage{1 + 3 * at // max(blocks, 1)}.{at}" for at in range(blocks)]
    alike = np.linspace(0.2, 0.99, blocks)
    alike[0] = np.nan
    counts = [2, max(blocks - 2, 2)] if blocks > 3 else []
    joint = loss[:, None] * np.array([0.01, 2.0][: len(set(counts))])
    reasons = [
        "it does not return the shape that it reads" if at in outside else ""
        for at in range(blocks)
    ]
    dims = ("sample", "block")
    rank = np.argsort(np.argsort(-np.arange(blocks))).astype(float)
    rank[outside] = np.nan
    variables = {
        "intact_loss": ("sample", loss),
        "loss_change": (dims, change),
        "decision_change": (dims, np.abs(change)),
        "gate_gradient": (dims, -estimate),
        "estimate": (dims, estimate),
        "branch_ratio": (dims, ratio),
        "similarity": ("block", alike),
        "similarity_low": ("block", alike - 0.05),
        "similarity_high": ("block", np.minimum(alike + 0.05, 1)),
        "rank": ("block", rank),
        "joint_change": (("sample", "removed"), joint),
    }
    coords = {
        "block": names,
        "removed": sorted({*counts}),
        "kind": ("block", ["layer", *["identity"] * max(blocks - 2, 0), "layer"][:blocks]),
        "layers": ("block", [f"{name}.a, {name}.b" for name in names]),
        "reason": ("block", reasons),
    }
    attrs = {"removable": max(blocks - 2, 0), "ablated_samples": samples, "samples": samples}
    return xr.Dataset(variables, coords, attrs | {"outcome": "measured", "objective": "x"})


def stack(layers: int = 4, samples: int = 60) -> xr.Dataset:
    rng = np.random.default_rng(1)
    loss = rng.uniform(0.2, 0.6, samples)
    share = np.array([0.8, 0.0, 0.3, 0.01] * layers)[:layers]
    dims = ("sample", "layer")
    skip = 3 * loss[:, None] * np.ones(layers)
    skip[:, 0] = np.nan
    kept = np.array([0, 1, 2, 4, 8, 16])
    curve = 0.5 ** (kept / (1.5 + np.arange(layers)[:, None] % 5)) * (kept < 16)
    rank = np.linspace(3, 20, layers)
    rank[-1] = np.nan
    alike = np.linspace(0.3, 0.9, layers)
    ones = np.ones(layers)
    variables = {
        "intact_loss": ("sample", loss),
        "loss_change": (dims, share * loss[:, None] * rng.normal(1, 0.3, (samples, layers))),
        "decision_change": (dims, np.zeros((samples, layers))),
        "skip_change": (dims, skip),
        "state_change": ((*dims, "kept"), curve * rng.uniform(0.5, 1.5, (samples, 1, 1))),
        "effective_rank": ("layer", rank),
        "independent": ("layer", 700 * ones),
        "explained": ("layer", 0.9 * ones),
        "gradient_share": ("layer", ones / layers),
        "similarity": ("layer", alike),
        "similarity_low": ("layer", alike - 0.1),
        "similarity_high": ("layer", alike + 0.1),
    }
    coords = {
        "layer": [f"lstm.l{at}" for at in range(layers)],
        "kept": kept,
        "kind": ("layer", ["LSTM"] * layers),
        "units": ("layer", [64] * layers),
        "reads": ("layer", [64] * layers),
    }
    return xr.Dataset(variables, coords, {"outcome": "measured", "objective": "x", "reach": ""})


def judged(trace: xr.Dataset) -> list[Finding]:
    if "block" in trace.dims:
        return [*depth_contribution(trace, DepthContributionLimits())]
    return [*stacked_layers(trace, StackedLayersLimits())]


def test_bars_are_the_shares_that_are_judged(ax: Axes) -> None:
    trace = depth()
    blocks_figure.by_block(ax, trace, ["stage3.4"], 0.05)
    expected = [part.value for part in contributions(trace).values()]
    assert [bar.get_height() for bar in ax.patches] == pytest.approx(expected[1:-1])
    assert [bar.get_hatch() for bar in ax.patches] == ["", "", "", "////"]
    lines = {len(line.get_xdata()): line for line in ax.lines if line.get_marker() == "D"}
    (diamonds,) = lines.values()
    np.testing.assert_allclose(diamonds.get_ydata(), blocks_figure.estimates(trace))
    assert [text.get_text().strip() for text in ax.texts] == ["limit 5\u202f%"]
    assert ax.get_xlabel() == "Block, from input to output"


def test_many_blocks_get_dots_and_groups(ax: Axes) -> None:
    trace = depth(335)
    blocks_figure.by_block(ax, trace, [], 0.05)
    assert not ax.patches
    assert sum(line.get_marker() == "o" for line in ax.lines) == 30
    assert ax.get_xlabel() == "Block number, from input to output"
    assert {"stage1", "stage2", "stage3"} <= {text.get_text().strip() for text in ax.texts}


def test_nothing_left_out_is_said(ax: Axes) -> None:
    trace = depth()
    trace["loss_change"][:], trace["estimate"][:] = np.nan, np.nan
    blocks_figure.by_block(ax, trace, [], np.nan)
    assert [text.get_text() for text in ax.texts] == ["no block could be left out"]


@pytest.mark.parametrize("limit", [0.05, np.nan])
def test_a_signed_axis_holds_all_values_and_labels_both_sides(ax: Axes, limit: float) -> None:
    signed_axis(ax, np.array([-0.3, np.nan, 4.0]), limit)
    low, high = ax.get_ylim()
    assert low < -0.3
    assert high > 4
    ticks = ax.yaxis.get_major_locator()()
    assert {-0.1, 0.0, 0.1, 1.0} <= {round(float(tick), 9) for tick in ticks}
    assert ax.yaxis.get_major_formatter()(0.1) == "10\u202f%"
    assert ax.yaxis.get_transform().linthresh == 0.05


def test_a_signed_axis_of_many_decades_has_few_labels(ax: Axes) -> None:
    signed_axis(ax, np.array([-1e6, 1e7]), 0.05, "x", most=4)
    assert len(ax.xaxis.get_major_locator()()) <= 4


def test_panels_show_what_is_judged_by_layer() -> None:
    trace = stack()
    with style.sheet():
        figure = Figure(figsize=(7, 2))
        stack_figure.draw(figure, trace, ["lstm.l1"], 0.05)
    loss, filled, inputs, alike, gradient = figure.axes
    marks = {line.get_marker() for line in loss.lines}
    assert {"D", "o", "s"} <= marks
    (diamonds,) = (line for line in loss.lines if line.get_marker() == "D")
    np.testing.assert_allclose(diamonds.get_xdata()[1:], [3, 3, 3], rtol=1e-9)
    assert [bar.get_width() for bar in filled.patches][:3] == pytest.approx(
        trace["effective_rank"].to_numpy()[:3]
    )
    assert "undefined" in [text.get_text() for text in filled.texts]
    expected = [part.value for part in half_reach(trace).values()]
    assert [*inputs.lines[-1].get_xdata()] == expected
    assert [*alike.lines[-1].get_xdata()] == pytest.approx(trace["similarity"].to_numpy())
    assert [bar.get_width() for bar in gradient.patches] == pytest.approx([0.25] * 4)
    assert [label.get_text() for label in loss.get_yticklabels()] == [
        f"lstm.l{at}" for at in range(4)
    ]
    assert loss.get_ylim()[0] > loss.get_ylim()[1]


@pytest.mark.parametrize("blocks", [2, 3, 6, 335])
def test_sections_of_blocks(blocks: int) -> None:
    trace = depth(blocks)
    laid_out = section("depth_contribution", trace, judged(trace))
    assert len(laid_out.tables[0].rows) <= 20
    assert bool(laid_out.appendix) == (blocks > 20)
    for plate in laid_out.plates:
        assert any(character.isdigit() for character in plate.alt)
        with style.sheet():
            figure = style.canvas(plate.height)
            plate.draw(figure)
            assert style.svg(figure)
    assert laid_out.layers["Loss without its block"].keys() >= {"stage1.0.a", "stage1.0.b"}


def test_the_lead_names_what_is_idle_and_what_is_worth_most() -> None:
    trace = depth()
    trace["loss_change"][:, 4] = 0.0
    (plate, ends) = section("depth_contribution", trace, judged(trace)).plates
    most = contributions(trace)["stage1.1"].value
    assert plate.lead == (
        f"1 of 4 blocks is idle; stage1.1 is worth most, {100 * most:.0f}\u202f% of the loss."
    )
    assert plate.todo == "Train without stage3.4 and compare."
    assert ends.lead == (
        "0 of 5 blocks return nearly what they read (similarity of 0.9999 or more)."
    )


@pytest.mark.parametrize("layers", [2, 4, 40])
def test_sections_of_stacks(layers: int) -> None:
    trace = stack(layers)
    findings = judged(trace)
    assert findings[0].severity is Severity.WARN
    laid_out = section("stacked_layers", trace, findings)
    (plate,) = laid_out.plates
    assert any(character.isdigit() for character in plate.alt)
    assert plate.todo.startswith("Train without lstm.l1")
    with style.sheet():
        figure = style.canvas(plate.height)
        plate.draw(figure)
        assert style.svg(figure)
    assert laid_out.tiles[0].value == f"{len(findings[0].where)} of {layers}"


def test_a_stack_without_reach_or_rank_is_drawn_empty() -> None:
    trace = stack()
    for name in ("effective_rank", "state_change", "similarity", "loss_change"):
        trace[name][:] = np.nan
    laid_out = section("stacked_layers", trace, judged(trace))
    with style.sheet():
        figure = style.canvas(laid_out.plates[0].height)
        laid_out.plates[0].draw(figure)
    said = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert said.count("not measured") >= 3
    assert laid_out.plates[0].lead == "No layer could be replaced."
