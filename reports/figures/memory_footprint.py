"""Memory: what training and serving are made of, layer by layer, and how both grow."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.findings import Finding
from analyzer.rules.memory_footprint import size
from analyzer.rules.memory_growth import GIB, SIZES, Growth, Parts
from reports.read import array, columns, names, spaced, words
from reports.section import Plate, Section, Table, Tile
from reports.style import (
    BLUE,
    INK,
    LIMIT,
    MUTED,
    ORANGE,
    PALE_BLUE,
    TEAL,
    Values,
    depth_axis,
    depth_height,
    letter,
    log_axis,
    note,
)
from reports.text import ABSENT, THIN, count, number, percent, tied

MIB = 2.0**20
_ROWS = 24
_POINTS = 48
_KINDS = ("training", "serving")
_PIECES = (
    ("parameters", BLUE),
    ("moments", "#3F7CB3"),
    ("gradients", PALE_BLUE),
    ("activations", ORANGE),
    ("transient", "#E8A87C"),
    ("other", "#B8BEC6"),
)
"""Pieces of a budget and their colors, dark and light in turn."""


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    growth, budget = Growth(trace), budget_of(trace, findings)
    short = trace.sizes["layer"] <= _ROWS
    layers = _layers(growth)
    return Section(
        tiles=_tiles(growth, budget),
        plates=[_breakdown(growth), _growth(growth, budget)],
        tables=[_fits(growth), *([layers] if short else [])],
        appendix=[] if short else [layers],
        layers={"Saved (MiB)": columns(names(trace), [number(v) for v in saved(growth) / MIB])},
    )


def budget_of(trace: xr.Dataset, findings: Sequence[Finding]) -> float:
    """Memory that budgets are held against: the limit that the user set, else the setting [GiB]."""
    limits = [found.limit for found in findings if found.code == "training-memory"]
    known = [limit for limit in limits if np.isfinite(limit)]
    return known[0] if known else float(trace.attrs["gib"])


def saved(growth: Growth) -> Values:
    """Bytes that each layer saves for backward with the batches of the audit data."""
    measured = growth.trace["saved"].to_numpy()[2]
    return np.asarray(measured * growth.samples / float(growth.trace["samples"][2]))


def pieces(parts: Parts) -> list[float]:
    """Bytes of the pieces of a budget, in the order in which they are drawn."""
    return [
        parts.parameters,
        parts.moments,
        parts.gradients,
        parts.activations,
        parts.passing,
        parts.buffers + parts.inputs,
    ]


def unit_of(largest: float) -> tuple[str, float]:
    """Choose the unit of an axis: its name and its bytes."""
    return ("GiB", GIB) if largest >= GIB else ("MiB", MIB)


def stacked(ax: Axes, growth: Growth) -> None:
    """Draw both budgets as stacked bars, with the names of the pieces."""
    budgets = [getattr(growth, kind)(growth.samples) for kind in _KINDS]
    unit, factor = unit_of(max(parts.total for parts in budgets))
    whole = max(parts.total for parts in budgets) / factor
    for row, parts in enumerate(budgets):
        start = 0.0
        for (_, color), piece in zip(_PIECES, pieces(parts), strict=True):
            ax.barh(row, piece / factor, 0.62, left=start, color=color, edgecolor="white", lw=0.5)
            start += piece / factor
        note(ax, start + 0.01 * whole, row, _written(parts.total), va="center")
    ax.set_yticks(range(2), ["Training", "Serving"])
    ax.set_ylim(1.5, -0.5)
    ax.set_xlim(0, 1.16 * whole)
    ax.set_xlabel(f"Memory ({unit}, powers of 1024), {count(growth.samples, 'sample')} a batch")
    ax.grid(axis="x")


def by_layer(ax: Axes, growth: Growth) -> None:
    """Draw what each layer saves for backward."""
    values = saved(growth)
    unit, factor = unit_of(float(values.max(initial=0)))
    depth_axis(ax, names(growth.trace))
    ax.bar(np.arange(values.size), values / factor, 0.7, color=ORANGE)
    ax.set_ylabel(f"Saved ({unit})")
    ax.grid(axis="y")


def grown(ax: Axes, growth: Growth, budget: float, axis: str) -> None:
    """Draw both budgets against the number of samples or timesteps, with the device's memory."""
    x = sizes(growth, budget, axis)
    unit = {"samples": "Samples in a batch", "timesteps": "Timesteps in a sequence"}[axis]
    curves = {kind: curve(growth, kind, x, axis) / GIB for kind in _KINDS}
    ax.set_xscale("log")
    ax.set_xlabel(unit)
    log_axis(ax, np.append(np.concatenate([*curves.values()]), budget))
    for kind, color in zip(_KINDS, (BLUE, TEAL), strict=True):
        ax.plot(x, curves[kind], color=color, lw=1.5)
        place = {"color": color, "ha": "left", "va": "bottom" if kind == "training" else "top"}
        note(ax, x[0], curves[kind][0], f" {kind}", **place)
    ax.axhline(budget, color=INK, lw=0.8, ls=LIMIT)
    note(ax, x[0], budget, f" {budget:g} GiB", va="bottom", color=MUTED)
    own = growth.samples if axis == "samples" else growth.timesteps
    ax.axvline(own, color=MUTED, lw=0.8, ls=LIMIT)
    bottom = {"transform": ax.get_xaxis_transform(), "va": "bottom", "color": MUTED}
    side = "left" if own < x[-1] ** 0.5 else "right"
    note(ax, own, 0.02, f" audit: {number(own)} ", ha=side, **bottom)


