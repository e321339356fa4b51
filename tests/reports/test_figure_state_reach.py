"""Artists of the figure of the state reach, read back from hand-made traces."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports import style
from reports.figures import state_reach

LAGS = np.arange(100)


def trace(taus: dict[str, float], samples: int = 24, noise: float = 0.05) -> xr.Dataset:
    """Stacks of two layers that decay exponentially, the first sample measured spectrally."""
    random = np.random.default_rng(0)
    names = list(taus)
    logs = np.stack([-LAGS / tau / math.log(10) for tau in taus.values()])
    walk = random.normal(0, noise, (samples, len(names), LAGS.size)).cumsum(2)
    values = logs + walk
    spectral = np.full(values.shape, np.nan)
    spectral[0, :, 1::7] = values[0, :, 1::7] - 0.4
    return xr.Dataset(
        {
            "state_reach": (
                ("sample", "layer", "lag"),
                np.repeat(values, 2, 1) - math.log10(2) / 2,
            ),
            "input_reach": (("sample", "stack", "lag"), values - 1),
            "spectral_reach": (("sample", "stack", "lag"), spectral),
            "length": (("sample", "stack"), np.full((samples, len(names)), 100.0)),
        },
        {
            "layer": [f"{name}.l{layer}" for name in names for layer in range(2)],
            "stack_of": ("layer", [name for name in names for _ in range(2)]),
            "stack": names,
            "kind": ("stack", ["LSTM"] * len(names)),
            "units": ("stack", [64] * len(names)),
            "lag": LAGS,
        },
        {"left_out": "", "outcome": "measured", "settings": "{}"},
    )


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(6, 2)).subplots()


def test_the_line_is_the_root_mean_square_over_samples(ax: Axes) -> None:
    dataset = trace({"rnn": 20.0})
    state_reach.by_input(ax, dataset, "rnn")
    values = 10 ** dataset["input_reach"].to_numpy()[:, 0]
    assert ax.lines[0].get_ydata() == pytest.approx(np.log10(np.sqrt((values**2).mean(0))))
    assert ax.lines[1].get_ydata() == pytest.approx(np.log10(values).mean(0))


def test_sizes_that_no_number_holds_are_averaged(ax: Axes) -> None:
    logs = np.array([[-400.0, -np.inf, np.nan], [-401.0, -np.inf, 0.0]])
    expected = -400 + math.log10(math.sqrt((1 + 1e-2) / 2))
    assert state_reach.rms(logs).tolist() == [pytest.approx(expected), -math.inf, 0.0]
    assert state_reach.rms(np.full((2, 1), np.nan)) == pytest.approx([math.nan], nan_ok=True)


def test_the_law_and_the_largest_singular_value_are_drawn(ax: Axes) -> None:
    dataset = trace({"rnn": 20.0})
    found = state_reach.decays(dataset)
    state_reach.by_state(ax, dataset, found)
    dashed, dots = ax.lines[-2:]
    assert dashed.get_ydata() == pytest.approx(np.array(found["rnn"].fitted) / math.log(10))
    assert list(dashed.get_xdata()) == list(found["rnn"].lags)
    assert list(dots.get_xdata()) == list(LAGS[1::7])
    assert dots.get_ydata() == pytest.approx(ax.lines[0].get_ydata()[1::7] - 0.4)
    assert [text.get_text() for text in ax.texts] == [
        f"\u03c4 = {found['rnn'].tau:.1f} (exponential)"
    ]


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (None, "by its share in the samples where all rows were followed."),
        (0.0, "by its share in the 1 sample where all rows were followed."),
        (0.004, "by its share in 1 sample, by iteration where not all rows were followed."),
        (
            0.1,
            "by its share in 1 sample, by iteration where not all rows were followed (triangles: "
            "lower bounds, which lack about 26 % or less).",
        ),
    ],
)
def test_what_is_a_lower_bound_is_drawn_and_called_one(
    ax: Axes, missing: float | None, words: str
) -> None:
    dataset = trace({"rnn": 20.0})
    if missing is not None:
        known = dataset["spectral_reach"].notnull()
        dataset["spectral_missing"] = xr.where(known, 0.0, np.nan)
        dataset["spectral_missing"][0, 0, 50] = missing
        dataset.attrs["spectral_tolerance"] = 0.01
    found = state_reach.decays(dataset)
    state_reach.by_state(ax, dataset, found)
    drawn = {line.get_marker(): list(line.get_xdata()) for line in ax.lines[1:]}
    bound = [50] if missing == 0.1 else []
    assert drawn.get("^", []) == bound
    assert drawn["."] == [lag for lag in LAGS[1::7] if lag not in bound]
    (plate,) = state_reach.section(dataset, []).plates
    assert f"the largest singular value alone, {words}" in plate.body


def test_the_slowest_of_many_stacks_comes_first(ax: Axes) -> None:
    dataset = trace({f"rnn{i}": 5.0 + i % 7 + 20 * (i == 4) for i in range(12)})
    state_reach.by_state(ax, dataset, state_reach.decays(dataset))
    _, labels = ax.get_legend_handles_labels()
    assert labels[0] == "rnn4"
    assert len(labels) == 6


def test_a_zero_leaves_a_gap(ax: Axes) -> None:
    dataset = trace({"rnn": 20.0})
    dataset["input_reach"][:, :, 40:] = -np.inf
    state_reach.by_input(ax, dataset, "rnn")
    drawn = ax.lines[0].get_ydata()
    assert np.isfinite(drawn).tolist() == [lag < 40 for lag in LAGS]


@pytest.mark.parametrize(
    ("taus", "tau"),
    [({"rnn": 20.0}, "20"), ({f"encoder.$x_{i}$": 4.0 + i for i in range(30)}, "33")],
)
def test_the_section_has_words_and_numbers_and_can_be_drawn(taus, tau) -> None:
    section = state_reach.section(trace(taus, noise=0), [])
    (plate,) = section.plates
    with style.sheet():
        figure = style.canvas(plate.height)
        plate.draw(figure)
        assert style.svg(figure)
    slowest = list(taus)[-1]
    assert plate.lead == (
        f"The final state of {slowest} forgets earlier states by a factor of e every {tau} "
        "timesteps."
    )
    assert f"{slowest} by the state: 1.00 at lag 0" in plate.alt
    assert section.tiles[0].value == f"{tau}\u202ftimesteps"
    assert section.tiles[1].note == "exponential fits best, in 100 % of resamples"
    (table,) = section.tables
    assert len(table.rows) == min(len(taus), 16)
    assert table.rows[-1][:3] == (slowest, "LSTM, 2 \u00d7 64", tau)


def test_nothing_known_is_said_to_be_unknown() -> None:
    dataset = trace({"rnn": 20.0})
    dataset["state_reach"][:, :, 1:] = -np.inf
    section = state_reach.section(dataset, [])
    assert section.plates[0].lead == "No decay over time can be told."
    with style.sheet():
        section.plates[0].draw(style.canvas(50))
