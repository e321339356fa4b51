"""Gradient over depth: how large the loss gradient is at every layer."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.findings import Finding
from analyzer.rules.gradient_flow import depth_decades, gradient_norm, weighted
from reports.figures.parameter_gradient import (
    parameters,
    relative_gradient,
    sample_gradient,
    tables,
)
from reports.read import array, columns, names, words
from reports.section import Plate, Section, Tile
from reports.style import (
    BLUE,
    TEAL,
    Values,
    bands,
    depth_axis,
    depth_height,
    letter,
    log_axis,
    note,
    quantiles,
)
from reports.text import count, factor, interval, number, quantity, shorten


def norms(trace: xr.Dataset) -> Values:
    """Return the gradient norm that is judged, shape (sample, layer)."""
    return gradient_norm(trace).transpose("sample", "layer").to_numpy().astype(np.float64)


def by_layer(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the gradient norm at every layer: median and bands over the samples."""
    _by_layer(ax, trace, norms(trace), "Gradient of the loss (norm)", BLUE, 1.0)


def activation(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the size of every layer's output: median and bands over the samples."""
    output = array(trace, "activation", "sample", "layer")
    _by_layer(ax, trace, output, "Output of the layer (rms)", TEAL, 0.45)


def _by_layer(
    ax: Axes, trace: xr.Dataset, values: Values, label: str, color: str, share: float
) -> None:
    """Draw one quantity over depth."""
    spread = quantiles(values)
    depth_axis(ax, names(trace), share)
    ax.set_ylabel(label)
    if log_axis(ax, np.stack([spread[5], spread[50], spread[95]])):
        positive = {level: np.where(band > 0, band, np.nan) for level, band in spread.items()}
        bands(ax, np.arange(spread[50].size, dtype=np.float64), positive, color)
        _mark_zeros(ax, spread[50], color)


def _mark_zeros(ax: Axes, median: Values, color: str) -> None:
    """Mark layers whose median is zero, which a logarithmic axis cannot show."""
    zeros = np.flatnonzero(median == 0)
    if zeros.size:
        low = ax.get_ylim()[0]
        ax.plot(zeros, [low] * zeros.size, "v", color=color, ms=4, clip_on=False, zorder=5)
        note(ax, zeros[0], low, "  zero", color=color, va="bottom")


def _draw_depth(figure: Figure, trace: xr.Dataset) -> None:
    """Lay out the figure of the gradient over depth."""
    by_layer(figure.subplots(), trace)


def _draw_scales(figure: Figure, trace: xr.Dataset) -> None:
    """Lay out the figure of activations and parameter gradients."""
    left, right = figure.subplots(1, 2)
    activation(left, trace)
    parameters(right, trace)
    letter(left, "a")
    letter(right, "b")


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    layers = names(trace)
    gradient = quantiles(norms(trace))
    output = quantiles(array(trace, "activation", "sample", "layer"))
    gain = quantiles(array(trace, "gain", "sample", "layer"))
    return Section(
        tiles=_tiles(trace),
        plates=[_depth_plate(trace, gradient), _scales_plate(trace, output)],
        tables=tables(trace)[:1],
        appendix=tables(trace)[1:],
        layers={
            "Kind": columns(layers, words(trace, "kind")),
            "Gradient norm": columns(layers, [number(value, 2) for value in gradient[50]]),
            "Gain": columns(layers, [number(value, 2) for value in gain[50]]),
            "Activation (rms)": columns(layers, [number(value, 2) for value in output[50]]),
        },
    )


def _tiles(trace: xr.Dataset) -> list[Tile]:
    """Name the numbers that matter."""
    lost = depth_decades(trace)
    deep = names(weighted(trace))
    unused, uncalled = _listed(trace, "without_gradient"), _listed(trace, "not_called")
    called = f"{count(len(uncalled), 'module')} never called" if uncalled else "all modules called"
    return [
        Tile(
            "Lost from output to input",
            quantity(lost.value, "decades"),
            interval(lost.low, lost.high) or "no interval",
        ),
        Tile("As a factor", factor(10**lost.value), "below 1: larger at the input"),
        Tile("Layers with weights", str(len(deep)), f"of {len(names(trace))} measured"),
        Tile("Parameters without gradient", str(len(unused)), called),
    ]


def _listed(trace: xr.Dataset, attribute: str) -> list[str]:
    """Split an attribute that lists names."""
    text = str(trace.attrs.get(attribute, ""))
    return [name for name in text.split(",") if name]


def _depth_plate(trace: xr.Dataset, spread: dict[int, Values]) -> Plate:
    """Word the figure of the gradient over depth."""
    layers, samples = names(trace), trace.sizes.get("sample", 0)
    return Plate(
        "gradient-flow-depth",
        46 + depth_height(layers),
        lambda figure: _draw_depth(figure, trace),
        lead=_lead(trace),
        body="Norm of the gradient of each sample's loss with respect to every layer's output, "
        f"over all of its elements. Line: median over {count(samples, 'sample')}; bands: "
        "25 to 75 % and 5 to 95 % of the samples.",
        alt=_depth_alt(layers, spread[50]),
    )


def _lead(trace: xr.Dataset) -> str:
    """State what the gradient does over depth."""
    lost, layers = depth_decades(trace).value, weighted(trace).sizes["layer"]
    if np.isnan(lost):
        return "There are not two layers whose gradients can be compared."
    if abs(lost) < np.log10(2):
        return f"Over {layers} layers with weights the gradient stays within a factor of 2."
    change = "shrinks" if lost > 0 else "grows"
    return (
        f"From output to input the gradient {change} by a factor of {number(10 ** abs(lost))} over "
        f"{layers} layers with weights."
    )


def _depth_alt(layers: list[str], median: Values) -> str:
    """Describe the figure of the gradient over depth."""
    known = np.flatnonzero(np.isfinite(median))
    if not known.size:
        return f"An empty plot: the gradient is undefined at all {len(layers)} layers."
    first, last = known[0], known[-1]
    low, high = known[np.argmin(median[known])], known[np.argmax(median[known])]
    return (
        f"Line with bands on a logarithmic axis over {count(len(layers), 'layer')}: from "
        f"{number(median[first])} at {shorten(layers[first], 40)} to {number(median[last])} at "
        f"{shorten(layers[last], 40)}. Lowest {number(median[low])} at {shorten(layers[low], 40)}, "
        f"highest {number(median[high])} at {shorten(layers[high], 40)}."
    )


def _scales_plate(trace: xr.Dataset, spread: dict[int, Values]) -> Plate:
    """Word the figure of activations and parameter gradients."""
    relative, tensors = relative_gradient(trace), names(trace, "parameter")
    known, single = relative[np.isfinite(relative)], sample_gradient(trace)
    medians = spread[50][np.isfinite(spread[50])]
    lead = "No parameter has a gradient that can be set against its size."
    numbers = "No values."
    if known.size:
        low, high = int(np.nanargmin(relative)), int(np.nanargmax(relative))
        lead = (
            f"Relative gradients of the parameters span {number(relative[low])} to "
            f"{number(relative[high])}; the largest is at {shorten(tensors[high], 34)}."
        )
        numbers = (
            f"Right: {known.size} dots from {number(relative[low])} ({shorten(tensors[low], 40)}) "
            f"to {number(relative[high])} ({shorten(tensors[high], 40)})."
        )
    left = (
        f"Left: line over the layers between {number(medians.min())} and {number(medians.max())}. "
        if medians.size
        else "Left: empty. "
    )
    return Plate(
        "gradient-flow-scales",
        42 + depth_height(names(trace), 0.45),
        lambda figure: _draw_scales(figure, trace),
        lead=lead,
        body="a: root mean square of every layer's output, bands as above. b: norm of the "
        "gradient of the mean loss divided by the norm of the tensor, one dot per tensor"
        + "; dashes: root mean square of the gradients of single samples instead, with its 95 % "
        "interval" * bool(np.isfinite(single[0]).any()) + ".",
        alt="Two plots with logarithmic axes. " + left + numbers + _single_alt(single[0]),
    )


def _single_alt(values: Values) -> str:
    """Describe the dashes of the figure of parameter gradients."""
    known = values[np.isfinite(values)]
    if not known.size:
        return ""
    return (
        f" Dashes of single samples from {number(known.min())} to {number(known.max())}, above "
        "the dots."
    )
