"""Generalization: losses and gradients on data trained on, and on data held out."""

from collections.abc import Sequence
from math import isnan

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analyzer.findings import Finding
from analyzer.rules.generalization import gap, mean
from analyzer.rules.side_gradients import dimensions
from analyzer.rules.sides import (
    HELD_OUT,
    TRAINED,
    WHOLE,
    Side,
    alignment,
    ceiling,
    coherence,
    of_side,
    ratio,
    sides,
    stiffness_across,
    stiffness_within,
)
from analyzer.rules.verdicts import Estimate
from reports.read import columns, names
from reports.section import Plate, Section, Table, Tile
from reports.style import (
    BLUE,
    HALO,
    LIMIT,
    MUTED,
    ORANGE,
    Values,
    depth_axis,
    depth_height,
    letter,
    log_axis,
    note,
)
from reports.text import ABSENT, count, factor, interval, number, percent, shorten

_MANY = 40
"""Layers from which on marks are small."""

_SIDES = ((TRAINED, "", BLUE, "-"), (HELD_OUT, "", ORANGE, "--"), (HELD_OUT, "_null", MUTED, ":"))
_CALLED = ("trained on", "held out", "held out, targets exchanged")


def distribution(ax: Axes, trace: xr.Dataset) -> None:
    """Draw which share of the samples of either side has at most some loss."""
    kept = [of_side(trace, f"loss{end}", side) for side, end, _, _ in _SIDES]
    every = np.concatenate(kept)
    positive = every[np.isfinite(every) & (every > 0)]
    if positive.size:
        ax.set_xscale("log")
        ax.set_xlim(positive.min() / 1.5, positive.max() * 1.5)
    lows = np.log10(positive.min()) if positive.size else 0.0
    for rank, (values, (_, _, color, dashes)) in enumerate(zip(kept, _SIDES, strict=True)):
        known = np.sort(values[~np.isnan(values)])
        if not known.size:
            continue
        floor = np.maximum(known, 10**lows) if positive.size else known
        ax.step(floor, np.arange(1, known.size + 1) / known.size, where="post", color=color,
                ls=dashes, lw=1.4)  # fmt: skip
        ax.plot(known.mean(), 0.02, "^", color=color, ms=4.5, clip_on=False, zorder=5)
        place = {"transform": ax.transAxes, "va": "top", "color": color, "path_effects": HALO}
        note(ax, 0.02, 0.98 - 0.09 * rank, _CALLED[rank], **place)
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set_xlabel("Loss of a sample")
    ax.set_ylabel("Samples with at most this loss")
    ax.grid(axis="y")


