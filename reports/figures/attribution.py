"""Attribution: which part of the input decisions come from, by lag or by distance."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.findings import Finding
from analyzer.rules.attribution import (
    area,
    completeness,
    cumulative,
    holding,
    overlap,
    place_dim,
    rank_correlation,
    window_contributions,
)
from reports.figures.memory_horizon import time_axis
from reports.read import number_of, spaced
from reports.section import Plate, Section, Table, Tile
from reports.style import BLUE, HALO, INK, LIMIT, MUTED, ORANGE, PALE_BLUE, Values, letter, note
from reports.text import count, interval, number, percent

SHARES = (0.5, 0.9, 0.95)
"""Shares of the attribution whose extent is told; the first two are drawn."""

_ROWS = 14
_RECENT = 8
"""Time is drawn on a logarithmic axis where decisions come from less than this fraction of it."""


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    return Section(tiles=_tiles(trace), plates=[_plate(trace)], tables=[_table(trace)])


def in_time(trace: xr.Dataset) -> bool:
    """Say whether places are lags."""
    return place_dim(trace) == "lag"


def extent(trace: xr.Dataset) -> int:
    """Return how many places there are."""
    return int(number_of(trace, "extent"))


def accumulated(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the share up to each place by both methods, against an even spread."""
    value, low, high = cumulative(trace)
    x = np.arange(value.size + 1.0)
    _place_axis(ax, trace)
    ax.set_ylim(0, 104)
    ax.set_ylabel("Cumulative share (%)")
    ax.grid(axis="y")
    ax.plot(x, 100 * _from_zero(area(trace)), color=MUTED, lw=0.9, ls=LIMIT)
    if np.isnan(value).any():
        note(ax, 0.5, 0.5, "no attribution", transform=ax.transAxes, ha="center", color=MUTED)
        return
    ax.fill_between(x, 100 * _from_zero(low), 100 * _from_zero(high), color=BLUE, alpha=0.18, lw=0)
    ax.plot(x, 100 * _from_zero(value), color=BLUE, lw=1.5)
    stops, shares = occluded(trace)
    ax.plot(stops, 100 * shares, color=ORANGE, lw=1.1, ls=(0, (4, 1.4)), marker="o", ms=2)
    _key(ax)
    for share in SHARES[:2]:
        place = int(holding(trace, share).value)
        _mark(ax, place + 1, float(value[place]), f"{percent(share)}: {number(place + 1)}")


def _from_zero(shares: Values) -> Values:
    """Start a cumulative curve at nothing."""
    return np.concatenate([[0.0], shares])


def occluded(trace: xr.Dataset) -> tuple[Values, Values]:
    """Return the ends of the windows and the share of the occlusion up to each, from zero."""
    size = np.abs(window_contributions(trace)[1]).sum(0)
    total = size.sum()
    stops = np.concatenate([[0], trace["stop"].to_numpy()]).astype(np.float64)
    return stops, _from_zero(size.cumsum() / (total if total > 0 else np.nan))


def _place_axis(ax: Axes, trace: xr.Dataset) -> None:
    """Scale the x axis: linear, or that of the memory horizon where only recent inputs count."""
    length, most = extent(trace), holding(trace, 0.9).value
    if in_time(trace) and most + 1 < length / _RECENT:
        time_axis(ax, length)
    else:
        ax.set_xlim(0, length * 1.01)


def _key(ax: Axes) -> None:
    """Name the curves below them, where the axes are free."""
    words = (("integrated gradients", BLUE), ("occlusion", ORANGE), ("even spread", MUTED))
    for row, (text, color) in enumerate(words):
        place = {"transform": ax.transAxes, "ha": "right", "va": "bottom", "color": color}
        note(ax, 0.985, 0.23 - 0.1 * row, text, fontweight=700, **place)


def _mark(ax: Axes, place: float, share: float, text: str) -> None:
    """Mark a point of the curve, with its name on the side that is free."""
    ax.plot([place], [100 * share], color=INK, marker="o", ms=3.4)
    left, right = ax.transData.transform([(ax.get_xlim()[0], 0), (ax.get_xlim()[1], 0)])[:, 0]
    here = ax.transData.transform((place, 0))[0]
    below = here - left < 0.3 * (right - left)
    ax.annotate(
        text,
        (place, 100 * share),
        xytext=(4, -3) if below else (-4, 3),
        textcoords="offset points",
        ha="left" if below else "right",
        va="top" if below else "bottom",
        color=INK,
        fontsize=7,
        fontweight=700,
        in_layout=False,
        path_effects=HALO,
    )


def density(ax: Axes, trace: xr.Dataset) -> None:
    """Draw how much more than an even share each place has."""
    ratio = relative(trace)
    edges = np.arange(ratio.size + 1.0)
    _place_axis(ax, trace)
    ax.set_ylabel("Times even share")
    ax.set_xlabel(
        "Inputs from the end" if in_time(trace) else "Distance from the centre (positions)"
    )
    ax.stairs(np.nan_to_num(ratio), edges, color=PALE_BLUE, fill=True)
    ax.stairs(np.nan_to_num(ratio), edges, color=BLUE, lw=0.9, baseline=None)
    ax.axhline(1, color=MUTED, lw=0.9, ls=LIMIT)
    ax.set_ylim(0, 1.12 * max(1.2, float(np.nanmax(ratio, initial=0.0))))


