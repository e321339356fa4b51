"""Contribution of every block: the loss without it, an estimate, and how alike its ends are."""

from collections.abc import Sequence
from math import isnan

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyzer.findings import Finding, Severity
from analyzer.limits import UnproductiveDepthLimits
from analyzer.rules.depth_contribution import contributions
from analyzer.rules.idle import shares
from analyzer.rules.verdicts import Estimate
from reports.read import array, names, number_of, spaced, words
from reports.section import Plate, Section, Table, Tile
from reports.signed import LINEAR, signed_axis
from reports.style import (
    BLUE,
    HALO,
    LIMIT,
    ORANGE,
    PALE_BLUE,
    PALE_RED,
    RED,
    TEAL,
    Values,
    depth_axis,
    depth_height,
    letter,
    note,
)
from reports.text import ABSENT, count, interval, number, percent, shorten

_BARS = 60
"""Blocks that still get a bar each; more get a dot."""

_ROWS = 16


def estimates(trace: xr.Dataset) -> Values:
    """Return the mean estimate of each block as a share of the mean loss, shape (block,)."""
    with np.errstate(invalid="ignore"):
        loss = array(trace, "intact_loss", "sample").mean()
        return np.asarray(array(trace, "estimate", "sample", "block").mean(0) / loss)


def changes(trace: xr.Dataset) -> list[Estimate]:
    """Return the change of the loss without each block, as a share of the loss."""
    return [*contributions(trace).values()]


def by_block(ax: Axes, trace: xr.Dataset, marked: Sequence[str], limit: float) -> None:
    """Draw the loss without every block, with its interval, and the estimate beside it."""
    blocks, found, guess = names(trace, "block"), changes(trace), estimates(trace)
    depth_axis(ax, blocks)
    ax.set_xlabel(ax.get_xlabel().replace("Layer", "Block"))
    ax.set_ylabel("Change of the loss without it")
    ends = [value for part in found for value in (part.value, part.low, part.high)]
    values = np.array([*ends, *guess])
    if not np.isfinite(values).any():
        ax.set_yticks([])
        note(ax, 0.5, 0.5, "no block could be left out", transform=ax.transAxes, ha="center")
        return
    signed_axis(ax, values, limit)
    many = len(blocks) > _BARS
    at = np.arange(len(blocks))
    ax.plot(
        at if many else at + 0.32, guess, "D", ms=1.6 if many else 3.2, color=ORANGE,
        mfc=ORANGE if many else "white", mew=0.9, zorder=4,
    )  # fmt: skip
    for place, (name, part) in enumerate(zip(blocks, found, strict=True)):
        if not isnan(part.value):
            _bar(ax, place, part, idle=name in marked, many=many)
    if not isnan(limit):
        ax.axhline(limit, color=RED, lw=0.9, ls=LIMIT, zorder=3)
        text = f" limit {percent(limit)} "
        right = {"ha": "right", "va": "bottom", "color": RED, "path_effects": HALO}
        note(ax, len(blocks) - 0.35, limit, text, **right)


def _bar(ax: Axes, place: int, part: Estimate, *, idle: bool, many: bool) -> None:
    """Draw one block that was left out."""
    color = RED if idle else BLUE
    if not many:
        face = PALE_RED if idle else PALE_BLUE
        ax.bar(place, part.value, 0.5, fc=face, ec=color, lw=0.7, hatch="////" if idle else "")
    ax.plot([place, place], [part.low, part.high], color=color, lw=1.1, zorder=5)
    ax.plot(place, part.value, "s" if idle else "o", color=color, ms=2.6, zorder=5)


def likeness(ax: Axes, trace: xr.Dataset) -> None:
    """Draw how alike the outputs of consecutive blocks are, with intervals."""
    value, low, high = (array(trace, f"similarity{end}", "block") for end in ("", "_low", "_high"))
    at = np.arange(value.size)
    ax.vlines(at, np.where(np.isnan(low), value, low), np.where(np.isnan(high), value, high),
              color=TEAL, lw=1.0)  # fmt: skip
    ax.plot(at, value, "o", color=TEAL, ms=_size(value.size), mew=0)
    ax.set_ylim(min(0.0, float(np.nanmin(value, initial=0.0))) - 0.03, 1.04)
    _plain(ax, value.size, "Similarity to what it reads")


