"""Effective fields of all layers as one labelled trace."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from torch import nn

from probes.base import Subject
from probes.field.average import NORMALIZED_FROM, Average
from probes.field.sizes import Floats, elongation, outside
from probes.field.survey import LayerField, Survey

UNIT = "input position"

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_GLOBAL = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
"""Normalizations whose statistics are those of the whole map, also in evaluation mode."""


@dataclass(frozen=True)
class Nulls:
    """Diameters of networks of the same architecture with random weights.

    Parameters
    ----------
    diameter : ndarray, shape (N, L)
        Of each copy at each layer [input position].
    kept : str
        Parameters that are as trained in every copy; empty if there are none.
    reason : str
        Why there is no copy; empty if there are some, or none was asked for.
    samples : int
        Samples that each was measured on.
    """

    diameter: Floats
    kept: str = ""
    reason: str = ""
    samples: int = 0

    @classmethod
    def absent(cls, reason: str, layers: int) -> "Nulls":
        """There are no copies."""
        return cls(np.empty((0, layers)), reason=reason)


def trace_of(
    subject: Subject,
    found: Survey,
    everything: Sequence[LayerField],
    layers: Sequence[LayerField],
    averages: Sequence[Average],
    nulls: Nulls,
) -> xr.Dataset:
    """Label the fields of ``layers``, which were chosen out of ``everything``."""
    numbers = {layer.name: number for number, layer in enumerate(everything, 1)}
    names = {
        "layer": [layer.name for layer in layers],
        "axis": list(found.axes),
        "kind": ("layer", [layer.kind for layer in layers]),
        "number": ("layer", [numbers[layer.name] for layer in layers]),
    }
    variables = _maps(found, averages) | _sizes(averages) | _structure(layers, averages)
    if len(nulls.diameter):
        words = "two-sigma diameter of the amplitude, copies with random weights"
        variables["null_diameter"] = labelled(("null", "layer"), nulls.diameter, words)
    variables["input_size"] = labelled(("axis",), np.array(found.input_size, float), "input size")
    samples = max(average.live_samples for average in averages)
    weights = "equal" if samples >= NORMALIZED_FROM else "by the energy of the sample"
    attrs: dict[str, str | int | float] = {
        "samples": samples,
        "layers_total": len(everything),
        "layers_measured": len(layers),
        "sample_weights": weights,
        "null_samples": nulls.samples,
        "null_kept": nulls.kept,
        "null_absent": nulls.reason,
        "recurrent": named(subject.model, RECURRENT),
        "global_statistics": named(subject.model, _GLOBAL),
    }
    return xr.Dataset(variables, names, attrs | rate_of(subject, found))


def rate_of(subject: Subject, found: Survey) -> dict[str, float]:
    """Rate of the input's positions, where they are timesteps of a known rate [Hz]."""
    if subject.sample_rate is None or found.axes != ("time",):
        return {}
    return {"sample_rate": float(subject.sample_rate)}


def labelled(dims: tuple[str, ...], values: Floats, words: str, unit: str = UNIT) -> xr.Variable:
    """Variable with a name and a unit."""
    return xr.Variable(dims, values, {"long_name": words, "units": unit})


def named(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> str:
    """Names of the modules of some kinds, separated by commas."""
    return ", ".join(name for name, module in model.named_modules() if isinstance(module, kinds))


def _maps(found: Survey, averages: Sequence[Average]) -> dict[str, xr.Variable]:
    """Energy maps of up to two axes; of three, their marginals."""
    shares = np.array([average.share for average in averages], np.float32)
    if len(found.axes) < 3:
        dims = ("layer", *(("timestep",) if len(found.axes) == 1 else found.axes))
        return {"energy": labelled(dims, shares, "share of the energy", "1")}
    return {
        f"energy_{axis}": labelled(
            ("layer", axis),
            shares.sum(axis=tuple(1 + other for other in range(3) if other != place)),
            f"share of the energy along {axis}",
            "1",
        )
        for place, axis in enumerate(found.axes)
    }


def _sizes(averages: Sequence[Average]) -> dict[str, xr.Variable]:
    """Sizes of the fields, with intervals."""
    variables = {}
    for name, words in _PER_AXIS.items():
        values = np.array([getattr(average, name) for average in averages])
        variables[name] = labelled(("layer", "axis"), values, words)
    for name, words in _WITH_INTERVAL.items():
        columns = np.array([getattr(average, name) for average in averages]).T
        for suffix, column in zip(("", "_low", "_high"), columns, strict=True):
            variables[name + suffix] = labelled(("layer",), column, words + _SUFFIXES[suffix])
    for name, (words, unit) in _PER_LAYER.items():
        values = np.array([_value(average, name) for average in averages])
        variables[name] = labelled(("layer",), values, words, unit)
    variables["resampled_sigma"] = labelled(
        ("layer", "resample", "axis"),
        np.array([average.resampled for average in averages]),
        "deviation of the amplitude, over samples drawn again",
    )
    ratios = np.array([elongation(a.sigma, a.resampled) for a in averages]).T
    for suffix, column in zip(("", "_low", "_high"), ratios, strict=True):
        words = "largest over smallest deviation along an axis" + _SUFFIXES[suffix]
        variables["anisotropy" + suffix] = labelled(("layer",), column, words, "1")
    return variables


def _structure(layers: Sequence[LayerField], averages: Sequence[Average]) -> dict[str, xr.Variable]:
    """Set the theoretical field beside it, and what lies outside of that."""
    variables = {
        name: labelled(
            ("layer", "axis"), np.array([getattr(layer, source) for layer in layers]), words
        )
        for name, (source, words) in _THEORY.items()
    }
    shares = [
        outside(average.share, layer.start, layer.stop)
        for layer, average in zip(layers, averages, strict=True)
    ]
    words = "share of the energy outside of the theoretical field"
    variables["outside"] = labelled(("layer",), np.array(shares), words, "1")
    return variables


def _value(average: Average, name: str) -> float:
    """Read a number of an average, or of the Gaussian fitted to it."""
    owner = average.gaussian if name.startswith(_GAUSSIAN) else average
    return float(getattr(owner, name.removeprefix(_GAUSSIAN)))


_GAUSSIAN = "gaussian_"

_THEORY = {
    "theoretical": ("size_without_gates", "theoretical field, global gates ignored"),
    "jump": ("jump", "distance of neighbouring units"),
}

_PER_AXIS = {
    "sigma": "deviation of the amplitude",
    "sigma_low": "deviation of the amplitude, 2.5 % of resamples",
    "sigma_high": "deviation of the amplitude, 97.5 % of resamples",
    "half_sample_sigma": "deviation of the amplitude, first half of the samples",
    "sigma_energy": "deviation of the energy",
}

_WITH_INTERVAL = {
    "diameter": "two-sigma diameter of the amplitude",
    "side50": "side of the centred square with half of the amplitude",
}

_SUFFIXES = {"": "", "_low": ", 2.5 % of resamples", "_high": ", 97.5 % of resamples"}

_PER_LAYER = {
    "luo_size": ("side of the area above 4.55 % of the maximum amplitude", UNIT),
    "total_energy": ("energy of the whole map, mean over samples", "unit^2 / input^2"),
    "live_samples": ("samples with a gradient that is finite and not zero", "1"),
    "gaussian_major": ("deviation of the fitted Gaussian, major axis", UNIT),
    "gaussian_minor": ("deviation of the fitted Gaussian, minor axis", UNIT),
    "gaussian_angle": ("angle of the major axis, from x towards y", "degree"),
    "gaussian_r2": ("variance that the fitted Gaussian explains", "1"),
}