def sizes(growth: Growth, budget: float, axis: str) -> Values:
    """Choose numbers of samples or timesteps from one to what just fits for serving."""
    own = growth.samples if axis == "samples" else growth.timesteps
    find = growth.largest_batch if axis == "samples" else growth.longest
    most = find(budget * GIB, "training")
    top = max(2.0 * own, 4.0, 2 * most if np.isfinite(most) else 0.0)
    return np.geomspace(1, top, _POINTS)


def curve(growth: Growth, kind: str, x: Values, axis: str) -> Values:
    """Budgets at some numbers of samples or timesteps [byte]."""
    budget = getattr(growth, kind)
    if axis == "samples":
        return np.array([budget(samples).total for samples in x])
    return np.array([budget(growth.samples, steps).total for steps in x])


def _written(value: float) -> str:
    """Write bytes with a thin space before the unit."""
    return size(value).replace(" ", THIN)


def _many(value: float) -> str:
    """Write a number of samples or timesteps that fits."""
    return "any" if np.isinf(value) else number(value)


def _tiles(growth: Growth, budget: float) -> list[Tile]:
    """Name the numbers that matter."""
    training, serving = (getattr(growth, kind)(growth.samples) for kind in _KINDS)
    batch = f"batches of {count(growth.samples, 'sample')}"
    longest = growth.longest(budget * GIB)
    tiles = [
        Tile("Training", _written(training.total), batch),
        Tile("Serving", _written(serving.total), batch),
        Tile(
            f"Largest batch in {budget:g}{THIN}GiB",
            _many(growth.largest_batch(budget * GIB)),
            "samples, in training",
        ),
    ]
    if np.isnan(longest):
        return [*tiles, Tile("Estimate", f"within {percent(growth.error())}", "of measured peaks")]
    return [
        *tiles,
        Tile(f"Longest sequence in {budget:g}{THIN}GiB", _many(longest), f"timesteps, {batch}"),
    ]


def _draw_breakdown(figure: Figure, growth: Growth) -> None:
    """Lay out both budgets over the layers."""
    top, bottom = figure.subplots(2, 1, height_ratios=(1, 1.25))
    stacked(top, growth)
    by_layer(bottom, growth)
    letter(top, "a")
    letter(bottom, "b")
    handles = [top.barh(0, 0, color=color, label=name) for name, color in _PIECES]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(_PIECES))


def _breakdown(growth: Growth) -> Plate:
    """Word the figure of the parts."""
    trace, parts = growth.trace, growth.training(growth.samples)
    labels, values = names(trace), saved(growth)
    most = int(np.argmax(values))
    whole = values.sum()
    share = percent(float(values[most] / whole)) if whole else ABSENT
    largest = max(zip(pieces(parts), (name for name, _ in _PIECES), strict=True))
    return Plate(
        "memory-footprint",
        78 + depth_height(labels),
        lambda figure: _draw_breakdown(figure, growth),
        lead=f"Training with batches of {count(growth.samples, 'sample')} takes "
        f"{_written(parts.total)}, most of it {largest[1]}; {labels[most]} saves {share} of what "
        "is kept for backward.",
        body="a: memory at the peak of training and of serving. Transient: gradients of "
        "activations there, or what the optimizer's step makes and frees; other: buffers and "
        f"inputs. Moments: {tied(str(trace.attrs['optimizer']))}. b: what each module saves for "
        f"backward, of the whole batch, in {trace.attrs['mode']} mode, "
        f"{trace.attrs['dtype']}; each storage counts once, for the module that saves it first.",
        alt=_alt_breakdown(growth, parts),
    )


def _alt_breakdown(growth: Growth, parts: Parts) -> str:
    """Describe the bars."""
    labels, values = names(growth.trace), saved(growth)
    listed = ", ".join(
        f"{name} {_written(piece)}"
        for (name, _), piece in zip(_PIECES, pieces(parts), strict=True)
        if piece
    )
    low, high = int(np.argmin(values)), int(np.argmax(values))
    return (
        f"Stacked bars. Training, {_written(parts.total)}: {listed}. Serving: "
        f"{_written(growth.serving(growth.samples).total)}. Below, {count(len(labels), 'bar')} of "
        f"what modules save, highest {labels[high]} ({_written(values[high])}), lowest "
        f"{labels[low]} ({_written(values[low])})."
    )


