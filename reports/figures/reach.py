"""Reach summary: how far the network reaches over depth, over time and over its input."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analyzer.findings import Finding
from analyzer.limits import MemoryHorizonLimits
from analyzer.rules.gradient_flow import depth_decades, gradient_norm, weighted
from analyzer.rules.memory_horizon import functional_horizon
from analyzer.rules.timestep_gradient import entrance, state_gradient, time_decades
from reports.read import array, axes, names
from reports.section import Plate
from reports.style import BLUE, INK, MUTED, PALE_BLUE, PAPER, Values, enlarge, note, quantiles
from reports.text import count, factor, number, sentence, shorten

_DEEPEST = -4
"""Decades below the largest gradient where the scale of the strips ends."""

_CUT = "#E3E7EB"


@dataclass(frozen=True)
class Track:
    """One extent of the network, and how much of it is reached."""

    name: str
    ends: tuple[str, str]
    value: str
    note: str
    draw: Callable[[Axes], None]


def strip(ax: Axes, values: Values) -> None:
    """Draw gradients relative to their largest, in decades, as one row of cells."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(values / np.nanmax(values))
    cmap = PAPER.with_extremes(bad=_CUT)
    image = np.ma.masked_invalid(np.where(np.isneginf(logs), _DEEPEST, logs))[None, :]
    ax.imshow(
        np.ma.masked_invalid(enlarge(image.filled(np.nan), 1)),
        aspect="auto",
        cmap=cmap,
        vmin=_DEEPEST,
        vmax=0,
        extent=(0, 1, 0, 1),
    )


def bar(ax: Axes, parts: Sequence[tuple[float, float, str]], ends: Sequence[float]) -> None:
    """Draw filled parts of the track, lightest first, and the ends of an interval."""
    ax.add_patch(_box(0, 1, "white"))
    for start, stop, color in parts:
        ax.add_patch(_box(max(start, 0), min(stop, 1), color))
    inside = [end for end in ends if np.isfinite(end)]
    if len(inside) == 2:
        low, high = np.clip(inside, 0, 1)
        ax.plot([low, high], [0.5, 0.5], color=INK, lw=0.8, solid_capstyle="butt")
        for end in (low, high):
            ax.plot([end, end], [0.3, 0.7], color=INK, lw=0.8)


def _box(start: float, stop: float, color: str) -> Rectangle:
    """Return a part of a track."""
    return Rectangle((start, 0), stop - start, 1, fc=color, ec="none", lw=0)


def _depth(trace: xr.Dataset) -> Track | None:
    """Follow the gradient from the last layer to the first."""
    deep = weighted(trace)
    layers = names(deep)
    gradient = quantiles(gradient_norm(deep).transpose("sample", "layer").to_numpy())[50]
    lost = depth_decades(trace)
    if not (gradient > 0).any() or np.isnan(lost.value):
        return None
    return Track(
        "Depth, gradient",
        (shorten(layers[0], 30), shorten(layers[-1], 30)),
        _change(lost.value),
        f"over {count(len(layers), 'weighted layer')}",
        lambda ax: strip(ax, gradient),
    )


def _change(decades: float) -> str:
    """Write a change towards the input as a factor."""
    if abs(decades) < np.log10(1.05):
        return "unchanged"
    return factor(10 ** abs(decades)) + (" smaller" if decades > 0 else " larger")


def _time(trace: xr.Dataset) -> Track | None:
    """Follow the gradient from the last timestep to the first, where the input enters."""
    losses = time_decades(trace)
    layer = entrance(losses)
    if not layer:
        return None
    states = state_gradient(trace).isel(layer=[*losses].index(layer))
    gradient = quantiles(states.transpose("sample", "timestep").to_numpy())[50]
    if not (gradient > 0).any():
        return None
    return Track(
        "Time, gradient",
        ("first timestep", f"last timestep, {shorten(layer, 20)}"),
        _change(losses[layer].value),
        f"over {count(gradient.size, 'timestep')}",
        lambda ax: strip(ax, gradient),
    )


def _memory(trace: xr.Dataset) -> Track | None:
    """Set the memory horizon against the length of the sequences."""
    fine = functional_horizon(trace, MemoryHorizonLimits(share=0.01))
    coarse = functional_horizon(trace, MemoryHorizonLimits(share=0.05))
    length = float(trace.attrs["sequence_length"])
    if np.isnan(fine.value):
        return None
    parts = [
        (1 - fine.value / length, 1.0, PALE_BLUE),
        (1 - coarse.value / length, 1.0, BLUE),
    ]
    ends = [1 - fine.high / length, 1 - fine.low / length]
    return Track(
        "Time, memory",
        ("oldest input", "latest input"),
        f"{number(fine.value)} of {number(length)} inputs",
        f"1 % horizon; 5 % (dark): {number(coarse.value)}",
        lambda ax: bar(ax, parts, ends),
    )


