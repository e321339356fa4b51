"""Effective field: how much of the input really moves a layer's centre unit."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from analyzer.findings import Finding
from reports.figures import field_depth, field_maps
from reports.figures.field_depth import mean, untrained, usual
from reports.figures.receptive_field import extent
from reports.read import array, axes, columns, names, number_of, spaced, words
from reports.section import Plate, Section, Table, Tile
from reports.style import Values
from reports.text import count, factor, interval, number, percent, shorten

_ROWS = 16


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    layers = names(trace)
    diameter = array(trace, "diameter", "layer")
    return Section(
        tiles=_tiles(trace, diameter),
        plates=[*_map_plates(trace), _depth_plate(trace, diameter)],
        tables=[_table(trace)],
        layers={
            "Kind": columns(layers, words(trace, "kind")),
            "Effective field": columns(layers, [number(value) for value in diameter]),
        },
    )


def _samples(trace: xr.Dataset) -> str:
    """Write how many samples the maps average."""
    samples = number_of(trace, "samples")
    return "the samples" if np.isnan(samples) else count(int(samples), "sample")


def _last(values: Values) -> int:
    """Return the last layer with a value, -1 where there is none."""
    known = np.flatnonzero(np.isfinite(values))
    return int(known[-1]) if known.size else -1


def _interval(trace: xr.Dataset, index: int) -> str:
    """Write the interval of a layer's diameter."""
    low, high = (array(trace, f"diameter_{end}", "layer")[index] for end in ("low", "high"))
    return interval(low, high)


def _tiles(trace: xr.Dataset, diameter: Values) -> list[Tile]:
    """Name the numbers that matter."""
    last = _last(diameter)
    if last < 0:
        return [Tile("Effective field", "undefined", "at every layer")]
    name = shorten(names(trace)[last], 26)
    rate = number_of(trace, "sample_rate")
    seconds = "" if np.isnan(rate) else f"{number(diameter[last] / rate)} s, "
    whole, theory = array(trace, "input_size", "axis"), array(trace, "theoretical", "layer", "axis")
    tiles = [
        Tile(
            "Effective field, last layer",
            number(diameter[last]),
            f"{seconds}{_interval(trace, last)} {name}".strip(),
        ),
        Tile("Share of the input", _shares(trace, last, whole), f"input {extent(whole)}"),
        Tile(
            "Share of the theoretical",
            _shares(trace, last, theory[last]),
            f"of {extent(theory[last])}",
        ),
    ]
    copies = untrained(trace)
    if np.isfinite(copies[:, last]).any():
        ratio = factor(diameter[last] / usual(copies)[last])
        alive = int(np.isfinite(copies[:, last]).sum())
        tiles.append(Tile("Against untrained", ratio, _copies(alive)))
    return [*tiles, *_convergence(trace, last)]


def _copies(number: int) -> str:
    """Write how many untrained copies there are."""
    return "1 untrained copy" if number == 1 else f"{number} untrained copies"


def _shares(trace: xr.Dataset, index: int, sizes: Values) -> str:
    """Write the share of ``sizes`` that the field of a layer takes, by axis where they differ."""
    if not field_depth.apart(trace):
        share = array(trace, "diameter", "layer")[index] / mean(sizes[None])[0]
        return percent(share)
    along = 4 * array(trace, "sigma", "layer", "axis")[index] / sizes
    if len(along) == 2:
        return " \u00d7 ".join(percent(share) for share in along)
    return f"{percent(along.min())} to {percent(along.max())}"


def _convergence(trace: xr.Dataset, index: int) -> list[Tile]:
    """Name how far half of the samples are from all."""
    half, full = (
        array(trace, key, "layer", "axis")[index] for key in ("half_sample_sigma", "sigma")
    )
    if not half.size or not np.isfinite(half).all() or not (full > 0).all():
        return []
    change = float(np.abs(half / full - 1).max())
    return [Tile("Half of the samples", f"within {percent(change)}", "of the whole")]


def _measured(trace: xr.Dataset) -> str:
    """Say that not all convolutions were measured; empty if they were."""
    total, measured = (number_of(trace, f"layers_{word}") for word in ("total", "measured"))
    if np.isnan(total) or total == measured:
        return ""
    return f" Measured: {number(measured)} of {number(total)} convolutions, evenly spaced."


