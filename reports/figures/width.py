"""Width: how many directions the features of every layer fill."""

from collections.abc import Sequence
from math import isnan
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from analyzer.findings import Finding, Severity
from analyzer.rules.redundancy import measured
from analyzer.rules.units import dead
from analyzer.rules.width import filled, loss_share, short, untrained
from reports.read import array, columns, names, number_of, spaced, words
from reports.section import Plate, Section, Table, Tile
from reports.style import (
    BLUE,
    GRID,
    HALO,
    LIMIT,
    MUTED,
    ORANGE,
    PALE_BLUE,
    RED,
    Values,
    depth_axis,
    depth_height,
    note,
)
from reports.text import ABSENT, count, interval, number, percent, shorten

_ROWS = 16
_MANY = 40
"""Layers from which on marks are small."""

_CURVES = 6
"""Layers whose curve is drawn and named."""


def curves(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the share of the variance that the first directions hold, for some layers."""
    layers, level = names(trace), 100 * number_of(trace, "level")
    held = 100 * np.nancumsum(array(trace, "variance", "layer", "direction"), 1)
    known = [at for at in _known(trace) if held.shape[1]]
    ax.set_title("variance held by the first directions", loc="left")
    ax.set_xscale("log")
    ax.set_ylabel("Share of the variance [%]")
    ax.set_xlabel("Directions")
    for at in known:
        width = int(trace["width"].to_numpy()[at])
        ax.plot(np.arange(1, width + 1), held[at, :width], color=GRID, lw=0.7, zorder=1)
    chosen = [known[place] for place in spaced(len(known), _CURVES)]
    for order, at in enumerate(chosen):
        width = int(trace["width"].to_numpy()[at])
        color, dash = _shade(order, len(chosen)), "-" if order % 2 == 0 else (0, (4, 1.4))
        ax.plot(np.arange(1, width + 1), held[at, :width], color=color, lw=1.3, ls=dash)
    ax.axhline(level, color=RED, lw=0.9, ls=LIMIT)
    ax.set_ylim(0, 104)
    most = max((int(trace["width"].to_numpy()[at]) for at in known), default=2)
    ticks = [2**power for power in range(0, 14) if 2**power <= most]
    step = -(-len(ticks) // 6)
    ax.set_xlim(1, max(most, 2))
    ax.xaxis.set_major_locator(FixedLocator(ticks[::step]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda value, _: number(value))
    ax.grid(axis="y")
    below = {"color": RED, "va": "top", "ha": "right", "fontsize": 6.2, "path_effects": HALO}
    note(ax, ax.get_xlim()[1], level - 2, f"{number(level)} %", **below)
    for order, at in enumerate(chosen):
        y = 6 + 8.5 * (len(chosen) - 1 - order)
        where = {"ha": "right", "va": "center", "transform": ax.get_yaxis_transform()}
        named, color = shorten(layers[at], 20), _shade(order, len(chosen))
        note(ax, 0.98, y, named, color=color, fontsize=6.5, path_effects=HALO, **where)


def _shade(order: int, total: int) -> str:
    """Colour of a curve, from the first layer to the last."""
    ramp = ("#9DB8D2", "#6F9CC4", "#3F7CB3", BLUE, "#073763", "#1A1D21")
    return ramp[round(order * (len(ramp) - 1) / max(total - 1, 1))]


def over_depth(ax: Axes, trace: xr.Dataset, narrow: Sequence[str]) -> None:
    """Draw the share of its width that every layer fills, beside untrained copies."""
    layers, found = names(trace), filled(trace)
    allowed = array(trace, "most", "layer")
    many = len(layers) > _MANY
    ax.set_title("directions, share of those possible", loc="left", pad=11 if many else None)
    null = array(trace, "untrained_directions", "copy", "layer") / allowed
    if len(null):
        line: dict[str, Any] = {"color": PALE_BLUE, "lw": 0, "marker": ".", "ms": 1.6}
        line = line if many else {"color": MUTED, "lw": 1, "ls": LIMIT}
        ax.plot(np.arange(len(layers)), 100 * null.mean(0), zorder=1, **line)
    rank = array(trace, "effective_rank", "layer") / allowed
    ax.plot(np.arange(len(layers)), 100 * rank, "D", color=ORANGE, mfc="white",
            ms=1.2 if many else 2.4, mew=0.4 if many else 0.8)  # fmt: skip
    for at, layer in enumerate(layers):
        if layer not in found:
            known = not isnan(float(trace["directions"][at]))
            text = "output" if known else "?"
            if len(layers) <= 24:
                note(ax, at, 2, text, ha="center", va="bottom", fontsize=6.2, color=MUTED)
            continue
        one, idle = found[layer], layer in narrow
        color = RED if idle else BLUE
        ax.plot([at, at], [100 * one.low, 100 * one.high], color=color, lw=1.1)
        ax.plot(
            at, 100 * one.value, "s" if idle else "o", color=color, ms=1.8 if many else 3.4, mew=0
        )
    depth_axis(ax, layers, 0.55)
    ax.set_ylim(0, 104)
    ax.set_ylabel("Share of the directions [%]")
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.grid(axis="y")


def draw(figure: Figure, trace: xr.Dataset, narrow: Sequence[str]) -> None:
    """Lay out both panels."""
    left, right = figure.subplots(1, 2, width_ratios=[0.8, 1.1])
    curves(left, trace)
    over_depth(right, trace, narrow)


def _known(trace: xr.Dataset) -> list[int]:
    """Return the layers whose directions are known and whose width could be another one."""
    found = filled(trace)
    return [at for at, layer in enumerate(names(trace)) if layer in found]


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    judged = next((f for f in findings if f.code == "width-wasted"), None)
    layers = names(trace)
    narrow = list(judged.where) if judged and judged.severity is Severity.WARN else []
    found = filled(trace)
    whole = _table(trace, range(len(layers)))
    fits = len(layers) <= _ROWS + 4
    some = _table(trace, spaced(len(layers), _ROWS), f"{_ROWS} of {len(layers)} layers, evenly.")
    shares = [percent(found[layer].value) if layer in found else "" for layer in layers]
    return Section(
        tiles=_tiles(trace),
        plates=[_plate(trace, judged, narrow)] if found else [],
        tables=[whole if fits else some],
        appendix=[] if fits else [whole],
        layers={
            "Kind": columns(layers, words(trace, "kind")),
            "Width in use": columns(layers, shares),
        },
    )


def _tiles(trace: xr.Dataset) -> list[Tile]:
    """Name the numbers that matter."""
    found, loss = filled(trace), loss_share(trace)
    tiles = []
    if found:
        middle = float(np.median([one.value for one in found.values()]))
        beside = untrained(trace, [*found])
        copies = "" if isnan(beside) else f"untrained {percent(beside)}"
        tiles.append(Tile("Directions in use, median", percent(middle), copies))
        spared = 1 - float(trace["kept_parameters"].sum()) / float(trace["parameters"].sum())
        tiles.append(Tile("Parameters of unused width", percent(spared), "upper end"))
    if not isnan(loss.value):
        ends = interval(100 * loss.low, 100 * loss.high)
        tiles.append(Tile("Loss without it changes by", percent(loss.value), ends))
    repeated = float(trace["copies"].sum())
    tiles.append(Tile("Units that repeat another", number(repeated), f"of {_units(trace)}"))
    idle = sum(round(one.share.value * one.units) for one in dead(trace))
    if trace.sizes["response"] and np.isfinite(trace["active"].to_numpy()).any():
        tiles.append(Tile("Dead units", number(idle), "behind ReLUs"))
    return tiles


def _units(trace: xr.Dataset) -> str:
    """Count the units of all layers."""
    return number(float(trace["width"].sum()))


def _plate(trace: xr.Dataset, judged: Finding | None, narrow: Sequence[str]) -> Plate:
    """Word the figure."""
    layers, found = names(trace), filled(trace)
    middle = float(np.median([one.value for one in found.values()]))
    least = min(found, key=lambda layer: found[layer].value)
    level = percent(number_of(trace, "level"))
    lead = (
        f"Half of {count(len(found), 'layer')} hold {level} of their variance in {percent(middle)} "
        f"of their directions or fewer; {shorten(least, 28)} in {percent(found[least].value)}."
        if len(found) > 1
        else f"{shorten(least, 28)} holds {level} of its variance in {percent(middle)} of its "
        "directions."
    )
    few = short(trace)
    lacking = f" {count(len(few), 'layer')} with too few positions left out." if few else ""
    dotted = "Pale dots" if len(layers) > _MANY else "Dotted line"
    copies = f" {dotted}: untrained copies." if trace.sizes["copy"] else ""
    return Plate(
        "width",
        64 + depth_height(layers, 0.55),
        lambda figure: draw(figure, trace, narrow),
        lead=lead,
        body="Left: share of the variance along the first principal directions of what a layer "
        f"returns; grey: all layers. Right: directions that hold {level} of it, as a share of "
        "those that the weights allow, with their 95 % interval (red squares: wider than the "
        f"output needs); diamonds: effective rank.{copies}{lacking}",
        alt=_alt(trace),
        todo=f"Train with {', '.join(shorten(layer, 30) for layer in narrow[:3])} narrower, and "
        "compare."
        if narrow
        else "",
    )


def _alt(trace: xr.Dataset) -> str:
    """Describe both panels."""
    layers, known = names(trace), _known(trace)
    counts, widths = array(trace, "directions", "layer"), array(trace, "most", "layer")
    texts = [
        f"{shorten(layers[at], 30)} {number(counts[at])} of {number(widths[at])}"
        for at in (known[place] for place in spaced(len(known), 6))
    ]
    return (
        f"Rising curves of the variance held, and the directions of {count(len(known), 'layer')}: "
        f"{'; '.join(texts)}."
    )


def _table(trace: xr.Dataset, chosen: Sequence[int], title: str = "") -> Table:
    """Tabulate the layers."""
    layers, kinds = names(trace), words(trace, "kind")
    counts = measured(trace, "directions")
    keys = ("width", "effective_rank", "participation", "independent", "copies")
    width, rank, part, seen, copies = (array(trace, key, "layer") for key in keys)
    spared = array(trace, "parameters", "layer") - array(trace, "kept_parameters", "layer")
    null = array(trace, "untrained_directions", "copy", "layer")
    rows = [
        (
            layers[at],
            kinds[at],
            f"{number(counts[layers[at]].value)} / {number(width[at])}",
            interval(counts[layers[at]].low, counts[layers[at]].high) or ABSENT,
            number(_mean(null[:, at])),
            number(rank[at]),
            number(part[at]),
            number(copies[at]),
            number(spared[at]),
            number(seen[at]),
        )
        for at in chosen
    ]
    return Table(
        title or "Width in use, layer by layer.",
        (
            *("Layer", "Kind", "Directions", "95 %", "Untrained", "Eff. rank", "Particip."),
            *("Repeats", "Spare", "Positions"),
        ),
        ("name", "text", *["number"] * 8),
        rows,
        "Directions: those that hold the variance, of the units. Spare: parameters that go "
        "if every layer is as wide as its directions. Positions: as many count as independent.",
    )


def _mean(values: Values) -> float:
    """Average; nan of nothing."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
