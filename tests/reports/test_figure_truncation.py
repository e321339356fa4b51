"""Gradient kept by chunk length, read back from hand-made traces."""

from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.limits import TruncationLimits
from analyzer.rules.truncation import cosine
from analyzer.rules.truncation import truncation as judge
from reports import style
from reports.figures import truncation as figures
from reports.text import number


def truncated(layers: int = 2, longest: int = 64, groups: int = 12, length: int = 50) -> xr.Dataset:
    """Gradients whose loss falls with the chunk length, more slowly in lower layers."""
    rng = np.random.default_rng(9)
    lengths = 2 ** np.arange(int(np.log2(longest)) + 1)
    lost = np.exp(-np.outer(1 / (4 + np.arange(layers)[::-1]), lengths))
    lost[:, -1] = 0
    kept, total = 1 - 0.5 * lost**2, lost.mean(0)
    noise = 0.02 * rng.normal(0, 1, (groups, lengths.size)) * total
    return xr.Dataset(
        {
            "cosine": (("layer", "chunk_length"), kept),
            "error": (("layer", "chunk_length"), lost),
            "cosine_all": ("chunk_length", kept.mean(0)),
            "error_all": ("chunk_length", total),
            "cosine_without_all": (("group", "chunk_length"), kept.mean(0) + noise),
            "error_without_all": (("group", "chunk_length"), total + noise),
            "group_size": ("group", np.full(groups, 2)),
        },
        {"chunk_length": lengths, "layer": [f"lstm.l{layer}" for layer in range(layers)]},
        {"sequence_length": length, "samples": 2 * groups, "counted_from": "end"},
    )


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(6, 2)).subplots()


def test_curves_by_layer_and_of_all_with_the_length(ax: Axes) -> None:
    trace = truncated()
    figures.curve(ax, trace, cosine(trace), "cosine")
    *layers, whole, end = ax.lines
    assert [line.get_label() for line in layers] == ["lstm.l0", "lstm.l1"]
    np.testing.assert_allclose([line.get_ydata() for line in layers], trace["cosine"])
    np.testing.assert_allclose(whole.get_ydata(), trace["cosine_all"])
    np.testing.assert_array_equal(whole.get_xdata(), [1, 2, 4, 8, 16, 32, 64])
    assert whole.get_label() == "all recurrent weights"
    assert set(end.get_xdata()) == {50}
    assert ax.get_xscale() == "log"
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() < trace["cosine_all"].values[0]


def test_the_length_of_training_is_marked_and_ticks_are_powers_of_two() -> None:
    trace = truncated()
    known = trace.interp(chunk_length=[*trace["chunk_length"].values[:4], 11, 16, 32, 64])
    known = known.assign_attrs(trace.attrs | {"trained_with": 11})
    (plate,) = figures.section(known, []).plates
    value = float(known["cosine_all"].sel(chunk_length=11))
    assert plate.body.endswith(f"Dotted: the 11 timesteps of training, cosine {number(value)}.")
    with style.sheet():
        figure = Figure(figsize=(6, 2))
        plate.draw(figure)
    left = figure.axes[0]
    assert [11.0, 11.0] in [list(line.get_xdata()) for line in left.lines]
    assert "trained with: 11" in [text.get_text() for text in left.texts]
    assert left.get_xticks().tolist() == [1, 2, 4, 8, 16, 32, 64]
    (plate,) = figures.section(trace.assign_attrs(trained_with=50), []).plates
    assert "Dotted" not in plate.body


def test_a_single_layer_has_one_curve(ax: Axes) -> None:
    trace = truncated(1)
    figures.curve(ax, trace, cosine(trace), "cosine")
    assert ax.lines[0].get_label() == "lstm.l0"
    assert len(ax.lines) == 2


def drawn(trace: xr.Dataset) -> tuple[list[str], Figure]:
    """Draw the figure; return what the section says."""
    (plate,) = figures.section(trace, [*judge(trace, TruncationLimits())]).plates
    with style.sheet():
        figure = style.canvas(plate.height)
        plate.draw(figure)
        assert style.svg(figure)
    return [plate.lead, plate.body, plate.alt], figure


def test_the_shortest_sufficient_chunks_are_marked() -> None:
    trace = truncated()
    kept = trace["cosine_all"].to_numpy()
    enough = trace["chunk_length"].to_numpy()[np.flatnonzero(kept < 0.99)[-1] + 1]
    (lead, _, alt), figure = drawn(trace)
    left, right = figure.axes
    assert [text.get_text() for text in left.texts] == ["0.99", f"enough: {enough}"]
    assert [text.get_text() for text in right.texts] == ["sequences: 50"]
    verticals = {line.get_xdata()[0] for line in left.lines if len(set(line.get_xdata())) == 1}
    assert verticals == {50, enough}
    place = list(trace["chunk_length"].to_numpy()).index(enough)
    assert lead.startswith(
        f"Detaching the state every {enough} of 50 timesteps keeps the direction"
    )
    assert f"(cosine {number(kept[place])})" in lead
    assert "length 50 marked" in alt


def test_sequences_too_short_are_told() -> None:
    trace = truncated()
    trace["cosine_all"][:-1] = 0.9
    (lead, _, _), figure = drawn(trace)
    assert lead == "No truncation shorter than the sequences keeps the direction of the gradient."
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.99"]
    assert figures.section(trace, []).tiles[0].value == "the whole sequence"


@pytest.mark.parametrize(("layers", "longest", "length"), [(1, 2, 2), (120, 8192, 5000)])
def test_small_and_large_networks(layers: int, longest: int, length: int) -> None:
    trace = truncated(layers, longest, length=length)
    (_, body, _), figure = drawn(trace)
    assert ("drawn" in body) == (layers > 7)
    assert len(figure.axes[0].lines) <= 11


def test_the_table_names_the_layer_that_loses_most() -> None:
    trace = truncated()
    (table,) = figures.section(trace, []).tables
    assert len(table.rows) == 7
    assert table.rows[0][0] == "1"
    assert table.rows[0][4] == "lstm.l0"
    assert table.rows[0][5] == number(float(trace["cosine"][0, 0]))


def test_nothing_measured() -> None:
    trace = truncated()
    for name in trace.data_vars:
        if name != "group_size":
            trace[name][:] = np.nan
    section = figures.section(trace, [*judge(trace, TruncationLimits())])
    assert not section.plates
    assert not section.tables


def test_names_are_never_mathematics() -> None:
    drawn(truncated().assign_coords(layer=["$a_b$", "x" * 200]))
