"""Maps of effective fields over the input: images for two axes, profiles for one or three."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.patheffects import withStroke

from reports.read import array, axes, names, number_of, spaced
from reports.style import BLUE, PALE_BLUE, PAPER, Values, letter
from reports.text import number, shorten

Window = tuple[slice, ...]
"""Part of the input that is drawn, along each axis of a map."""

_MOST = {1: 9, 2: 6, 3: 6}
_RING = "#E8590C"
_FINEST = 128
_SIGMAS = 3.2
_WHOLE = 0.6
"""Share of an axis from which on all of it is drawn."""


def map_dims(trace: xr.Dataset) -> tuple[str, ...]:
    """Return the input dimensions of the energy maps; empty where there are no maps."""
    if "energy" in trace:
        return tuple(str(dim) for dim in trace["energy"].dims if dim != "layer")
    marginals = tuple(axis for axis in axes(trace) if f"energy_{axis}" in trace)
    return marginals if len(marginals) == 3 else ()


def amplitude(trace: xr.Dataset, index: int, axis: str = "") -> Values:
    """Return the root of the energy of one layer, scaled to its own maximum of one.

    Parameters
    ----------
    axis : str
        Of three, along which the marginal is wanted.
    """
    variable = f"energy_{axis}" if axis else "energy"
    energy = trace[variable].isel(layer=index).to_numpy().astype(np.float64)
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


def selected(trace: xr.Dataset) -> list[int]:
    """Choose the layers that are drawn: evenly spaced ones with a map."""
    dims = map_dims(trace)
    variable = "energy" if len(dims) < 3 else f"energy_{dims[0]}"
    energy = trace[variable].to_numpy()
    flat = energy.reshape(energy.shape[0], -1)
    mapped = np.flatnonzero(np.nan_to_num(flat).max(axis=1, initial=0.0) > 0)
    return [int(mapped[i]) for i in spaced(mapped.size, _MOST[len(dims)])]


def window(trace: xr.Dataset, chosen: Sequence[int]) -> Window:
    """Choose the part of the input that holds the fields of all chosen layers."""
    dims, sigma = map_dims(trace), array(trace, "sigma", "layer", "axis")
    maps = [_middle(trace, index) for index in chosen]
    parts = []
    for axis, dim in enumerate(dims):
        size = trace.sizes[dim]
        half = np.nan_to_num(_SIGMAS * sigma[list(chosen), axis]).clip(min=6)
        middle = np.array([place[axis] for place in maps])
        first = int(np.floor((middle - half).min().clip(0)))
        last = int(np.ceil((middle + half).max().clip(max=size - 1)))
        whole = last + 1 - first > _WHOLE * size
        parts.append(slice(0, size) if whole else slice(first, last + 1))
    return tuple(parts)


def _middle(trace: xr.Dataset, index: int) -> list[float]:
    """Return where the field of one layer is."""
    dims = map_dims(trace)
    if len(dims) == 3:
        return [centre(amplitude(trace, index, dim))[0] for dim in dims]
    return centre(amplitude(trace, index))


def shown(trace: xr.Dataset, part: Window) -> str:
    """Say which part of the input is drawn; empty if it is all of it."""
    sizes = [trace.sizes[dim] for dim in map_dims(trace)]
    if all(cut.stop - cut.start == size for cut, size in zip(part, sizes, strict=True)):
        return ""
    drawn = " \u00d7 ".join(number(cut.stop - cut.start) for cut in part)
    whole = " \u00d7 ".join(number(size) for size in sizes)
    return f" Drawn: {drawn} of {whole} positions."


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


def field_map(ax: Axes, trace: xr.Dataset, index: int, part: Window | None = None) -> None:
    """Draw the map of one layer, or a part of it, with its 1 and 2 sigma ellipses."""
    image = amplitude(trace, index)
    rows, cols = part or (slice(0, image.shape[0]), slice(0, image.shape[1]))
    cells = _coarse(image[rows, cols])
    repeat = max(1, 64 // max(cells.shape))
    fine = np.repeat(np.repeat(cells, repeat, axis=0), repeat, axis=1)
    edges = (cols.start - 0.5, cols.stop - 0.5, rows.stop - 0.5, rows.start - 0.5)
    ax.imshow(np.sqrt(fine), cmap=PAPER, vmin=0, vmax=1, extent=edges)
    sigma = array(trace, "sigma", "layer", "axis")[index]
    if np.isfinite(sigma).all() and sigma.size == 2 and image.max() > 0:
        _rings(ax, centre(image), sigma)
    ax.set_xlim(*edges[:2])
    ax.set_ylim(*edges[2:])
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(visible=True, color="#B5BDC6", linewidth=0.4)
    name = shorten(names(trace)[index], 20)
    ax.set_title(name, fontsize=6.2, pad=2.5, fontweight=400, loc="center", parse_math=False)


def _rings(ax: Axes, middle: Sequence[float], sigma: Values) -> None:
    """Draw the ellipses of one and two deviations."""
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


def profiles(
    ax: Axes, trace: xr.Dataset, chosen: Sequence[int], part: slice, axis: int = 0
) -> None:
    """Draw the amplitude along one axis, one row per layer, with the 2 sigma field."""
    dims = map_dims(trace)
    sigma = array(trace, "sigma", "layer", "axis")
    x = np.arange(part.start, part.stop)
    for row, index in enumerate(chosen):
        base = len(chosen) - 1 - row
        profile = amplitude(trace, index, dims[axis] if len(dims) == 3 else "")
        drawn = base + 0.82 * profile[part]
        ax.fill_between(x, base, drawn, color=PALE_BLUE, lw=0, step="mid")
        ax.step(x, drawn, color=BLUE, lw=0.8, where="mid")
        if np.isfinite(sigma[index, axis]) and profile.max() > 0:
            middle, half = centre(profile)[0], 2 * sigma[index, axis]
            ends = [max(middle - half, part.start), min(middle + half, part.stop - 1)]
            ax.plot(ends, [base - 0.06] * 2, color=_RING, lw=1.6, solid_capstyle="butt")
    labels = [shorten(names(trace)[index], 20) for index in chosen]
    if axis:
        labels = [""] * len(chosen)
    places = [len(chosen) - 1 - row + 0.3 for row in range(len(chosen))]
    ax.set_yticks(places, labels, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.25, len(chosen))
    ax.set_xlim(part.start - 0.5, part.stop - 0.5)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    ax.set_xlabel(_position(trace))


def _position(trace: xr.Dataset) -> str:
    """Name the axis of the input, and how its positions relate to seconds."""
    rate = number_of(trace, "sample_rate")
    return "Input position" + ("" if np.isnan(rate) else f" ({number(rate)} are 1 s)")


def columns_of(trace: xr.Dataset, chosen: Sequence[int], part: Window) -> tuple[int, float]:
    """Return how many maps fit beside each other, and the height of the figure [mm]."""
    dims = map_dims(trace)
    if len(dims) != 2:
        return 1, max(30, 13 + 7 * len(chosen))
    rows, cols = (cut.stop - cut.start for cut in part)
    ratio = rows / cols
    across = 2 if ratio < 0.3 else 3 if ratio < 0.6 else max(3, len(chosen))
    lines = -(-len(chosen) // across)
    return across, min(3 + lines * (6 + 152 / across * ratio), 100)


def draw(figure: Figure, trace: xr.Dataset, chosen: Sequence[int], part: Window) -> None:
    """Draw the maps of the chosen layers."""
    dims = map_dims(trace)
    if len(dims) == 1:
        profiles(figure.subplots(), trace, chosen, part[0])
    elif len(dims) == 3:
        for axis, ax in enumerate(figure.subplots(1, 3)):
            profiles(ax, trace, chosen, part[axis], axis)
            letter(ax, dims[axis])
    else:
        _images(figure, trace, chosen, part)


def _images(figure: Figure, trace: xr.Dataset, chosen: Sequence[int], part: Window) -> None:
    """Lay out the maps in rows with one scale."""
    across, _ = columns_of(trace, chosen, part)
    lines = -(-len(chosen) // across)
    panels = figure.subplots(lines, across, squeeze=False).ravel()
    for ax in panels[len(chosen) :]:
        ax.axis("off")
    for ax, index in zip(panels, chosen, strict=False):
        field_map(ax, trace, index, part)
    scale = ScalarMappable(Normalize(0, 1), PAPER)
    bar = figure.colorbar(
        scale, ax=list(panels), pad=0.008, aspect=12 * lines, shrink=0.8, ticks=[0, 0.5, 1]
    )
    bar.ax.set_yticklabels(["0", ".25", "1"])
    bar.outline.set_linewidth(0.4)
    bar.set_label("amplitude", fontsize=6.5)
    bar.ax.tick_params(labelsize=6.5, width=0.4, length=2)
