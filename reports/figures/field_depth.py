"""Effective fields over depth, beside the theoretical ones and those of untrained copies."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.read import array, axes, names
from reports.style import (
    BLUE,
    HALO,
    INK,
    LIMIT,
    MUTED,
    TEAL,
    Values,
    depth_axis,
    depth_height,
    note,
)
from reports.text import number

_POINTS = 24
"""Layers up to which each has a marker and an error bar."""

_ELONGATED = 1.2
"""Ratio of the axes from which on each is drawn on its own."""


def mean(values: Values) -> Values:
    """Average over the axes, nan where any is unknown."""
    return values.mean(axis=1) if values.shape[1] else np.full(len(values), np.nan)


def untrained(trace: xr.Dataset) -> Values:
    """Return the diameters of the untrained copies, shape (null, layer); no rows without any."""
    if "null_diameter" not in trace:
        return np.empty((0, len(names(trace))))
    return array(trace, "null_diameter", "null", "layer")


def usual(copies: Values) -> Values:
    """Average over the copies that have a field at a layer; nan where none has."""
    known = np.isfinite(copies)
    total, count = np.where(known, copies, 0).sum(axis=0), known.sum(axis=0)
    found: Values = np.full(copies.shape[1], np.nan)
    np.divide(total, count, out=found, where=count > 0)
    return found


def apart(trace: xr.Dataset) -> bool:
    """Say whether the axes differ so much that each is drawn on its own."""
    whole = array(trace, "input_size", "axis")
    theory = array(trace, "theoretical", "layer", "axis")
    if len(axes(trace)) < 2:
        return False
    known = theory[np.isfinite(theory).all(axis=1)][-1:]
    uneven = bool((known.max(axis=1) > _ELONGATED * known.min(axis=1)).any())
    longer = np.nan_to_num(array(trace, "anisotropy_low", "layer"))[-1:] > _ELONGATED
    return uneven or bool((whole != whole[0]).any()) or bool(longer.any())


def height(trace: xr.Dataset) -> float:
    """Return the height of the figure [mm]."""
    panels = len(axes(trace)) if apart(trace) else 1
    return 46 + depth_height(names(trace), 1 / panels)


def draw(figure: Figure, trace: xr.Dataset) -> None:
    """Draw one panel for all axes, or one for each where they differ."""
    if not apart(trace):
        by_layer(figure.subplots(), trace)
        return
    for axis, ax in enumerate(figure.subplots(1, len(axes(trace)))):
        by_layer(ax, trace, axis)


def by_layer(ax: Axes, trace: xr.Dataset, axis: int | None = None) -> None:
    """Draw the effective diameter with its interval against the theoretical field, by depth.

    Parameters
    ----------
    axis : int, optional
        Along which; the mean over all if unset.
    """
    layers = names(trace)
    size, low, high, theory, whole = _numbers(trace, axis)
    copies = untrained(trace) if axis is None else np.empty((0, len(layers)))
    x = np.arange(len(layers))
    depth_axis(ax, layers, 1.0 if axis is None else 1 / len(axes(trace)))
    marker = "o" if len(layers) <= _POINTS else ""
    ax.plot(x, theory, color=MUTED, ls=(0, (4, 1.6)), lw=1.1, marker=marker, ms=2)
    if np.isfinite(copies).any():
        known = np.isfinite(usual(copies))
        ax.plot(x[known], usual(copies)[known], color=TEAL, ls=(0, (1, 1.2)), lw=1.3)
    if marker:
        error = np.abs(np.stack([size - low, high - size]))
        ax.errorbar(x, size, error, color=BLUE, lw=1.6, marker="o", elinewidth=1, capsize=2)
    else:
        ax.fill_between(x, low, high, color=BLUE, alpha=0.18, lw=0)
        ax.plot(x, size, color=BLUE, lw=1.6)
    ax.set_ylim(0, 1.12 * _top(trace, axis)[0])
    if np.isfinite(whole):
        ax.axhline(whole, color=INK, lw=0.8, ls=LIMIT)
        note(ax, -0.6, whole, f" input {number(whole)}", va="bottom", path_effects=HALO)
    _name_lines(ax, theory, size, copies)
    along = "" if axis is None else f" along {axes(trace)[axis]}"
    ax.set_ylabel(f"Diameter{along} (positions)")
    ax.grid(axis="y")


def _numbers(trace: xr.Dataset, axis: int | None) -> tuple[Values, Values, Values, Values, float]:
    """Return size, ends of its interval, theoretical field and input, along one axis or all."""
    theory = array(trace, "theoretical", "layer", "axis")
    whole = array(trace, "input_size", "axis")
    if axis is None:
        size, low, high = (array(trace, f"diameter{end}", "layer") for end in ("", "_low", "_high"))
        return size, low, high, mean(theory), float(whole.mean()) if whole.size else np.nan
    size, low, high = (
        4 * array(trace, f"sigma{end}", "layer", "axis")[:, axis] for end in ("", "_low", "_high")
    )
    return size, low, high, theory[:, axis], float(whole[axis])


def _top(trace: xr.Dataset, axis: int | None) -> tuple[float, bool]:
    """Return the largest number drawn, and whether the theoretical field goes on above it."""
    size, _, high, theory, whole = _numbers(trace, axis)
    copies = untrained(trace) if axis is None else np.empty((0, len(size)))
    values = np.concatenate([size, high, copies.ravel(), [whole]])
    top = float(np.nanmax(values, initial=1.0))
    reach = float(np.nanmax(theory, initial=0.0))
    return max(top, min(reach, 2.5 * top)), reach > 2.5 * top


def cut(trace: xr.Dataset) -> bool:
    """Say whether a theoretical field is too large to be drawn."""
    panels: list[int | None] = [*range(len(axes(trace)))] if apart(trace) else [None]
    return any(_top(trace, axis)[1] for axis in panels)


def _name_lines(ax: Axes, theory: Values, size: Values, copies: Values) -> None:
    """Name the lines, each where it is far from the others and inside the axes."""
    top, null = 0.9 * ax.get_ylim()[1], usual(copies)
    above = np.flatnonzero(~(theory < top))
    leaves = int(above[0]) - 1 if above.size else theory.size - 1
    if leaves >= 0:
        right = leaves < 0.5 * theory.size
        _name(ax, (leaves, theory[leaves]), "theoretical", MUTED, 7 if right else 5, right)
    lower = bool(np.nan_to_num(null - size)[-1:].sum() > 0)
    for values, label, color, side, share in (
        (size, "effective (2\u03c3)", BLUE, -9 if lower or not len(copies) else 7, 0.75),
        (null, "untrained", TEAL, 7 if lower else -8, 0.95),
    ):
        inside = np.flatnonzero(np.isfinite(values) & (values < top))
        if inside.size:
            at = int(inside[int(share * (inside.size - 1))])
            _name(ax, (at, values[at]), label, color, side, at < 0.2 * values.size)


def _name(
    ax: Axes, place: tuple[float, float], label: str, color: str, side: int, right: bool
) -> None:
    """Write a name beside a point: ``side`` points above it, to its right or left."""
    ax.annotate(
        label,
        place,
        xytext=(4 if right else -4, side),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        color=color,
        fontsize=7,
        fontweight=700,
        in_layout=False,
        path_effects=HALO,
    )
