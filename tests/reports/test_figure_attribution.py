"""Attribution by place and conductance by layer, read back from hand-made traces."""

from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports import style
from reports.figures import attribution, layer_conductance
from reports.figures.attribution import accumulated, density

PLACES = 120
EDGES = [0, 1, 2, 4, 8, 16, 32, 60, 90, 120]


def attributed(decay: float = 0.97, dim: str = "lag") -> xr.Dataset:
    """Contributions that decay with the place, of 30 unequal samples."""
    rng = np.random.default_rng(5)
    size = rng.uniform(0.5, 1.5, (30, PLACES)) * decay ** np.arange(PLACES)
    size *= rng.uniform(0.2, 5, (30, 1))
    windows = np.add.reduceat(size, EDGES[:-1], axis=1)
    return xr.Dataset(
        {
            "contribution": (("sample", dim), size),
            "magnitude": (("sample", dim), size),
            "positions": (
                ("sample", dim),
                np.tile(np.ones(PLACES) if dim == "lag" else 8.0 * np.arange(PLACES) + 1, (30, 1)),
            ),
            "occlusion": (("sample", "window"), windows * rng.uniform(0.8, 1.2, windows.shape)),
            "delta": ("sample", np.full(30, 0.01)),
            "difference": ("sample", size.sum(1)),
        },
        {dim: np.arange(PLACES), "start": ("window", EDGES[:-1]), "stop": ("window", EDGES[1:])},
        {"baseline": "mean", "steps": 64, "extent": PLACES},
    )


def conducted(layers: int = 4, absent: int = 1) -> xr.Dataset:
    """Layers of which every other one carries half of the decision."""
    rng = np.random.default_rng(6)
    difference = rng.uniform(1, 2, 20)
    share = np.where(np.arange(layers) % 2, 0.5, 1.0)
    conductance = share * difference[:, None] * rng.uniform(0.98, 1.02, (20, layers))
    carriers = rng.uniform(0.2, 0.4, (20, layers))
    labels = [f"block{index}.conv" for index in range(layers)]
    reasons = [""] * layers
    for index in range(absent):
        labels.append(f"idle{index}")
        reasons.append("not called with these data")
    blank = np.full((20, absent), np.nan)
    return xr.Dataset(
        {
            "conductance": (("sample", "layer"), np.hstack([conductance, blank])),
            "coarse": (("sample", "layer"), np.hstack([1.01 * conductance, blank])),
            "carriers": (("sample", "layer"), np.hstack([carriers, blank])),
            "difference": ("sample", difference),
            "delta": ("sample", 0 * difference),
        },
        {
            "layer": labels,
            "kind": ("layer", ["Conv1d"] * layers + [""] * absent),
            "channels": ("layer", [8] * layers + [0] * absent),
            "reason": ("layer", reasons),
        },
        {"baseline": "mean", "steps": 32, "layers_total": layers},
    )


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(6, 2)).subplots()


def texts(ax: Axes) -> list[str]:
    return [text.get_text().strip() for text in ax.texts]


def test_the_curve_is_the_cumulative_share_with_its_marks(ax: Axes) -> None:
    trace = attributed()
    accumulated(ax, trace)
    magnitude = trace["magnitude"].sum("sample").to_numpy()
    expected = np.append(0, magnitude.cumsum() / magnitude.sum())
    even, curve, occlusion, *marks = ax.lines
    np.testing.assert_allclose(curve.get_ydata(), 100 * expected)
    np.testing.assert_allclose(even.get_ydata(), np.linspace(0, 100, PLACES + 1))
    windows = abs(trace["occlusion"]).sum("sample").to_numpy()
    assert list(occlusion.get_xdata()) == EDGES
    np.testing.assert_allclose(
        occlusion.get_ydata(), np.append(0, 100 * windows.cumsum() / windows.sum())
    )
    places = [int((expected >= share).argmax()) for share in (0.5, 0.9)]
    assert [list(mark.get_xdata()) for mark in marks] == [[place] for place in places]
    assert texts(ax) == [
        *("integrated gradients", "occlusion", "even spread"),
        f"50\u202f%: {places[0]}",
        f"90\u202f%: {places[1]}",
    ]
    assert ax.get_xscale() == "linear"


