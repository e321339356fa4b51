"""Conductance: how much of the decision flows through each layer."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.findings import Finding
from analyzer.rules.layer_conductance import integration_error, layer_shares
from reports.read import array, columns, names, number_of, words
from reports.section import Plate, Section, Table, Tile
from reports.style import (
    BLUE,
    INK,
    LIMIT,
    MUTED,
    PALE_BLUE,
    TEAL,
    Values,
    bands,
    depth_axis,
    depth_height,
    letter,
    note,
    quantiles,
)
from reports.text import ABSENT, count, interval, number, percent

_ROWS = 24
"""Layers whose table is not put into the appendix."""

_WHOLE = 0.05
"""Shares this close to the whole are drawn as whole."""


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    seen = measured(trace)
    shares = layer_shares(seen)
    texts = [number(100 * share.value) for share in shares]
    short = trace.sizes["layer"] <= _ROWS
    return Section(
        tiles=_tiles(trace),
        plates=[_plate(trace)],
        tables=[_table(trace)] if short else [],
        appendix=[] if short else [_table(trace)],
        layers={"Decision (%)": columns(names(seen), texts)},
    )


def measured(trace: xr.Dataset) -> xr.Dataset:
    """Leave out the layers that were not measured."""
    return trace.isel(layer=[i for i, why in enumerate(words(trace, "reason")) if not why])


def by_layer(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the share of the decision that flows through each layer, with its interval."""
    shares = layer_shares(trace)
    value = np.array([100 * share.value for share in shares])
    whole = np.abs(value - 100) <= 100 * _WHOLE
    x = np.arange(value.size)
    depth_axis(ax, names(trace))
    ax.bar(x, value, width=0.7, color=np.where(whole, PALE_BLUE, BLUE).tolist())
    ends = np.array([[100 * share.low, 100 * share.high] for share in shares])
    ax.vlines(x, ends[:, 0], ends[:, 1], color=INK, lw=0.8)
    ax.axhline(100, color=MUTED, lw=0.9, ls=LIMIT)
    ax.axhline(0, color=MUTED, lw=0.5)
    top = float(np.nanmax(np.append(np.nan_to_num(ends[:, 1]), 100.0)))
    bottom = float(np.nanmin(np.append(np.nan_to_num(ends[:, 0]), 0.0)))
    ax.set_ylim(1.1 * bottom, 1.16 * top)
    ax.set_ylabel("Share of decision (%)")
    ax.grid(axis="y")
    place = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "bottom", "color": MUTED}
    note(ax, 0.995, 101, "the whole decision", **place)


