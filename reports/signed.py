"""An axis for changes of either sign that span decades."""

from math import isnan

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from reports.style import INK, Values
from reports.text import percent

LINEAR = 0.05
"""Share within which the axis is linear, where no limit says."""


def signed_axis(ax: Axes, values: Values, limit: float, which: str = "y", most: int = 9) -> None:
    """Make an axis logarithmic on both sides of a linear middle, labelled in percent.

    Parameters
    ----------
    ax : Axes
    values : ndarray
        Shares that must fit; some are finite.
    limit : float
        Share within which the axis is linear; :data:`LINEAR` if nan.
    which : "x" or "y"
    most : int
        Labels.
    """
    linear = LINEAR if isnan(limit) else limit
    finite = values[np.isfinite(values)]
    low, high = 1.4 * min(finite.min(), -linear), 1.6 * max(finite.max(), linear)
    horizontal = which == "x"
    (ax.set_xscale if horizontal else ax.set_yscale)("symlog", linthresh=linear, linscale=0.7)
    (ax.set_xlim if horizontal else ax.set_ylim)(low, high)
    _label(ax.xaxis if horizontal else ax.yaxis, _ticks(low, high, linear, most))
    ax.grid(axis="x" if horizontal else "y")
    (ax.axvline if horizontal else ax.axhline)(0, color=INK, lw=0.6)


def _ticks(low: float, high: float, linear: float, most: int) -> list[float]:
    """Choose zero and 1, 3, 10, ... on both sides, without threes where there are too many."""
    powers = [step * 10.0**power for power in range(-3, 9) for step in (1, 3)]
    wanted = [0.0, *(sign * power for power in powers if power > 1.5 * linear for sign in (-1, 1))]
    inside = sorted(tick for tick in wanted if low <= tick <= high)
    if len(inside) <= most:
        return inside
    whole = [tick for tick in inside if not tick or float(np.log10(abs(tick))).is_integer()]
    return whole if len(whole) <= most else [*whole[:: -(-len(whole) // most)]]


def _label(axis: Axis, ticks: list[float]) -> None:
    """Label the ticks in percent."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
