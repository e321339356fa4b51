"""Timesteps that train: what each timestep adds to the gradients of the shared weights."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analyzer.findings import Finding
from analyzer.limits import TimestepContributionLimits
from analyzer.rules.timestep_contribution import (
    by_lag,
    coherence,
    entrance,
    matrices,
    mean_conflict,
    sample_conflict,
    sample_steps,
)
from analyzer.rules.verdicts import Estimate
from reports.read import number_of, spaced
from reports.section import Plate, Section, Table, Tile
from reports.style import (
    BLUE,
    DASHES,
    INK,
    LIMIT,
    MUTED,
    ORANGE,
    PALE_RED,
    PAPER,
    SERIES,
    Values,
    depth_axis,
    depth_height,
    enlarge,
    letter,
    note,
    quantiles,
)
from reports.text import ABSENT, count, interval, number, percent, shorten

_LINES = 8
_TICKS = 9
_ROWS = 16
_LIMITS = TimestepContributionLimits()


def labels(trace: xr.Dataset) -> list[str]:
    """Name the weight matrices."""
    names = trace["weight"].to_numpy().astype(str)
    return [names[place] for place in matrices(trace)]


def held(trace: xr.Dataset, place: int) -> Values:
    """Share of a sample's gradient that its last timesteps hold: median over samples, (lag,)."""
    shares = by_lag(trace, "own_share", place)
    sums = np.where(np.isnan(shares), np.nan, np.nancumsum(shares, 1))
    return quantiles(sums)[50]


def share(trace: xr.Dataset) -> Values:
    """Share of each timestep in a sample's gradient: median over samples, (weight, timestep)."""
    values = trace["own_share"].transpose("sample", "weight", "timestep").to_numpy()
    return quantiles(values[:, matrices(trace)])[50]


def over_lags(ax: Axes, trace: xr.Dataset, parameter: str) -> None:
    """Draw how much of the gradient the last timesteps hold, one line per layer."""
    names = trace["parameter"].to_numpy().astype(str)
    layers = trace["layer"].to_numpy().astype(str)
    places = [place for place in matrices(trace) if names[place] == parameter]
    longest = trace.sizes["timestep"]
    ax.set_xscale("log", base=2)
    ax.set_xlim(0.93, max(longest, 2) * 1.08)
    _powers_of_two(ax, longest)
    ax.set_ylim(0, 1.08)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))
    ax.grid(axis="y")
    ax.axhline(_LIMITS.held, color=INK, lw=0.8, ls=LIMIT)
    note(ax, 1, _LIMITS.held - 0.015, percent(_LIMITS.held), va="top", color=MUTED)
    for rank, index in enumerate(spaced(len(places), _LINES)):
        ax.plot(
            np.arange(1, longest + 1),
            held(trace, places[index]),
            color=SERIES[rank % len(SERIES)],
            ls=DASHES[rank % len(DASHES)],
            label=shorten(layers[places[index]], 20),
            marker="o" if longest == 1 else "",
        )
    ax.set_xlabel("Last timesteps")


