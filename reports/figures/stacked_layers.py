"""Stacked recurrent layers: what each adds, side by side."""

from collections.abc import Sequence
from functools import partial
from math import isnan

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyzer.findings import Finding, Severity
from analyzer.rules.idle import shares
from analyzer.rules.stacked_layers import contributions, half_reach
from analyzer.rules.verdicts import Estimate
from reports.read import array, columns, names, spaced, words
from reports.section import Plate, Section, Table, Tile
from reports.signed import signed_axis
from reports.style import BLUE, HALO, LIMIT, MUTED, ORANGE, PALE_BLUE, RED, TEAL, Values, note
from reports.text import ABSENT, count, interval, number, percent, shorten

_NAMED = 26
"""Layers that are all named on the axis."""

_ROWS = 16


def changes(ax: Axes, trace: xr.Dataset, marked: Sequence[str], limit: float) -> None:
    """Draw the loss with a linear map for each layer, and with the layer skipped."""
    layers = names(trace)
    found = [*contributions(trace).values()]
    skipped = np.array([p.value for p in shares(trace["skip_change"], trace["intact_loss"])])
    ends = np.array([value for part in found for value in (part.value, part.low, part.high)])
    ax.set_title("loss without it", loc="left")
    if not np.isfinite(ends).any():
        _empty(ax)
        return
    signed_axis(ax, np.concatenate([ends, skipped]), limit, "x", most=4)
    ax.plot(skipped, np.arange(len(layers)), "D", color=ORANGE, mfc="white", ms=3, mew=0.9)
    for place, (name, part) in enumerate(zip(layers, found, strict=True)):
        idle = name in marked
        color = RED if idle else BLUE
        ax.plot([part.low, part.high], [place, place], color=color, lw=1.2)
        ax.plot(part.value, place, "s" if idle else "o", color=color, ms=3.4, mew=0)
    if not isnan(limit):
        ax.axvline(limit, color=RED, lw=0.9, ls=LIMIT)
        below = {"color": RED, "va": "bottom", "fontsize": 6.2, "path_effects": HALO}
        note(ax, limit, len(layers) - 0.45, f" limit {percent(limit)}", **below)


