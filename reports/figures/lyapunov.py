"""State stability: whether small changes of the recurrent states fade or grow."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyzer.findings import Finding
from analyzer.limits import LyapunovLimits
from analyzer.rules.lyapunov import largest, spectrum, time_constant, timesteps
from analyzer.rules.verdicts import Estimate
from reports.read import array, columns, names, number_of, spaced, words
from reports.section import Plate, Section, Table, Tile
from reports.style import (
    BLUE,
    DASHES,
    INK,
    LIMIT,
    MUTED,
    ORANGE,
    SERIES,
    depth_axis,
    depth_height,
    letter,
    note,
)
from reports.text import ABSENT, count, interval, number, quantity, shorten

_LINES = 8
_ROWS = 16
Spectra = Mapping[str, list[Estimate]]


def exponents(ax: Axes, found: Spectra) -> None:
    """Draw the largest exponents of some layers, with intervals over trajectories."""
    ax.set_xlabel("Exponent, from the largest")
    ax.set_ylabel("Exponent (1 / timestep)")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    chosen = spaced(len(found), _LINES)
    for rank, (layer, own) in enumerate([*found.items()][index] for index in chosen):
        color, dash = SERIES[rank % len(SERIES)], DASHES[rank % len(DASHES)]
        places = np.arange(1, len(own) + 1)
        if len(chosen) <= 4:
            lows, highs = [one.low for one in own], [one.high for one in own]
            ax.fill_between(places, lows, highs, color=color, alpha=0.15, lw=0)
        values = [one.value for one in own]
        ax.plot(places, values, color=color, ls=dash, marker="o", ms=2.4, label=shorten(layer, 20))
    zero(ax)


def zero(ax: Axes) -> None:
    """Draw the line between fading and growing, and make room around it."""
    low, high = ax.get_ylim()
    room = 0.12 * max(high, 0.0 - low, 1e-3)
    ax.set_ylim(min(low, -room), max(high, room))
    ax.axhline(0, color=INK, lw=0.8, ls=LIMIT)
    place = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "bottom", "fontsize": 6.5}
    note(ax, 0.995, 0, "above 0 changes grow", color=MUTED, **place)


def by_layer(ax: Axes, trace: xr.Dataset, first: Mapping[str, Estimate]) -> None:
    """Draw the largest exponent of every layer, whole and from the first half of the steps."""
    layers = list(first)
    places = np.arange(len(layers))
    values = np.array([one.value for one in first.values()])
    ax.vlines(
        places,
        [one.low for one in first.values()],
        [one.high for one in first.values()],
        color=BLUE,
        lw=1.6 if len(layers) <= 40 else 0.6,
    )
    half = array(trace, "first_half", "sample", "layer")
    known = np.isfinite(half).any(0)
    means = np.full(len(layers), np.nan)
    means[known] = np.nanmean(half[:, known], axis=0)
    size = 3.4 if len(layers) <= 40 else 1.6
    ax.plot(places, means, "_", color=ORANGE, ms=2.4 * size, mew=1.0)
    ax.plot(places, values, "o", color=BLUE, ms=size)
    depth_axis(ax, layers, 0.45)
    zero(ax)


def _draw(figure: Figure, trace: xr.Dataset, found: Spectra) -> None:
    """Lay out both panels, each on its own scale."""
    left, right = figure.subplots(1, 2)
    exponents(left, found)
    by_layer(right, trace, {layer: own[0] for layer, own in found.items()})
    letter(left, "a   spectrum")
    letter(right, "b   largest exponent")
    handles, labels = left.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    for text in legend.get_texts():
        text.set_parse_math(False)


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    layers, found, steps = names(trace), spectrum(trace), timesteps(trace)
    first = largest(trace)
    known = {layer: own for layer, own in found.items() if np.isfinite(own[0].value)}
    return Section(
        tiles=_tiles(trace, first, steps),
        plates=[_plate(trace, known, steps)] if known else [],
        tables=[_table(trace, first, steps)],
        layers={
            "Kind": columns(layers, words(trace, "kind")),
            "Largest exponent": columns(layers, [number(first[name].value) for name in layers]),
        },
    )


def _tiles(
    trace: xr.Dataset, first: Mapping[str, Estimate], steps: Mapping[str, float]
) -> list[Tile]:
    """Name the numbers that matter."""
    worst = _highest(first)
    one = first[worst]
    between = f"{interval(one.low, one.high)} {shorten(worst, 24)}".strip()
    residual = number_of(trace, "replay_residual")
    return [
        Tile("Largest exponent", number(one.value), between),
        Tile(
            "Time constant of a change",
            quantity(time_constant(one.value), "timesteps") if np.isfinite(one.value) else ABSENT,
            "stability, not memory",
        ),
        Tile(
            "Trajectories",
            number(trace.sizes["sample"]),
            f"{number(max(steps.values()))} timesteps averaged",
        ),
        Tile("Replay residual", number(residual, 2), "recomputed against the model"),
    ]


def _highest(first: Mapping[str, Estimate]) -> str:
    """Name the layer with the largest exponent."""
    return max(first, key=lambda layer: np.nan_to_num(first[layer].value, nan=-np.inf))


def _plate(trace: xr.Dataset, found: Spectra, steps: Mapping[str, float]) -> Plate:
    """Word the figure."""
    first = {layer: own[0] for layer, own in found.items()}
    worst = _highest(first)
    value, growing = first[worst].value, [name for name in first if first[name].low > 0]
    few = max(steps.values()) < LyapunovLimits().min_steps
    if few:
        lead = "So few timesteps do not say whether small changes fade; they last longest in "
    elif growing:
        lead = f"Small changes of the state grow in {count(len(growing), 'layer')}, most in "
    elif all(one.high < 0 for one in first.values()):
        lead = "Small changes of the states fade; they last longest in "
    else:
        lead = "Whether small changes of the states grow is open; they last longest in "
    lead += f"{shorten(worst, 30)}."
    shown = [[*found][index] for index in spaced(len(found), _LINES)]
    which = "every layer" if len(shown) == len(found) else f"{len(shown)} of {len(found)} layers"
    listed = "; ".join(f"{shorten(name, 30)} {number(first[name].value)}" for name in shown[:6])
    return Plate(
        "lyapunov",
        56 + depth_height(list(first), 0.45),
        lambda figure: _draw(figure, trace, found),
        lead=lead,
        body=f"a: largest Lyapunov exponents of {which}, mean over trajectories"
        f"{'; bands: 95 % interval' if len(shown) <= 4 else ''}. b: the largest of every layer "
        "with its interval, on a scale of its own; dash: from the first half of the timesteps "
        "alone, which shows how far the average has settled over "
        f"{quantity(max(steps.values()), 'timesteps')}{', too few to judge' if few else ''}.",
        alt=f"Left, falling curves of up to {count(max(map(len, found.values())), 'exponent')}; "
        f"right, the largest exponent of {count(len(found), 'layer')}. Largest exponents: "
        f"{listed}. The highest is {number(value)} per timestep in {shorten(worst, 30)}.",
        todo="Compare the time constant with the horizon of memory: they need not agree.",
    )


def _table(trace: xr.Dataset, first: Mapping[str, Estimate], steps: Mapping[str, float]) -> Table:
    """Tabulate the layers."""
    layers, kinds = names(trace), words(trace, "kind")
    lines = []
    for index in spaced(len(layers), _ROWS):
        one = first[layers[index]]
        constant = time_constant(one.value) if np.isfinite(one.value) else np.nan
        between = interval(one.low, one.high) or ABSENT
        lines.append(
            (
                layers[index],
                kinds[index],
                number(one.value),
                between,
                number(constant),
                number(steps[layers[index]]),
            )
        )
    return Table(
        "Largest Lyapunov exponent by layer.",
        ("Layer", "Kind", "Exponent", "95 % interval", "Time constant", "Timesteps"),
        ("name", "text", "number", "number", "number", "number"),
        lines,
        "" if len(lines) == len(layers) else "All layers are in the appendix.",
    )