def scores(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the share of answers that is right, with intervals."""
    for at, (side, end, color, _) in enumerate(_SIDES):
        found = mean(trace, f"score{end}", side)
        if isnan(found.value):
            continue
        ax.bar(at, found.value, 0.55, fc=color, ec=color, alpha=0.35)
        ax.plot([at, at], [found.low, found.high], color=color, lw=1.6)
        note(ax, at, found.value / 2, percent(found.value, 3), ha="center", va="center")
    ax.set_xticks(range(3), ["trained on", "held out", "held out,\nexchanged"])
    ax.set_xlim(-0.6, 2.6)
    ax.set_ylim(0, 1.04)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set_ylabel("Right answers")


def ratios(ax: Axes, trace: xr.Dataset, share: float) -> None:
    """Draw the gradient of samples held out over that of those trained on, by layer."""
    found, whole = ratio(*sides(trace)), ratio(*sides(trace, WHOLE))[0]
    value, low, high = _columns(found)
    depth_axis(ax, names(trace), share)
    ax.set_ylabel("Gradient held out / trained on")
    if not log_axis(ax, np.stack([value, low, high, np.full_like(value, 1.0)]), 0.1):
        return
    at = np.arange(value.size)
    ax.vlines(at, low, high, color=BLUE, lw=1.0)
    ax.plot(at, value, "o", color=BLUE, ms=_size(value.size))
    ax.axhline(1, color=MUTED, lw=0.8)
    if np.isfinite(whole.value):
        ax.axhline(whole.value, color=BLUE, lw=0.8, ls=LIMIT)
        right = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        right |= {"path_effects": HALO, "zorder": 6}
        note(ax, 0.99, whole.value, f"all layers: {number(whole.value)}", color=BLUE, **right)


def alignments(ax: Axes, trace: xr.Dataset, share: float) -> None:
    """Draw the cosine of the mean gradients by layer, its ceiling, and that by chance."""
    trained, held = sides(trace)
    value, low, high = _columns(alignment(trained, held, trace["dimensions"].to_numpy()))
    at = np.arange(value.size)
    depth_axis(ax, names(trace), share)
    ax.axhline(0, color=MUTED, lw=0.8)
    ax.vlines(at, low, high, color=BLUE, lw=1.0)
    ax.plot(at, value, "o", color=BLUE, ms=_size(value.size))
    most = ceiling(trained, held)
    ax.plot(at, most, "_", color=ORANGE, ms=2 * _size(value.size), mew=1.4)
    chance = by_chance(trace)
    ax.plot(at, _columns(chance)[0], "x", color=MUTED, ms=_size(value.size), mew=1.0)
    ax.set_ylim(-1.05, 1.4)
    ax.set_yticks([-1, -0.5, 0, 0.5, 1])
    ax.set_ylabel("Cosine of the mean gradients")
    top = {"transform": ax.transAxes, "va": "top"}
    note(ax, 0.01, 0.98, "\u25cf measured", color=BLUE, **top)
    note(ax, 0.30, 0.98, "\u2013 ceiling", color=ORANGE, **top)
    note(ax, 0.55, 0.98, "\u00d7 targets exchanged", color=MUTED, **top)


def by_chance(trace: xr.Dataset) -> list[Estimate]:
    """Return the alignment with samples held out that have exchanged targets, by layer."""
    trained, held = sides(trace, null=True)
    if held.samples < 2:
        return [Estimate()] * trace.sizes["layer"]
    return alignment(trained, held, trace["dimensions"].to_numpy())


def _columns(found: Sequence[Estimate]) -> tuple[Values, Values, Values]:
    """Values, lower and upper ends."""
    value, low, high = (
        np.array([getattr(one, name) for one in found]) for name in ("value", "low", "high")
    )
    return value, low, high


def _size(layers: int) -> float:
    """Choose the size of a mark."""
    return 3.4 if layers <= _MANY else 1.8


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    plates = [_losses_plate(trace, findings)]
    if "square" not in trace or min(side.samples for side in sides(trace)) < 2:
        return Section(tiles=_tiles(trace), plates=plates)
    layers = names(trace)
    whole_ratio, cosine = ratio(*sides(trace)), _aligned(trace)
    return Section(
        tiles=_tiles(trace),
        plates=[*plates, _layers_plate(trace)],
        tables=[_agreement_table(trace)],
        layers={
            "Gradient held out / trained on": columns(
                layers, [number(one.value, 2) for one in whole_ratio]
            ),
            "Alignment": columns(layers, [number(one.value, 2) for one in cosine]),
        },
    )


def _aligned(trace: xr.Dataset) -> list[Estimate]:
    """Estimate the alignment of every layer."""
    return alignment(*sides(trace), trace["dimensions"].to_numpy())


def _tiles(trace: xr.Dataset) -> list[Tile]:
    """Name the numbers that matter."""
    found = [mean(trace, "loss", side) for side in (TRAINED, HELD_OUT)]
    lost = gap(trace).lost
    tiles = [
        Tile("Lost of what was learnt", percent(lost.value),
             f"{percent(lost.low)} to {percent(lost.high)}" if lost.low == lost.low else ""),
        Tile("Loss, trained on", number(found[0].value), interval(found[0].low, found[0].high)),
        Tile("Loss, held out", number(found[1].value), interval(found[1].low, found[1].high)),
    ]  # fmt: skip
    if "score" not in trace:
        return tiles
    right = [mean(trace, "score", side).value for side in (TRAINED, HELD_OUT)]
    return [
        *tiles,
        Tile("Right, held out", percent(right[1], 3), f"trained on {percent(right[0], 3)}"),
    ]


def _losses_plate(trace: xr.Dataset, findings: Sequence[Finding]) -> Plate:
    """Word the figure of the losses."""
    trained, held = (mean(trace, "loss", side) for side in (TRAINED, HELD_OUT))
    lost, scored = gap(trace).lost.value, "score" in trace
    lead = f"The mean loss is {number(trained.value)} on data trained on, {number(held.value)} on "
    lead += "data held out"
    lead += f"; {percent(lost)} of what was learnt is lost." if lost == lost else "."
    right = ""
    if scored:
        shares = [percent(mean(trace, "score", side).value, 3) for side in (TRAINED, HELD_OUT)]
        right = f" Right: bars of the right answers, {shares[0]} trained on, {shares[1]} held out."

    def draw(figure: Figure) -> None:
        if not scored:
            distribution(figure.subplots(), trace)
            return
        left, bars = figure.subplots(1, 2, width_ratios=(1.7, 1))
        distribution(left, trace)
        scores(bars, trace)
        letter(left, "a")
        letter(bars, "b")

    body = (
        f"Losses of {trained.samples} samples trained on and {held.samples} held out, each as the "
        "share of samples below it; triangles: means. Dotted: samples held out with the targets of "
        "others, on average over several exchanges."
    )
    return Plate(
        "generalization-losses",
        58,
        draw,
        lead=lead,
        body=f"a: {body} b: share of right answers with 95 % intervals." if scored else body,
        alt=f"Cumulative distributions of the loss, means {number(trained.value)} trained on and "
        f"{number(held.value)} held out.{right}",
        todo=_todo(findings),
    )


def _todo(findings: Sequence[Finding]) -> str:
    """Return what to do about the gap, empty where nothing."""
    actions = [finding.action for finding in findings if finding.code == "generalization-gap"]
    return "" if actions in ([], ["None."]) else actions[0]


def _layers_plate(trace: xr.Dataset) -> Plate:
    """Word the figure of the layers."""
    layers, found, cosine = names(trace), ratio(*sides(trace)), _aligned(trace)
    whole = ratio(*sides(trace, WHOLE))[0]
    aligned = alignment(*sides(trace, WHOLE), np.array([dimensions(trace)]))[0]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        ratios(left, trace, 0.5)
        alignments(right, trace, 0.5)
        letter(left, "a")
        letter(right, "b")

    ends = _extremes(layers, _columns(found)[0]), _extremes(layers, _columns(cosine)[0])
    return Plate(
        "generalization-layers",
        56 + depth_height(layers, 0.5),
        draw,
        lead=f"Gradients of samples held out are {number(whole.value)} times those of samples "
        f"trained on; the mean gradients have a cosine of {number(aligned.value, 2)}.",
        body="a: root mean square of the gradients of single samples by the weights of each layer, "
        "held out over trained on, with 95 % jackknife intervals; dotted: all layers. b: cosine of "
        "the mean gradients of both sides; the ceiling is what gradients of one direction would "
        "reach at these numbers of samples, crosses are held-out samples with others' targets.",
        alt=f"Two plots over {count(len(layers), 'layer')}. Ratio of the gradients {ends[0]}. "
        f"Cosine {ends[1]}.",
    )


def _extremes(layers: Sequence[str], values: Values) -> str:
    """Name the smallest and largest value."""
    known = np.flatnonzero(np.isfinite(values))
    if not known.size:
        return "unknown"
    low, high = (known[pick(values[known])] for pick in (np.argmin, np.argmax))
    ends = [f"{number(values[i], 2)} at {shorten(layers[i], 40)}" for i in (low, high)]
    return f"from {ends[0]} to {ends[1]}"


def _agreement_table(trace: xr.Dataset) -> Table:
    """Tabulate how far single samples agree, all layers together."""
    trained, held = sides(trace, WHOLE)
    rows = [
        _row("Cosine of two samples, trained on", stiffness_within(trained)[0]),
        _row("Cosine of two samples, held out", stiffness_within(held)[0]),
        _row("Cosine of two samples, one of each", stiffness_across(trained, held)[0]),
    ]
    null: tuple[Side, Side] = sides(trace, WHOLE, null=True)
    if null[1].samples > 1:
        rows.append(
            _row("... with others' targets for the one held out", stiffness_across(*null)[0])
        )
    for side, called in ((trained, "trained on"), (held, "held out")):
        rows.append(_row(f"Samples that one helps, of {side.samples} {called}", coherence(side)[0]))
    return Table(
        "Agreement of the gradients of single samples, all layers.",
        ("Number", "Value", "95 % interval"),
        ("text", "number", "number"),
        rows,
        "The last two are the m-coherence: 1 where gradients are orthogonal, the number of samples "
        f"where all are the same. Gradients held out are {factor(ratio(trained, held)[0].value)} "
        "those trained on.",
    )


def _row(label: str, found: Estimate) -> tuple[str, str, str]:
    """Write an estimate."""
    return label, number(found.value, 2), interval(found.low, found.high, 2) or ABSENT
