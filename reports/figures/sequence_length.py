"""Other lengths: what a network makes of shorter and of longer sequences than the audited ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from analyzer.findings import Finding
from analyzer.limits import SequenceLengthLimits
from analyzer.rules.sequence_length import lost, reason, refused
from analyzer.rules.verdicts import Estimate
from analyzer.statistics import bootstrap_interval
from reports.read import number_of, spaced
from reports.section import Plate, Section, Table, Tile
from reports.style import BLUE, HALO, INK, LIMIT, MUTED, ORANGE, Values, note
from reports.text import (
    ABSENT,
    count,
    interval,
    listed,
    number,
    percent,
    quantity,
    sentence,
    shorten,
)

LOST = SequenceLengthLimits().lost
"""Share of what all inputs are worth at which the limit is drawn."""

REFUSED = "refused"

_ROWS = 14
_MARGIN = 1.25
"""Factor by which the axis goes beyond the shortest and the longest length."""

_CLOSE = 0.05
"""Share of the axis within which two lengths have no room for their labels."""

_TODO = (
    "Look for the lengths that the network will meet in use: which of them it takes, and what they "
    "cost."
)


@dataclass(frozen=True)
class Curve:
    """Loss added by the length, with its 95 % interval; nan where it is infinite or not known."""

    lengths: Values
    value: Values
    low: Values
    high: Values
    relative: bool
    """Whether values are percent of what all inputs are worth; else they are losses."""

    def shown(self, i: int) -> str:
        """Write the value at one length."""
        return "undefined" if isnan(self.value[i]) else quantity(self.value[i], self.unit)

    def interval(self, i: int) -> str:
        """Write the interval at one length."""
        return interval(self.low[i], self.high[i]) or ABSENT

    @property
    def unit(self) -> str:
        """Unit of the values, empty for losses."""
        return "%" if self.relative else ""


def curve(trace: xr.Dataset, variable: str) -> Curve:
    """Average what is lost over the samples, at every length, with a bootstrap over them.

    It is relative to what all inputs are worth only where that is above zero for certain.
    """
    relative = not isnan(lost(trace, int(trace.attrs["sequence_length"])).value)
    lengths = trace["length"].to_numpy()
    if relative:
        found = [lost(trace, int(length), variable) for length in lengths]
    else:
        found = [_mean(trace[variable].sel(length=length).to_numpy()) for length in lengths]
    scale = 100 if relative else 1
    value, low, high = (
        scale * np.array([getattr(one, name) for one in found], np.float64)
        for name in ("value", "low", "high")
    )
    value, low, high = (np.where(np.isfinite(value), part, np.nan) for part in (value, low, high))
    return Curve(lengths.astype(np.float64), value, low, high, relative)


def _mean(values: Values) -> Estimate:
    """Average over the samples whose value is known."""
    known = values[np.isfinite(values)]
    if not known.size:
        return Estimate()
    low, high = bootstrap_interval(known, np.mean)
    return Estimate(float(known.mean()), float(low), float(high), known.size)


@dataclass(frozen=True)
class Outcome:
    """All that is drawn and told."""

    own: int
    """Length of the audited sequences [timestep]."""
    alone: Curve
    """Shorter: the last inputs alone; longer: another sample's inputs in front."""
    replaced: Curve
    """At the own length, with another sample's inputs in place of the older ones."""
    refused: frozenset[int]
    """Lengths that the network does not take."""
    reasons: dict[int, str]
    """Why there is no loss at some lengths."""

    def near(self, ratio: float) -> int | None:
        """Find the tried length nearest to a multiple of the own one, on the same side of it."""
        away = np.log2(self.alone.lengths / self.own) * np.sign(np.log2(ratio))
        side = [int(i) for i in np.flatnonzero(away > 0)]
        return min(side, key=lambda i: abs(away[i] - abs(np.log2(ratio))), default=None)

    def length(self, i: int) -> int:
        """Return one of the lengths."""
        return int(self.alone.lengths[i])


def outcome(trace: xr.Dataset) -> Outcome:
    """Read what is drawn and told out of a trace."""
    lengths = [int(length) for length in trace["length"].to_numpy()]
    return Outcome(
        int(trace.attrs["sequence_length"]),
        curve(trace, "excess_loss"),
        curve(trace, "replaced_loss"),
        frozenset(n for n in lengths if refused(trace, n)),
        {n: told for n in lengths if (told := reason(trace, n))},
    )


