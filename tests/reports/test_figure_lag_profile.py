"""Artists of the figure of the lags in use, read back from hand-made traces."""

from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from reports import style
from reports.figures import lag_profile, memory_horizon

LAG = np.array([0, 1, 2, 4, 8, 16, 32, 70])
LENGTH = 140
WORTH = np.array([1.0, 2, 4, 8, 4, 2, 0.4, 0.2])


def trace(worth: np.ndarray = WORTH, samples: int = 80) -> xr.Dataset:
    random = np.random.default_rng(0)
    sign = np.where(random.random((samples, 1)) < 0.2, -1, 1)
    excess = sign * worth * random.lognormal(0, 0.5, (samples, worth.size))
    return xr.Dataset(
        {
            "excess_loss": (("sample", "lag"), excess),
            "width": (("lag",), np.diff([*LAG, LENGTH]).astype(float)),
        },
        {"lag": LAG},
        {"sequence_length": LENGTH, "intact_loss": 0.33, "outcome": "measured", "settings": "{}"},
    )


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(6, 2)).subplots()


def test_steps_are_the_change_per_input_in_percent_of_all(ax: Axes) -> None:
    dataset = trace()
    lag_profile.profile(ax, dataset)
    change = abs(dataset["excess_loss"].to_numpy()).sum(0)
    steps = [patch for patch in ax.patches if isinstance(patch, StepPatch)]
    assert len(steps) == 2
    for patch in steps:
        values, edges, _ = patch.get_data()
        assert edges.tolist() == [*LAG, LENGTH]
        assert values == pytest.approx(100 * change / change.sum() / np.diff(edges))


def test_intervals_hold_the_steps(ax: Axes) -> None:
    share, low, high = lag_profile.shares(trace())
    assert (low < share).all()
    assert (share < high).all()
    assert (high - low < share).all()


def test_the_curve_passes_the_mark_at_the_limit(ax: Axes) -> None:
    dataset = trace()
    lag_profile.cumulated(ax, dataset)
    (curve,) = [line for line in ax.lines if len(line.get_xdata()) == LAG.size + 1]
    change = abs(dataset["excess_loss"].to_numpy()).sum(0)
    held = 100 * np.concatenate([[0], change.cumsum()]) / change.sum()
    assert curve.get_ydata() == pytest.approx(held)
    used = lag_profile.lag_in_use(dataset, 0.95)
    assert held[held < 95][-1] < 95 <= held[[*LAG, LENGTH].index(used.value + 1)]
    (mark,) = [text for text in ax.texts if "within" in text.get_text()]
    assert mark.get_text() == f"95\u202f% within lag {used.value:g}"
    assert used.value + 1 in {line.get_xdata()[0] for line in ax.lines}


def test_the_axis_is_that_of_the_memory_horizon(ax: Axes) -> None:
    lag_profile.profile(ax, trace())
    other = Figure().subplots()
    memory_horizon.time_axis(other, LENGTH)
    assert ax.get_xlim() == other.get_xlim()
    assert ax.get_xscale() == other.get_xscale() == "symlog"
    assert list(ax.get_xticks()) == list(other.get_xticks())


def test_no_change_leaves_no_steps(ax: Axes) -> None:
    lag_profile.profile(ax, trace(0 * WORTH))
    assert [text.get_text() for text in ax.texts] == ["no single input changes the loss"]


def test_lags_that_no_sample_has_do_not_break_the_sums() -> None:
    dataset = trace()
    dataset["excess_loss"][10:, 5:] = np.nan
    share, _, _ = lag_profile.shares(dataset)
    _, held = lag_profile.held(dataset)
    width = dataset["width"].to_numpy()
    assert (share * width).sum() == pytest.approx(100)
    assert held[1:] == pytest.approx((share * width).cumsum())


@pytest.mark.parametrize("worth", [WORTH, 0 * WORTH])
def test_the_section_has_words_and_numbers_and_can_be_drawn(worth: np.ndarray) -> None:
    section = lag_profile.section(trace(worth), [])
    (plate,) = section.plates
    with style.sheet():
        figure = style.canvas(plate.height)
        plate.draw(figure)
        assert style.svg(figure)
    assert any(character.isdigit() for character in plate.alt)
    assert plate.alt != plate.lead
    if worth.any():
        assert [tile.value for tile in section.tiles][1:] == ["4 to 7", "70", "80"]
        assert plate.lead.startswith("95\u202f% of what single inputs change lies within the last")
    else:
        assert [tile.value for tile in section.tiles][:2] == ["undefined", "undefined"]
    (table,) = section.tables
    assert [row[0] for row in table.rows][:4] == ["0", "1", "2 to 3", "4 to 7"]
    assert all(len(row) == len(table.columns) for row in table.rows)
