"""Several records on shared axes: reach, memory, gradient over depth, effective field."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.findings import Finding
from analyzer.rules.gradient_flow import gradient_norm, weighted
from reports.figures import reach
from reports.figures.memory_horizon import curve, sequence_length, time_axis
from reports.read import array
from reports.section import Plate
from reports.style import DASHES, SERIES, Values, bands, log_axis, quantiles
from reports.text import listed, number, shorten

Traces = Mapping[str, Mapping[str, xr.Dataset]]
"""Name of a record -> probe -> trace."""


def plates(traces: Traces, findings: Mapping[str, Sequence[Finding]]) -> list[Plate]:
    """Return the figures that at least two records can share, the reach first."""
    found = [_reach(traces, findings)]
    for probe, make in _SHARED.items():
        having = {name: own[probe] for name, own in traces.items() if probe in own}
        if len(having) > 1:
            found.append(make(having))
    return [plate for plate in found if plate is not None]


def _reach(traces: Traces, findings: Mapping[str, Sequence[Finding]]) -> Plate | None:
    """Stack the reach of every record."""
    own = {name: reach.tracks(measured) for name, measured in traces.items()}
    rows = [
        reach.Track(f"{shorten(name, 14)}: {track.name.lower()}", *_rest(track))
        for kind in dict.fromkeys(track.name for found in own.values() for track in found)
        for name, found in own.items()
        for track in found
        if track.name == kind
    ]
    if not rows:
        return None
    told = "; ".join(f"{track.name}: {track.value}" for track in rows)
    said = [
        f"{name}: {finding.message}"
        for name, found in findings.items()
        for finding in found
        if finding.code == "reach"
    ]
    return Plate(
        "reach",
        9 + 11.5 * len(rows),
        lambda figure: reach.draw(figure, rows),
        lead=". ".join(said) + "." if said else told + ".",
        body="Every bar is the whole extent of its network. Shade: gradient relative to its "
        "largest. Filled: inputs that are used, from the latest back, and the field around the "
        "centre; whiskers: 95 % intervals.",
        alt=f"{len(rows)} horizontal bars. {told}.",
    )


def _rest(track: reach.Track) -> tuple[tuple[str, str], str, str, Callable[[Axes], None]]:
    """Return a track without its name."""
    return track.ends, track.value, track.note, track.draw


def _line(ax: Axes, index: int, name: str, x: Values, y: Values) -> None:
    """Draw the line of one record and name it at its end."""
    color, dash = SERIES[index % len(SERIES)], DASHES[index % len(DASHES)]
    ax.plot(x, y, color=color, ls=dash, lw=1.5, label=shorten(name, 30))


def _key(ax: Axes) -> None:
    """Say which line is which."""
    ax.legend(loc="best", frameon=False, fontsize=7, handlelength=3)


def _memory(traces: Mapping[str, xr.Dataset]) -> Plate:
    """Set what older inputs are worth on one time axis."""
    curves = {name: curve(trace) for name, trace in traces.items()}

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for index, (name, found) in enumerate(curves.items()):
            _line(ax, index, name, found.kept, found.value)
            ax.fill_between(
                found.kept,
                found.low,
                found.high,
                color=SERIES[index % len(SERIES)],
                alpha=0.15,
                lw=0,
            )
        time_axis(ax, max(map(sequence_length, traces.values())))
        ax.axhline(0, color="#8A94A0", lw=0.6)
        ax.set(xlabel="Inputs kept: timesteps before the last input", ylabel="Excess loss (%)")
        _key(ax)

    halves = {name: _half(found.kept, found.value) for name, found in curves.items()}
    said = listed([f"{name} at {number(half)}" for name, half in halves.items()])
    return Plate(
        "overlay-memory",
        62,
        draw,
        lead=f"Half of the excess loss is left with this many inputs kept: {said}.",
        body="Loss added when everything older than the last kept inputs is another sample's, in "
        "percent of that when nothing is kept; bands: 95 % bootstrap intervals.",
        alt=f"{len(curves)} falling curves over the number of inputs kept. Half height: {said}.",
    )


def _half(kept: Values, value: Values) -> float:
    """Find the largest number of inputs kept that leaves at least half of the excess."""
    above = kept[value >= 50]
    return float(above.max()) if above.size else float("nan")


def _depth(traces: Mapping[str, xr.Dataset]) -> Plate:
    """Set the gradient over relative depth on one scale."""
    spread = {}
    for name, trace in traces.items():
        deep = weighted(trace)
        norms = gradient_norm(deep).transpose("sample", "layer").to_numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            spread[name] = quantiles(norms / norms[:, -1:])
    lengths = {name: values[50].size for name, values in spread.items()}

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        log_axis(ax, np.concatenate([values[50] for values in spread.values()]))
        for index, (name, values) in enumerate(spread.items()):
            depth = np.linspace(0, 1, values[50].size)
            color, dash = SERIES[index % len(SERIES)], DASHES[index % len(DASHES)]
            bands(ax, depth, values, color, ls=dash, label=shorten(name, 30))
        ax.set(xlabel="Depth: first layer with weights 0, last 1", ylabel="Gradient / last layer's")
        _key(ax)

    ends = listed([f"{name} {number(values[50][0])}" for name, values in spread.items()])
    return Plate(
        "overlay-depth",
        60,
        draw,
        lead=f"Gradient at the first layer relative to the last: {ends}.",
        body="Norm of each sample's loss gradient at the output of the layers with weights, "
        "relative to the last of them; median, 25 to 75 % and 5 to 95 % of the samples.",
        alt=f"{len(spread)} curves over relative depth, with "
        f"{listed([f'{count} layers ({name})' for name, count in lengths.items()])}. First layer: "
        f"{ends}.",
    )


def _field(traces: Mapping[str, xr.Dataset]) -> Plate:
    """Set the effective field over relative depth on one scale, as a share of the input."""
    shares = {}
    for name, trace in traces.items():
        whole = float(np.nanmean(array(trace, "input_size", "axis")))
        shares[name] = 100 * array(trace, "diameter", "layer") / whole

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for index, (name, values) in enumerate(shares.items()):
            _line(ax, index, name, np.linspace(0, 1, values.size), values)
        ax.set(
            xlabel="Depth: first convolution 0, last 1", ylabel="Effective field (% of the input)"
        )
        ax.set_ylim(bottom=0)
        _key(ax)

    last = listed([f"{name} {number(values[-1])} %" for name, values in shares.items()])
    return Plate(
        "overlay-field",
        55,
        draw,
        lead=f"Effective field of the last convolution: {last}.",
        body="Diameter of the effective field of every convolution, as a share of the input.",
        alt=f"{len(shares)} curves over relative depth. Last convolution: {last}.",
    )


_SHARED: dict[str, Callable[[Mapping[str, xr.Dataset]], Plate]] = {
    "memory_horizon": _memory,
    "gradient_flow": _depth,
    "effective_field": _field,
}
