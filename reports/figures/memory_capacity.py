"""Linear memory capacity: what readouts of the states recover of past inputs."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analyzer.findings import Finding
from analyzer.limits import MemoryCapacityLimits
from analyzer.rules.memory_capacity import capacity, held, measurable, recovered, told_by_present
from analyzer.rules.verdicts import Estimate
from reports.read import columns, names, spaced, words
from reports.section import Plate, Section, Table, Tile
from reports.style import DASHES, MUTED, SERIES, letter
from reports.text import ABSENT, count, interval, number, percent, quantity, shorten

_LINES = 8
_ROWS = 16


def curves(ax: Axes, trace: xr.Dataset, layers: Sequence[str], part: str) -> None:
    """Draw the share that is recovered at every lag, one line per layer."""
    for rank, layer in enumerate(layers):
        color, dash = SERIES[rank % len(SERIES)], DASHES[rank % len(DASHES)]
        found = recovered(trace, layer, part)
        lags = np.arange(found.value.size)
        if len(layers) <= 4:
            low, high = 100 * found.low, 100 * found.high
            ax.fill_between(lags, low, high, color=color, alpha=0.15, lw=0)
        ax.plot(lags, 100 * found.value, color=color, ls=dash, label=shorten(layer, 20))
    ax.set_xlim(-0.5, trace.sizes["lag"] - 0.5)
    ax.set_ylim(-4, 104)
    ax.set_yticks([0, 25, 50, 75, 100])
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
    ax.set_xlabel("Lag (timesteps back)")
    ax.grid(axis="y")


def present(ax: Axes, trace: xr.Dataset, layer: str) -> None:
    """Draw what the present input alone tells of the past ones."""
    shares = 100 * told_by_present(trace, layer)
    dots = (0, (1, 1.2))
    name = "present input alone (a)"
    ax.plot(np.arange(shares.size), shares, color=MUTED, lw=0.9, ls=dots, label=name)


def _draw(figure: Figure, trace: xr.Dataset, layers: Sequence[str]) -> None:
    """Lay out both panels on one scale."""
    left, right = figure.subplots(1, 2, sharey=True)
    curves(left, trace, layers, "past")
    present(left, trace, layers[0])
    curves(right, trace, layers, "new")
    left.set_ylabel("Recovered variance (%)")
    letter(left, "a   input")
    letter(right, "b   new part of the input")
    handles, labels = left.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    for text in legend.get_texts():
        text.set_parse_math(False)


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section; layers with too few timesteps have no curve."""
    layers, known = names(trace), measurable(trace, MemoryCapacityLimits())
    found = {layer: capacity(trace, layer) for layer in known}
    chosen = [known[index] for index in spaced(len(known), _LINES)]
    return Section(
        tiles=_tiles(trace, found),
        plates=[_plate(trace, found, chosen)] if known else [],
        tables=[_table(trace, found)],
        layers={
            "Kind": columns(layers, words(trace, "kind")),
            "Linear capacity": columns(
                layers, [number(found[name].value) if name in found else "" for name in layers]
            ),
        },
    )


def _tiles(trace: xr.Dataset, found: Mapping[str, Estimate]) -> list[Tile]:
    """Name the numbers that matter."""
    tiles = []
    if found:
        most = max(found, key=lambda layer: found[layer].value)
        units, one = int(trace["units"].sel(layer=most)), found[most]
        between = f"{interval(one.low, one.high)} of {units}, {shorten(most, 20)}".strip()
        tiles = [
            Tile("Largest capacity", quantity(one.value, "numbers"), between),
            Tile("Half recovered up to", quantity(held(trace, most), "lags"),
                 "beyond what the present tells"),
        ]  # fmt: skip
    share, sizes = trace["input_share"].to_numpy(), trace["components"].to_numpy()
    if np.isfinite(share).any():
        index = int(np.nanargmax(share))
        tiles.append(
            Tile(
                "Input decoded",
                percent(float(share[index])),
                f"of its variance, in {count(int(sizes[index]), 'component')}",
            )
        )
    rows = number(float(trace["rows"].max()))
    tiles.append(Tile("Samples", number(trace.sizes["sample"]), f"{rows} timesteps per fit"))
    return tiles


def _plate(trace: xr.Dataset, found: Mapping[str, Estimate], layers: Sequence[str]) -> Plate:
    """Word the figure."""
    most = max(found, key=lambda layer: found[layer].value)
    units = int(trace["units"].sel(layer=most))
    which = "every layer" if len(layers) == len(found) else f"{len(layers)} of {len(found)} layers"
    texts = []
    for layer in layers[:4]:
        value = 100 * recovered(trace, layer, "past").value
        new = 100 * recovered(trace, layer, "new").value
        points = "; ".join(
            f"lag {lag} {percent(value[lag] / 100)}, new part {percent(new[lag] / 100)}"
            for lag in spaced(value.size, 4)
            if np.isfinite(value[lag])
        )
        texts.append(f"{shorten(layer, 30)}: {points}")
    return Plate(
        "memory-capacity",
        56,
        lambda figure: _draw(figure, trace, layers),
        lead=f"{shorten(most, 30)} holds {number(found[most].value)} numbers of its past inputs "
        f"for a linear readout, of {number(units)} that fit.",
        body="Variance that a linear readout of the hidden state recovers on sequences it was not "
        f"fitted on, {which}{'; bands: 95 % interval' if len(layers) <= 4 else ''}. a: of the "
        "input itself; as inputs resemble their neighbours, the present one alone (dotted) tells "
        "part of it without any memory. b: of what no later input tells; the capacity is the sum "
        "of these over lags and components.",
        alt=f"Two line charts of {count(len(layers), 'layer')} over "
        f"{count(trace.sizes['lag'], 'lag')}. {'. '.join(texts)}.",
        todo="Compare with the memory horizon: what is stored need not be used.",
    )


def _table(trace: xr.Dataset, found: Mapping[str, Estimate]) -> Table:
    """Tabulate the layers."""
    layers, kinds = names(trace), words(trace, "kind")
    lines = []
    for index in spaced(len(layers), _ROWS):
        layer = layers[index]
        one = found.get(layer, Estimate())
        lines.append(
            (
                layer,
                kinds[index],
                number(one.value),
                interval(one.low, one.high) or ABSENT,
                number(int(trace["units"][index])),
                number(held(trace, layer)) if layer in found else ABSENT,
                number(float(trace["rows"][index])),
            )
        )
    heads = ("Layer", "Kind", "Capacity", "95 % interval", "Units", "Half up to", "Timesteps")
    short = "Where there is no capacity, the timesteps are too few for the size of the state."
    return Table(
        "Linear memory capacity by layer.",
        heads,
        ("name", "text", "number", "number", "number", "number", "number"),
        lines,
        "" if len(found) == len(layers) else short,
    )