def test_time_is_logarithmic_where_only_the_latest_inputs_decide(ax: Axes) -> None:
    accumulated(ax, attributed(0.6))
    assert ax.get_xscale() == "symlog"


def test_distances_are_linear_and_held_against_their_area(ax: Axes) -> None:
    trace = attributed(0.6, "distance")
    accumulated(ax, trace)
    assert ax.get_xscale() == "linear"
    count = trace["positions"][0].to_numpy()
    np.testing.assert_allclose(
        ax.lines[0].get_ydata(), np.append(0, 100 * count.cumsum() / count.sum())
    )


def test_the_density_is_relative_to_an_even_spread(ax: Axes) -> None:
    trace = attributed(1.0, "distance")
    trace["magnitude"] = 3 * trace["positions"]
    density(ax, trace)
    _, outline = ax.patches
    np.testing.assert_allclose(outline.get_data().values, np.ones(PLACES))
    assert ax.get_xlabel() == "Distance from the centre (positions)"


def test_the_section_says_in_words_what_the_rule_found() -> None:
    section = attribution.section(attributed(), [])
    (plate,) = section.plates
    assert plate.lead == (
        "90 % of the decision comes from the last 68 of 120 inputs, half of it from the last 22."
    )
    assert [tile.value for tile in section.tiles[:2]] == ["last 68", "last 22"]
    assert "22 %" not in plate.alt
    assert "100\u202f% within 120" in plate.alt
    (table,) = section.tables
    assert table.rows[-1][:2] == ("120", "100")


def test_an_image_is_worded_by_distance() -> None:
    section = attribution.section(attributed(0.95, "distance"), [])
    assert section.plates[0].lead == (
        "90 % of the decision comes from within 44 positions of the centre, which is 13\u202f% of "
        "the input; half of it from within 14."
    )
    assert section.tiles[0].value == "within 44"


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_nothing_attributed_is_drawn_and_worded(value: float) -> None:
    trace = attributed()
    for name in ("contribution", "magnitude", "occlusion", "delta", "difference"):
        trace[name][:] = value
    section = attribution.section(trace, [])
    with style.sheet():
        section.plates[0].draw(style.canvas(66))
    assert section.plates[0].alt == "Two empty plots: nothing is attributed."
    assert section.tiles[0].value == "last undefined"


def test_bars_are_the_shares_of_measured_layers(ax: Axes) -> None:
    trace = layer_conductance.measured(conducted())
    layer_conductance.by_layer(ax, trace)
    heights = [bar.get_height() for bar in ax.patches]
    total = trace["conductance"].sum("sample") / trace["difference"].sum()
    np.testing.assert_allclose(heights, 100 * total)
    colors = [bar.get_facecolor() for bar in ax.patches]
    assert colors[0] == colors[2] != colors[1] == colors[3]
    assert texts(ax) == ["the whole decision"]
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        f"block{index}.conv" for index in range(4)
    ]


def test_the_section_names_the_least_and_why_layers_are_missing() -> None:
    section = layer_conductance.section(conducted(), [])
    (plate,) = section.plates
    assert plate.lead.startswith("Of the decision, 50\u202f% flows through block")
    assert plate.lead.endswith("the least; 2 layers of 4 carry less than the whole.")
    (table,) = section.tables
    assert table.rows[-1] == (
        "idle0",
        "not called with these data",
        *["\u2013", "", "\u2013", "\u2013"],
    )
    assert list(section.layers["Decision (%)"]) == [f"block{index}.conv" for index in range(4)]


def test_many_layers_put_their_table_into_the_appendix() -> None:
    section = layer_conductance.section(conducted(150, 30), [])
    assert not section.tables
    assert len(section.appendix[0].rows) == 180
    with style.sheet():
        figure = style.canvas(section.plates[0].height)
        section.plates[0].draw(figure)
        assert figure.axes[1].get_xlabel() == "Layer number, from input to output"


def test_a_chain_and_an_undefined_share_are_worded() -> None:
    chain = layer_conductance.section(conducted(1, 0), [])
    assert chain.plates[0].lead == (
        "The whole decision flows through every layer measured: nothing goes around them."
    )
    trace = conducted()
    trace["difference"][:] = 0
    section = layer_conductance.section(trace, [])
    with style.sheet():
        section.plates[0].draw(style.canvas(66))
    assert section.plates[0].alt == "Bars without height: no share is defined."
