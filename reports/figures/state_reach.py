"""State reach: how fast the final state forgets earlier states and inputs, lag by lag."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analyzer.decay import EXPONENTIAL, POWER, STRETCHED, UNDECIDED, Decay
from analyzer.findings import Finding
from analyzer.limits import StateReachLimits
from analyzer.rules.state_reach import joint, layers_of, slowest, stack_decays
from reports.read import array, names, spaced, words
from reports.section import Plate, Section, Table, Tile
from reports.style import DASHES, INK, SERIES, Values, letter, note, quantiles
from reports.text import ABSENT, count, interval, number, power_of_ten, quantity, shorten

_LINES = 6
_ROWS = 16
_LAW = {
    EXPONENTIAL: "exponential",
    POWER: "power law",
    STRETCHED: "stretched exponential",
    UNDECIDED: "law undecided",
}
_TODO = (
    "Compare the decay with the memory horizon: a state that is kept longer than it is used has "
    "room; one that fades before the task's longest dependency has to be made to last."
)


def decays(trace: xr.Dataset) -> dict[str, Decay]:
    """Fit all stacks as the finding does."""
    return stack_decays(trace, StateReachLimits())


def rms(logs: Values) -> Values:
    """Root mean square over samples (axis 0) of what is given as decimal logarithms."""
    known = np.isfinite(logs) | np.isneginf(logs)
    squares = np.where(known, logs, -np.inf) * (2 * np.log(10))
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.logaddexp.reduce(squares, axis=0) - np.log(known.sum(0))
    return np.where(known.any(0), total / (2 * np.log(10)), np.nan)


def _shown(trace: xr.Dataset, longest: str) -> list[str]:
    """Choose the stacks that are drawn: the one with the longest decay first."""
    others = [name for name in names(trace, "stack") if name != longest]
    first = [longest] if longest else []
    return first + [others[i] for i in spaced(len(others), _LINES - len(first))]


def by_state(ax: Axes, trace: xr.Dataset, found: Mapping[str, Decay]) -> None:
    """Draw the derivative by earlier states, and the law fitted to the slowest stack."""
    longest = slowest(dict(found))
    _lines(ax, {name: joint(trace, name) for name in _shown(trace, longest)}, trace)
    ax.set_ylabel("Norm")
    if not longest:
        return
    law = found[longest]
    ax.plot(
        law.lags,
        np.array(law.fitted) / np.log(10),
        color=INK,
        lw=1.1,
        ls=(0, (4, 1.5)),
        zorder=4,
    )
    lags, largest = spectral(trace, longest)
    bound = lower_bound(trace, longest)[lags.astype(int)]
    ax.plot(lags[~bound], largest[~bound], ls="", marker=".", ms=3.2, color=INK, zorder=3)
    if bound.any():
        ax.plot(lags[bound], largest[bound], ls="", marker="^", ms=3.2, mfc="none", mec=INK)
    place = {"transform": ax.transAxes, "ha": "right", "va": "top"}
    note(ax, 0.985, 0.97, _label(law), fontweight=700, **place)


def mean_log(logs: Values) -> Values:
    """Mean over the samples where there is anything, as decimal logarithm."""
    known = np.isfinite(logs)
    total = np.where(known, logs, 0.0).sum(0)
    return np.asarray(total / np.where(known.any(0), known.sum(0), np.nan))


def spectral(trace: xr.Dataset, stack: str) -> tuple[Values, Values]:
    """Lags, and the root mean square norm times the share of the largest singular value there.

    The share is that of the samples on which the spectral norm was measured.
    """
    logs, place = joint(trace, stack), names(trace, "stack").index(stack)
    largest = array(trace, "spectral_reach", "sample", "stack", "lag")[:, place]
    with np.errstate(invalid="ignore"):
        values = rms(logs) + mean_log(largest - logs)
    at = np.flatnonzero(np.isfinite(values))
    return trace["lag"].to_numpy()[at].astype(np.float64), values[at]


def lower_bound(trace: xr.Dataset, stack: str) -> np.ndarray:
    """Tell at which lags the iteration ended before the largest singular value was found."""
    if "spectral_missing" not in trace:
        return np.zeros(trace.sizes["lag"], bool)
    missing = trace["spectral_missing"].sel(stack=stack).max("sample").to_numpy()
    return np.asarray(missing > trace.attrs["spectral_tolerance"])


def _how_spectral(trace: xr.Dataset, stack: str) -> str:
    """Say on which samples, how and how well the largest singular value was found."""
    if not stack or "spectral_missing" not in trace:
        return "by its share in the samples where all rows were followed"
    missing = trace["spectral_missing"].sel(stack=stack)
    samples = count(int(missing.notnull().any("lag").sum()), "sample")
    if not float(missing.max()):
        return f"by its share in the {samples} where all rows were followed"
    text = f"by its share in {samples}, by iteration where not all rows were followed"
    bound = lower_bound(trace, stack)
    if not bound.any():
        return text
    share = 100 * (10 ** float(missing.max()) - 1)
    return f"{text} (triangles: lower bounds, which lack about {number(share, 2)} % or less)"


def _label(law: Decay) -> str:
    """Name the time and the law beside the curve."""
    if np.isinf(law.tau):
        return "does not fall"
    mean = "" if law.law == EXPONENTIAL else "mean "
    return f"{mean}\u03c4 = {number(law.tau)} ({_LAW[law.law]})"


def by_input(ax: Axes, trace: xr.Dataset, longest: str) -> None:
    """Draw the derivative by earlier inputs."""
    values = array(trace, "input_reach", "sample", "stack", "lag")
    order = names(trace, "stack")
    _lines(ax, {name: values[:, order.index(name)] for name in _shown(trace, longest)}, trace)


def _lines(ax: Axes, curves: Mapping[str, Values], trace: xr.Dataset) -> None:
    """Draw decimal logarithms over lags, the first with its spread over samples."""
    lags = trace["lag"].to_numpy()
    for rank, (name, logs) in enumerate(curves.items()):
        color, dash = SERIES[rank % len(SERIES)], DASHES[rank % len(DASHES)]
        line = rms(logs)
        ax.plot(lags, _drawn(line), color=color, ls=dash, lw=1.4, label=shorten(name, 24))
        if not rank:
            ax.plot(lags, mean_log(logs), color=color, lw=0.6)
            spread = quantiles(logs)
            ax.fill_between(lags, spread[5], spread[95], color=color, alpha=0.15, lw=0)
            ax.fill_between(lags, spread[25], spread[75], color=color, alpha=0.26, lw=0)
    ax.set_xlim(-0.01 * lags[-1], lags[-1] * 1.01)
    ax.set_xlabel("Lag (timesteps before the end)")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=2))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(round(value))))
    ax.grid(axis="y")


def _drawn(line: Values) -> Values:
    """Leave out what is zero, which has no place on a logarithmic axis."""
    return np.where(np.isfinite(line), line, np.nan)


def _draw(figure: Figure, trace: xr.Dataset) -> None:
    """Lay out both panels."""
    found = decays(trace)
    left, right = figure.subplots(1, 2)
    by_state(left, trace, found)
    by_input(right, trace, slowest(found))
    letter(left, "a   by the state")
    letter(right, "b   by the input")
    handles, labels = left.get_legend_handles_labels()
    if len(labels) > 1:
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=min(3, len(labels))
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    found = decays(trace)
    return Section(
        tiles=_tiles(trace, found),
        plates=[_plate(trace, found)],
        tables=[_table(trace, found)],
    )


def _tiles(trace: xr.Dataset, found: Mapping[str, Decay]) -> list[Tile]:
    """Name the numbers that matter."""
    longest = slowest(dict(found))
    tiles = []
    if longest:
        law = found[longest]
        between = f"{interval(law.low, law.high)} {shorten(longest, 24)}".strip()
        tiles = [
            Tile("Decay time \u03c4", quantity(law.tau, "timesteps"), between),
            Tile("Law", _LAW[law.law], f"{_LAW[law.best]} fits best, {_support(law)}"),
        ]
    return [
        *tiles,
        Tile("Lags", number(trace.sizes["lag"] - 1), "followed back"),
        Tile("Stacks of layers", number(trace.sizes["stack"]), count(_samples(trace), "sample")),
    ]


def _support(law: Decay) -> str:
    """Say how surely the best law is the best."""
    share = number(100 * law.support, 2)
    return "one sample" if np.isnan(law.support) else f"in {share} % of resamples"


def _samples(trace: xr.Dataset) -> int:
    """Count the samples."""
    return int(trace.sizes["sample"])


def _plate(trace: xr.Dataset, found: Mapping[str, Decay]) -> Plate:
    """Word the figure."""
    stacks = names(trace, "stack")
    longest = slowest(dict(found))
    several = len(stacks) > 1
    shown = f"{_LINES} of {len(stacks)}" if len(stacks) > _LINES else f"{len(stacks)}"
    which = f" {shown} stacks, the slowest with its spread." if several else ""
    return Plate(
        "state-reach",
        62 + (6 if several else 0),
        lambda figure: _draw(figure, trace),
        lead=_lead(longest, found),
        body="Frobenius norm of the derivative of the final hidden state (of the last layer) by a: "
        "the hidden and cell states of all layers of its stack, b: the input of the stack, each "
        "that many steps before. Line: root mean square over samples; bands: 25 to 75 % and 5 to "
        "95 % of them; thin: mean logarithm; dashed: the law that fits it best; dots: the largest "
        f"singular value alone, {_how_spectral(trace, longest)}.{which}",
        alt=_alt(trace, longest),
        todo=_TODO if longest else "",
    )


def _lead(longest: str, found: Mapping[str, Decay]) -> str:
    """State how fast the slowest stack forgets."""
    if not longest:
        return "No decay over time can be told."
    law = found[longest]
    if np.isinf(law.tau):
        return f"The final state of {shorten(longest, 30)} does not forget over the lags seen."
    mean = "" if law.law == EXPONENTIAL else " on average"
    return (
        f"The final state of {shorten(longest, 30)} forgets earlier states by a factor of e every "
        f"{number(law.tau)} timesteps{mean}."
    )


def _alt(trace: xr.Dataset, longest: str) -> str:
    """Describe the figure by values of the slowest stack."""
    stack = longest or names(trace, "stack")[0]
    inputs = array(trace, "input_reach", "sample", "stack", "lag")
    place = names(trace, "stack").index(stack)
    parts = []
    for side, logs in (("state", joint(trace, stack)), ("input", inputs[:, place])):
        line = rms(logs)
        known = np.flatnonzero(np.isfinite(line))
        points = ", ".join(f"{_power(line[i])} at lag {i}" for i in known[spaced(known.size, 4)])
        parts.append(f"by the {side}: {points or 'nothing above zero'}")
    several = count(min(_LINES, trace.sizes["stack"]), "line")
    return (
        f"Two charts of {several} on a logarithmic axis over {number(trace.sizes['lag'])} lags. "
        f"{shorten(stack, 40)} {'; '.join(parts)}."
    )


def _power(logarithm: float) -> str:
    """Write a number of any size from its decimal logarithm."""
    if abs(logarithm) < 250:
        return number(10**logarithm)
    return power_of_ten(round(logarithm))


def _table(trace: xr.Dataset, found: Mapping[str, Decay]) -> Table:
    """Tabulate the stacks."""
    stacks, kinds, units = names(trace, "stack"), words(trace, "kind", "stack"), trace["units"]
    rows = []
    for index in spaced(len(stacks), _ROWS):
        name = stacks[index]
        law = found[name]
        rows.append(
            (
                name,
                f"{kinds[index]}, {len(layers_of(trace, name))} \u00d7 {int(units[index])}",
                number(law.tau),
                interval(law.low, law.high) or ABSENT,
                _LAW[law.law],
                number(law.exponent),
            )
        )
    return Table(
        "Decay of the derivative by earlier states.",
        ("Stack", "Layers \u00d7 units", "Decay time", "95 % interval", "Law", "Exponent"),
        ("name", "text", "number", "number", "text", "number"),
        rows,
        "" if len(rows) == len(stacks) else "Every stack is in the record.",
    )