def relative(trace: xr.Dataset) -> Values:
    """Return the share at each place over what an even spread would put there."""
    share, even = np.diff(_from_zero(cumulative(trace)[0])), np.diff(_from_zero(area(trace)))
    return np.asarray(share / np.where(even > 0, even, np.nan))


def _draw(figure: Figure, trace: xr.Dataset) -> None:
    """Lay out both panels over one axis."""
    top, bottom = figure.subplots(2, 1, height_ratios=(1.5, 1))
    accumulated(top, trace)
    density(bottom, trace)
    top.set_xticklabels([])
    letter(top, "a")
    letter(bottom, "b")


def _reached(trace: xr.Dataset, share: float) -> str:
    """Write the place up to which a share lies."""
    found = holding(trace, share).value
    return "undefined" if np.isnan(found) else number(found + 1)


def _of(trace: xr.Dataset) -> str:
    """Write what there is at most."""
    return f"{number(extent(trace))} {'inputs' if in_time(trace) else 'positions from the centre'}"


def _tiles(trace: xr.Dataset) -> list[Tile]:
    """Name the numbers that matter."""
    side = "last" if in_time(trace) else "within"
    missed, same = completeness(trace), rank_correlation(trace)
    tiles = [
        Tile(f"{percent(share)} of the decision", f"{side} {_reached(trace, share)}", _of(trace))
        for share in (0.9, 0.5)
    ]
    return [
        *tiles,
        Tile(
            "Missed by the contributions",
            percent(missed.value),
            f"{number(number_of(trace, 'steps'))} steps",
        ),
        Tile(
            "Agreement with occlusion",
            number(same.value, 2),
            f"rank correlation; {percent(overlap(trace))} shared",
        ),
    ]


def _plate(trace: xr.Dataset) -> Plate:
    """Word the figure."""
    samples = trace.sizes["sample"]
    places = "inputs, counted from the end" if in_time(trace) else "distance from the centre"
    return Plate(
        "attribution",
        66,
        lambda figure: _draw(figure, trace),
        lead=_lead(trace),
        body=f"a: share of the attribution by {places}: integrated gradients (magnitudes, summed "
        f"over features; band: 95 % bootstrap interval over {count(samples, 'sample')}) and "
        "occlusion of one window at a time (points: ends of the windows). b: share at each place "
        "as a multiple of that of an even spread. Everything is relative to the "
        f"{trace.attrs['baseline']} baseline. {_beside(trace)}",
        alt=_alt(trace),
        todo="Compare with where the evidence is that the task is about.",
    )


def _lead(trace: xr.Dataset) -> str:
    """Say what the figure shows."""
    if np.isnan(holding(trace, 0.9).value):
        return "No decision owes anything to the difference between the sample and the baseline."
    most, half = _reached(trace, 0.9), _reached(trace, 0.5)
    if in_time(trace):
        return (
            f"90 % of the decision comes from the last {most} of {number(extent(trace))} inputs, "
            f"half of it from the last {half}."
        )
    inside = area(trace)[int(holding(trace, 0.9).value)]
    return (
        f"90 % of the decision comes from within {most} positions of the centre, which is "
        f"{percent(inside)} of the input; half of it from within {half}."
    )


def _beside(trace: xr.Dataset) -> str:
    """Place attribution among what else is measured."""
    if in_time(trace):
        return (
            "Gradient reach: what the network could use. Memory horizon: what it keeps. "
            "Attribution: what it does use."
        )
    return "Receptive field: what the network could use. Attribution: what it does use."


def _alt(trace: xr.Dataset) -> str:
    """Describe the figure."""
    value, _, _ = cumulative(trace)
    if np.isnan(value).any():
        return "Two empty plots: nothing is attributed."
    points = "; ".join(f"{percent(value[i])} within {number(i + 1)}" for i in spaced(value.size, 6))
    stops, shares = occluded(trace)
    other = "; ".join(
        f"{percent(shares[i])} within {number(stops[i])}" for i in spaced(shares.size, 5)[1:]
    )
    ratio = relative(trace)
    top = int(np.nanargmax(ratio))
    return (
        f"Upper curve, rising: {points}. Dashed curve of the occlusion: {other}. Lower steps: "
        f"highest at place {top} with {number(ratio[top])} times the even share."
    )


def _table(trace: xr.Dataset) -> Table:
    """Tabulate the curve."""
    value, low, high = cumulative(trace)
    even = area(trace)
    rows = [
        (
            number(i + 1.0),
            number(100 * value[i]),
            interval(100 * low[i], 100 * high[i]),
            number(100 * even[i]),
        )
        for i in spaced(value.size, _ROWS)
    ]
    head = "Inputs from the end" if in_time(trace) else "Within (positions)"
    return Table(
        "Cumulative share of the attribution.",
        (head, "Share (%)", "95 % interval", "Even spread (%)"),
        ["number"] * 4,
        rows,
        "" if len(rows) == value.size else "Every value is in the record.",
    )