def losses(ax: Axes, found: Outcome) -> None:
    """Draw the loss added against the length, with what is refused and the limit."""
    _length_axis(ax, found)
    _loss_axis(ax, found)
    ax.axhline(0, color=MUTED, lw=0.5)
    ax.axvline(found.own, color=INK, lw=0.8, ls=LIMIT)
    _name_own(ax, found)
    _line(
        ax, found.alone, BLUE, "o", label="shorter: the last inputs alone; longer: others in front"
    )
    _line(ax, found.replaced, ORANGE, "s", label="others in place of the older inputs",
          mfc="white", ls=(0, (4, 1.5)), ms=4.2)  # fmt: skip
    if found.alone.relative:
        ax.axhline(100 * LOST, color=MUTED, lw=0.8, ls=LIMIT)
        right = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        note(ax, 0.995, 100 * LOST, f"limit {percent(LOST)}", color=MUTED, **right)
    else:
        right = {"transform": ax.transAxes, "ha": "right", "va": "top", "path_effects": HALO}
        note(ax, 0.995, 0.9, "plain losses: the inputs may be worth nothing", **right)
    for sign in (-1, 1):
        _mark_refused(ax, [n for n in sorted(found.refused) if sign * (n - found.own) > 0])


def _name_own(ax: Axes, found: Outcome) -> None:
    """Name the own length beside its line, on the side of the longer ones if there are any."""
    right = found.own < found.alone.lengths.max()
    place = {"transform": ax.get_xaxis_transform(), "va": "top", "path_effects": HALO, "zorder": 6}
    place["ha"] = "left" if right else "right"
    note(ax, found.own * 1.03 ** (1 if right else -1), 1, f"audited: {number(found.own)}", **place)


def _line(ax: Axes, found: Curve, color: str, marker: str, **line: object) -> None:
    """Draw one curve with its intervals; a gap where nothing is known."""
    ax.vlines(found.lengths, found.low, found.high, color=color, lw=1.0)
    settings: dict[str, object] = {"color": color, "marker": marker, "lw": 1.4} | line
    ax.plot(found.lengths, found.value, **settings)  # type: ignore[arg-type]