def _growth(growth: Growth, budget: float) -> Plate:
    """Word the figure of the growth."""
    varied = not np.isnan(growth.timesteps)
    fits = _many(growth.largest_batch(budget * GIB))
    lead = f"Into {budget:g}{THIN}GiB fit training batches of {fits}"
    if varied:
        lead += f" samples, or sequences of {_many(growth.longest(budget * GIB))} timesteps"
    reason = str(growth.trace.attrs["not_shortened"])
    return Plate(
        "memory-growth",
        62,
        lambda figure: _draw_growth(figure, growth, budget, varied),
        lead=f"{lead}.",
        body=f"Memory of training and of serving by the size of the batch{_shape(growth, 0)}"
        + (
            f" (a), and by the length of its sequences{_shape(growth, 1)}, with batches of "
            f"{count(growth.samples, 'sample')} (b)."
            if varied
            else f". The length was not varied: {tied(reason)}."
        )
        + " Extrapolated from measured batches of "
        + ", ".join(number(v) for v in growth.trace["samples"].to_numpy()[:3])
        + " samples.",
        alt=_alt_growth(growth, budget, varied),
        todo="Leave room for what kernels and the driver take: their needs are not counted.",
    )


def _shape(growth: Growth, place: int) -> str:
    """Name the law of growth where it is no line."""
    return ", which grows with its square" if growth.degrees[place] == 2 else ""


def _draw_growth(figure: Figure, growth: Growth, budget: float, varied: bool) -> None:
    """Lay out one or two panels."""
    axes = figure.subplots(1, 1 + varied, squeeze=False)[0]
    for ax, axis, name in zip(axes, ("samples", "timesteps"), "ab", strict=False):
        grown(ax, growth, budget, axis)
        letter(ax, name)
    axes[0].set_ylabel("Memory (GiB)")


def _alt_growth(growth: Growth, budget: float, varied: bool) -> str:
    """Describe the curves."""
    axes = ("samples", "timesteps") if varied else ("samples",)
    parts = []
    for axis in axes:
        x = sizes(growth, budget, axis)
        y = curve(growth, "training", x, axis)
        points = "; ".join(
            f"{_written(y[i])} with {number(round(x[i]))}" for i in spaced(x.size, 4)
        )
        parts.append(f"Training memory by {axis}: {points}.")
    return f"{' '.join(parts)} Dotted line at {budget:g}{THIN}GiB."


def _fits(growth: Growth) -> Table:
    """Tabulate what fits into devices of several sizes."""
    varied = not np.isnan(growth.timesteps)
    rows = [
        (
            f"{gib:g}",
            _many(growth.largest_batch(gib * GIB)),
            *((_many(growth.longest(gib * GIB)),) if varied else ()),
            _many(growth.largest_batch(gib * GIB, "serving")),
            *((_many(growth.longest(gib * GIB, "serving", 1)),) if varied else ()),
        )
        for gib in SIZES
    ]
    heads = ("Memory (GiB)", "Training: samples", "timesteps", "Serving: samples", "timesteps")
    chosen = heads if varied else (heads[0], heads[1], heads[3])
    remark = (
        f"Timesteps: of training with batches of {count(growth.samples, 'sample')}, of serving "
        "with single samples. "
        if varied
        else ""
    )
    return Table(
        "Largest batch and longest sequence that fit.",
        chosen,
        ["number"] * len(chosen),
        rows,
        f"{remark}What kernels and the driver need is not counted; 1 GiB is 2\u00b3\u2070 bytes.",
    )


def _layers(growth: Growth) -> Table:
    """Tabulate what every module holds and saves."""
    trace, kept = growth.trace, saved(growth)
    per_step = array(trace, "saved_per_timestep", "layer")
    held = [trace[name].to_numpy() for name in ("parameters", "gradients", "moments", "buffers")]
    rows = [
        (name, kind, *(_cell(column[i]) for column in held), _cell(kept[i]), _kib(per_step[i]))
        for i, (name, kind) in enumerate(zip(names(trace), words(trace, "kind"), strict=True))
    ]
    heads = (
        "Module", "Kind", "Parameters", "Gradients", "Moments", "Buffers", "Saved",
        "Saved a timestep (KiB)",
    )  # fmt: skip
    return Table(
        "Memory of every module (MiB).",
        heads,
        ["name", "text", *["number"] * 6],
        rows,
        f"Saved: for backward, with batches of {count(growth.samples, 'sample')}. A timestep: of "
        "one sample, in recurrent modules.",
    )


def _cell(value: float) -> str:
    """Write bytes in MiB."""
    return number(value / MIB) if value else "0"


def _kib(value: float) -> str:
    """Write bytes in KiB."""
    return number(value / 2**10)