def _map_plates(trace: xr.Dataset) -> list[Plate]:
    """Word the maps or profiles, where there are any."""
    dims = field_maps.map_dims(trace)
    if not dims or not field_maps.selected(trace):
        return []
    chosen = field_maps.selected(trace)
    part = field_maps.window(trace, chosen)
    _, height = field_maps.columns_of(trace, chosen, part)
    how = {
        1: "Row by row the amplitude over the input positions; orange: 2\u03c3 field.",
        2: "Colour on a square-root scale; ellipses: 1\u03c3 (dashed) and 2\u03c3 (solid).",
        3: "Row by row the root of the energy along each axis; orange: 2\u03c3 field.",
    }[len(dims)]
    return [
        Plate(
            "effective-field-maps",
            height,
            lambda figure: field_maps.draw(figure, trace, chosen, part),
            lead=_map_lead(trace, chosen),
            body=f"Influence of every input position on the centre unit of {len(chosen)} of "
            f"{len(names(trace))} layers, each scaled to its own maximum, over {_samples(trace)}. "
            f"{how}{field_maps.shown(trace, part)}",
            alt=_map_alt(trace, chosen),
            todo="Look for fields off the centre, or with holes: some positions are not looked at.",
        )
    ]


def _map_lead(trace: xr.Dataset, chosen: list[int]) -> str:
    """State how the field grows."""
    diameter = array(trace, "diameter", "layer")
    known = [i for i in chosen if np.isfinite(diameter[i])]
    if len(known) < 2:
        return "One layer has a map."
    first, last = known[0], known[-1]
    return (
        f"From {shorten(names(trace)[first], 26)} to {shorten(names(trace)[last], 26)} the field "
        f"grows from {number(diameter[first])} to {number(diameter[last])} positions."
        if diameter[last] > diameter[first]
        else f"The field does not grow from {shorten(names(trace)[first], 26)} "
        f"({number(diameter[first])}) to {shorten(names(trace)[last], 26)} "
        f"({number(diameter[last])})."
    )


def _map_alt(trace: xr.Dataset, chosen: list[int]) -> str:
    """Describe the maps."""
    layers, diameter = names(trace), array(trace, "diameter", "layer")
    parts = "; ".join(f"{shorten(layers[i], 30)} {number(diameter[i])}" for i in chosen)
    return f"{count(len(chosen), 'spot')} of influence on the input, diameters: {parts} positions."


def _depth_plate(trace: xr.Dataset, diameter: Values) -> Plate:
    """Word the figure over depth."""
    layers, last = names(trace), _last(diameter)
    theory = array(trace, "theoretical", "layer", "axis")
    copies = untrained(trace)
    lead, course = "No layer has an effective field.", "No values."
    if last >= 0:
        lead = (
            f"At {shorten(layers[last], 30)} the effective field is {number(diameter[last])} of "
            f"{extent(theory[last])} theoretical positions."
        )
        course = "; ".join(
            f"{shorten(layers[i], 30)} effective {number(diameter[i])}, theoretical "
            f"{extent(theory[i])}"
            for i in spaced(len(layers), 5)
        )
    single = "along each axis" if field_depth.apart(trace) else "mean over the axes"
    if len(axes(trace)) == 1:
        single = ""
    body = (
        "Two-sigma diameter of the amplitude with its 95 % bootstrap interval over "
        f"{_samples(trace)}, and the theoretical field (dashed){', ' * bool(single)}{single}."
    )
    if len(copies) and not field_depth.apart(trace):
        body += f" Dotted line: mean of {_copies(len(copies))}."
    if field_depth.cut(trace):
        body += " The axis is cut: the theoretical field dwarfs the others."
    return Plate(
        "effective-field-depth",
        field_depth.height(trace),
        lambda figure: field_depth.draw(figure, trace),
        lead=lead,
        body=f"{body} Level line: input size.{_measured(trace)}",
        alt=f"Two lines over {count(len(layers), 'layer')}. {course}.",
    )


def _table(trace: xr.Dataset) -> Table:
    """Tabulate the layers."""
    layers, copies = names(trace), untrained(trace)
    diameter, side, luo = (array(trace, key, "layer") for key in ("diameter", "side50", "luo_size"))
    theory = array(trace, "theoretical", "layer", "axis")
    null = usual(copies)
    rows = [
        (
            layers[i],
            number(diameter[i]),
            _interval(trace, i) or number(np.nan),
            number(null[i]),
            number(side[i]),
            number(luo[i]),
            extent(theory[i]),
            percent(diameter[i] / mean(theory)[i]) if mean(theory)[i] > 0 else number(np.nan),
        )
        for i in spaced(len(layers), _ROWS)
    ]
    more = "" if len(rows) == len(layers) else " All measured layers are in the appendix."
    return Table(
        "Effective field by layer.",
        (
            *("Layer", "Diameter", "95 % interval", "Untrained", "Side 50 %", "Luo size"),
            *("Theoretical", "Ratio"),
        ),
        ("name", *["number"] * 7),
        rows,
        f"Sizes of the amplitude [input positions].{_measured(trace)}{more}",
    )
