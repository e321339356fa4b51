"""Gradient over time: how large the loss gradient is at every recurrent state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyzer.findings import Finding
from analyzer.rules.timestep_gradient import entrance, state_gradient, time_decades
from analyzer.rules.verdicts import Estimate
from reports.read import array, columns, names, number_of, spaced, words
from reports.section import Plate, Section, Table, Tile
from reports.style import (
    DASHES,
    PAPER,
    SERIES,
    Values,
    enlarge,
    letter,
    log_axis,
    quantiles,
)
from reports.text import ABSENT, count, interval, number, percent, quantity, shorten

_LINES = 8
_ROWS = 16
_DIMS = ("sample", "layer", "timestep")
_FLOOR = 8.0
"""Decades below the largest gradient that the heat map still tells apart."""


@dataclass(frozen=True)
class Quantity:
    """A state gradient that is drawn."""

    name: str
    label: str


HIDDEN = Quantity("hidden_gradient_final", "hidden state, last loss")
CELL = Quantity("cell_gradient_final", "cell state, last loss")
TOTAL = Quantity("hidden_gradient", "hidden state, all losses")


def median(trace: xr.Dataset, name: str) -> Values:
    """Return the median over the samples, shape (layer, timestep)."""
    return quantiles(array(trace, name, *_DIMS))[50]


def quantities(trace: xr.Dataset) -> list[Quantity]:
    """List what differs and can be drawn."""
    hidden, cell, total = (array(trace, kind.name, *_DIMS) for kind in (HIDDEN, CELL, TOTAL))
    if not np.isfinite(hidden).any():
        return [Quantity(TOTAL.name, "hidden state")]
    same = np.allclose(hidden, total, rtol=1e-6, atol=0, equal_nan=True)
    first = Quantity(HIDDEN.name, "hidden state") if same else HIDDEN
    second = Quantity(CELL.name, "cell state") if same else CELL
    found = [first, second] if np.isfinite(cell).any() else [first]
    return found if same else [*found, TOTAL]


def state_median(trace: xr.Dataset) -> Values:
    """Return the median state gradient that is judged, shape (layer, timestep)."""
    return quantiles(state_gradient(trace).transpose(*_DIMS).to_numpy())[50]


def heat_map(ax: Axes, trace: xr.Dataset) -> ScalarMappable:
    """Draw log10 of the median gradient for layer x timestep, one scale for all layers."""
    layers = names(trace)
    values = state_median(trace)
    with np.errstate(divide="ignore"):
        logs = np.where(np.isfinite(values), np.log10(values), np.nan)
    finite = logs[np.isfinite(logs)]
    high = float(finite.max()) if finite.size else 0.0
    low = max(float(finite.min()), high - _FLOOR) if finite.size else -1.0
    if high - low < 0.5:
        low = high - 0.5
    norm = Normalize(low, high)
    count_, steps = logs.shape
    cmap = PAPER.with_extremes(bad="#EEF0F2")
    ax.imshow(
        enlarge(np.where(np.isneginf(logs), low, logs)),
        aspect="auto",
        cmap=cmap,
        norm=norm,
        extent=(-0.5, steps - 0.5, count_ - 0.5, -0.5),
    )
    for edge in range(1, count_):
        ax.axhline(edge - 0.5, color="white", lw=1.2 if count_ <= 12 else 0.3)
    ticks = spaced(count_, 14)
    ax.set_yticks(ticks, [shorten(layers[i], 18) for i in ticks], parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("Timestep, in the order of the data")
    ax.xaxis.set_major_locator(MaxNLocator(9, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    ax.spines[:].set_visible(False)
    return ScalarMappable(norm, cmap)


def over_time(ax: Axes, trace: xr.Dataset, name: str) -> None:
    """Draw the gradient over time, one line per layer, with the middle half of the samples."""
    layers = names(trace)
    spread = quantiles(array(trace, name, *_DIMS))
    ax.set_xlabel("Timestep")
    ax.set_xlim(-0.5, spread[50].shape[1] - 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    shown = spaced(len(layers), _LINES)
    if not log_axis(ax, np.stack([spread[25][shown], spread[50][shown], spread[75][shown]])):
        return
    steps = np.arange(spread[50].shape[1])
    for rank, index in enumerate(shown):
        color, dash = SERIES[rank % len(SERIES)], DASHES[rank % len(DASHES)]
        line = np.where(spread[50][index] > 0, spread[50][index], np.nan)
        if len(shown) <= 4:
            low, high = spread[25][index], spread[75][index]
            ax.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
        marker = "o" if steps.size == 1 else ""
        ax.plot(steps, line, color=color, ls=dash, label=shorten(layers[index], 20), marker=marker)


def _draw_map(figure: Figure, trace: xr.Dataset) -> None:
    """Lay out the heat map with its scale."""
    ax = figure.subplots()
    bar = figure.colorbar(heat_map(ax, trace), ax=ax, pad=0.012, aspect=20, fraction=0.05)
    bar.outline.set_linewidth(0)
    bar.set_label("log\u2081\u2080 gradient")
    bar.ax.tick_params(width=0.4, length=2)


def _draw_lines(figure: Figure, trace: xr.Dataset) -> None:
    """Lay out the line charts beside each other, on one scale."""
    kinds = quantities(trace)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for ax, kind, letter_ in zip(panels, kinds, "abc", strict=False):
        over_time(ax, trace, kind.name)
        letter(ax, f"{letter_}   {kind.label}" if len(kinds) > 1 else "")
    _common_scale(list(panels), trace, kinds)
    panels[0].set_ylabel("Gradient (rms)")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(labels))
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _common_scale(panels: list[Axes], trace: xr.Dataset, kinds: list[Quantity]) -> None:
    """Give all panels the axis that holds all their values."""
    values = np.concatenate([median(trace, kind.name).ravel() for kind in kinds])
    if (values > 0).any():
        log_axis(panels[0], values)


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    layers = names(trace)
    lost = time_decades(trace)
    return Section(
        tiles=_tiles(trace, lost),
        plates=[_map_plate(trace, lost), _lines_plate(trace)],
        tables=[_table(trace, lost)],
        layers={
            "Kind": columns(layers, words(trace, "kind")),
            "Lost over time": columns(
                layers, [quantity(lost[name].value, "decades", 2) for name in layers]
            ),
        },
    )


def _tiles(trace: xr.Dataset, lost: Mapping[str, Estimate]) -> list[Tile]:
    """Name the numbers that matter."""
    steps, samples = trace.sizes.get("timestep", 0), trace.sizes.get("sample", 0)
    layer = entrance(lost)
    tiles = []
    if layer:
        loss = lost[layer]
        between = f"{interval(loss.low, loss.high)} {shorten(layer, 24)}".strip()
        tiles = [Tile("Lost from last to first step", quantity(loss.value, "decades"), between)]
    tiles += [
        Tile("Timesteps", number(steps), "each with its own gradient"),
        Tile("Recurrent layers", str(len(lost)), count(samples, "sample")),
    ]
    residual = number_of(trace, "replay_residual")
    if np.isfinite(residual):
        tiles.append(Tile("Replay residual", number(residual, 2), "recomputed against the model"))
    return tiles


def _map_plate(trace: xr.Dataset, lost: Mapping[str, Estimate]) -> Plate:
    """Word the heat map."""
    layers = names(trace)
    cells = np.isfinite(array(trace, CELL.name, *_DIMS)).any()
    state = "cell state (hidden state where a layer has none)" if cells else "hidden state"
    return Plate(
        "timestep-gradient-map",
        max(28, 20 + min(14, len(layers)) * 5.5),
        lambda figure: _draw_map(figure, trace),
        lead=_map_lead(lost, state_median(trace)),
        body=f"Gradient of the last position's loss with respect to the {state}: root mean square "
        "over units, median over samples, on one logarithmic scale for all layers, at most "
        f"{_FLOOR:g} decades deep. Grey: not measured.",
        alt=_map_alt(trace, layers),
        todo="Where only the columns at the end are dark, only the last steps train the weights.",
    )


def _map_lead(lost: Mapping[str, Estimate], values: Values) -> str:
    """State what the gradient does over time."""
    layer = entrance(lost)
    if not layer and (values == 0).any():
        return (
            f"The gradient is exactly zero at {percent(float((values == 0).mean()))} of the steps."
        )
    if not layer:
        return "The change of the gradient over time is undefined."
    loss = lost[layer].value
    change = "shrinks" if loss > 0 else "grows"
    return (
        f"From the last to the first timestep the gradient of {shorten(layer, 30)}, where "
        f"the input enters, {change} by a factor of {number(10 ** abs(loss))}."
    )


def _map_alt(trace: xr.Dataset, layers: list[str]) -> str:
    """Describe the heat map, layer by layer while there are few."""
    values = state_median(trace)
    parts = []
    for index in spaced(len(layers), 4):
        known = np.flatnonzero(np.isfinite(values[index]))
        if known.size:
            first, last = values[index][known[0]], values[index][known[-1]]
            parts.append(
                f"{shorten(layers[index], 40)} goes from {number(first)} at step {known[0]} to "
                f"{number(last)} at step {known[-1]}"
            )
    course = "; ".join(parts) or "no layer has values"
    steps = trace.sizes.get("timestep", 0)
    return f"Heat map of {count(len(layers), 'layer')} by {count(steps, 'timestep')}: {course}."


def _lines_plate(trace: xr.Dataset) -> Plate:
    """Word the line charts."""
    kinds, layers = quantities(trace), names(trace)
    values = np.stack([median(trace, kind.name) for kind in kinds])
    known = values[np.isfinite(values)]
    span = f"between {number(known.min())} and {number(known.max())}" if known.size else "undefined"
    band = "; bands: the middle half of the samples" if len(layers) <= 4 else ""
    shown = min(_LINES, len(layers))
    which = "every layer" if shown == len(layers) else f"{shown} of {len(layers)} layers"
    panels = "; ".join(f"{key}: {kind.label}" for key, kind in zip("abc", kinds, strict=False))
    steps = trace.sizes.get("timestep", 0)
    return Plate(
        "timestep-gradient-lines",
        52,
        lambda figure: _draw_lines(figure, trace),
        lead=f"State gradients of {count(len(layers), 'layer')} lie {span}."
        if known.size
        else "The state gradients are undefined.",
        body=f"Median over samples for {which}{band}. {panels + '.' if len(kinds) > 1 else ''}",
        alt=f"{count(len(kinds), 'line chart')} of {count(shown, 'layer')} over "
        f"{count(steps, 'timestep')} on a logarithmic axis; values {span}.",
    )


def _table(trace: xr.Dataset, lost: Mapping[str, Estimate]) -> Table:
    """Tabulate the layers."""
    layers, kinds = names(trace), words(trace, "kind")
    values = state_median(trace)
    rows = []
    for index in spaced(len(layers), _ROWS):
        known = values[index][np.isfinite(values[index])]
        ends = (known[0], known[-1]) if known.size else (np.nan, np.nan)
        loss = lost[layers[index]]
        decades = (number(loss.value), interval(loss.low, loss.high) or ABSENT)
        rows.append((layers[index], kinds[index], number(ends[0]), number(ends[1]), *decades))
    return Table(
        "State gradient by layer.",
        ("Layer", "Kind", "First step", "Last step", "Decades lost", "95 % interval"),
        ("name", "text", "number", "number", "number", "number"),
        rows,
        "" if len(rows) == len(layers) else "All layers are in the appendix.",
    )