def _length_axis(ax: Axes, found: Outcome) -> None:
    """Scale the x axis by powers of two, with every length as a tick."""
    lengths = found.alone.lengths
    ax.set_xscale("log", base=2)
    ax.set_xlim(lengths.min() / _MARGIN, lengths.max() * _MARGIN)
    ax.xaxis.set_major_locator(FixedLocator(lengths.tolist()))
    ax.xaxis.set_major_formatter(FixedFormatter(_labels(lengths, found.own)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("Length of the sequence (timesteps)")


def _labels(lengths: Values, own: float) -> list[str]:
    """Label the own length, and of the others, from there on, those that have room."""
    places = np.log(lengths / own)
    room = _CLOSE * (np.ptp(places) + 2 * np.log(_MARGIN))
    taken: list[float] = []
    for place in sorted(places, key=abs):
        if all(abs(place - other) > room for other in taken):
            taken.append(place)
    pairs = zip(lengths, places, strict=True)
    return [number(length) if place in taken else "" for length, place in pairs]


def _loss_axis(ax: Axes, found: Outcome) -> None:
    """Scale the y axis: percent so that 1 % and 100 % both have a place, or plain losses."""
    ax.grid(axis="y")
    if not found.alone.relative:
        ax.set_ylabel("Loss added")
        ax.margins(y=0.3)
        return
    ends = [getattr(c, end) for c in (found.alone, found.replaced) for end in ("low", "high")]
    drawn = np.concatenate(ends)
    drawn = drawn[np.isfinite(drawn)]
    low = min(-1.2, 1.7 * drawn.min(initial=0))
    high = 1.7 * drawn.max(initial=200 * LOST)
    ax.set_ylabel("Loss added (%)")
    ax.set_yscale("symlog", linthresh=1, linscale=0.7)
    ax.set_ylim(low, high)
    ticks = [*(-tick for tick in _ticks(-low)), 0, *_ticks(high)]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    ax.yaxis.set_minor_locator(NullLocator())


def _ticks(high: float) -> list[float]:
    """Choose ticks above zero up to a percentage."""
    decades = [10.0**power for power in range(3, int(np.log10(high)) + 1)]
    further = [decades[i] for i in spaced(len(decades), 4)]
    return [tick for tick in (1.0, 5.0, 20.0, 100.0, *further) if tick <= high]


def _mark_refused(ax: Axes, lengths: Sequence[int]) -> None:
    """Mark what the network does not take by crosses on the axis, and one word for all."""
    if not lengths:
        return
    axis = ax.get_xaxis_transform()
    ax.plot(lengths, np.zeros(len(lengths)), "x", color=INK, ms=6, mew=1.5, transform=axis,
            clip_on=False, zorder=6)  # fmt: skip
    middle = float(np.exp(np.log(lengths).mean()))
    place = {"transform": axis, "ha": "center", "va": "bottom", "path_effects": HALO}
    note(ax, middle, 0.05, REFUSED, fontweight=700, zorder=6, **place)


def _draw(figure: Figure, found: Outcome) -> None:
    """Lay out the panel with the names of its lines below."""
    ax = figure.subplots()
    losses(ax, found)
    figure.legend(loc="outside lower center", ncols=2, handlelength=3.2)


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    found = outcome(trace)
    return Section(
        tiles=_tiles(trace, found),
        plates=[_plate(trace, found)],
        tables=[_table(trace, found)],
    )


def _tiles(trace: xr.Dataset, found: Outcome) -> list[Tile]:
    """Name the numbers that matter."""
    worth, intact = float(trace["whole_loss"].mean()), number_of(trace, "intact_loss")
    return [
        _tile(found, "shorter", 0.5),
        _tile(found, "longer", 2),
        Tile("All inputs are worth", number(worth), f"intact loss {number(intact)}"),
        Tile("Samples", number(trace.sizes["sample"]), "others are of the same data"),
    ]


def _tile(found: Outcome, side: str, ratio: float) -> Tile:
    """Name what one other length costs."""
    i = found.near(ratio)
    if i is None:
        return Tile(f"Loss added when {side}", ABSENT, "no such length was tried")
    length = found.length(i)
    value = REFUSED if length in found.refused else found.alone.shown(i)
    return Tile(
        f"Loss added at {count(length, 'timestep')}", value, f"{side} than {number(found.own)}"
    )


def _plate(trace: xr.Dataset, found: Outcome) -> Plate:
    """Word the figure."""
    scale, axis = ", as plain losses", ""
    if found.alone.relative:
        scale = ", in percent of what is added when all inputs are another sample's"
        axis = ", that of the loss linear below 1 %"
    cross = " Crosses: lengths that the network does not take." if found.refused else ""
    return Plate(
        "sequence-length",
        68,
        lambda figure: _draw(figure, found),
        lead=_lead(found),
        body=f"Loss of the last output at each length, less that at the own one{scale}. Circles: "
        "the last inputs of a shorter sequence alone; before a longer one, another sample's "
        "inputs. Squares: at the own length, another sample's inputs in place of the older ones, "
        "as in the memory horizon. Vertical bars: 95 % bootstrap intervals over "
        f"{count(trace.sizes['sample'], 'sample')} (paired).{cross} The axis of lengths is "
        f"logarithmic{axis}.",
        alt=_alt(found),
        todo=_TODO if found.alone.relative else "",
    )


def _lead(found: Outcome) -> str:
    """Conclude what the nearest shorter and longer sequences cost."""
    if not found.alone.relative:
        return "Replacing all inputs by another sample's does not raise the loss for certain."
    told = []
    if (i := found.near(0.5)) is not None:
        told.append(f"From the last {number(found.length(i))} of {number(found.own)} inputs alone "
                    f"{_effect(found, i)}.")  # fmt: skip
    if (i := found.near(2)) is not None:
        told.append(f"With {number(found.length(i) - found.own)} inputs of another sample in front "
                    f"{_effect(found, i)}.")  # fmt: skip
    return " ".join(told) or f"No other length than {number(found.own)} was tried."


def _effect(found: Outcome, i: int) -> str:
    """Say what happens to the loss at a length."""
    if found.length(i) in found.refused:
        return "the network gives no output"
    value = found.alone.value[i]
    if isnan(value):
        return "the loss is infinite or not known"
    moved = "rises" if value >= 0 else "falls"
    return f"the loss {moved} by {quantity(abs(value), '%')} of what all inputs are worth"


def _alt(found: Outcome) -> str:
    """Describe the figure."""
    limit = f" and the limit of {percent(LOST)}" if found.alone.relative else ""
    told = [
        _points(found.alone, "A line with circles"),
        _points(found.replaced, "a dashed line with squares"),
        f"marked: the own length {number(found.own)}{limit}",
    ]
    if found.refused:
        told.append(f"crosses on the axis at {listed([number(n) for n in sorted(found.refused)])}")
    return ". ".join(part[0].upper() + part[1:] for part in told) + "."


def _points(found: Curve, drawn: str) -> str:
    """Read off one curve."""
    known = np.flatnonzero(np.isfinite(found.value))
    chosen = known[spaced(known.size, 7)]
    points = "; ".join(f"{found.shown(i)} at {number(found.lengths[i])}" for i in chosen)
    return f"{drawn} over the length: {points}" if points else f"{drawn} is missing"


def _table(trace: xr.Dataset, found: Outcome) -> Table:
    """Tabulate both curves."""
    alone, replaced = found.alone, found.replaced
    rows = [
        (
            number(found.length(i)),
            REFUSED if found.length(i) in found.refused else number(alone.value[i]),
            alone.interval(i),
            number(replaced.value[i]),
            replaced.interval(i),
        )
        for i in spaced(alone.lengths.size, _ROWS)
    ]
    unit = " (%)" if alone.relative else ""
    return Table(
        "Loss added by the length.",
        ("Length", f"Loss added{unit}", "95 % interval", f"Older replaced{unit}", "95 % interval"),
        ["number"] * 5,
        rows,
        sentence(f"No loss at {_reasons(found.reasons)}") if found.reasons else "",
    )


def _reasons(reasons: Mapping[int, str]) -> str:
    """Write at which lengths there is no loss, and why."""
    lengths: dict[str, list[str]] = {}
    for length, told in reasons.items():
        lengths.setdefault(shorten(told, 120), []).append(number(length))
    return "; ".join(f"{listed(names)}: {told}" for told, names in lengths.items())
