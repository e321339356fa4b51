"""Memory horizon: how many of the latest inputs a prediction needs, and how far gradients reach."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analyzer.findings import Finding
from analyzer.limits import MemoryHorizonLimits
from analyzer.rules.memory_horizon import functional_horizon
from analyzer.statistics import bootstrap_interval
from reports.read import array, number_of, spaced
from reports.section import Plate, Section, Table, Tile
from reports.style import (
    BLUE,
    INK,
    LIMIT,
    MUTED,
    ORANGE,
    TEAL,
    Values,
    bands,
    letter,
    log_axis,
    note,
    quantiles,
)
from reports.text import ABSENT, count, interval, number, percent, quantity

SHARES = (0.05, 0.01)
"""Shares of the total excess loss at which a horizon is read off."""

_ROWS = 14
_TODO = "Compare the horizon with the longest dependency of the task: what lies beyond is not used."


@dataclass(frozen=True)
class Curve:
    """Excess loss by the number of inputs kept, with its 95 % interval."""

    kept: Values
    value: Values
    low: Values
    high: Values
    total: float
    """Mean excess loss when every input is another sample's [loss]."""
    relative: bool
    """Whether values are percent of the total; else they are losses."""


def curve(trace: xr.Dataset) -> Curve:
    """Average the excess loss over the samples, with a paired bootstrap over them.

    It is relative to the total only where that is above zero for certain.
    """
    kept = trace["kept"].to_numpy().astype(np.float64)
    excess = array(trace, "excess_loss", "sample", "kept")
    excess = excess[np.isfinite(excess[:, 0])]
    if not len(excess):
        blank = np.full(kept.size, np.nan)
        return Curve(kept, blank, blank, blank, float("nan"), False)
    relative = bool(np.isfinite(horizon(trace, SHARES[1])))
    statistic = _percent if relative else _mean
    low, high = bootstrap_interval(excess, statistic)
    total = float(excess[:, 0].mean())
    return Curve(kept, statistic(excess, 0), low, high, total, relative)


def _mean(excess: Values, axis: int) -> Values:
    """Average over the samples whose excess is known."""
    known = np.isfinite(excess).sum(axis=axis)
    return np.asarray(np.nansum(excess, axis=axis) / np.where(known, known, np.nan))


def _percent(excess: Values, axis: int) -> Values:
    """Set the mean excess against that of the same samples with nothing kept."""
    paired = np.where(np.isfinite(excess), excess.take([0], axis=-1), np.nan)
    whole = _mean(paired, axis)
    return np.asarray(100 * _mean(excess, axis) / np.where(whole > 0, whole, np.nan))


def horizon(trace: xr.Dataset, share: float) -> float:
    """Return the last inputs needed for the excess loss to stay below ``share`` of the whole."""
    return functional_horizon(trace, MemoryHorizonLimits(share=share)).value


def sequence_length(trace: xr.Dataset) -> float:
    """Return how many inputs a sequence has."""
    length = number_of(trace, "sequence_length")
    kept = trace["kept"].to_numpy() if "kept" in trace.coords else np.zeros(0)
    return length if np.isfinite(length) or not kept.size else float(kept.max())


