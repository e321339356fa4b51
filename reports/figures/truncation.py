"""Truncation: the gradient that truncated backpropagation through time keeps, by its length."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analyzer.findings import Finding
from analyzer.limits import TruncationLimits
from analyzer.rules.truncation import Curve, cosine, error, sufficient
from analyzer.rules.verdicts import Estimate
from reports.read import array, names, number_of, spaced
from reports.section import Plate, Section, Table, Tile
from reports.style import BLUE, DASHES, INK, LIMIT, MUTED, SERIES, TEAL, letter, note
from reports.text import ABSENT, count, interval, number, percent, shorten

_LINES = 7
_TICKS = 9
_LIMIT = TruncationLimits().cosine


def lengths(trace: xr.Dataset) -> np.ndarray:
    """Return the chunk lengths."""
    return trace["chunk_length"].to_numpy().astype(np.float64)


def trained_with(trace: xr.Dataset) -> int:
    """Return the chunk length of training, where it is known and cuts something; else 0."""
    used = int(number_of(trace, "trained_with")) if "trained_with" in trace.attrs else 0
    return used if used < number_of(trace, "sequence_length") else 0


def enough(trace: xr.Dataset) -> Estimate:
    """Find the shortest chunks that keep the direction of the gradient."""
    return sufficient(trace, cosine(trace), _LIMIT)


def curve(ax: Axes, trace: xr.Dataset, found: Curve, by_layer: str) -> None:
    """Draw a number against the chunk length: of all weights with its interval, and by layer."""
    x, layers = lengths(trace), names(trace)
    values = array(trace, by_layer, "layer", "chunk_length")
    ax.set_xscale("log", base=2)
    ax.set_xlim(x[0] * 0.93, x[-1] * 1.08)
    # The chunk length of training, which may be none of them, is between the powers of two.
    powers = x[np.log2(x) % 1 == 0]
    ticks = powers if powers.size <= _TICKS else powers[::2]
    ax.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("Timesteps between detachments")
    ax.grid(axis="y")
    shown = spaced(len(layers), _LINES) if len(layers) > 1 else []
    for rank, index in enumerate(shown):
        ax.plot(
            x,
            values[index],
            color=SERIES[(rank + 1) % len(SERIES)],
            ls=DASHES[rank % len(DASHES)],
            lw=0.9,
            label=shorten(layers[index], 20),
        )
    ax.fill_between(x, found.low, found.high, color=BLUE, alpha=0.18, lw=0)
    label = "all recurrent weights" if shown else shorten(layers[0], 20)
    ax.plot(x, found.value, color=BLUE, lw=1.8, marker="o", ms=3, label=label)
    length = number_of(trace, "sequence_length")
    ax.axvline(length, color=INK, lw=0.8, ls=LIMIT)


def _draw(figure: Figure, trace: xr.Dataset) -> None:
    """Lay out direction and norm beside each other."""
    left, right = figure.subplots(1, 2)
    curve(left, trace, cosine(trace), "cosine")
    curve(right, trace, error(trace), "error")
    _mark(left, trace)
    length = number_of(trace, "sequence_length")
    place = {"transform": right.get_xaxis_transform(), "va": "top", "ha": "right", "color": MUTED}
    note(right, length * 0.95, 0.97, f"sequences: {number(length)}", **place)
    letter(left, "a   direction kept")
    letter(right, "b   norm lost")
    left.set_ylabel("Cosine with the whole gradient")
    right.set_ylabel("Share of the norm (%)")
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
    right.set_ylim(bottom=0)
    handles, texts = left.get_legend_handles_labels()
    legend = figure.legend(handles, texts, loc="outside lower center", ncols=min(4, len(texts)))
    for text in legend.get_texts():
        text.set_parse_math(False)


def _mark(ax: Axes, trace: xr.Dataset) -> None:
    """Mark the limit, and the shortest chunks that meet it."""
    low = float(np.nanmin([np.nanmin(array(trace, "cosine", "layer", "chunk_length")), 0.9]))
    ax.set_ylim(low - 0.06 * (1 - low), 1 + 0.1 * (1 - low))
    ax.axhline(_LIMIT, color=INK, lw=0.8, ls=LIMIT)
    start = lengths(trace)[0]
    note(ax, start, _LIMIT, f"{_LIMIT:g}", va="bottom", color=MUTED)
    found = enough(trace).value
    if found < number_of(trace, "sequence_length"):
        ax.axvline(found, color=TEAL, lw=0.9, ls=(0, (4, 1.5)))
        bottom = {"transform": ax.get_xaxis_transform(), "va": "bottom", "ha": "right"}
        note(ax, found * 0.95, 0.03, f"enough: {number(found)}", color=TEAL, **bottom)
    used = trained_with(trace)
    if used:
        ax.axvline(used, color=MUTED, lw=0.9, ls=(0, (1, 1.5)))
        above = {"transform": ax.get_xaxis_transform(), "va": "bottom", "ha": "right"}
        note(ax, used * 0.95, 0.12, f"trained with: {number(used)}", color=MUTED, **above)


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    if np.isnan(enough(trace).value):
        return Section(tiles=_tiles(trace)[-2:])
    return Section(tiles=_tiles(trace), plates=[_plate(trace)], tables=[_table(trace)])


def _shortest(trace: xr.Dataset) -> str:
    """Write the shortest chunks that keep the direction."""
    found, length = enough(trace).value, number_of(trace, "sequence_length")
    return number(found) if found < length else "the whole sequence"


def _tiles(trace: xr.Dataset) -> list[Tile]:
    """Name the numbers that matter."""
    found, samples = enough(trace), number_of(trace, "samples")
    groups = count(trace.sizes.get("group", 0), "group")
    return [
        Tile(
            f"Cosine {_LIMIT:g} from",
            _shortest(trace),
            f"{interval(found.low, found.high)} timesteps between detachments".strip(),
        ),
        Tile(
            "Sequence length",
            number(number_of(trace, "sequence_length")),
            f"chunks counted from the {trace.attrs.get('counted_from', 'start')}",
        ),
        Tile("Samples", number(samples), f"in {groups}"),
    ]


def _plate(trace: xr.Dataset) -> Plate:
    """Word the figure."""
    found, kept, lost = enough(trace).value, cosine(trace), error(trace)
    length, x = number_of(trace, "sequence_length"), lengths(trace)
    place = int(np.flatnonzero(x == found)[0])
    if found < length:
        lead = (
            f"Detaching the state every {number(found)} of {number(length)} timesteps keeps the "
            f"direction of the gradient (cosine {number(kept.value[place])}) and loses "
            f"{percent(float(lost.value[place]))} of its norm."
        )
    else:
        lead = "No truncation shorter than the sequences keeps the direction of the gradient."
    layers = len(names(trace))
    which = "" if layers <= _LINES else f" ({_LINES} of {layers} drawn)"
    points = "; ".join(
        f"{number(x[i])} timesteps: cosine {number(kept.value[i])}, "
        f"{percent(float(lost.value[i]))} lost"
        for i in spaced(x.size, 5)
    )
    return Plate(
        "truncation",
        64,
        lambda figure: _draw(figure, trace),
        lead=lead,
        body="Gradient of the recurrent weights with the state detached every so many timesteps, "
        "against the gradient without. a: cosine of the two. b: norm of their difference, in "
        "percent of the norm of the whole. Blue: all recurrent weights, with a 95 % jackknife "
        f"interval over groups of samples; thin lines: layers{which}.{_used(trace, kept)}",
        alt=f"Two line charts over the timesteps between detachments on a logarithmic axis, "
        f"length {number(length)} marked: {points}.",
        todo="If training truncates more than that, lengthen its chunks, or accept that longer "
        "dependencies are carried by the state but not trained.",
    )


def _used(trace: xr.Dataset, kept: Curve) -> str:
    """Say what the chunks of training keep."""
    used = trained_with(trace)
    if not used:
        return ""
    value = float(kept.value[np.flatnonzero(lengths(trace) == used)[0]])
    return f" Dotted: the {number(used)} timesteps of training, cosine {number(value)}."


def _table(trace: xr.Dataset) -> Table:
    """Tabulate the chunk lengths."""
    kept, lost, layers = cosine(trace), error(trace), names(trace)
    values = array(trace, "cosine", "layer", "chunk_length")
    rows = []
    for i, length in enumerate(lengths(trace)):
        known = np.isfinite(values[:, i]).any()
        worst = int(np.nanargmin(values[:, i])) if known else 0
        rows.append(
            (
                number(length),
                number(kept.value[i]),
                interval(kept.low[i], kept.high[i]) or ABSENT,
                percent(float(lost.value[i])),
                layers[worst] if known else ABSENT,
                number(values[worst, i]),
            )
        )
    return Table(
        "Gradient kept by chunk length, all recurrent weights.",
        ("Timesteps", "Cosine", "95 % interval", "Norm lost", "Least in", "Cosine there"),
        ("number", "number", "number", "number", "name", "number"),
        rows,
    )