def _field(trace: xr.Dataset) -> Track | None:
    """Set the field of the last layer against the size of the input."""
    diameter = array(trace, "diameter", "layer")
    known = np.flatnonzero(np.isfinite(diameter))
    if not known.size or not axes(trace):
        return None
    last = int(known[-1])
    low, high = (array(trace, f"diameter_{end}", "layer")[last] for end in ("low", "high"))
    theory = float(array(trace, "theoretical", "layer", "axis")[last].mean())
    whole = float(array(trace, "input_size", "axis").mean())
    parts = [
        (0.5 - size / whole / 2, 0.5 + size / whole / 2, color)
        for size, color in ((theory, PALE_BLUE), (float(diameter[last]), BLUE))
        if np.isfinite(size)
    ]
    return Track(
        "Input, field",
        ("first position", "last position"),
        f"{number(diameter[last])} of {number(whole)} positions",
        f"{shorten(names(trace)[last], 16)}; theory (light): {number(theory)}",
        lambda ax: bar(ax, parts, [0.5 + low / whole / 2, 0.5 + high / whole / 2]),
    )


_TRACKS: dict[str, Callable[[xr.Dataset], Track | None]] = {
    "gradient_flow": _depth,
    "timestep_gradient": _time,
    "memory_horizon": _memory,
    "effective_field": _field,
}


def tracks(traces: Mapping[str, xr.Dataset]) -> list[Track]:
    """Return the extents that were measured."""
    found = [track(traces[probe]) for probe, track in _TRACKS.items() if probe in traces]
    return [track for track in found if track is not None]


def draw(figure: Figure, found: Sequence[Track]) -> None:
    """Stack the tracks, each with its name, its ends and its value."""
    rows = figure.subplots(len(found) + 1, 1, height_ratios=[1.0] * len(found) + [0.3])
    figure.set_layout_engine("constrained", hspace=0.12)
    for ax, track in zip(rows, found, strict=False):
        _blank(ax)
        track.draw(ax)
        ax.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec="#8A94A0", lw=0.5, zorder=5))
        left = {"ha": "right", "va": "center", "in_layout": True}
        right = {"ha": "left", "va": "center", "in_layout": True}
        note(ax, -0.015, 0.5, track.name, fontsize=7.5, fontweight=700, **left)
        note(ax, 1.015, 0.72, track.value, fontsize=8, fontweight=700, **right)
        note(ax, 1.015, 0.2, track.note, fontsize=6.5, color=MUTED, **right)
        ends = {"va": "top", "fontsize": 6.5, "color": MUTED, "in_layout": True}
        note(ax, 0, -0.1, track.ends[0], ha="left", **ends)
        note(ax, 1, -0.1, track.ends[1], ha="right", **ends)
    _key(rows[-1])


def _blank(ax: Axes) -> None:
    """Leave nothing of the axes but their area."""
    ax.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _key(ax: Axes) -> None:
    """Explain the shade of the strips."""
    _blank(ax)
    ax.imshow(
        enlarge(np.linspace(_DEEPEST, 0, 64)[None, :], 1),
        aspect="auto",
        cmap=PAPER,
        extent=(0.36, 0.64, 0, 1),
    )
    ax.set(xlim=(0, 1), ylim=(0, 1))
    words = {"va": "center", "fontsize": 6.5, "color": MUTED}
    note(
        ax,
        0.35,
        0.45,
        "gradient / largest:  10\u207b\u2074 or less",
        ha="right",
        **words,
    )
    note(ax, 0.65, 0.45, "1", ha="left", **words)


def plate(traces: Mapping[str, xr.Dataset], findings: Sequence[Finding]) -> Plate | None:
    """Word the figure; None where nothing that reaches was measured."""
    found = tracks(traces)
    if not found:
        return None
    said = [finding.message for finding in findings if finding.code == "reach"]
    parts = ". ".join(f"{track.name}: {track.value} ({track.note})" for track in found)
    return Plate(
        "reach",
        9 + 11.5 * len(found),
        lambda figure: draw(figure, found),
        lead=sentence(said[0]) if said else sentence(parts),
        body="Every bar is the whole extent. Shade: gradient relative to its largest. Filled: "
        "inputs that are used, from the latest back, and the field around the centre; "
        "whiskers: 95 % intervals.",
        alt=f"{count(len(found), 'horizontal bar')}. {parts}.",
    )
