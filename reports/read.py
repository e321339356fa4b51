"""Arrays and names out of a trace, whatever it lacks."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from reports.style import Values


def names(trace: xr.Dataset, dim: str = "layer") -> list[str]:
    """Return the labels of a dimension as text; empty where the trace does not have it."""
    if dim not in trace.dims:
        return []
    if dim not in trace.coords:
        return [str(index) for index in range(trace.sizes[dim])]
    return [str(label) for label in trace[dim].to_numpy()]


def array(trace: xr.Dataset, name: str, *dims: str) -> Values:
    """Return a variable with its dimensions in the order given; all nan where it is missing."""
    if name not in trace or set(trace[name].dims) != set(dims):
        return np.full([trace.sizes.get(dim, 0) for dim in dims], np.nan)
    return trace[name].transpose(*dims).to_numpy().astype(np.float64)


def words(trace: xr.Dataset, name: str, dim: str = "layer") -> list[str]:
    """Return a variable of text along one dimension; empty strings where it is missing."""
    if name not in trace or trace[name].dims != (dim,):
        return [""] * trace.sizes.get(dim, 0)
    return [str(word) for word in trace[name].to_numpy()]


def number_of(trace: xr.Dataset, name: str) -> float:
    """Return a numeric attribute, nan where it is missing or text."""
    found = trace.attrs.get(name)
    return float(found) if isinstance(found, int | float | np.number) else float("nan")


def axes(trace: xr.Dataset) -> list[str]:
    """Return the names of the input's axes: "time", or "y" and "x", ..."""
    return names(trace, "axis")


def spaced(count: int, limit: int) -> list[int]:
    """Choose at most ``limit`` of ``count`` indices, evenly, with the first and the last."""
    if count <= limit:
        return list(range(count))
    return sorted({round(i) for i in np.linspace(0, count - 1, limit)})


def columns(layers: Sequence[str], texts: Sequence[str]) -> dict[str, str]:
    """Pair layers with what is said of them."""
    return dict(zip(layers, texts, strict=True))