def _powers_of_two(ax: Axes, longest: int) -> None:
    """Put ticks at powers of two and at the end."""
    powers = int(np.log2(longest)) + 1
    ticks = [2.0**power for power in range(0, powers, 1 if powers <= _TICKS else 2)]
    if len(ticks) > 1 and longest / ticks[-1] < 1.3:
        ticks = ticks[:-1]
    ax.xaxis.set_major_locator(FixedLocator(sorted({*ticks, float(longest)})))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def heat_map(ax: Axes, trace: xr.Dataset) -> ScalarMappable:
    """Draw the share of every timestep, weight by weight, on one scale; negative shares pale red.

    A reverse direction reads from right to left.
    """
    values, names = share(trace), labels(trace)
    known = values[np.isfinite(values)]
    high = float(known.max()) if known.size and known.max() > 0 else 1.0
    norm = PowerNorm(0.5, 0, high)
    rows, steps = values.shape
    cmap = PAPER.with_extremes(bad="#EEF0F2", under=PALE_RED)
    # What is too small to be seen is neither red nor blue.
    shown = np.where(np.abs(values) < high / 200, 0.0, values)
    extent = (-0.5, steps - 0.5, rows - 0.5, -0.5)
    ax.imshow(enlarge(shown), aspect="auto", cmap=cmap, norm=norm, extent=extent)
    for edge in range(1, rows):
        ax.axhline(edge - 0.5, color="white", lw=1.2 if rows <= 12 else 0.3)
    ticks = spaced(rows, 14)
    ax.set_yticks(ticks, [shorten(names[i], 24) for i in ticks], parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("Timestep, in the order of the data")
    ax.xaxis.set_major_locator(MaxNLocator(9, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    ax.spines[:].set_visible(False)
    return ScalarMappable(norm, cmap)


def conflicts(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the cosine of the halves: of a sample, and of the mean where that is not zero."""
    places, names = matrices(trace), labels(trace)
    ax.set_ylim(-1.05, 1.05)
    ax.grid(axis="y")
    ax.axhline(0, color=MUTED, lw=0.5)
    ax.axhline(_LIMITS.conflict, color=INK, lw=0.8, ls=LIMIT)
    found = sample_conflict(trace)
    _whiskers(ax, [found[place] for place in places], -0.12, BLUE, "o")
    means = [
        mean_conflict(trace, place) if coherence(trace, place) >= _LIMITS.coherence else Estimate()
        for place in places
    ]
    _whiskers(ax, means, 0.12, ORANGE, "s")
    depth_axis(ax, names)
    ax.set_xlabel("Weight, from input to output")
    ax.set_ylabel("Cosine, first with second half")
    place = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "bottom", "color": MUTED}
    note(ax, 0.995, _LIMITS.conflict, f"limit {number(_LIMITS.conflict)}", **place)


def _whiskers(ax: Axes, found: Sequence[Estimate], aside: float, color: str, marker: str) -> None:
    """Draw values with their intervals."""
    at = np.arange(len(found)) + aside
    value, low, high = (
        np.array([getattr(one, name) for one in found]) for name in ("value", "low", "high")
    )
    ax.vlines(at, low, high, color=color, lw=1.1)
    ax.plot(at, value, ls="", marker=marker, ms=3.4, color=color)


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    steps = sample_steps(trace, _LIMITS)
    return Section(
        tiles=_tiles(trace, steps),
        plates=[_lines_plate(trace, steps), _map_plate(trace), _conflict_plate(trace)],
        tables=[_table(trace, steps)],
    )


def _tiles(trace: xr.Dataset, steps: Mapping[int, Estimate]) -> list[Tile]:
    """Name the numbers that matter."""
    names = trace["weight"].to_numpy().astype(str)
    length = number(float(np.nanmax(trace["length"].to_numpy())))
    place = entrance(trace, dict(steps))
    tiles = []
    if place is not None:
        found = steps[place]
        where = f"{interval(found.low, found.high)} of {length}, {shorten(names[place], 24)}"
        tiles = [Tile("Timesteps that train", number(found.value), where.strip())]
    conflict = {p: c for p, c in sample_conflict(trace).items() if np.isfinite(c.value)}
    if conflict:
        least = min(conflict, key=lambda other: conflict[other].value)
        value = number(conflict[least].value, 2)
        tiles.append(Tile("Least agreement of halves", value, shorten(names[least], 24)))
    residual = number_of(trace, "gradient_residual")
    if np.isfinite(residual):
        tiles.append(Tile("Against torch's gradient", number(residual, 2), "largest difference"))
    samples = number_of(trace, "samples")
    return [*tiles, Tile("Samples", number(samples), "measured")]


def _draw_lines(figure: Figure, trace: xr.Dataset) -> None:
    """Lay out the panels of the input and of the recurrent weights."""
    panels = figure.subplots(1, 2, sharey=True)
    for ax, parameter, text in zip(
        panels, ("weight_ih", "weight_hh"), ("a   input weights", "b   recurrent weights"),
        strict=True,
    ):  # fmt: skip
        over_lags(ax, trace, parameter)
        letter(ax, text)
    panels[0].set_ylabel("Share of the gradient (%)")
    handles, texts = panels[0].get_legend_handles_labels()
    if handles:
        legend = figure.legend(handles, texts, loc="outside lower center", ncols=min(4, len(texts)))
        for entry in legend.get_texts():
            entry.set_parse_math(False)


def _lines_plate(trace: xr.Dataset, steps: Mapping[int, Estimate]) -> Plate:
    """Word the lines."""
    names = trace["weight"].to_numpy().astype(str)
    length = int(np.nanmax(trace["length"].to_numpy()))
    place = entrance(trace, dict(steps))
    lead = (
        "No recurrent layer that reads the inputs has a gradient."
        if place is None
        else f"The last {number(steps[place].value)} of {length} timesteps hold "
        f"{percent(_LIMITS.held)} of a sample's gradient of {shorten(names[place], 36)}."
    )
    known = {p: one for p, one in steps.items() if np.isfinite(one.value)}
    parts = [
        f"{shorten(names[p], 36)} reaches it with {number(known[p].value)}"
        for p in [[*known][i] for i in spaced(len(known), 6)]
    ]
    layers = len(set(trace["layer"].to_numpy().astype(str)))
    which = "every layer" if layers <= _LINES else f"{_LINES} of {layers} layers"
    return Plate(
        "timestep-contribution-lines",
        58,
        lambda figure: _draw_lines(figure, trace),
        lead=lead,
        body="Share of the gradient of a sample's own loss that comes from its last timesteps, "
        f"counted in the order in which the layer reads; median over samples, for {which}. Dotted: "
        f"{percent(_LIMITS.held)}. A curve can pass 100 % where timesteps before work against it.",
        alt=f"Two line charts rising from left to right up to {count(length, 'timestep')} on a "
        f"logarithmic axis, with a line at {percent(_LIMITS.held)}: "
        f"{'; '.join(parts) or 'no weight has values'}.",
        todo="Compare with the longest dependency of the task: earlier timesteps hardly train the "
        "weights.",
    )


def _draw_map(figure: Figure, trace: xr.Dataset) -> None:
    """Lay out the heat map with its scale."""
    ax = figure.subplots()
    scale = heat_map(ax, trace)
    extend = "min" if (share(trace) < 0).any() else "neither"
    bar = figure.colorbar(scale, ax=ax, pad=0.012, aspect=20, fraction=0.05, extend=extend)
    bar.outline.set_linewidth(0)
    bar.set_label("Share (%)")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(100 * value, 2)))
    bar.ax.tick_params(width=0.4, length=2)


def _map_plate(trace: xr.Dataset) -> Plate:
    """Word the heat map."""
    values, names = share(trace), labels(trace)
    parts = []
    for index in spaced(len(names), 4):
        if np.isfinite(values[index]).any():
            step = int(np.nanargmax(values[index]))
            largest = percent(float(values[index][step]))
            parts.append(f"{shorten(names[index], 36)} is highest at step {step} with {largest}")
    known = values[np.isfinite(values)]
    lead = (
        f"A single timestep adds up to {percent(float(known.max()))} of the gradient of a weight "
        "that all timesteps share."
        if known.size
        else "No timestep adds to the gradient of any weight."
    )
    return Plate(
        "timestep-contribution-map",
        max(28, 20 + min(14, len(names)) * 5.5),
        lambda figure: _draw_map(figure, trace),
        lead=lead,
        body="Share of each timestep in the gradient of a sample's own loss, median over samples, "
        "on one scale (square root) for all weights. Pale red: the timestep works against the "
        "others. A reverse direction reads from right to left. Grey: not measured.",
        alt=f"Heat map of {count(len(names), 'weight')} by "
        f"{count(trace.sizes['timestep'], 'timestep')}: {'; '.join(parts) or 'no values'}.",
    )


def _conflict_plate(trace: xr.Dataset) -> Plate:
    """Word the conflict of the halves."""
    names = trace["weight"].to_numpy().astype(str)
    found = {p: one for p, one in sample_conflict(trace).items() if np.isfinite(one.value)}
    parts = [
        f"{shorten(names[p], 36)} {number(found[p].value, 2)}"
        for p in [[*found][i] for i in spaced(len(found), 8)]
    ]
    lead = "The agreement of early and late timesteps is undefined."
    if found:
        least = min(found, key=lambda place: found[place].value)
        lead = (
            "What the first and the second half of the timesteps add agrees least for "
            f"{shorten(names[least], 36)}: cosine {number(found[least].value, 2)}."
        )
    return Plate(
        "timestep-contribution-conflict",
        50 + depth_height(labels(trace)),
        lambda figure: conflicts(figure.subplots(), trace),
        lead=lead,
        body="Cosine of the gradients that the first and the second half of the timesteps add. "
        "Blue discs: of a sample, median and 95 % interval over samples. Orange squares: of the "
        "mean gradient, where it can be told from zero. 1: they want the same, \u22121: they "
        "cancel.",
        alt=f"Dots with intervals for {count(len(labels(trace)), 'weight')}, between \u22121 and "
        f"1, with a limit at {number(_LIMITS.conflict)}: {'; '.join(parts) or 'no values'}.",
    )


def _table(trace: xr.Dataset, steps: Mapping[int, Estimate]) -> Table:
    """Tabulate the weights."""
    names = trace["weight"].to_numpy().astype(str)
    found, places = sample_conflict(trace), matrices(trace)
    rows = []
    for index in spaced(len(places), _ROWS):
        place = places[index]
        mean, size = mean_conflict(trace, place), coherence(trace, place)
        known = size >= _LIMITS.coherence
        rows.append(
            (
                names[place],
                number(steps[place].value),
                interval(steps[place].low, steps[place].high) or ABSENT,
                number(found[place].value, 2),
                number(mean.value, 2) if known else ABSENT,
                number(size, 2),
            )
        )
    note_ = "Length: squared length of the mean gradient over what independent samples give (1)."
    more = "" if len(rows) == len(places) else " All weights are in the record."
    return Table(
        "Timesteps that train each weight.",
        ("Weight", "Last timesteps", "95 % interval", "Halves", "Halves, mean", "Length"),
        ("name", "number", "number", "number", "number", "number"),
        rows,
        note_ + more,
    )