def proportion(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the size of every branch relative to its shortcut: median and middle half."""
    ratio = array(trace, "branch_ratio", "sample", "block")
    at = np.flatnonzero(np.isfinite(ratio).any(0))
    low, middle, high = np.nanquantile(ratio[:, at], [0.25, 0.5, 0.75], axis=0)
    ax.vlines(at, low, high, color=BLUE, lw=1.0)
    ax.plot(at, middle, "o", color=BLUE, ms=_size(at.size), mew=0)
    ax.set_ylim(0, 1.08 * float(np.max(high, initial=0.1)))
    _plain(ax, ratio.shape[1], "Branch / shortcut (norms)")


def together(ax: Axes, trace: xr.Dataset, limit: float) -> None:
    """Draw the loss without several blocks at once, those with the smallest estimates first."""
    counts = trace["removed"].to_numpy()
    found = shares(trace["joint_change"], trace["intact_loss"])
    value, low, high = (
        np.array([getattr(part, name) for part in found]) for name in ("value", "low", "high")
    )
    ax.set_xlabel("Blocks left out at once")
    ax.set_ylabel("Change of the loss")
    if not np.isfinite(value).any():
        ax.set_yticks([])
        note(ax, 0.5, 0.5, "not measured", transform=ax.transAxes, ha="center")
        return
    signed_axis(ax, np.concatenate([value, low, high]), limit)
    ax.fill_between(counts, low, high, color=BLUE, alpha=0.2, lw=0)
    ax.plot(counts, value, "o-", color=BLUE, ms=3)
    if not isnan(limit):
        ax.axhline(limit, color=RED, lw=0.9, ls=LIMIT)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _size(blocks: int) -> float:
    """Choose the size of a marker."""
    return 3.4 if blocks <= _BARS else 1.6


def _plain(ax: Axes, blocks: int, label: str) -> None:
    """Label axes over the number of the block."""
    ax.set_xlim(-0.7, blocks - 0.3)
    ax.set_xlabel("Block number")
    ax.set_ylabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.grid(axis="y")


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    found = changes(trace)
    plates = [_blocks_plate(trace, findings, found)] if _any(found) else []
    if trace.sizes.get("block", 0) > 1:
        plates.append(_ends_plate(trace, findings))
    whole = _table(trace, found, range(len(found)))
    some = spaced(len(found), _ROWS)
    title = f"{_ROWS} of {len(found)} blocks, evenly spaced."
    short = _table(trace, found, some, title, "All blocks are in the appendix.")
    fits = len(found) <= _ROWS + 4
    return Section(
        tiles=_tiles(trace, found, findings),
        plates=plates,
        tables=[whole if fits else short],
        appendix=[] if fits else [whole],
        layers={"Loss without its block": _by_layer(trace, found)},
    )


def _any(found: Sequence[Estimate]) -> bool:
    """Say whether any block was left out."""
    return any(not isnan(part.value) for part in found)


def _limit(findings: Sequence[Finding]) -> float:
    """Return the limit that the blocks were judged by, nan where they were not."""
    return next((f.limit for f in findings if f.code == "idle-blocks"), float("nan"))


def _marked(findings: Sequence[Finding]) -> list[str]:
    """Collect the blocks that were found idle."""
    return [
        name
        for finding in findings
        if finding.code == "idle-blocks" and finding.severity is Severity.WARN
        for name in finding.where
    ]


def _by_layer(trace: xr.Dataset, found: Sequence[Estimate]) -> dict[str, str]:
    """Write what each layer's block is worth."""
    return {
        layer: percent(part.value) if not isnan(part.value) else ""
        for layers, part in zip(words(trace, "layers", "block"), found, strict=True)
        for layer in layers.split(", ")
    }


def _tiles(trace: xr.Dataset, found: Sequence[Estimate], findings: Sequence[Finding]) -> list[Tile]:
    """Name the numbers that matter."""
    tried = [part for part in found if not isnan(part.value)]
    idle = _marked(findings)
    total, samples = number_of(trace, "removable"), number_of(trace, "ablated_samples")
    # Losses may be infinite with either sign, whose mean is nan.
    with np.errstate(invalid="ignore"):
        loss = float(array(trace, "intact_loss", "sample").mean())
    few = next((f for f in findings if f.code == "removable-blocks"), None)
    tiles = [
        Tile("Idle blocks", f"{len(idle)} of {len(tried)}", "left out one at a time"),
        Tile("Loss of the intact model", number(loss), count(trace.sizes["sample"], "sample")),
    ]
    if few is not None:
        tiles.append(Tile("Removable at once", f"{number(few.value)} of {number(total)}", "blocks"))
    tiles.append(Tile("Left out on", number(samples), "samples, as pairs"))
    return tiles


def _blocks_plate(
    trace: xr.Dataset, findings: Sequence[Finding], found: Sequence[Estimate]
) -> Plate:
    """Word the figure of the ablations."""
    blocks, idle, limit = names(trace, "block"), _marked(findings), _limit(findings)
    many = len(blocks) > _BARS
    marks = "squares" if many else "hatched bars"
    return Plate(
        "depth-contribution-blocks",
        52 + depth_height(blocks),
        lambda figure: by_block(figure.subplots(), trace, idle, limit),
        lead=_lead(trace, found, idle),
        body="Change of the loss when a block is left out and its shortcut stays, as a share of "
        f"the intact loss, with 95 % intervals ({'dots' if many else 'bars'}; red {marks}: idle). "
        "Diamonds: first-order estimate from the gradient of the branch. The axis is linear up to "
        f"{percent(LINEAR if isnan(limit) else limit)} and logarithmic beyond.",
        alt=_alt(blocks, found, estimates(trace)),
        todo=f"Train without {', '.join(shorten(name, 30) for name in idle[:3])} and compare."
        if idle
        else "",
    )


def _lead(trace: xr.Dataset, found: Sequence[Estimate], idle: Sequence[str]) -> str:
    """State how many blocks are idle."""
    blocks = names(trace, "block")
    tried = {name: part for name, part in zip(blocks, found, strict=True) if part.samples}
    most = max(tried, key=lambda name: tried[name].value)
    worth = f"{shorten(most, 30)} is worth most, {percent(tried[most].value)} of the loss."
    if not idle:
        return f"None of {count(len(tried), 'block')} is idle for certain; {worth}"
    verb = "is" if len(idle) == 1 else "are"
    return f"{len(idle)} of {count(len(tried), 'block')} {verb} idle; {worth}"


def _alt(blocks: Sequence[str], found: Sequence[Estimate], guess: Values) -> str:
    """Describe the figure of the ablations."""
    tried = [(name, part) for name, part in zip(blocks, found, strict=True) if part.samples]
    texts = [
        f"{shorten(tried[i][0], 30)} {percent(tried[i][1].value)}" for i in spaced(len(tried), 6)
    ]
    low, high = np.nanmin(guess), np.nanmax(guess)
    return (
        f"Chart with intervals over {count(len(blocks), 'block')}: {'; '.join(texts)}. The "
        f"estimates lie between {percent(low)} and {percent(high)}."
    )


def _ends_plate(trace: xr.Dataset, findings: Sequence[Finding]) -> Plate:
    """Word the figure of similarity, branch size, and blocks left out together."""
    similarity = array(trace, "similarity", "block")
    known = similarity[np.isfinite(similarity)]
    limit, gated = (
        _limit(findings),
        bool(np.isfinite(array(trace, "branch_ratio", "sample", "block")).any()),
    )

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 3 if gated else 1, squeeze=False)[0]
        likeness(panels[0], trace)
        if gated:
            proportion(panels[1], trace)
            together(panels[2], trace, limit)
            for ax, key in zip(panels, "abc", strict=True):
                letter(ax, key)

    span = f"from {number(known.min())} to {number(known.max())}" if known.size else "unknown"
    similar = UnproductiveDepthLimits().similar
    alike = int((known >= similar).sum())
    rest = (
        "b: norm of the branch divided by that of the shortcut, median and middle half of the "
        "samples. c: change of the loss without several blocks at once, those with the smallest "
        "estimates first; band: 95 % interval."
        if gated
        else ""
    )
    return Plate(
        "depth-contribution-ends",
        48,
        draw,
        lead=f"{alike} of {count(known.size, 'block')} return nearly what they read (similarity of "
        f"{similar:g} or more)."
        if known.size
        else "The similarity of consecutive blocks is undefined.",
        body=f"{'a: c' if gated else 'C'}entred kernel alignment of what a block returns and reads "
        "(where shapes differ: of consecutive outputs), averaged over positions, with 95 % "
        f"intervals. {rest}",
        alt=f"Similarity of {count(known.size, 'block')} {span}. {_joint_alt(trace)}",
    )