def width(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the share of channels that carry most of each layer's conductance."""
    spread = {level: 100 * band for level, band in carried(trace).items()}
    depth_axis(ax, names(trace))
    ax.set_ylabel("Carriers (%)")
    ax.set_ylim(0, 105)
    ax.grid(axis="y")
    bands(ax, np.arange(spread[50].size, dtype=np.float64), spread, TEAL)


def carried(trace: xr.Dataset) -> dict[int, Values]:
    """Return quantiles over samples of the share of channels that hold 90 % of the conductance."""
    return quantiles(array(trace, "carriers", "sample", "layer"))


def _draw(figure: Figure, trace: xr.Dataset) -> None:
    """Lay out both panels over one axis."""
    top, bottom = figure.subplots(2, 1, height_ratios=(1.4, 1))
    by_layer(top, trace)
    width(bottom, trace)
    top.set_xlabel("")
    top.set_xticklabels([])
    letter(top, "a")
    letter(bottom, "b")


def _around(trace: xr.Dataset) -> list[int]:
    """Return the layers that carry less than the whole, least first."""
    value = [share.value for share in layer_shares(trace)]
    return sorted((i for i, v in enumerate(value) if v < 1 - _WHOLE), key=lambda i: value[i])


def _tiles(trace: xr.Dataset) -> list[Tile]:
    """Name the numbers that matter."""
    seen = measured(trace)
    around, shares = _around(seen), layer_shares(seen)
    total = number_of(trace, "layers_total")
    least = (
        Tile("Least", percent(shares[around[0]].value), names(seen)[around[0]])
        if around
        else Tile("Least", "the whole", "nothing goes around a layer")
    )
    middle = carried(seen)[50]
    return [
        Tile("Layers", number(seen.sizes["layer"]), f"of {number(total)} that can be measured"),
        Tile("Bypassed", number(len(around)), "carry less than the whole"),
        least,
        Tile(
            "Channels that carry 90 %",
            percent(float(np.nanmedian(middle)) if np.isfinite(middle).any() else np.nan),
            "median layer",
        ),
    ]


def _plate(trace: xr.Dataset) -> Plate:
    """Word the figure."""
    seen, samples = measured(trace), trace.sizes["sample"]
    return Plate(
        "layer-conductance",
        66 + depth_height(names(seen)),
        lambda figure: _draw(figure, seen),
        lead=_lead(seen),
        body="a: share of the decision that flows through each layer; line: 95 % bootstrap "
        f"interval over {count(samples, 'sample')}; dark: bypassed. A layer that nothing goes "
        "around carries the whole; in a branch, the rest takes the other branches. b: share of a "
        "layer's channels that hold 90 % of its conductance; median, 25 to 75 % and 5 to 95 % of "
        "the samples.",
        alt=_alt(seen),
        todo="Ablate a layer that carries little before removing it." if _around(seen) else "",
    )


def _lead(trace: xr.Dataset) -> str:
    """Say what the figure shows."""
    around, shares = _around(trace), layer_shares(trace)
    if not around:
        return "The whole decision flows through every layer measured: nothing goes around them."
    return (
        f"Of the decision, {percent(shares[around[0]].value)} flows through "
        f"{names(trace)[around[0]]}, the least; {count(len(around), 'layer')} of "
        f"{number(len(shares))} carry less than the whole."
    )


def _alt(trace: xr.Dataset) -> str:
    """Describe the figure."""
    shares, labels = layer_shares(trace), names(trace)
    value = np.array([share.value for share in shares])
    if not np.isfinite(value).any():
        return "Bars without height: no share is defined."
    low, high = int(np.nanargmin(value)), int(np.nanargmax(value))
    middle = carried(trace)[50]
    below = (
        f"Lower line: {percent(np.nanmin(middle))} to {percent(np.nanmax(middle))} of the channels."
        if np.isfinite(middle).any()
        else "Lower plot empty."
    )
    return (
        f"{count(len(labels), 'bar')}, from {labels[0]} ({percent(value[0])}) to {labels[-1]} "
        f"({percent(value[-1])}); lowest {labels[low]} ({percent(value[low])}), highest "
        f"{labels[high]} ({percent(value[high])}). {below}"
    )


def _table(trace: xr.Dataset) -> Table:
    """Tabulate every layer, with why those without a number have none."""
    shares, wrong = layer_shares(trace), integration_error(trace)
    middle = carried(trace)[50]
    reasons, kinds = words(trace, "reason"), words(trace, "kind")
    rows = [
        (
            name,
            reasons[i] or kinds[i],
            ABSENT if reasons[i] else number(100 * shares[i].value),
            "" if reasons[i] else interval(100 * shares[i].low, 100 * shares[i].high),
            number(100 * wrong[i], 2),
            number(100 * middle[i]),
        )
        for i, name in enumerate(names(trace))
    ]
    heads = (
        "Layer",
        "Kind, or why not measured",
        "Share (%)",
        "95 % interval",
        "Error (%)",
        "Carriers (%)",
    )
    return Table(
        "Share of the decision that flows through each layer.",
        heads,
        ["name", "text", *["number"] * 4],
        rows,
        "Error: change of the share when every second step is left out. Carriers: share of the "
        "channels that hold 90 % of the conductance, median sample.",
    )
