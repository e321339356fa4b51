"""Gates: artists read back from hand-made traces."""

from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.limits import GatesLimits
from analyzer.rules.gates import stuck
from reports import style
from reports.figures import gates, section

UNITS, SAMPLES = 8, 12


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(6, 3)).subplots()


def trace(layers: int = 3, kind: str = "LSTM") -> xr.Dataset:
    rng = np.random.default_rng(6)
    names = ["input", "forget", "candidate", "output"] if kind == "LSTM" else ["state"]
    shape = (SAMPLES, layers, len(names), UNITS)
    mean = rng.uniform(0.4, 0.9, shape)
    opened, closed = rng.uniform(0, 0.4, shape), rng.uniform(0, 0.3, shape)
    opened[:, 1, 0, :6] = 1.0
    closed[:, 1, 0, :6] = 0.0
    dims = ("sample", "layer", "gate", "unit")
    scale = np.full((layers, UNITS), np.nan)
    if kind == "LSTM":
        scale = -1 / np.log(mean[:, :, 1].mean(0))
    return xr.Dataset(
        {
            "mean": (dims, mean),
            "open": (dims, opened),
            "closed": (dims, closed),
            "timescale": (("layer", "unit"), scale),
            "length": ("sample", np.linspace(100, 140, SAMPLES)),
        },
        coords={
            "layer": [f"rnn.l{index}" for index in range(layers)],
            "kind": ("layer", [kind] * layers),
            "gate": names,
        },
        attrs={"replay_residual": 2e-7},
    )


def texts(ax: Axes) -> list[str]:
    return [text.get_text().strip() for text in ax.texts]


def test_timescales_have_a_row_per_layer_and_the_sequence_length(ax: Axes) -> None:
    dataset = trace()
    gates.spread(ax, dataset, ["rnn.l0", "rnn.l1", "rnn.l2"], 140.0)
    medians = [line for line in ax.lines if line.get_marker() == "o"]
    expected = np.median(dataset["timescale"], axis=1)
    np.testing.assert_allclose([line.get_xdata()[0] for line in medians], expected, rtol=1e-9)
    assert [line.get_ydata()[0] for line in medians] == [0, 1, 2]
    ticks = [line for line in ax.lines if line.get_marker() == "|"]
    np.testing.assert_allclose(ticks[2].get_xdata(), dataset["timescale"][2])
    (length,) = [line for line in ax.lines if set(line.get_xdata()) == {140.0}]
    assert length.get_linestyle() != "-"
    assert texts(ax) == ["sequence length 140"]
    assert ax.get_xscale() == "log"
    assert ax.get_ylim() == (2.55, -0.55)


def test_bars_are_the_average_shares_of_time(ax: Axes) -> None:
    dataset = trace()
    gates.shares(ax, dataset, "output", ["rnn.l2", "rnn.l0"])
    own = dataset.sel(gate="output").mean(["sample", "unit"])
    widths = [bar.get_width() for bar in ax.patches]
    expected = [100, 100 * own["closed"][2], 100 * own["open"][2], 100]
    np.testing.assert_allclose(widths[:4], expected)
    assert ax.patches[2].get_x() + ax.patches[2].get_width() == pytest.approx(100)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["rnn.l2", "rnn.l0"]


def test_stuck_units_are_counted_on_their_bar(ax: Axes) -> None:
    dataset = trace()
    gates._mark_stuck(ax, stuck(dataset, GatesLimits()), "input", ["rnn.l0", "rnn.l1"])
    assert texts(ax) == ["6 of 8 open"]
    assert ax.texts[0].get_position() == (50, 1)


def test_the_section_says_what_is_stuck_and_how_long_units_hold() -> None:
    dataset = trace()
    laid_out = section("gates", dataset, [])
    assert [plate.name for plate in laid_out.plates] == ["gates-timescale", "gates-share"]
    first, second = laid_out.plates
    assert second.lead == "In rnn.l1, the input gate of 6 of 8 units is always open."
    assert "Sequence length 140 marked." in first.alt
    for plate in laid_out.plates:
        assert any(character.isdigit() for character in plate.alt)
        with style.sheet():
            plate.draw(style.canvas(plate.height))
    (table,) = laid_out.tables
    assert [row[-1] for row in table.rows] == ["0", "6 of 8: input open", "0"]
    assert laid_out.layers["Timescale"]["rnn.l0"].endswith("timesteps")


def test_layers_without_gates_have_no_timescales_to_show() -> None:
    laid_out = section("gates", trace(kind="RNN"), [])
    assert [plate.name for plate in laid_out.plates] == ["gates-share"]
    assert laid_out.tables[0].rows[0][2] == "\u2013"


def test_a_hundred_layers_are_thinned_out() -> None:
    laid_out = section("gates", trace(layers=120), [])
    assert "16 of 120 layers are shown." in laid_out.plates[0].body
    assert laid_out.plates[0].height < 150
    assert len(laid_out.tables[0].rows) == 16
    assert len(laid_out.layers["Timescale"]) == 120
