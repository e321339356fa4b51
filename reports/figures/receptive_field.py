"""Receptive field: how much of the input every layer can see by construction."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from analyzer.findings import Finding, Severity
from reports.read import array, axes, columns, names, spaced, words
from reports.section import Plate, Section, Table, Tile
from reports.style import (
    HALO,
    INK,
    LIMIT,
    MUTED,
    PALE_RED,
    RED,
    SERIES,
    Values,
    depth_axis,
    depth_height,
    log_axis,
    note,
)
from reports.text import ABSENT, TIMES, count, number, shorten

EXACT, WHOLE, UNKNOWN = "EXACT", "WHOLE_INPUT", "UNKNOWN"
_ROWS = 18


def sizes(trace: xr.Dataset) -> Values:
    """Return the theoretical field, shape (layer, axis); nan where it is no number."""
    size = array(trace, "size", "layer", "axis")
    exact = np.array([status == EXACT for status in words(trace, "status")], dtype=bool)
    if not any(words(trace, "status")):
        exact[:] = True
    return np.where(exact[:, None] & np.isfinite(size), size, np.nan)


def beyond(trace: xr.Dataset) -> Values:
    """Say per layer whether its field is larger than the input along every axis, shape (layer,)."""
    size, whole = sizes(trace), array(trace, "input_size", "axis")
    return np.array((size > whole[None, :]).all(axis=1) & np.isfinite(size).all(axis=1), dtype=bool)


def by_layer(ax: Axes, trace: xr.Dataset, marked: Sequence[str] = ()) -> None:
    """Draw the field of every layer against the input size; layers beyond it are hatched."""
    size, layers = sizes(trace), names(trace)
    whole = array(trace, "input_size", "axis")
    depth_axis(ax, layers)
    ax.set_ylabel("Receptive field (positions)")
    _scale(ax, size, whole)
    _hatch(ax, beyond(trace))
    for axis, values, color in _lines(trace, size):
        x, y = _stairs(values)
        ax.plot(x, y, color=color, lw=1.5)
        _name(ax, axis, values, color)
    for length in sorted({*whole[np.isfinite(whole)]}):
        ax.axhline(length, color=INK, lw=0.8, ls=LIMIT)
        note(ax, -0.6, length, f" input {number(length)}", va="bottom", path_effects=HALO)
    _mark(ax, trace, marked)


def _scale(ax: Axes, size: Values, whole: Values) -> None:
    """Choose a linear axis, or a logarithmic one where fields dwarf the input."""
    values = np.concatenate([size.ravel(), whole])
    finite = values[np.isfinite(values)]
    if finite.size and finite.max() > 5 * max(whole[np.isfinite(whole)], default=finite.max()):
        log_axis(ax, finite, room=0.1)
        return
    ax.set_ylim(0, 1.14 * finite.max() if finite.size else 1)
    ax.grid(axis="y")


def _lines(trace: xr.Dataset, size: Values) -> list[tuple[str, Values, str]]:
    """Return one line for all axes that agree, unnamed if all of them do."""
    groups: list[tuple[list[str], Values]] = []
    for axis, values in zip(axes(trace), size.T, strict=True):
        same = [names for names, drawn in groups if np.array_equal(drawn, values, equal_nan=True)]
        if same:
            same[0].append(axis)
        else:
            groups.append(([axis], values))
    return [
        (", ".join(named) if len(groups) > 1 else "", values, SERIES[i % len(SERIES)])
        for i, (named, values) in enumerate(groups)
    ]


def _name(ax: Axes, axis: str, values: Values, color: str) -> None:
    """Name a line at its end, above it."""
    known = np.flatnonzero(np.isfinite(values))
    if axis and known.size:
        end = int(known[-1])
        note(
            *(ax, end + 0.4, values[end], axis),
            ha="right",
            va="bottom",
            color=color,
            fontweight=700,
            path_effects=HALO,
        )


def _stairs(values: Values) -> tuple[Values, Values]:
    """Draw every layer as a tread of width one, so that a single layer is seen too."""
    centres = np.arange(values.size, dtype=np.float64)
    return np.stack([centres - 0.5, centres + 0.5], axis=1).ravel(), np.repeat(values, 2)


def _hatch(ax: Axes, flagged: Values) -> None:
    """Hatch the runs of layers that are flagged."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flagged.astype(int), [0]])))
    for start, stop in list(pairwise(edges))[::2]:
        ax.axvspan(start - 0.5, stop - 0.5, fc="#FBF1F0", ec=PALE_RED, hatch="////", lw=0, zorder=0)
    if edges.size:
        middle = (edges[0] + edges[1] - 1) / 2
        right = middle > 0.7 * flagged.size
        note(
            ax,
            edges[1] - 0.6 if right else edges[0] - 0.4,
            0.03,
            "larger than the input",
            transform=ax.get_xaxis_transform(),
            ha="right" if right else "left",
            va="bottom",
            color=RED,
            bbox={"fc": "white", "ec": "none", "pad": 1.2, "alpha": 0.9},
        )


