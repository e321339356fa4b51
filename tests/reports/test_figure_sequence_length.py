"""Artists of the figure of other lengths, read back from hand-made traces."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports import style
from reports.figures import sequence_length

LENGTHS = (17, 35, 70, 140, 280, 560)
OWN = 140
ALONE = (0.9, 0.4, 0.12, 0.0, 0.01, -0.03)
REPLACED = (0.6, 0.15, 0.02, np.nan, np.nan, np.nan)
NAN = np.nan


def trace(
    alone: Sequence[float] = ALONE,
    replaced: Sequence[float] = REPLACED,
    lengths: Sequence[int] = LENGTHS,
    refused: Sequence[int] = (),
    worth: float = 2.0,
    samples: int = 80,
) -> xr.Dataset:
    """Losses as shares of ``worth``, or of one where that is zero, unequal over the samples."""
    random = np.random.default_rng(0)
    whole = worth * random.lognormal(0, 0.5, samples) + random.normal(0, 0.1, samples)
    size = (samples, len(lengths))
    one = (worth or 1) * random.lognormal(0, 0.4, size)
    excess = np.array(alone) * one * (1 + 0.3 * random.normal(size=size))
    excess[:, np.isin(lengths, refused)] = NAN
    reason = "RuntimeError: mat1 and mat2 do not fit"
    refusal = np.array([reason if length in refused else "" for length in lengths], object)
    kind = ("sample", "length")
    return xr.Dataset(
        {
            "excess_loss": (kind, excess),
            "replaced_loss": (kind, np.array(replaced) * one),
            "whole_loss": (("sample",), whole),
            "taken": (("length",), refusal == ""),
            "reason": (("length",), refusal),
            "intact_loss": (("sample",), random.lognormal(0, 1, samples)),
            "donor": (("sample",), np.roll(np.arange(samples), 1)),
        },
        {"length": list(lengths)},
        {
            "sequence_length": OWN,
            "intact_loss": 0.33,
            "objective": "cross_entropy",
            "time_axis": 1,
            "outcome": "measured",
            "settings": "{}",
        },
    )


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(6, 2)).subplots()


def draw(ax: Axes, dataset: xr.Dataset) -> None:
    sequence_length.losses(ax, sequence_length.outcome(dataset))


def line_of(ax: Axes, marker: str) -> Line2D:
    (line,) = [line for line in ax.lines if line.get_marker() == marker]
    return line


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def share(dataset: xr.Dataset, variable: str) -> np.ndarray:
    """Percent of what all inputs of the same samples are worth."""
    excess, whole = dataset[variable].to_numpy(), dataset["whole_loss"].to_numpy()[:, None]
    known = np.isfinite(excess)
    total = np.where(known, whole, 0).sum(0)
    return np.where(total > 0, 100 * np.nansum(excess, 0) / np.where(total, total, 1), np.nan)


def test_lines_are_the_loss_in_percent_of_what_the_inputs_are_worth(ax: Axes) -> None:
    dataset = trace()
    draw(ax, dataset)
    for marker, variable in (("o", "excess_loss"), ("s", "replaced_loss")):
        line = line_of(ax, marker)
        assert line.get_xdata().tolist() == list(LENGTHS)
        assert line.get_ydata() == pytest.approx(share(dataset, variable), nan_ok=True)


def test_samples_that_are_not_longer_do_not_count_at_a_length(ax: Axes) -> None:
    dataset = trace()
    dataset["excess_loss"][20:50, 2] = NAN
    dataset["replaced_loss"][20:50, 2] = NAN
    draw(ax, dataset)
    assert line_of(ax, "o").get_ydata() == pytest.approx(share(dataset, "excess_loss"))
    assert line_of(ax, "s").get_ydata()[2] == pytest.approx(share(dataset, "replaced_loss")[2])


def test_lines_differ_in_more_than_color(ax: Axes) -> None:
    draw(ax, trace())
    assert line_of(ax, "o").get_linestyle() != line_of(ax, "s").get_linestyle()


def test_intervals_hold_the_points(ax: Axes) -> None:
    draw(ax, trace())
    alone, replaced = [c for c in ax.collections if isinstance(c, LineCollection)]
    for bars, marker, count in ((alone, "o", 6), (replaced, "s", 3)):
        line = line_of(ax, marker)
        values = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
        ends = [segment for segment in bars.get_segments() if len(segment)]
        assert len(ends) == count
        for (x, low), (_, high) in ends:
            assert low < values[x] < high or low == values[x] == high == 0


def test_the_axes_have_every_length_and_room_for_every_point(ax: Axes) -> None:
    draw(ax, trace(alone=(0.9, 0.4, -0.12, 0, 4, 80)))
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "symlog")
    assert ax.xaxis.get_transform().base == 2
    assert list(ax.get_xticks()) == list(LENGTHS)
    labels = [ax.xaxis.get_major_formatter()(tick, at) for at, tick in enumerate(LENGTHS)]
    assert labels == [str(length) for length in LENGTHS]
    values = line_of(ax, "o").get_ydata()
    low, high = ax.get_ylim()
    assert low < values.min() < -5
    assert 5000 < values.max() < high
    assert {-5, 0, 5, 100, 1000} <= set(ax.get_yticks())


def test_lengths_without_room_have_a_tick_but_no_label(ax: Axes) -> None:
    lengths = (70, 136, 138, 140, 142, 280)
    draw(ax, trace((0.1,) * 3 + (0, 0.1, 0.1), lengths=lengths))
    assert list(ax.get_xticks()) == list(lengths)
    labels = [ax.xaxis.get_major_formatter()(tick, at) for at, tick in enumerate(lengths)]
    assert labels == ["70", "", "", "140", "", "280"]


def test_the_own_length_zero_and_the_limit_are_marked(ax: Axes) -> None:
    draw(ax, trace())
    straight = [line for line in ax.lines if len(line.get_xdata()) == 2]
    assert [list(x.get_xdata()) for x in straight if x.get_xdata()[0] > 1] == [[OWN, OWN]]
    assert {x.get_ydata()[0] for x in straight if x.get_xdata()[0] == 0} == {0, 5}
    assert set(texts(ax)) == {"audited: 140", "limit 5\u202f%"}


@pytest.mark.parametrize("longer", [True, False])
def test_the_name_of_the_own_length_stays_inside(ax: Axes, longer: bool) -> None:
    some = slice(None) if longer else slice(4)
    draw(ax, trace(ALONE[some], REPLACED[some], LENGTHS[some]))
    (name,) = [text for text in ax.texts if text.get_text().startswith("audited")]
    assert name.get_ha() == ("left" if longer else "right")
    assert (name.get_position()[0] > OWN) == longer


@pytest.mark.parametrize("refused", [(280, 560), (17, 560), (17, 35, 70)])
def test_refused_lengths_are_crosses_on_the_axis(ax: Axes, refused: tuple[int, ...]) -> None:
    draw(ax, trace(refused=refused))
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert sorted(n for line in crosses for n in line.get_xdata()) == list(refused)
    for line in crosses:
        assert set(line.get_ydata()) == {0}
        assert line.get_transform() == ax.get_xaxis_transform()
        assert line.get_linestyle() == "None"
    names = [text for text in ax.texts if text.get_text() == "refused"]
    assert len(names) == len(crosses) == len({n > OWN for n in refused})
    for name, line in zip(names, crosses, strict=True):
        middle = np.exp(np.log(line.get_xdata()).mean())
        assert name.get_position()[0] == pytest.approx(middle)
    missing = np.isnan(line_of(ax, "o").get_ydata())
    assert list(missing) == [length in refused for length in LENGTHS]


def test_plain_losses_where_the_inputs_may_be_worth_nothing(ax: Axes) -> None:
    dataset = trace(worth=0.0)
    draw(ax, dataset)
    plain = dataset["excess_loss"].mean("sample").to_numpy()
    assert line_of(ax, "o").get_ydata() == pytest.approx(plain)
    assert ax.get_yscale() == "linear"
    assert ax.get_ylabel() == "Loss added"
    assert set(texts(ax)) == {"audited: 140", "plain losses: the inputs may be worth nothing"}


def test_tiles_and_words_tell_what_half_and_twice_the_length_cost() -> None:
    dataset = trace()
    section = sequence_length.section(dataset, [])
    labels = [tile.label for tile in section.tiles]
    assert labels[:2] == ["Loss added at 70 timesteps", "Loss added at 280 timesteps"]
    half, twice = (f"{share(dataset, 'excess_loss')[i]:#.3g}" for i in (2, 4))
    values = [tile.value.replace("\u202f", " ") for tile in section.tiles]
    worth = float(dataset["whole_loss"].mean())
    assert values == [f"{half} %", f"{twice} %", f"{worth:.3g}", "80"]
    (plate,) = section.plates
    assert plate.lead.replace("\u202f", " ") == (
        f"From the last 70 of 140 inputs alone the loss rises by {half} % of what all inputs are "
        "worth. With 140 inputs of another sample in front the loss rises by "
        f"{twice} % of what all inputs are worth."
    )
    assert "Crosses" not in plate.body


def test_a_loss_that_falls_is_said_to_fall() -> None:
    (plate,) = sequence_length.section(trace((0.9, 0.4, -0.12, 0, 0.2, 0.3)), []).plates
    assert "inputs alone the loss falls by 1" in plate.lead


def test_infinite_losses_have_no_point_and_are_not_refused() -> None:
    dataset = trace()
    dataset["excess_loss"][:, 4] = np.inf
    section = sequence_length.section(dataset, [])
    assert section.tiles[1].value == "undefined"
    assert section.plates[0].lead.endswith(
        "of another sample in front the loss is infinite or not known."
    )
    assert section.tables[0].rows[4][1:3] == ("\u2013", "\u2013")


def test_nothing_is_refused_where_nothing_was_tried() -> None:
    section = sequence_length.section(trace(samples=0), [])
    assert section.tables[0].note == ""
    assert "Crosses" not in section.plates[0].body
    assert {row[1] for row in section.tables[0].rows} == {"\u2013"}


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((90, 60, 20, 140, 200, 300), ["60", "300"]),
        ((20, 140), ["20", None]),
        ((140, 1000), [None, "1000"]),
    ],
)
def test_tiles_take_the_length_nearest_to_half_and_to_twice(
    lengths: tuple[int, ...], expected: list[str | None]
) -> None:
    lengths = tuple(sorted(lengths))
    alone = [0.1 * (length != OWN) for length in lengths]
    section = sequence_length.section(trace(alone, [NAN] * len(lengths), lengths), [])
    for tile, length, side in zip(section.tiles, expected, ("shorter", "longer"), strict=False):
        if length is None:
            assert (tile.label, tile.value) == (f"Loss added when {side}", "\u2013")
        else:
            assert tile.label == f"Loss added at {length} timesteps"
            assert tile.note == f"{side} than 140"


def test_refused_lengths_are_named_in_tiles_caption_and_table() -> None:
    section = sequence_length.section(trace(refused=(280, 560)), [])
    assert section.tiles[1].value == "refused"
    (plate,), (table,) = section.plates, section.tables
    assert plate.lead.endswith("inputs of another sample in front the network gives no output.")
    assert "Crosses: lengths that the network does not take." in plate.body
    assert plate.alt.endswith("Crosses on the axis at 280 and 560.")
    assert table.note == "No loss at 280 and 560: RuntimeError: mat1 and mat2 do not fit."
    assert [row[1] == "refused" for row in table.rows] == [False] * 4 + [True] * 2


def test_the_reason_of_a_refusal_is_made_printable_and_short() -> None:
    dataset = trace(refused=(560,))
    dataset["reason"][-1] = "ValueError: \u202e" + "x" * 5000
    (table,) = sequence_length.section(dataset, []).tables
    assert len(table.note) < 300
    assert "\u202e" not in table.note


def test_the_table_has_both_curves_with_intervals() -> None:
    dataset = trace()
    (table,) = sequence_length.section(dataset, []).tables
    assert [row[0] for row in table.rows] == [str(length) for length in LENGTHS]
    alone, replaced = (share(dataset, name) for name in ("excess_loss", "replaced_loss"))
    for row, first, second in zip(table.rows, alone, replaced, strict=True):
        assert float(row[1].replace("\u2212", "-")) == pytest.approx(first, rel=5e-3)
        assert (row[3] == row[4] == "\u2013") == bool(np.isnan(second))
        if not np.isnan(second):
            assert float(row[3]) == pytest.approx(second, rel=5e-3)
    assert table.columns[1] == "Loss added (%)"


EMPTY = {
    "measured": trace(),
    "no worth": trace(worth=0.0),
    "everything refused": trace(refused=(17, 35, 70, 280, 560)),
    "only the own length": trace([0], [NAN], [OWN]),
    "one sample": trace(samples=1),
    "no samples": trace(samples=0),
    "nothing known": trace([NAN] * 6, [NAN] * 6).assign(whole_loss=("sample", [NAN] * 80)),
}


@pytest.mark.parametrize("case", EMPTY)
def test_the_section_has_words_and_numbers_and_can_be_drawn(case: str) -> None:
    section = sequence_length.section(EMPTY[case], [])
    (plate,), (table,) = section.plates, section.tables
    with style.sheet():
        figure = style.canvas(plate.height)
        plate.draw(figure)
        assert style.svg(figure)
        (legend,) = figure.legends
    assert len(legend.get_texts()) == 2
    assert len(section.tiles) == 4
    assert any(character.isdigit() for character in plate.alt)
    assert plate.alt != plate.lead
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert all("nan" not in text for text in (plate.lead, plate.body, plate.alt, *table.rows[0]))
    sure = case in ("measured", "everything refused", "only the own length")
    unsure = "Replacing all inputs by another sample's does not raise the loss for certain."
    assert (plate.lead == unsure) == (not sure)
    assert bool(plate.todo) == sure
    if case == "only the own length":
        assert plate.lead == "No other length than 140 was tried."
