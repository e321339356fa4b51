"""Gates: how long the units of every layer hold on, and how open their gates are."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analyzer.findings import Finding
from analyzer.limits import GatesLimits
from analyzer.rules.gates import Stuck, stuck, timescales
from analyzer.rules.verdicts import Estimate
from reports.read import array, columns, names, number_of, spaced, words
from reports.section import Plate, Section, Table, Tile
from reports.style import BLUE, HALO, INK, LIMIT, MUTED, PALE_BLUE, Values, letter, note
from reports.text import ABSENT, count, interval, number, percent, quantity, shorten

_ROWS = 16
_REST = "#EEF0F2"
"""Fill of the time at which a gate is neither open nor closed."""


def rows(ax: Axes, layers: Sequence[str]) -> None:
    """Give every layer a row, the first one on top."""
    ax.set_ylim(len(layers) - 0.45, -0.55)
    labels = [shorten(layer, 20) for layer in layers]
    ax.set_yticks(range(len(layers)), labels, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def spread(ax: Axes, trace: xr.Dataset, layers: Sequence[str], length: float) -> None:
    """Draw the timescales of the units of some layers, one row each, with the sequence length."""
    rows(ax, layers)
    ax.set_xlabel("Timescale of a unit (timesteps)")
    found, everything = timescales(trace), array(trace, "timescale", "layer", "unit")
    shown = [everything[names(trace).index(layer)] for layer in layers]
    known = np.concatenate([own[np.isfinite(own) & (own > 0)] for own in shown])
    if not known.size:
        ax.set_xticks([])
        note(ax, 0.5, 0.5, "no layer has timescales", transform=ax.transAxes, ha="center")
        return
    _log_scale(ax, np.append(known, length))
    for row, (layer, own) in enumerate(zip(layers, shown, strict=True)):
        finite = own[np.isfinite(own) & (own > 0)]
        ax.plot(finite, np.full(finite.size, row + 0.26), "|", color=MUTED, ms=4, mew=0.4)
        if layer in found:
            _box(ax, row, [one.value for one in found[layer]])
    ax.axvline(length, color=INK, lw=0.8, ls=LIMIT)
    ax.annotate(
        f"sequence length {number(length)}",
        (length, 1),
        xycoords=ax.get_xaxis_transform(),
        xytext=(-3, -1),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=7,
        path_effects=HALO,
        in_layout=False,
    )


def _box(ax: Axes, row: int, levels: Sequence[float]) -> None:
    """Draw the quantiles of one layer: 5 to 95 % thin, the middle half thick, the median a dot."""
    least, low, middle, high, most = levels
    ax.plot([least, most], [row, row], color=BLUE, lw=0.8, solid_capstyle="butt")
    ax.plot([low, high], [row, row], color=BLUE, lw=3.2, solid_capstyle="butt")
    ax.plot([middle], [row], "o", color="white", mec=BLUE, mew=1.2, ms=4.2)


def _log_scale(ax: Axes, values: Values) -> None:
    """Make the x axis logarithmic with plain numbers."""
    low, high = np.log10(values.min()), np.log10(values.max())
    pad = 0.05 * max(high - low, 0.5)
    ax.set_xscale("log")
    ax.set_xlim(10 ** (low - pad), 10 ** (high + pad))
    steps = (1, 10) if high - low > 4 else (1, 2, 5)
    ticks = [s * 10.0**p for p in range(int(np.floor(low)) - 1, int(high) + 2) for s in steps]
    inside = sorted({t for t in ticks if low - pad <= np.log10(t) <= high + pad})
    ax.xaxis.set_major_locator(FixedLocator(inside))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(axis="x")


def shares(ax: Axes, trace: xr.Dataset, gate: str, layers: Sequence[str]) -> None:
    """Draw the share of time that a gate is closed and open, averaged over units and samples."""
    rows(ax, layers)
    ax.set_xlim(0, 100)
    ax.set_xticks([0, 50, 100])
    for row, layer in enumerate(layers):
        closed, opened = (100 * _average(trace, name, layer, gate) for name in ("closed", "open"))
        if np.isnan(closed):
            note(ax, 50, row, ABSENT, ha="center", va="center", color=MUTED)
            continue
        ax.barh(row, 100, height=0.72, color=_REST)
        ax.barh(row, closed, height=0.72, color=BLUE)
        ax.barh(row, np.nan_to_num(opened), left=100 - np.nan_to_num(opened), height=0.72,
                color=PALE_BLUE)  # fmt: skip
    letter(ax, gate)


def _average(trace: xr.Dataset, name: str, layer: str, gate: str) -> float:
    """Average over samples and units; nan where the layer does not have the gate."""
    return float(trace[name].sel(layer=layer, gate=gate).mean())


def _mark_stuck(ax: Axes, found: Sequence[Stuck], gate: str, layers: Sequence[str]) -> None:
    """Write how many units never leave an end."""
    for one in found:
        if one.gate == gate and one.layer in layers and one.count:
            row = list(layers).index(one.layer)
            text = f"{one.count} of {one.units} {one.end}"
            note(ax, 50, row, text, ha="center", va="center", fontsize=6.5, path_effects=HALO)


def _draw_shares(figure: Figure, trace: xr.Dataset, layers: Sequence[str]) -> None:
    """Lay out one panel per gate on the same rows."""
    kinds = names(trace, "gate")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    found = stuck(trace, GatesLimits())
    for place, (ax, gate) in enumerate(zip(panels, kinds, strict=True)):
        shares(ax, trace, gate, layers)
        _mark_stuck(ax, found, gate, layers)
        if place:
            ax.tick_params(axis="y", labelleft=False)
    figure.supxlabel("Share of the timesteps (%): closed from the left, open from the right",
                     fontsize=7.5, color="#3A424C")  # fmt: skip


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    layers, found = names(trace), timescales(trace)
    length = float(trace["length"].max())
    shown = [layers[index] for index in spaced(len(layers), _ROWS)]
    plates = [_shares_plate(trace, shown)]
    if found:
        held = [layer for layer in layers if layer in found]
        chosen = [held[index] for index in spaced(len(held), _ROWS)]
        plates.insert(0, _timescale_plate(trace, found, chosen, length))
    return Section(
        tiles=_tiles(trace, found, length),
        plates=plates,
        tables=[_table(trace, found)],
        layers={
            "Kind": columns(layers, words(trace, "kind")),
            "Timescale": columns(
                layers,
                [
                    quantity(found[layer][2].value, "timesteps") if layer in found else ""
                    for layer in layers
                ],
            ),
        },
    )


def _tiles(trace: xr.Dataset, found: dict[str, list[Estimate]], length: float) -> list[Tile]:
    """Name the numbers that matter."""
    worst = max(stuck(trace, GatesLimits()), key=lambda one: one.share.value)
    tiles = []
    if found:
        slowest = max(found, key=lambda layer: found[layer][2].value)
        tiles = [
            Tile(
                "Slowest layer, median timescale",
                quantity(found[slowest][2].value, "timesteps"),
                shorten(slowest, 28),
            ),
            Tile(
                "Units slower than the sequence",
                percent(float((trace["timescale"] > length).sum() / _units(trace))),
                f"of {number(length)} timesteps",
            ),
        ]
    stays = f"{worst.gate} {worst.end}, {shorten(worst.layer, 20)}" if worst.count else ""
    tiles.append(Tile("Units stuck at most", percent(worst.share.value), stays))
    residual = number_of(trace, "replay_residual")
    tiles.append(Tile("Samples", number(trace.sizes["sample"]),
                      f"replay residual {number(residual, 2)}"))  # fmt: skip
    return tiles


def _units(trace: xr.Dataset) -> int:
    """Count the units that have a timescale."""
    return int(trace["timescale"].notnull().sum())


def _timescale_plate(
    trace: xr.Dataset, found: dict[str, list[Estimate]], layers: Sequence[str], length: float
) -> Plate:
    """Word the timescales."""
    slow, fast = (pick(found, key=lambda layer: found[layer][2].value) for pick in (max, min))
    more = "" if len(layers) == len(found) else f" {len(layers)} of {len(found)} layers are shown."
    medians = "; ".join(
        f"{shorten(layer, 30)} {number(found[layer][2].value)} (5 to 95 %: "
        f"{number(found[layer][0].value)} to {number(found[layer][-1].value)})"
        for layer in layers[:6]
    )
    lead = (
        f"The median timescale runs from {number(found[fast][2].value)} in {shorten(fast, 24)} to "
        f"{quantity(found[slow][2].value, 'timesteps')} in {shorten(slow, 24)}."
        if slow != fast
        else f"Half of the units hold on for {quantity(found[slow][2].value, 'timesteps')} or more."
    )
    return Plate(
        "gates-timescale",
        18 + 7.5 * len(layers),
        lambda figure: spread(figure.subplots(), trace, layers, length),
        lead=lead,
        body="Timescale that the mean forget gate (LSTM) or update gate (GRU) of each unit stands "
        f"for: units as ticks, their median, middle half and 5 to 95 %.{more} A unit's timescale "
        "is not the network's memory.",
        alt=f"Rows of ticks and boxes on a logarithmic axis for {count(len(layers), 'layer')}. "
        f"Median timescales: {medians}. Sequence length {number(length)} marked.",
    )


def _shares_plate(trace: xr.Dataset, layers: Sequence[str]) -> Plate:
    """Word the shares of time."""
    found = [one for one in stuck(trace, GatesLimits()) if one.count]
    worst = max(found, key=lambda one: one.share.value, default=None)
    lead = (
        "No gate of any unit stays at one end all the time."
        if worst is None
        else f"In {shorten(worst.layer, 30)}, the {worst.what} of {worst.count} of {worst.units} "
        f"units is always {worst.end}."
    )
    rows_ = [
        f"{gate} of {shorten(layer, 24)} closed {percent(_average(trace, 'closed', layer, gate))}, "
        f"open {percent(_average(trace, 'open', layer, gate))}"
        for layer in layers[:3]
        for gate in names(trace, "gate")
        if not np.isnan(_average(trace, "closed", layer, gate))
    ]
    more = trace.sizes["layer"] - len(layers)
    return Plate(
        "gates-share",
        20 + 5.2 * len(layers),
        lambda figure: _draw_shares(figure, trace, layers),
        lead=lead,
        body="Share of the timesteps at which each gate is closed (below 0.1, dark, from the left) "
        "and open (above 0.9, light, from the right), averaged over units and samples. Of a "
        "candidate, and of a state without gates, these are the ends of its tanh. Numbers: units "
        "that are always there." + (f" {count(more, 'layer')} not shown." if more else ""),
        alt=f"Stacked bars for {count(len(layers), 'layer')}: {'; '.join(rows_)}.",
        todo="" if worst is None else "Look at these units: a gate that never moves is no gate.",
    )


def _table(trace: xr.Dataset, found: dict[str, list[Estimate]]) -> Table:
    """Tabulate the layers."""
    layers, kinds = names(trace), words(trace, "kind")
    most: dict[str, Stuck] = {}
    for one in stuck(trace, GatesLimits()):
        if one.layer not in most or one.share.value > most[one.layer].share.value:
            most[one.layer] = one
    lines = []
    for index in spaced(len(layers), _ROWS):
        layer, worst = layers[index], most[layers[index]]
        scales = found.get(layer, [Estimate()] * 5)
        stays = f"{worst.count} of {worst.units}: {worst.gate} {worst.end}" if worst.count else "0"
        lines.append(
            (
                layer,
                kinds[index],
                number(scales[2].value),
                interval(scales[2].low, scales[2].high) or ABSENT,
                number(scales[-1].value),
                stays,
            )
        )
    return Table(
        "Gates by layer.",
        ("Layer", "Kind", "Median timescale", "95 % interval", "Slowest 5 %", "Stuck units"),
        ("name", "text", "number", "number", "number", "text"),
        lines,
        "" if len(lines) == len(layers) else "All layers are in the appendix.",
    )
