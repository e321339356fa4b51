"""Updates beside weights: how much the optimizer's last step changed every layer."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.findings import Finding
from analyzer.limits import UpdateRatioLimits
from analyzer.rules.update_ratio import by_layer, decayed
from reports.read import columns
from reports.section import Plate, Section, Table, Tile
from reports.style import (
    BLUE,
    INK,
    LIMIT,
    MUTED,
    RED,
    Values,
    depth_axis,
    depth_height,
    log_axis,
    note,
)
from reports.text import count, number

_ROWS = 24
_LIMITS = UpdateRatioLimits()


def section(trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out the section."""
    ratios, short = by_layer(trace), trace.sizes["parameter"] <= _ROWS
    table = _table(trace)
    return Section(
        tiles=_tiles(trace),
        plates=[_plate(trace)],
        tables=[table] if short else [],
        appendix=[] if short else [table],
        layers={"Update / weight": columns([*ratios], [number(v, 2) for v in ratios.values()])},
    )


def draw(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the ratio of every layer, with the usual band."""
    ratios = by_layer(trace)
    values = np.array([*ratios.values()])
    depth_axis(ax, [*ratios])
    ax.set_ylabel("Update / weight (norms)")
    if not log_axis(ax, np.append(values, [_LIMITS.low, _LIMITS.high])):
        return
    outside = beyond(values)
    x = np.arange(values.size)
    ax.plot(x[~outside], values[~outside], "o", color=BLUE, ms=4)
    ax.plot(x[outside], values[outside], "D", color=RED, ms=4.5)
    place = {"transform": ax.get_yaxis_transform(), "ha": "right", "color": MUTED}
    for limit, words, side in (
        (_LIMITS.high, "too large above", "top"),
        (_LIMITS.low, "hardly learning below", "bottom"),
    ):
        ax.axhline(limit, color=INK, lw=0.8, ls=LIMIT)
        note(ax, 0.995, limit, words, va=side, **place)
    ax.axhline(1e-3, color=MUTED, lw=0.5)
    note(ax, 0.995, 1e-3, "usual", va="bottom", **place)


def beyond(values: Values) -> npt.NDArray[np.bool_]:
    """Tell the ratios that are outside of the band."""
    return (values < _LIMITS.low) | (values > _LIMITS.high)


def _tiles(trace: xr.Dataset) -> list[Tile]:
    """Name the numbers that matter."""
    values = np.array([*by_layer(trace).values()])
    known = values[np.isfinite(values)]
    rates, steps = trace["rate"].to_numpy(), trace["steps"].to_numpy()
    ended = "at the end of its schedule" if decayed(trace, _LIMITS) else "of the last update"
    return [
        Tile("Median layer", number(float(np.median(known)) if known.size else np.nan, 2)),
        Tile("Outside the band", number(int(beyond(values).sum())), f"of {values.size} layers"),
        Tile("Learning rate", number(float(rates.max())), ended),
        Tile("Updates", number(float(steps.max())), str(trace.attrs["optimizer"])),
    ]


def _plate(trace: xr.Dataset) -> Plate:
    """Word the figure."""
    ratios = by_layer(trace)
    values = np.array([*ratios.values()])
    outside = [layer for layer, out in zip(ratios, beyond(values), strict=True) if out]
    known = values[np.isfinite(values)]
    middle = number(float(np.median(known)) if known.size else np.nan, 2)
    state = (
        f"{count(len(outside), 'layer')} outside of the usual band"
        if outside
        else ("every layer within the usual band")
    )
    ends = f"{number(known.min(), 2)} to {number(known.max(), 2)}" if known.size else "none known"
    return Plate(
        "update-ratio",
        56 + depth_height([*ratios]),
        lambda figure: _draw(figure, trace),
        lead=f"The last update changed the median layer by {middle} of its norm, {state}.",
        body="Norm of the last update of all parameters of a layer over their norm, from the "
        f"optimizer's state in the checkpoint ({trace.attrs['optimizer']}).",
        alt=f"{count(len(ratios), 'mark')} on a logarithmic axis, {ends}; lines at "
        f"{number(_LIMITS.low)} and {number(_LIMITS.high)}.",
        todo="Give the layers outside of the band another learning rate." if outside else "",
    )


def _draw(figure: Figure, trace: xr.Dataset) -> None:
    """Draw on a figure of one panel."""
    draw(figure.subplots(), trace)


def _table(trace: xr.Dataset) -> Table:
    """Tabulate every parameter."""
    update, weight, rate, steps = (
        trace[name].to_numpy() for name in ("update", "weight", "rate", "steps")
    )
    ratio = np.divide(update, weight, out=np.full_like(update, np.nan), where=weight > 0)
    rows = [
        (
            str(name),
            number(update[i]),
            number(weight[i]),
            number(ratio[i]),
            number(rate[i]),
            number(steps[i]),
        )
        for i, name in enumerate(trace["parameter"].to_numpy())
    ]
    return Table(
        "Last update of every parameter.",
        ("Parameter", "Update", "Weight", "Update / weight", "Learning rate", "Updates"),
        ["name", *["number"] * 5],
        rows,
        "Norms. The band is for whole layers: of a bias alone, which starts at zero, the ratio can "
        "be far larger.",
    )
