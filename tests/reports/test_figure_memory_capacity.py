"""Linear memory capacity: artists read back from hand-made traces."""

from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports import style
from reports.figures import memory_capacity, section

SAMPLES, LAGS = 20, 31


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(6, 3)).subplots()


def trace(layers: int = 3, rows: float = 5000.0) -> xr.Dataset:
    rng = np.random.default_rng(8)
    lag = np.arange(LAGS)
    energy = rng.uniform(50, 90, (SAMPLES, layers, LAGS))
    noise = rng.uniform(0.95, 1.05, (SAMPLES, layers, LAGS))
    past = np.exp(-lag / (6 + 2 * np.arange(layers)[:, None]))
    dims = ("sample", "layer", "lag")
    facts = {"rows": rows, "predictors": 30.0, "components": 1.0, "input_share": 0.8}
    return xr.Dataset(
        {
            "past_energy": (dims, energy),
            "past_error": (dims, energy * (1 - past) * noise),
            "present_error": (dims, energy * (1 - 0.7**lag)),
            "new_energy": (dims, energy),
            "new_error": (dims, energy * (1 - past**2) * noise),
            "new_numbers": (dims[1:], np.ones((layers, LAGS))),
        }
        | {name: ("layer", np.full(layers, value)) for name, value in facts.items()},
        coords={
            "layer": [f"rnn.l{index}" for index in range(layers)],
            "kind": ("layer", ["LSTM"] * layers),
            "units": ("layer", [64] * layers),
        },
    )


def test_curves_are_the_shares_that_are_recovered(ax: Axes) -> None:
    dataset = trace()
    memory_capacity.curves(ax, dataset, ["rnn.l0", "rnn.l2"], "new")
    sums = dataset.sum("sample")
    expected = 100 * (1 - sums["new_error"] / sums["new_energy"])
    np.testing.assert_allclose([line.get_ydata() for line in ax.lines], expected[[0, 2]])
    assert ax.get_ylim() == (-4, 104)


def test_what_the_present_tells_is_drawn_beside_them(ax: Axes) -> None:
    dataset = trace()
    memory_capacity.present(ax, dataset, "rnn.l1")
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_ydata(), 100 * 0.7 ** np.arange(LAGS), rtol=1e-9)
    assert line.get_label() == "present input alone (a)"


def test_the_section_tells_the_largest_capacity() -> None:
    laid_out = section("memory_capacity", trace(), [])
    (plate,) = laid_out.plates
    value = laid_out.layers["Linear capacity"]["rnn.l2"]
    assert plate.lead == (
        f"rnn.l2 holds {value} numbers of its past inputs for a linear readout, of 64 that fit."
    )
    assert laid_out.tiles[0].value == f"{value}\u202fnumbers"
    assert any(character.isdigit() for character in plate.alt)
    with style.sheet():
        figure = style.canvas(plate.height)
        plate.draw(figure)
        left, right = figure.axes
    assert (len(left.lines), len(right.lines)) == (4, 3)


def test_layers_with_too_few_timesteps_have_no_curve() -> None:
    dataset = trace()
    dataset["rows"][1] = 100
    laid_out = section("memory_capacity", dataset, [])
    assert "rnn.l1" not in laid_out.plates[0].alt
    assert laid_out.tables[0].rows[1][2:4] == ("\u2013", "\u2013")
    assert laid_out.tables[0].note == (
        "Where there is no capacity, the timesteps are too few for the size of the state."
    )
    assert section("memory_capacity", trace(rows=10.0), []).plates == []


def test_a_hundred_layers_are_thinned_out() -> None:
    laid_out = section("memory_capacity", trace(layers=120), [])
    assert "8 of 120 layers" in laid_out.plates[0].body
    assert len(laid_out.layers["Linear capacity"]) == 120
