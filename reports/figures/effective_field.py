"""Effective field: how much of the input really moves a layer's centre unit."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.patheffects import withStroke

from analyzer.findings import Finding
from reports.read import array, axes, columns, names, number_of, spaced, words
from reports.section import Plate, Section, Table, Tile
from reports.style import (
    BLUE,
    HALO,
    INK,
    LIMIT,
    MUTED,
    PALE_BLUE,
    PAPER,
    Values,
    depth_axis,
    depth_height,
    note,
)
from reports.text import count, interval, number, percent, shorten

_MAPS = {1: 9, 2: 6}
_ROWS = 16
_RING = "#E8590C"
_FINEST = 128


def map_dims(trace: xr.Dataset) -> tuple[str, ...]:
    """Return the input dimensions of the energy maps; empty where there are no maps."""
    if "energy" not in trace:
        return ()
    dims = tuple(str(dim) for dim in trace["energy"].dims if dim != "layer")
    return dims if len(dims) in (1, 2) else ()


def amplitude(trace: xr.Dataset, index: int) -> Values:
    """Return the root of the energy of one layer, scaled to its own maximum of one."""
    energy = trace["energy"].isel(layer=index).to_numpy().astype(np.float64)
    root = np.sqrt(np.clip(np.nan_to_num(energy), 0, None))
    peak = root.max(initial=0.0)
    return root / peak if peak > 0 else root


def centre(profile: Values) -> list[float]:
    """Return the centre of gravity of a map along each of its axes."""
    total = profile.sum()
    if total <= 0:
        return [(size - 1) / 2 for size in profile.shape]
    return [
        float((np.arange(size) * profile.sum(axis=tuple(set(range(profile.ndim)) - {axis}))).sum())
        / total
        for axis, size in enumerate(profile.shape)
    ]


def _coarse(image: Values) -> Values:
    """Average neighbouring cells of a map that is finer than print."""
    for axis in (0, 1):
        block = -(-image.shape[axis] // _FINEST)
        if block > 1:
            starts = np.arange(0, image.shape[axis], block)
            sums = np.add.reduceat(image, starts, axis=axis)
            widths = np.diff(np.append(starts, image.shape[axis]))
            image = sums / (widths[:, None] if axis == 0 else widths[None, :])
    return image


def field_map(ax: Axes, trace: xr.Dataset, index: int) -> None:
    """Draw the map of one layer with its 1 and 2 sigma ellipses."""
    image = amplitude(trace, index)
    rows, cols = image.shape
    shown = _coarse(image)
    repeat = max(1, 64 // max(shown.shape))
    fine = np.repeat(np.repeat(shown, repeat, axis=0), repeat, axis=1)
    ax.imshow(
        np.sqrt(fine), cmap=PAPER, vmin=0, vmax=1, extent=(-0.5, cols - 0.5, rows - 0.5, -0.5)
    )
    sigma = array(trace, "sigma", "layer", "axis")[index]
    if np.isfinite(sigma).all() and sigma.size == 2 and image.max() > 0:
        middle = centre(image)
        for times, dash in ((1, (0, (2, 1.2))), (2, "-")):
            ring = Ellipse(
                (middle[1], middle[0]),
                2 * times * sigma[1],
                2 * times * sigma[0],
                fill=False,
                ec=_RING,
                lw=0.9,
                ls=dash,
                path_effects=[withStroke(linewidth=2, foreground=(1, 1, 1, 0.75))],
            )
            ax.add_patch(ring)
    ax.set_xlim(-0.5, cols - 0.5)
    ax.set_ylim(rows - 0.5, -0.5)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(visible=True, color="#B5BDC6", linewidth=0.4)
    _title(ax, trace, index)


def _title(ax: Axes, trace: xr.Dataset, index: int) -> None:
    """Name a panel by its layer."""
    name = shorten(names(trace)[index], 17)
    ax.set_title(name, fontsize=6.2, pad=2.5, fontweight=400, loc="center", parse_math=False)


def profiles(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the amplitude over the input positions, one row per layer, with the 2 sigma field."""
    chosen = selected(trace)
    sigma = array(trace, "sigma", "layer", "axis")
    size = trace["energy"].sizes[map_dims(trace)[0]]
    x = np.arange(size)
    for row, index in enumerate(chosen):
        base = len(chosen) - 1 - row
        profile = amplitude(trace, index)
        ax.fill_between(x, base, base + 0.82 * profile, color=PALE_BLUE, lw=0, step="mid")
        ax.step(x, base + 0.82 * profile, color=BLUE, lw=0.8, where="mid")
        if sigma.shape[1] and np.isfinite(sigma[index, 0]) and profile.max() > 0:
            middle = centre(profile)[0]
            ends = [
                max(middle - 2 * sigma[index, 0], 0),
                min(middle + 2 * sigma[index, 0], size - 1),
            ]
            ax.plot(ends, [base - 0.06] * 2, color=_RING, lw=1.6, solid_capstyle="butt")
    labels = [shorten(names(trace)[index], 20) for index in chosen]
    ax.set_yticks(
        [len(chosen) - 1 - row + 0.3 for row in range(len(chosen))], labels, parse_math=False
    )
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.25, len(chosen))
    ax.set_xlim(-0.5, size - 0.5)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    ax.set_xlabel("Input position")


