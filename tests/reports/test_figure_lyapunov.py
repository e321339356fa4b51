"""State stability: artists read back from hand-made traces."""

from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from analyzer.rules.lyapunov import largest, spectrum
from reports import style
from reports.figures import lyapunov, section

SAMPLES = 6


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(6, 3)).subplots()


def trace(layers: int = 3, top: float = -0.1) -> xr.Dataset:
    rng = np.random.default_rng(7)
    first = top - 0.05 * np.arange(layers) + rng.normal(0, 0.004, (SAMPLES, layers))
    exponents = first[:, :, None] - np.array([0.0, 0.1, 0.3, 0.4])
    dims = ("sample", "layer", "exponent")
    return xr.Dataset(
        {
            "exponents": (dims, exponents),
            "first_half": (dims[:2], first + 0.02),
            "steps": (dims[:2], np.full((SAMPLES, layers), 105.0)),
        },
        coords={
            "layer": [f"rnn.l{index}" for index in range(layers)],
            "kind": ("layer", ["GRU"] * layers),
            "exponent": [1, 2, 3, 4],
        },
        attrs={"replay_residual": 2e-7},
    )


def test_spectra_are_means_over_trajectories_with_the_line_of_no_growth(ax: Axes) -> None:
    dataset = trace()
    lyapunov.exponents(ax, spectrum(dataset))
    *lines, zero = ax.lines
    expected = dataset["exponents"].mean("sample").to_numpy()
    np.testing.assert_allclose([line.get_ydata() for line in lines], expected)
    assert list(zero.get_ydata()) == [0, 0]
    assert [text.get_text() for text in ax.texts] == ["above 0 changes grow"]
    assert ax.get_ylim()[1] > 0


def test_the_largest_exponents_have_intervals_and_the_first_half_beside_them(ax: Axes) -> None:
    dataset = trace()
    found = largest(dataset)
    lyapunov.by_layer(ax, dataset, found)
    (bars,) = [item for item in ax.collections if isinstance(item, LineCollection)]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [[one.low, one.high] for one in found.values()]
    half, whole, _ = ax.lines
    np.testing.assert_allclose(half.get_ydata(), dataset["first_half"].mean("sample"))
    np.testing.assert_allclose(whole.get_ydata(), dataset["exponents"][:, :, 0].mean("sample"))


@pytest.mark.parametrize(
    ("top", "lead"),
    [
        (-0.1, "Small changes of the states fade; they last longest in rnn.l0."),
        (0.07, "Small changes of the state grow in 2 layers, most in rnn.l0."),
        (
            0.001,
            "Whether small changes of the states grow is open; they last longest in rnn.l0.",
        ),
    ],
)
def test_the_caption_concludes_what_the_intervals_allow(top: float, lead: str) -> None:
    (plate,) = section("lyapunov", trace(top=top), []).plates
    assert plate.lead == lead
    assert "The highest is" in plate.alt
    short = trace(top=top)
    short["steps"][:] = 19
    (plate,) = section("lyapunov", short, []).plates
    assert plate.lead == (
        "So few timesteps do not say whether small changes fade; they last longest in rnn.l0."
    )
    with style.sheet():
        plate.draw(style.canvas(plate.height))


def test_layers_that_were_not_measured_have_no_curve_but_a_row() -> None:
    dataset = trace()
    dataset["exponents"][:, 2], dataset["steps"][:, 2] = np.nan, np.nan
    laid_out = section("lyapunov", dataset, [])
    assert "rnn.l2" not in laid_out.plates[0].alt
    assert laid_out.tables[0].rows[2][2:5] == ("\u2013",) * 3
    dataset["exponents"][:], dataset["steps"][:] = np.nan, np.nan
    assert section("lyapunov", dataset, []).plates == []


def test_a_hundred_layers_are_thinned_out() -> None:
    laid_out = section("lyapunov", trace(layers=120), [])
    (plate,) = laid_out.plates
    assert "8 of 120 layers" in plate.body
    with style.sheet():
        figure = style.canvas(plate.height)
        plate.draw(figure)
        left, right = figure.axes
    assert len(left.lines) == 9
    assert len(right.lines[1].get_xdata()) == 120
