"""Width: artists read back from hand-made traces."""

from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.limits import WidthLimits
from analyzer.rules.width import width as judge
from reports import style
from reports.figures import section, width

GROUPS = 10


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(6, 3)).subplots()


def trace(layers: int = 3, units: int = 16, change: float = 0.01) -> xr.Dataset:
    """Layers whose variance falls by half from direction to direction, an output, one unknown."""
    rng = np.random.default_rng(8)
    count = layers + 2
    decay = np.linspace(0.3, 0.6, count)[:, None] ** np.arange(units)
    variance = decay / decay.sum(1, keepdims=True)
    variance[-1] = np.nan
    directions = (variance.cumsum(1) < 0.99).sum(1) + 1.0
    directions[-1] = np.nan
    rank = np.exp(-(variance * np.log(variance)).sum(1))
    without = directions + 0.1 * rng.normal(size=(GROUPS, count))
    names = [f"net.conv{at}" for at in range(layers)] + ["head", "wide"]
    losses = rng.uniform(0.5, 1.5, 200)
    return xr.Dataset(
        {
            "directions": ("layer", directions),
            "directions_without": (("group", "layer"), without),
            "effective_rank": ("layer", rank),
            "participation": ("layer", 0.8 * rank),
            "independent": ("layer", [900.0] * (count - 1) + [120.0]),
            "rank": ("layer", np.full(count, 16.0)),
            "copies": ("layer", [2.0] + [0.0] * (count - 1)),
            "copies_without": (("group", "layer"), np.zeros((GROUPS, count))),
            "variance": (("layer", "direction"), variance),
            "constant": (("layer", "unit"), np.zeros((count, units))),
            "twin": (("layer", "unit"), np.tile(np.arange(units), (count, 1))),
            "parameters": ("layer", np.full(count, 100.0)),
            "kept_parameters": ("layer", np.full(count, 60.0)),
            "untrained_directions": (("copy", "layer"), np.full((2, count), 12.0)),
            "active": (("group", "response", "response_unit"), np.zeros((GROUPS, 1, units))),
            "at_end": (
                ("group", "response", "end", "response_unit"),
                np.full((GROUPS, 1, 2, units), np.nan),
            ),
            "seen": (("group", "response"), np.full((GROUPS, 1), 20.0)),
            "intact_loss": ("sample", losses),
            "loss_change": ("sample", change * losses),
        },
        {
            "layer": names,
            "kind": ("layer", ["Conv2d"] * count),
            "width": ("layer", [units] * count),
            "most": ("layer", [4] + [units] * (count - 1)),
            "read": ("layer", [1] * layers + [0, 1]),
            "response": ["relu after net.conv0"],
            "response_layer": ("response", ["net.conv0"]),
            "end": ["low", "high"],
        },
        {
            "power": 10, "level": 0.99, "correlated": 0.99, "samples": 200,
            "restricted": ", ".join(names[:layers]),
        },
    )  # fmt: skip


def texts(ax: Axes) -> list[str]:
    return [text.get_text().strip() for text in ax.texts]


def test_curves_are_the_cumulated_variance_and_named(ax: Axes) -> None:
    dataset = trace()
    width.curves(ax, dataset)
    expected = 100 * dataset["variance"].cumsum("direction").to_numpy()
    grey, named = ax.lines[:3], ax.lines[3:6]
    for at in range(3):
        np.testing.assert_allclose(grey[at].get_ydata(), expected[at])
        np.testing.assert_allclose(named[at].get_ydata(), expected[at])
        assert list(named[at].get_xdata()) == list(range(1, 17))
    assert {*ax.lines[6].get_ydata()} == {99.0}
    assert texts(ax) == ["99 %", "net.conv0", "net.conv1", "net.conv2"]
    assert ax.get_xscale() == "log"


def test_shares_have_intervals_and_narrow_layers_another_mark(ax: Axes) -> None:
    dataset = trace()
    width.over_depth(ax, dataset, ["net.conv1"])
    dots = {line.get_marker(): line for line in ax.lines if line.get_marker() == "s"}
    share = 100 * dataset["directions"].to_numpy() / 16
    assert dots["s"].get_ydata()[0] == pytest.approx(share[1])
    rounds = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(rounds, [4 * share[0], share[2]])
    assert texts(ax) == ["output", "?"]
    untrained = [line for line in ax.lines if line.get_linestyle() not in ("-", "None")]
    assert {*untrained[0].get_ydata()} == {75.0, 300.0}


def test_the_section_says_what_is_filled_and_what_it_costs() -> None:
    dataset = trace()
    findings = list(judge(dataset, WidthLimits()))
    laid_out = section("width", dataset, findings)
    (plate,) = laid_out.plates
    assert plate.lead == (
        "Half of 3 layers hold 99\u202f% of their variance in 38\u202f% of their directions or "
        "fewer; net.conv1 in 31\u202f%."
    )
    assert plate.body.endswith("1 layer with too few positions left out.")
    assert "net.conv0 4 of 4" in plate.alt
    assert plate.todo == "Train with net.conv1, net.conv2 narrower, and compare."
    tiles = {tile.label: (tile.value, tile.note) for tile in laid_out.tiles}
    assert tiles["Parameters of unused width"] == ("40\u202f%", "upper end")
    assert tiles["Dead units"] == ("16", "behind ReLUs")
    assert tiles["Loss without it changes by"][0] == "1\u202f%"
    (table,) = laid_out.tables
    assert table.rows[0][2] == "4 / 16"
    assert table.rows[-1][2] == "\u2013 / 16"
    assert laid_out.layers["Width in use"]["head"] == ""
    with style.sheet():
        plate.draw(style.canvas(plate.height))


def test_a_hundred_layers_and_one() -> None:
    many = section("width", trace(layers=130), [])
    assert len(many.tables[0].rows) == 16
    assert len(many.appendix[0].rows) == 132
    one = section("width", trace(layers=1), [])
    assert one.plates[0].lead.startswith("net.conv0 holds 99")
    for laid_out in (many, one):
        with style.sheet():
            laid_out.plates[0].draw(style.canvas(laid_out.plates[0].height))


def test_without_power_there_is_no_figure() -> None:
    dataset = trace()
    dataset["directions"][:] = np.nan
    laid_out = section("width", dataset, [])
    assert laid_out.plates == []
    assert next(tile.label for tile in laid_out.tiles) == "Loss without it changes by"