def time_axis(ax: Axes, length: float) -> None:
    """Scale the x axis so that zero and powers of two of the time back both have a place."""
    last = max(length, 2.0)
    ax.set_xscale("symlog", linthresh=1, linscale=0.6, base=2)
    ax.set_xlim(-0.12, last * 1.12)
    step = 2 if last > 600 else 1
    ticks = [0.0, *(2.0**power for power in range(0, int(np.log2(last)) + 1, step))]
    if last / ticks[-1] < 1.3:
        ticks = ticks[:-1]
    ax.xaxis.set_major_locator(FixedLocator([*ticks, last]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def excess(ax: Axes, trace: xr.Dataset, found: Curve) -> None:
    """Draw the excess loss against the inputs kept, with the horizons and the length."""
    length = sequence_length(trace)
    time_axis(ax, length)
    _loss_axis(ax, found)
    ax.axhline(0, color=MUTED, lw=0.5)
    _mark_length(ax, length)
    if not np.isfinite(found.value).any():
        note(ax, 0.5, 0.5, "no excess loss was measured", **_inside(ax))
        return
    ax.fill_between(found.kept, found.low, found.high, color=BLUE, alpha=0.18, lw=0)
    ax.plot(found.kept, found.value, color=BLUE, marker="o", lw=1.5)
    if not found.relative:
        note(ax, 0.5, 0.88, "no horizon: the excess may be zero throughout", **_inside(ax))
    for share, color in zip(SHARES, (TEAL, ORANGE), strict=True):
        _mark_horizon(ax, horizon(trace, share), share, length, color)


def _loss_axis(ax: Axes, found: Curve) -> None:
    """Scale the y axis: percent so that 1 % and 100 % both have a place, or plain losses."""
    ax.grid(axis="y")
    if not found.relative:
        ax.set_ylabel("Excess loss")
        return
    ax.set_ylabel("Excess loss (%)")
    ax.set_yscale("symlog", linthresh=1, linscale=0.7)
    ax.set_ylim(-1.2, 1.7 * max(100.0, float(np.nanmax(found.value))))
    ax.yaxis.set_major_locator(FixedLocator([-1, 0, 1, 5, 20, 100]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    ax.yaxis.set_minor_locator(NullLocator())


def _inside(ax: Axes) -> dict[str, object]:
    """Place a label in the middle of the axes."""
    return {"transform": ax.transAxes, "ha": "center", "color": MUTED}


def _mark_length(ax: Axes, length: float) -> None:
    """Mark where the sequence ends."""
    if np.isfinite(length):
        ax.axvline(length, color=INK, lw=0.8, ls=LIMIT)


def _mark_horizon(ax: Axes, lag: float, share: float, length: float, color: str) -> None:
    """Mark a horizon by a line down to the axis and its name, on the side with room for it."""
    if np.isnan(lag):
        return
    ax.axvline(lag, color=color, lw=0.9, ls=(0, (4, 1.5)))
    fine = share == SHARES[1]
    right = fine and lag < 0.5 * length
    ax.annotate(
        f"{percent(share)} horizon: {number(lag)}",
        (lag, 0.84 if fine and not right else 1),
        xycoords=ax.get_xaxis_transform(),
        xytext=(3 if right else -3, -1),
        textcoords="offset points",
        ha="left" if right else "right",
        va="top",
        color=color,
        fontsize=7,
        fontweight=700,
        in_layout=False,
        annotation_clip=True,
    )


def reach(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the gradient of the last loss with respect to each input, by its lag."""
    spread = quantiles(array(trace, "reach", "sample", "lag"))
    length = sequence_length(trace)
    time_axis(ax, length)
    ax.set_xlabel("Inputs kept (top), lag (bottom): timesteps before the last input")
    ax.set_ylabel("Gradient (rms)")
    _mark_length(ax, length)
    if log_axis(ax, np.stack([spread[5], spread[50], spread[95]])):
        positive = {level: np.where(band > 0, band, np.nan) for level, band in spread.items()}
        bands(ax, np.arange(spread[50].size, dtype=np.float64), positive, TEAL, marker="")


def _draw(figure: Figure, trace: xr.Dataset, found: Curve) -> None:
    """Lay out both panels over one time axis."""
    top, bottom = figure.subplots(2, 1, height_ratios=(1.35, 1))
    excess(top, trace, found)
    reach(bottom, trace)
    top.set_xticklabels([])
    letter(top, "a")
    letter(bottom, "b")
    length = sequence_length(trace)
    if np.isfinite(length):
        place = {"transform": bottom.get_xaxis_transform(), "ha": "right", "va": "top"}
        note(bottom, length * 0.97, 0.99, f"sequence length {number(length)}", **place)


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    found = curve(trace)
    return Section(
        tiles=_tiles(trace, found),
        plates=[_plate(trace, found)],
        tables=[_table(trace, found)] if found.kept.size else [],
    )


def _tiles(trace: xr.Dataset, found: Curve) -> list[Tile]:
    """Name the numbers that matter."""
    length, samples = sequence_length(trace), trace.sizes.get("sample", 0)
    intact = number_of(trace, "intact_loss")
    tiles = [
        Tile(
            f"{percent(share)} horizon",
            _steps(horizon(trace, share)),
            f"of {number(length)} inputs",
        )
        for share in (SHARES[1], SHARES[0])
    ]
    note_ = "" if np.isnan(intact) else f"intact loss {number(intact)}"
    return [
        *tiles,
        Tile("Excess without any own input", number(found.total), note_),
        Tile("Samples", number(samples), "replaced by others of the data"),
    ]


def _steps(value: float) -> str:
    """Write a horizon."""
    return "undefined" if np.isnan(value) else number(value)


def _plate(trace: xr.Dataset, found: Curve) -> Plate:
    """Word the figure."""
    length, samples = sequence_length(trace), trace.sizes.get("sample", 0)
    fine = horizon(trace, SHARES[1])
    if np.isnan(fine):
        lead = "Replacing all inputs by another sample's does not raise the loss for certain."
    else:
        lead = (
            f"The last {number(fine)} of {number(length)} inputs are needed to come within "
            f"{percent(SHARES[1])} of the whole excess loss."
        )
    scale = ", in percent of that when nothing is kept" if found.relative else ""
    return Plate(
        "memory-horizon",
        66,
        lambda figure: _draw(figure, trace, found),
        lead=lead,
        body="a: loss added when everything older than the last kept inputs is another sample's"
        f"{scale}; band: 95 % bootstrap interval over {count(samples, 'sample')} (paired). b: "
        "gradient of the last loss with respect to the input at each lag; median, 25 to 75 % and "
        "5 to 95 % of the samples. One time axis, "
        "linear below 1 and logarithmic above.",
        alt=_alt(trace, found, length),
        todo="" if np.isnan(fine) else _TODO,
    )


def _alt(trace: xr.Dataset, found: Curve, length: float) -> str:
    """Describe the figure."""
    unit = "%" if found.relative else ""
    if np.isfinite(found.value).any():
        points = "; ".join(
            f"{quantity(found.value[i], unit)} with {number(found.kept[i])} kept"
            for i in spaced(found.kept.size, 5)
        )
        marks = ", ".join(f"{percent(s)} horizon at {_steps(horizon(trace, s))}" for s in SHARES)
        top = (
            f"Upper curve of the excess loss: {points}. Marked: {marks}, length {number(length)}. "
        )
    else:
        top = f"Upper plot without a curve, length {number(length)} marked. "
    middle = quantiles(array(trace, "reach", "sample", "lag"))[50]
    known = np.flatnonzero(np.isfinite(middle))
    if not known.size:
        return top + "Lower plot empty."
    return top + (
        f"Lower curve of the gradient: {number(middle[known[0]])} at lag {known[0]}, "
        f"{number(middle[known[-1]])} at lag {known[-1]}, "
        f"highest {number(middle[known].max())} at lag {known[np.argmax(middle[known])]}."
    )


def _table(trace: xr.Dataset, found: Curve) -> Table:
    """Tabulate the curve."""
    excess = array(trace, "excess_loss", "sample", "kept")
    mean = _mean(excess, 0)
    rows = [
        (
            number(found.kept[i]),
            number(mean[i]),
            *((number(found.value[i]),) if found.relative else ()),
            interval(found.low[i], found.high[i]) or ABSENT,
        )
        for i in spaced(found.kept.size, _ROWS)
    ]
    share = ("Share of the whole (%)",) if found.relative else ()
    heads = ("Inputs kept", "Excess loss", *share, "95 % interval")
    return Table(
        "Excess loss by the number of inputs kept.",
        heads,
        ["number"] * len(heads),
        rows,
        "" if len(rows) == found.kept.size else "Every value is in the record.",
    )