def _joint_alt(trace: xr.Dataset) -> str:
    """Describe the curve of blocks left out together."""
    found = shares(trace["joint_change"], trace["intact_loss"])
    texts = [
        f"{number(at)} blocks {percent(part.value)}"
        for at, part in zip(trace["removed"].to_numpy(), found, strict=True)
    ]
    return f"Loss without several blocks at once: {'; '.join(texts)}." if texts else ""


def _table(
    trace: xr.Dataset,
    found: Sequence[Estimate],
    chosen: Sequence[int],
    title: str = "Blocks, in the order in which they end.",
    text: str = "",
) -> Table:
    """Tabulate blocks."""
    blocks, guess = names(trace, "block"), estimates(trace)
    kinds, reasons = words(trace, "kind", "block"), words(trace, "reason", "block")
    ratio = array(trace, "branch_ratio", "sample", "block")
    alike = array(trace, "similarity", "block")
    rows = [
        (
            blocks[i],
            reasons[i] or kinds[i],
            percent(found[i].value),
            interval(100 * found[i].low, 100 * found[i].high) or ABSENT,
            percent(guess[i]),
            number(float(np.nanmedian(ratio[:, i]))) if np.isfinite(ratio[:, i]).any() else ABSENT,
            number(alike[i]),
        )
        for i in chosen
    ]
    heads = ("Block", "Shortcut", "Loss without", "95 % interval", "Estimate", "Branch", "Similar")
    align = ("name", "text", "number", "number", "number", "number", "number")
    return Table(title, heads, align, rows, text or "Shares of the intact loss in percent.")