def selected(trace: xr.Dataset) -> list[int]:
    """Choose the layers that are drawn: evenly spaced ones with a map."""
    energy = trace["energy"].to_numpy()
    flat = energy.reshape(energy.shape[0], -1)
    mapped = np.flatnonzero(np.nan_to_num(flat).max(axis=1, initial=0.0) > 0)
    return [int(mapped[i]) for i in spaced(mapped.size, _MAPS[len(map_dims(trace))])]


def by_layer(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the effective diameter with its interval against the theoretical field, by depth."""
    layers = names(trace)
    diameter, low, high = (array(trace, "diameter" + end, "layer") for end in ("", "_low", "_high"))
    theory = _mean(array(trace, "theoretical", "layer", "axis"))
    whole = float(array(trace, "input_size", "axis").mean()) if axes(trace) else np.nan
    x = np.arange(len(layers))
    depth_axis(ax, layers)
    marker = "o" if len(layers) <= 24 else ""
    ax.plot(x, theory, color=MUTED, ls=(0, (4, 1.6)), lw=1.1, marker=marker, ms=2)
    if len(layers) <= 24:
        error = np.abs(np.stack([diameter - low, high - diameter]))
        ax.errorbar(x, diameter, error, color=BLUE, lw=1.6, marker="o", elinewidth=1, capsize=2)
    else:
        ax.fill_between(x, low, high, color=BLUE, alpha=0.18, lw=0)
        ax.plot(x, diameter, color=BLUE, lw=1.6)
    values = np.concatenate([diameter, high, [whole]])
    top = float(np.nanmax(values, initial=1.0))
    reach = float(np.nanmax(theory, initial=0.0))
    ax.set_ylim(0, 1.12 * max(top, min(reach, 2.5 * top)))
    if np.isfinite(whole):
        ax.axhline(whole, color=INK, lw=0.8, ls=LIMIT)
        note(ax, -0.6, whole, f" input {number(whole)}", va="bottom", path_effects=HALO)
    _name_lines(ax, theory, diameter)
    ax.set_ylabel("Diameter (positions)")
    ax.grid(axis="y")


def _mean(values: Values) -> Values:
    """Average over the axes, nan where any is unknown."""
    return values.mean(axis=1) if values.shape[1] else np.full(len(values), np.nan)


def _name_lines(ax: Axes, theory: Values, diameter: Values) -> None:
    """Name both lines where they are far apart and inside the axes."""
    top = ax.get_ylim()[1]
    for values, label, color, side in (
        (theory, "theoretical", MUTED, 5),
        (diameter, "effective (2\u03c3)", BLUE, -9),
    ):
        inside = np.flatnonzero(np.isfinite(values) & (values < 0.9 * top))
        if inside.size:
            at = int(inside[int(0.7 * (inside.size - 1))])
            left = side < 0 or at < 0.2 * values.size
            ax.annotate(
                label,
                (at, values[at]),
                xytext=(4 if left else -4, side),
                textcoords="offset points",
                ha="left" if left else "right",
                va="center",
                color=color,
                fontsize=7,
                fontweight=700,
                in_layout=False,
            )


def _draw_maps(figure: Figure, trace: xr.Dataset) -> None:
    """Lay out the maps beside each other with one scale."""
    chosen = selected(trace)
    panels = figure.subplots(1, max(3, len(chosen)), squeeze=False)[0]
    for ax in panels[len(chosen) :]:
        ax.axis("off")
    for ax, index in zip(panels, chosen, strict=False):
        field_map(ax, trace, index)
    scale = ScalarMappable(Normalize(0, 1), PAPER)
    bar = figure.colorbar(
        scale, ax=list(panels), pad=0.008, aspect=12, shrink=0.8, ticks=[0, 0.5, 1]
    )
    bar.ax.set_yticklabels(["0", ".25", "1"])
    bar.outline.set_linewidth(0.4)
    bar.set_label("amplitude", fontsize=6.5)
    bar.ax.tick_params(labelsize=6.5, width=0.4, length=2)


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
    theory = _mean(array(trace, "theoretical", "layer", "axis"))[last]
    whole = float(array(trace, "input_size", "axis").mean()) if axes(trace) else float("nan")
    name = shorten(names(trace)[last], 26)
    between = _interval(trace, last)
    tiles = [
        Tile("Effective field, last layer", number(diameter[last]), f"{between} {name}".strip()),
        Tile("Share of the input", percent(diameter[last] / whole), f"input {number(whole)}"),
        Tile("Share of the theoretical", percent(diameter[last] / theory), f"of {number(theory)}"),
    ]
    half, full = (
        array(trace, key, "layer", "axis")[last] for key in ("half_sample_sigma", "sigma")
    )
    if half.size and np.isfinite(half).all() and (full > 0).all():
        change = float(np.abs(half / full - 1).max())
        tiles.append(Tile("Half of the samples", f"within {percent(change)}", "of the whole"))
    return tiles


def _map_plates(trace: xr.Dataset) -> list[Plate]:
    """Word the maps or profiles, where there are any."""
    dims = map_dims(trace)
    if not dims or not selected(trace):
        return []
    chosen = selected(trace)
    flat = len(dims) == 1
    columns_ = max(3, len(chosen))
    ratio = 1.0 if flat else trace.sizes[dims[0]] / trace.sizes[dims[1]]
    height = max(30, 13 + 7 * len(chosen)) if flat else min(10 + 152 / columns_ * ratio, 90)
    shown = (
        "Row by row the amplitude over the input positions; orange: 2\u03c3 field."
        if flat
        else "Colour on a square-root scale; ellipses: 1\u03c3 (dashed) and 2\u03c3 (solid)."
    )
    return [
        Plate(
            "effective-field-maps",
            height,
            lambda figure: (
                profiles(figure.subplots(), trace) if flat else _draw_maps(figure, trace)
            ),
            lead=_map_lead(trace, chosen),
            body=f"Influence of every input position on the centre unit of {len(chosen)} of "
            f"{len(names(trace))} layers, each scaled to its own maximum, over {_samples(trace)}. "
            + shown,
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
    theory = _mean(array(trace, "theoretical", "layer", "axis"))
    lead = "No layer has an effective field."
    course = "No values."
    if last >= 0:
        lead = (
            f"At {shorten(layers[last], 30)} the effective field is {number(diameter[last])} of "
            f"{number(theory[last])} theoretical positions."
        )
        course = "; ".join(
            f"{shorten(layers[i], 30)} effective {number(diameter[i])}, theoretical "
            f"{number(theory[i])}"
            for i in spaced(len(layers), 5)
        )
    return Plate(
        "effective-field-depth",
        46 + depth_height(layers),
        lambda figure: by_layer(figure.subplots(), trace),
        lead=lead,
        body="Two-sigma diameter of the amplitude with its 95 % bootstrap interval over "
        f"{_samples(trace)}, and the theoretical field (dashed), mean over the axes. Dotted: "
        "input size. The axis is cut where the theoretical field dwarfs both.",
        alt=f"Two lines over {count(len(layers), 'layer')}. {course}.",
    )


def _table(trace: xr.Dataset) -> Table:
    """Tabulate the layers."""
    layers = names(trace)
    diameter, side, luo = (array(trace, key, "layer") for key in ("diameter", "side50", "luo_size"))
    theory = _mean(array(trace, "theoretical", "layer", "axis"))
    rows = [
        (
            layers[i],
            number(diameter[i]),
            _interval(trace, i) or number(np.nan),
            number(side[i]),
            number(luo[i]),
            number(theory[i]),
            percent(diameter[i] / theory[i]) if theory[i] > 0 else number(np.nan),
        )
        for i in spaced(len(layers), _ROWS)
    ]
    return Table(
        "Effective field by layer.",
        ("Layer", "Diameter", "95 % interval", "Side 50 %", "Luo size", "Theoretical", "Ratio"),
        ("name", *["number"] * 6),
        rows,
        "Sizes of the amplitude [input positions]."
        + ("" if len(rows) == len(layers) else " All layers are in the appendix."),
    )