def _mark(ax: Axes, trace: xr.Dataset, marked: Sequence[str]) -> None:
    """Mark layers without a number along the top, and those a finding names along the bottom."""
    status, layers = words(trace, "status"), names(trace)
    for kind, marker, label in ((WHOLE, "D", "whole input"), (UNKNOWN, "x", "unknown")):
        at = [i for i, word in enumerate(status) if word == kind]
        if at:
            place = {"transform": ax.get_xaxis_transform(), "clip_on": False}
            ax.plot(at, [0.95] * len(at), marker, color=MUTED, ms=3.4, mfc="white", **place)  # type: ignore[arg-type]
            left = {"ha": "right", "va": "center", "color": MUTED} | {
                "transform": place["transform"]
            }
            note(ax, at[0] - 0.4, 0.95, f"{label} ", **left)
    at = [i for i, name in enumerate(layers) if name in set(marked)]
    if at:
        transform = ax.get_xaxis_transform()
        ax.plot(
            at, [0] * len(at), "^", color=RED, ms=4, transform=transform, clip_on=False, zorder=6
        )


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    layers, size = names(trace), sizes(trace)
    return Section(
        tiles=_tiles(trace, size),
        plates=[_plate(trace, size, _marked(findings))],
        tables=[_table(trace)],
        layers={
            "Kind": columns(layers, words(trace, "kind")),
            "Theoretical field": columns(layers, _texts(trace, size)),
        },
    )


def _marked(findings: Sequence[Finding]) -> list[str]:
    """Collect the layers that a finding complains of."""
    bad = (Severity.FAIL, Severity.WARN)
    return [name for finding in findings if finding.severity in bad for name in finding.where]


def extent(values: Values) -> str:
    """Write a size along every axis, once where all agree."""
    texts = [number(value) for value in values]
    if len(set(texts)) == 1 and len(texts) > 1 and texts[0] != ABSENT:
        return f"{texts[0]}{TIMES}" * (len(texts) - 1) + texts[0]
    return TIMES.join(texts) if set(texts) != {ABSENT} else ABSENT


def _texts(trace: xr.Dataset, size: Values) -> list[str]:
    """Write the field of every layer, or why it is no number."""
    said = {WHOLE: "whole input", UNKNOWN: "unknown"}
    return [
        said.get(status, extent(values))
        for status, values in zip(words(trace, "status"), size, strict=True)
    ]


def _last(size: Values) -> int:
    """Return the last layer with a field, -1 where there is none."""
    known = np.flatnonzero(np.isfinite(size).all(axis=1)) if size.size else np.zeros(0, int)
    return int(known[-1]) if known.size else -1


def _tiles(trace: xr.Dataset, size: Values) -> list[Tile]:
    """Name the numbers that matter."""
    layers, status = names(trace), words(trace, "status")
    last = _last(size)
    tiles = [
        Tile("Input size", extent(array(trace, "input_size", "axis")), " by ".join(axes(trace)))
    ]
    if last >= 0:
        tiles.insert(0, Tile("Field, last layer", extent(size[last]), shorten(layers[last], 26)))
    over = int(beyond(trace).sum())
    tiles.append(Tile("Larger than the input", f"{over} of {len(layers)}", "layers"))
    inexact = sum(word in (WHOLE, UNKNOWN) for word in status)
    unknown = status.count(UNKNOWN)
    tiles.append(Tile("Without a number", str(inexact), f"layers; {unknown} unknown"))
    return tiles


def _plate(trace: xr.Dataset, size: Values, marked: Sequence[str]) -> Plate:
    """Word the figure."""
    layers, over = names(trace), np.flatnonzero(beyond(trace))
    whole = extent(array(trace, "input_size", "axis"))
    last = _last(size)
    if last < 0:
        lead = "No layer has a field that is a number."
    elif over.size:
        lead = (
            f"From {shorten(layers[over[0]], 30)} on, the field is larger than the input "
            f"({whole}): {count(over.size, 'layer')} of {len(layers)}."
        )
    else:
        lead = f"The field grows to {extent(size[last])} positions; the input has {whole}."
    named = " Red triangles: layers that a finding names." if marked else ""
    return Plate(
        "receptive-field",
        48 + depth_height(layers),
        lambda figure: by_layer(figure.subplots(), trace, marked),
        lead=lead,
        body="Theoretical receptive field of the centre unit of every layer. Dotted: input size; "
        f"hatched: field larger than the input along every axis.{named}",
        alt=_alt(layers, size, whole, over),
    )


def _alt(layers: list[str], size: Values, whole: str, over: NDArray[np.intp]) -> str:
    """Describe the figure."""
    points = "; ".join(
        f"{shorten(layers[i], 30)} {extent(size[i])}"
        for i in spaced(len(layers), 5)
        if np.isfinite(size[i]).all()
    )
    hatched = f"{over.size} of {len(layers)} layers are hatched as larger than it"
    return (
        f"Rising stairs over {count(len(layers), 'layer')}: {points or 'no values'}. "
        f"A dotted line marks the input size {whole}; {hatched}."
    )


def _telling(trace: xr.Dataset, texts: Sequence[str]) -> list[int]:
    """Choose the layers of the table: those whose field is not that of the layer before."""
    jump = array(trace, "jump", "layer", "axis")
    said = [
        (text, extent(step), reason)
        for text, step, reason in zip(texts, jump, words(trace, "reason"), strict=True)
    ]
    changing = [i for i in range(len(said)) if i == 0 or said[i] != said[i - 1]]
    return [changing[i] for i in spaced(len(changing), _ROWS)]


def _table(trace: xr.Dataset) -> Table:
    """Tabulate the layers."""
    layers, kinds, reasons = names(trace), words(trace, "kind"), words(trace, "reason")
    texts = _texts(trace, sizes(trace))
    minimal, jump = (array(trace, name, "layer", "axis") for name in ("minimal", "jump"))
    rows = [
        (layers[i], kinds[i], texts[i], extent(minimal[i]), extent(jump[i]), reasons[i])
        for i in _telling(trace, texts)
    ]
    return Table(
        "Receptive field by layer.",
        ("Layer", "Kind", "Field", "Shortest path", "Step", "Reason"),
        ("name", "text", "number", "number", "number", "text"),
        rows,
        ""
        if len(rows) == len(layers)
        else "Layers that change the field; all layers are in the appendix.",
    )
