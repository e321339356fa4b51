"""Shares of timesteps and their conflict, read back from hand-made traces."""

from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.limits import TimestepContributionLimits
from analyzer.rules.timestep_contribution import matrices, timestep_contribution
from reports import style
from reports.figures import timestep_contribution as figures


def contributed(layers: int = 2, steps: int = 40, samples: int = 16) -> xr.Dataset:
    """Layers that learn from ever fewer of their last steps; samples are unequal."""
    rng = np.random.default_rng(8)
    names = [f"lstm.l{layer}" for layer in range(layers)]
    parameters = ["weight_ih", "weight_hh", "bias_ih"]
    labels = [f"{name}.{parameter}" for name in names for parameter in parameters]
    lag = steps - 1 - np.arange(steps)
    rates = np.repeat(2.0 + np.arange(layers), 3)[:, None] / steps
    shares = np.exp(-rates * lag) * rng.uniform(0.5, 1.5, (samples, len(labels), steps))
    shares /= shares.sum(2, keepdims=True)
    conflicts = rng.uniform(-0.3, 0.6, (samples, len(labels)))
    sizes = np.full(len(labels), 0.8)
    sizes[0] = 0.01
    return xr.Dataset(
        {
            "own_share": (("sample", "weight", "timestep"), shares),
            "sample_conflict": (("sample", "weight"), conflicts),
            "conflict": ("weight", conflicts.mean(0)),
            "conflict_without": (
                ("sample", "weight"),
                conflicts.mean(0) + rng.normal(0, 0.02, conflicts.shape),
            ),
            "gradient": ("weight", sizes),
            "sample_gradient": (("sample", "weight"), np.ones((samples, len(labels)))),
            "length": (("sample", "weight"), np.full((samples, len(labels)), steps)),
        },
        {
            "weight": labels,
            "layer": ("weight", [name for name in names for _ in parameters]),
            "parameter": ("weight", parameters * layers),
            "timestep": np.arange(steps),
        },
        {"samples": samples, "gradient_residual": 2.5e-7},
    )


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(6, 2)).subplots()


def test_lines_are_the_median_of_what_the_last_timesteps_hold(ax: Axes) -> None:
    trace = contributed()
    figures.over_lags(ax, trace, "weight_hh")
    curves = [line for line in ax.lines if len(line.get_xdata()) == 40]
    assert [line.get_label() for line in curves] == ["lstm.l0", "lstm.l1"]
    for place, line in zip((1, 4), curves, strict=True):
        backwards = trace["own_share"].to_numpy()[:, place, ::-1]
        np.testing.assert_allclose(line.get_ydata(), np.median(backwards.cumsum(1), 0))
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 41))
    (limit,) = [line for line in ax.lines if line not in curves]
    assert set(limit.get_ydata()) == {0.95}
    assert [text.get_text() for text in ax.texts] == ["95\u202f%"]
    assert ax.get_xscale() == "log"


def test_the_heat_map_shows_medians_and_what_works_against_the_others(ax: Axes) -> None:
    trace = contributed()
    trace["own_share"][:, 1, 3] = -0.2
    values = figures.share(trace)
    assert values.shape == (4, 40)
    np.testing.assert_allclose(values[3], np.median(trace["own_share"].to_numpy()[:, 4], 0))
    scale = figures.heat_map(ax, trace)
    (image,) = ax.images
    assert image.norm.vmin == 0
    assert image.norm.vmax == scale.norm.vmax == pytest.approx(values.max())
    assert image.get_extent() == [-0.5, 39.5, 3.5, -0.5]
    assert [label.get_text() for label in ax.get_yticklabels()] == figures.labels(trace)
    drawn = np.asarray(image.get_array())
    rows, columns = drawn.shape
    assert drawn[rows * 3 // 8, columns * 7 // 80] == pytest.approx(-0.2)


def test_conflicts_have_intervals_and_a_limit(ax: Axes) -> None:
    trace = contributed()
    figures.conflicts(ax, trace)
    discs, squares = [line for line in ax.lines if line.get_linestyle() == "None"]
    medians = np.median(trace["sample_conflict"].to_numpy()[:, matrices(trace)], 0)
    np.testing.assert_allclose(discs.get_ydata(), medians)
    means = trace["conflict"].to_numpy()[matrices(trace)]
    # The first one cannot be told from zero.
    np.testing.assert_allclose(squares.get_ydata(), [np.nan, *means[1:]])
    assert [text.get_text() for text in ax.texts] == ["limit \u22120.5"]
    whiskers = ax.collections[0].get_segments()
    assert len(whiskers) == 4
    assert all(s[0][1] < m < s[1][1] for s, m in zip(whiskers, medians, strict=True))


def drawn(trace: xr.Dataset) -> tuple[list[str], list[str]]:
    """Draw all figures of the section; return what it says, and the cells of its table."""
    findings = [*timestep_contribution(trace, TimestepContributionLimits())]
    section = figures.section(trace, findings)
    with style.sheet():
        for plate in section.plates:
            figure = style.canvas(plate.height)
            plate.draw(figure)
            assert style.svg(figure)
    words = [text for plate in section.plates for text in (plate.lead, plate.body, plate.alt)]
    return words, [cell for table in section.tables for row in table.rows for cell in row]


def test_what_the_section_says() -> None:
    trace = contributed()
    words, cells = drawn(trace)
    backwards = trace["own_share"].to_numpy()[:, 0, ::-1].cumsum(1)
    steps = np.median((backwards < 0.95 * backwards[:, -1:]).sum(1) + 1)
    assert words[0] == (
        f"The last {steps:g} of 40 timesteps hold 95\u202f% of a sample's gradient of "
        "lstm.l0.weight_ih."
    )
    assert cells[:2] == ["lstm.l0.weight_ih", f"{steps:g}"]
    assert len(cells) == 4 * 6
    tiles = figures.section(trace, []).tiles
    assert [tile.label for tile in tiles] == [
        "Timesteps that train", "Least agreement of halves", "Against torch's gradient", "Samples"
    ]  # fmt: skip
    assert tiles[0].value == f"{steps:g}"


@pytest.mark.parametrize(("layers", "steps"), [(1, 1), (1, 2), (40, 300)])
def test_small_and_large_networks(layers: int, steps: int) -> None:
    _, cells = drawn(contributed(layers, steps))
    assert 1 <= len(cells) / 6 <= 16


def test_nothing_measured() -> None:
    trace = contributed()
    for name in ("own_share", "sample_conflict", "conflict", "conflict_without"):
        trace[name][:] = np.nan
    trace["gradient"][:] = trace["sample_gradient"][:] = 0
    words, cells = drawn(trace)
    assert words[0] == "No recurrent layer that reads the inputs has a gradient."
    assert "undefined" in words[6]
    assert cells[1] == "\u2013"


def test_names_are_never_mathematics() -> None:
    trace = contributed()
    hostile = ["$a_b$.l0", "$a_b$.l0", "$a_b$.l0", "x" * 200 + ".l1", "y.l1", "z.l1"]
    trace = trace.assign_coords(
        layer=("weight", hostile),
        weight=[f"{a}.{b}" for a, b in zip(hostile, trace["parameter"].values, strict=True)],
    )
    drawn(trace)
