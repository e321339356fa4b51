"""Gradient of every parameter tensor: of the mean loss, and of single samples."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analyzer.rules.gradient_noise import agreement, by_parameter
from analyzer.rules.verdicts import listed
from reports.read import array, names, spaced, words
from reports.section import Table
from reports.style import BLUE, MUTED, PALE_BLUE, Values, log_axis, note
from reports.text import interval, number

_ROWS = 14
_PARTS = ("gradient", "norm")


def relative_gradient(trace: xr.Dataset) -> Values:
    """Divide the gradient norm of every parameter tensor by the tensor's own norm."""
    gradient, norm = (array(trace, f"parameter_{part}", "parameter") for part in _PARTS)
    return np.asarray(gradient / np.where(norm > 0, norm, np.nan))


def sample_gradient(trace: xr.Dataset) -> Values:
    """Divide the samples' gradient of every parameter tensor, and its interval, by its norm.

    Returns
    -------
    ndarray, shape (3, parameter)
        Root mean square over the samples, lower and upper end; nan where it was not measured.
    """
    norm = array(trace, "parameter_norm", "parameter")
    return np.stack(by_parameter(trace)) / np.where(norm > 0, norm, np.nan)


def parameters(ax: Axes, trace: xr.Dataset) -> None:
    """Draw the relative gradients of every parameter tensor, in the order of the model."""
    relative, single = relative_gradient(trace), sample_gradient(trace)
    ax.set_xlabel("Parameter tensor, in the order of the model")
    ax.set_ylabel("Gradient / weight (norms)")
    ax.set_xlim(-0.7, relative.size - 0.3)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    known = np.isfinite(single[0]).any()
    if not log_axis(ax, np.concatenate([relative[None], single]), 0.2 if known else 0.06):
        return
    size = 3.2 if relative.size < 100 else 1.8
    ax.plot(np.where(relative > 0, relative, np.nan), "o", color=MUTED, ms=size, mew=0)
    if known:
        at = np.arange(relative.size)
        value, low, high = (np.where(row > 0, row, np.nan) for row in single)
        ax.vlines(at, low, high, color=PALE_BLUE, lw=size / 2)
        ax.plot(at, value, "_", color=BLUE, ms=1.6 * size, mew=1)
        beside = {"transform": ax.transAxes, "ha": "right"}
        note(ax, 0.99, 0.98, "of one sample (rms)", color=BLUE, va="top", **beside)
        note(ax, 0.99, 0.02, "of the mean loss", color=MUTED, va="bottom", **beside)


def tables(trace: xr.Dataset) -> list[Table]:
    """Tabulate the parameters: all in the body if they are few, else some, all in the appendix."""
    tensors = names(trace, "parameter")
    if not tensors:
        return []
    gradient, norm = (array(trace, f"parameter_{part}", "parameter") for part in _PARTS)
    relative = relative_gradient(trace)
    rows = [
        (name, number(norm[i]), number(gradient[i]), number(relative[i]), *single)
        for i, (name, single) in enumerate(zip(tensors, _single(trace), strict=True))
    ]
    heads = ("Parameter", "Weight norm", "Gradient norm", "Gradient / weight", *_HEADS)
    align = ("name", "number", "number", "number", "number", "text", "number")
    whole = Table("All parameters.", heads, align, rows, _NOTE + _unmeasured(trace))
    if len(rows) <= _ROWS + 4:
        return [whole]
    some = [rows[i] for i in spaced(len(rows), _ROWS)]
    title = f"{_ROWS} of {len(rows)} parameters, evenly spaced."
    return [Table(title, heads, align, some, "All parameters are in the appendix."), whole]


_HEADS = ("One sample", "95 %", "Agreement")
_NOTE = (
    "Gradient of the mean loss; of one sample: root mean square over the samples. Agreement: the "
    "first over the second, 1 where all samples pull in one direction."
)


def _single(trace: xr.Dataset) -> list[tuple[str, str, str]]:
    """Write the gradient of one sample, its interval and the agreement of each parameter."""
    value, low, high = by_parameter(trace)
    agreed = agreement(trace) if "parameter_gradient" in trace else np.full(value.size, np.nan)
    return [
        (number(value[i]), interval(low[i], high[i]), number(agreed[i], 2))
        for i in range(value.size)
    ]


def _unmeasured(trace: xr.Dataset) -> str:
    """Say which parameters have no gradient of single samples, and why."""
    reasons: dict[str, list[str]] = {}
    for name, reason in zip(
        names(trace, "parameter"), words(trace, "not_per_sample", "parameter"), strict=True
    ):
        if reason:
            reasons.setdefault(reason, []).append(name)
    return "".join(
        f" Not measured for single samples: {listed(found)} ({reason})."
        for reason, found in reasons.items()
    )
