"""Lags in use: how much replacing the input at one lag changes the loss of the last output."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from analyzer.findings import Finding
from analyzer.limits import LagProfileLimits
from analyzer.rules.lag_profile import beyond, lag_in_use, per_input
from analyzer.rules.verdicts import Estimate
from analyzer.statistics import bootstrap_interval, relative_excess
from reports.figures.memory_horizon import sequence_length, time_axis
from reports.read import number_of, spaced
from reports.section import Plate, Section, Table, Tile
from reports.style import BLUE, INK, LIMIT, MUTED, ORANGE, TEAL, Values, letter, note
from reports.text import ABSENT, count, interval, number, percent

MASS = LagProfileLimits().mass
"""Share of the change at which the lag is marked."""

_ROWS = 14
_TODO = (
    "Look for lags that the task needs and the network does not use, and for inputs that should "
    "not matter but do."
)


def shares(trace: xr.Dataset) -> tuple[Values, Values, Values]:
    """Change per input in percent of the change over all lags, with its 95 % interval."""
    values = np.nan_to_num(per_input(trace))
    total = beyond(trace)[0][:, :1]
    if not total.any():
        blank = np.full(values.shape[1], np.nan)
        return blank, blank, blank
    paired = np.hstack([values, total])
    low, high = bootstrap_interval(paired, _percent)
    return _percent(paired, 0), low, high


def _percent(paired: Values, axis: int) -> Values:
    """Set all but the last column against the last, which is the total of the same samples."""
    sums = paired.sum(axis=axis)
    whole = sums[..., -1:]
    return np.asarray(100 * sums[..., :-1] / np.where(whole > 0, whole, np.nan))


def held(trace: xr.Dataset) -> tuple[Values, Values]:
    """Lags, and the percentage of the change that the inputs before each of them hold."""
    left, edges = beyond(trace)
    return edges, 100 * (1 - relative_excess(left))


def profile(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the change per input: lag k fills the axis from k to k + 1."""
    share, low, high = shares(trace)
    _, edges = beyond(trace)
    _axis(ax, trace)
    ax.set_ylabel("Change per input (%)")
    if not np.isfinite(share).any():
        middle = {"transform": ax.transAxes, "ha": "center", "color": MUTED}
        note(ax, 0.5, 0.5, "no single input changes the loss", **middle)
        return
    ax.stairs(share, edges, fill=True, color=BLUE, alpha=0.25)
    ax.stairs(share, edges, color=BLUE, lw=1.2, baseline=None)
    centers = (edges[:-1] + edges[1:]) / 2
    if np.isfinite(low).any():
        ax.vlines(centers, low, high, color=BLUE, lw=0.8)
    ax.set_ylim(0, 1.08 * float(np.nanmax([share, np.fmax(share, high)])))
    ax.grid(axis="y")