def directions(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the effective rank of the states of every layer."""
    rank = array(trace, "effective_rank", "layer")
    ax.set_title("directions filled", loc="left")
    _bars(ax, rank, number, PALE_BLUE, BLUE)


def memory(ax: Axes, trace: xr.Dataset) -> None:
    """Draw how many inputs back half of what moves the last state lies."""
    found = [*half_reach(trace).values()]
    ax.set_title("inputs to half change", loc="left")
    _dots(ax, found, BLUE)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def likeness(ax: Axes, trace: xr.Dataset) -> None:
    """Draw how alike each layer's states are to what it reads."""
    ends = (array(trace, f"similarity{end}", "layer") for end in ("", "_low", "_high"))
    ax.set_title("similarity to input", loc="left")
    _dots(ax, [Estimate(*row) for row in np.stack([*ends], 1)], TEAL)
    ax.set_xlim(min(0.0, ax.get_xlim()[0]), 1.03)


def training(ax: Axes, trace: xr.Dataset) -> None:
    """Draw each layer's share of the squared gradient of all recurrent weights."""
    share = array(trace, "gradient_share", "layer")
    ax.set_title("gradient share", loc="left")
    _bars(ax, share, partial(percent, digits=2), "#E3E7EB", MUTED)


def _bars(ax: Axes, values: Values, written: object, face: str, edge: str) -> None:
    """Draw labelled bars; undefined ones are said to be so."""
    known = values[np.isfinite(values)]
    if not known.size:
        _empty(ax)
        return
    ax.barh(np.arange(values.size), values, 0.55, fc=face, ec=edge, lw=0.7)
    ax.set_xlim(0, 1.5 * float(known.max()) or 1)
    ax.xaxis.set_major_locator(MaxNLocator(3))
    if values.size <= _NAMED:
        for place, value in enumerate(values):
            text = "undefined" if isnan(value) else written(value)  # type: ignore[operator]
            x = np.nan_to_num(value) + 0.03 * ax.get_xlim()[1]
            note(ax, x, place, text, va="center", fontsize=6.5)


def _dots(ax: Axes, found: Sequence[Estimate], color: str) -> None:
    """Draw values with their intervals."""
    value, low, high = (
        np.array([getattr(part, end) for part in found]) for end in ("value", "low", "high")
    )
    if not np.isfinite(value).any():
        _empty(ax)
        return
    at = np.arange(value.size)
    ax.hlines(at, np.where(np.isnan(low), value, low), np.where(np.isnan(high), value, high),
              color=color, lw=1.2)  # fmt: skip
    ax.plot(value, at, "o", color=color, ms=3.4, mew=0)
    ends = np.concatenate([value, low, high])
    ax.set_xlim(min(0.0, float(np.nanmin(ends))), 1.08 * float(np.nanmax(ends)) or 1)
    ax.xaxis.set_major_locator(MaxNLocator(3))


def _empty(ax: Axes) -> None:
    """Say that there is nothing."""
    ax.set_xticks([])
    note(ax, 0.5, 0.5, "not measured", transform=ax.transAxes, ha="center")


def draw(figure: Figure, trace: xr.Dataset, marked: Sequence[str], limit: float) -> None:
    """Lay the panels out beside each other, with the layers from the first at the top."""
    layers = names(trace)
    panels = figure.subplots(1, 5, sharey=True, width_ratios=[1.5, 1, 1, 1, 1])
    changes(panels[0], trace, marked, limit)
    for ax, panel in zip(panels[1:], (directions, memory, likeness, training), strict=True):
        panel(ax, trace)
    shown = spaced(len(layers), _NAMED)
    panels[0].set_yticks(shown, [shorten(layers[i], 18) for i in shown], parse_math=False)
    panels[0].set_ylim(len(layers) - 0.4, -0.6)
    for ax in panels:
        ax.tick_params(axis="y", length=0)
        ax.title.set_fontsize(7)


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    found, layers = contributions(trace), names(trace)
    judged = next((f for f in findings if f.code == "stack-depth"), None)
    idle = list(judged.where) if judged and judged.severity is Severity.WARN else []
    worth = [percent(part.value) if part.samples else "" for part in found.values()]
    return Section(
        tiles=_tiles(trace, idle),
        plates=[_plate(trace, judged, idle)],
        tables=[_table(trace)],
        layers={
            "Kind": columns(layers, words(trace, "kind")),
            "Loss as a linear map": columns(layers, worth),
        },
    )


def _tiles(trace: xr.Dataset, idle: Sequence[str]) -> list[Tile]:
    """Name the numbers that matter."""
    layers, rank = names(trace), array(trace, "effective_rank", "layer")
    units = trace["units"].to_numpy()
    tiles = [
        Tile("Layers that add nothing", f"{len(idle)} of {len(layers)}", "beyond a linear map"),
    ]
    if np.isfinite(rank).any():
        top = int(np.nanargmax(rank))
        tiles.append(
            Tile("Most directions filled", number(rank[top]), f"of {units[top]}, in {layers[top]}")
        )
    far = {name: part.value for name, part in half_reach(trace).items() if not isnan(part.value)}
    if far:
        name = max(far, key=lambda layer: far[layer])
        tiles.append(Tile("Longest half-reach", number(far[name]), f"inputs, in {name}"))
    tiles.append(Tile("Samples", str(trace.sizes["sample"]), "left out as pairs"))
    return tiles


def _plate(trace: xr.Dataset, judged: Finding | None, idle: Sequence[str]) -> Plate:
    """Word the figure."""
    layers, found = names(trace), contributions(trace)
    limit = float("nan") if judged is None else judged.limit
    known = {name: part for name, part in found.items() if part.samples}
    lead = "No layer could be replaced."
    if known:
        most = max(known, key=lambda name: known[name].value)
        adds = f"{len(idle)} of {count(len(layers), 'layer')} add nothing beyond a linear map"
        if not idle:
            passed = judged is not None and judged.severity is Severity.PASS
            adds = f"None of {count(len(layers), 'layer')} can be replaced by a linear map"
            adds = adds if passed else "It is uncertain whether every layer adds something"
        lead = (
            f"{adds}; {shorten(most, 30)} is worth most, {percent(known[most].value)} of the loss."
        )
    return Plate(
        "stacked-layers",
        26 + min(len(layers), 40) * 4.6,
        lambda figure: draw(figure, trace, idle, limit),
        lead=lead,
        body="From left: change of the loss, as a share of it, with the best linear map of what "
        "the layer reads in its place (dots; red squares: idle) and with the layer skipped where "
        "sizes allow (diamonds); directions that its states fill; last inputs that decide less "
        "than half of its last state; similarity of what it returns to what it reads; its share "
        "of the squared gradient of the recurrent weights. Lines: 95 % intervals.",
        alt=_alt(trace),
        todo=f"Train without {', '.join(shorten(name, 30) for name in idle[:3])} and compare."
        if idle
        else "",
    )


def _alt(trace: xr.Dataset) -> str:
    """Describe the panels."""
    layers, found = names(trace), contributions(trace)
    rank = array(trace, "effective_rank", "layer")
    reach = half_reach(trace)
    texts = [
        f"{shorten(layers[i], 30)}: loss {percent(found[layers[i]].value)}, {number(rank[i])} "
        f"directions, {number(reach[layers[i]].value)} inputs"
        for i in spaced(len(layers), 6)
    ]
    return f"Five panels over {count(len(layers), 'layer')}. {'; '.join(texts)}."


def _table(trace: xr.Dataset) -> Table:
    """Tabulate the layers."""
    layers, kinds = names(trace), words(trace, "kind")
    found, reach = [*contributions(trace).values()], [*half_reach(trace).values()]
    skipped = shares(trace["skip_change"], trace["intact_loss"])
    numbers = {
        name: array(trace, name, "layer") for name in ("effective_rank", "units", "explained")
    }
    rows = [
        (
            layers[i],
            kinds[i],
            percent(found[i].value),
            interval(100 * found[i].low, 100 * found[i].high) or ABSENT,
            percent(skipped[i].value),
            percent(numbers["explained"][i]),
            f"{number(numbers['effective_rank'][i])} / {trace['units'].to_numpy()[i]}",
            number(reach[i].value),
        )
        for i in spaced(len(layers), _ROWS)
    ]
    changed = ("Linear map", "95 % interval", "Skipped")
    heads = ("Layer", "Kind", *changed, "Explained", "Directions", "Half")
    align = ("name", "text", *["number"] * 6)
    return Table(
        "What each layer adds.",
        heads,
        align,
        rows,
        "Linear map, skipped: change of the loss in percent of it. Explained: variance of the "
        "states that the map explains. Half: last inputs that decide less than half of the state."
        + ("" if len(rows) == len(layers) else " All layers are in the appendix."),
    )