def cumulated(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the share that the inputs up to each lag hold, and where it reaches 95 %."""
    edges, share = held(trace)
    _axis(ax, trace)
    ax.set_xlabel("Lag: timesteps before the last input")
    ax.set_ylabel("Held so far (%)")
    ax.set_ylim(-4, 106)
    ax.yaxis.set_major_locator(FixedLocator([0, 50, 100]))
    ax.axhline(100 * MASS, color=MUTED, lw=0.8, ls=LIMIT)
    used = lag_in_use(trace, MASS)
    if np.isnan(used.value):
        return
    ax.plot(edges, share, color=TEAL, lw=1.5)
    ax.axvspan(used.low, used.high + 1, color=ORANGE, alpha=0.14, lw=0)
    for panel in (ax, *(other for other in ax.figure.axes if other is not ax)):
        panel.axvline(used.value + 1, color=ORANGE, lw=0.9, ls=(0, (4, 1.5)))
    right = used.value + 1 < 0.4 * sequence_length(trace) ** 0.8
    ax.annotate(
        f"{percent(MASS)} within lag {number(used.value)}",
        (used.value + 1, 30),
        xytext=(3 if right else -3, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        color=ORANGE,
        fontsize=7,
        fontweight=700,
        in_layout=False,
    )


def _axis(ax: Axes, trace: xr.Dataset) -> None:
    """Scale the axis as that of the memory horizon, and mark the length."""
    length = sequence_length(trace)
    time_axis(ax, length)
    if np.isfinite(length):
        ax.axvline(length, color=INK, lw=0.8, ls=LIMIT)


def _draw(figure: Figure, trace: xr.Dataset) -> None:
    """Lay out both panels over one axis of lags."""
    top, bottom = figure.subplots(2, 1, height_ratios=(1.35, 1))
    profile(top, trace)
    cumulated(bottom, trace)
    top.set_xticklabels([])
    letter(top, "a")
    letter(bottom, "b")
    length = sequence_length(trace)
    if np.isfinite(length):
        place = {"transform": bottom.get_xaxis_transform(), "ha": "right", "va": "bottom"}
        note(bottom, length * 0.97, 0.03, f"sequence length {number(length)}", **place)


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    used = lag_in_use(trace, MASS)
    return Section(
        tiles=_tiles(trace, used),
        plates=[_plate(trace, used)],
        tables=[_table(trace)] if trace.sizes["lag"] else [],
    )


def _tiles(trace: xr.Dataset, used: Estimate) -> list[Tile]:
    """Name the numbers that matter."""
    length, samples = sequence_length(trace), trace.sizes["sample"]
    share = shares(trace)[0]
    lags = _lags(trace)
    most = lags[int(np.nanargmax(share))] if np.isfinite(share).any() else "undefined"
    value = "undefined" if np.isnan(used.value) else number(used.value)
    return [
        Tile(f"Lag that holds {percent(MASS)}", value, f"of {number(length - 1)}"),
        Tile("Most change per input", most, "lag"),
        Tile("Lags replaced together", number(float(trace["width"].max())), "at most"),
        Tile("Samples", number(samples), f"intact loss {number(number_of(trace, 'intact_loss'))}"),
    ]


def _lags(trace: xr.Dataset) -> list[str]:
    """Write the lags of every window."""
    pairs = zip(trace["lag"].to_numpy(), trace["width"].to_numpy(), strict=True)
    return [
        number(int(first))
        if width == 1
        else f"{number(int(first))} to {number(int(first + width - 1))}"
        for first, width in pairs
    ]


def _plate(trace: xr.Dataset, used: Estimate) -> Plate:
    """Word the figure."""
    length, samples = sequence_length(trace), trace.sizes["sample"]
    if np.isnan(used.value):
        lead = "Replacing inputs one lag at a time does not change the loss."
    else:
        lead = (
            f"{percent(MASS)} of what single inputs change lies within the last "
            f"{number(used.value + 1)} of {number(length)} inputs."
        )
    wide = int(trace["width"].max()) if trace.sizes["lag"] else 1
    windows = f" Up to {wide} lags were replaced together." if wide > 1 else ""
    return Plate(
        "lag-profile",
        62,
        lambda figure: _draw(figure, trace),
        lead=lead,
        body="a: change of the last loss, without its sign, when the input at one lag is another "
        f"sample's, per input and in percent of the sum over all lags; lines: 95 % bootstrap "
        f"intervals over {count(samples, 'sample')}.{windows} b: share that the inputs up to a lag "
        "hold; orange: where it reaches the limit, with its 95 % interval. Time axis of the memory "
        "horizon: lag k lies between k and k + 1 inputs kept.",
        alt=_alt(trace, used, length),
        todo="" if np.isnan(used.value) else _TODO,
    )


def _alt(trace: xr.Dataset, used: Estimate, length: float) -> str:
    """Describe the figure."""
    share, lags = shares(trace)[0], _lags(trace)
    known = np.flatnonzero(np.isfinite(share))
    if not known.size or np.isnan(used.value):
        return f"Two empty plots over {number(length)} lags."
    most = known[np.argmax(share[known])]
    points = "; ".join(
        f"{number(share[i])} % at lag {lags[i]}" for i in known[spaced(known.size, 5)]
    )
    return (
        f"Steps over {number(length)} lags: {points}; highest {number(share[most])} % at lag "
        f"{lags[most]}. Below, a curve that rises from 0 to 100 % and passes {percent(MASS)} at "
        f"lag {number(used.value)}, between {number(used.low)} and {number(used.high)}."
    )


def _table(trace: xr.Dataset) -> Table:
    """Tabulate the windows."""
    share, low, high = shares(trace)
    excess = trace["excess_loss"].mean("sample").to_numpy()
    so_far, lags = held(trace)[1][1:], _lags(trace)
    rows = [
        (
            lags[i],
            number(excess[i]),
            number(share[i]),
            interval(low[i], high[i]) or ABSENT,
            number(so_far[i]),
        )
        for i in spaced(len(lags), _ROWS)
    ]
    return Table(
        "Change of the loss by lag.",
        ("Lag", "Excess loss", "Change per input (%)", "95 % interval", "Held so far (%)"),
        ["text", "number", "number", "number", "number"],
        rows,
        "" if len(rows) == len(lags) else "Every value is in the record.",
    )
