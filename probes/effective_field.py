"""Which part of the input really moves a layer's units, and by how much.

Shapes: B sample, P position of the input (all axes flattened).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import xarray as xr
from torch import nn

from probes.base import Progress, Subject, silent
from probes.errors import NotApplicable
from probes.field.average import NORMALIZED_FROM, Average, Energies, average
from probes.field.maps import FoldedBatchError, Mapper, dimensions
from probes.field.samples import pieces
from probes.field.survey import LayerField, Survey, survey
from probes.taps import untouched

UNIT = "input position"

MAX_CALLS = 8
"""Calls considered of a convolution that is called more than once."""

BUDGET = 32_000_000
"""Numbers kept for the maps of all samples; more layers are measured in several rounds."""


@dataclass(frozen=True)
class EffectiveField:
    """Effective receptive field of the centre unit of each convolution.

    The channels of the centre unit are summed with random signs and differentiated with respect
    to the input (of integer inputs: the output of the embedding). Energy is the mean over samples
    of the squared gradient summed over input channels, amplitude its root. The main sizes are
    ``sigma``, ``diameter`` and ``side50`` of the amplitude; those of the energy are smaller by the
    square root of two for a Gaussian field, by definition.

    From four samples on, each sample's map is divided by its sum before they are averaged, so that
    none outweighs the others. Intervals are bootstrapped over samples. Samples whose gradient is
    zero or not finite are left out and counted.

    The unit is the one at the centre of the feature map, as for images, also in causal networks of
    one dimension, whose field then lies before it. In front of a recurrent layer the field is that
    of the convolutional part alone.

    Costs, per layer, 0.2 to 0.3 of a bare forward+backward of the same samples, and one forward
    for all. Memory: the graph of ``chunk`` samples, 4 bytes per sample, layer and input position
    up to 128 MB (more layers go in rounds, one more forward each), and 100 MB for the bootstrap.

    Parameters
    ----------
    samples : int
        Samples measured, if there are as many; those of the first one's shape.
    resamples : int
        Of the bootstrap.
    max_layers : int
        Convolutions measured, evenly spaced over depth, first and last included.
    chunk : int
        Samples that go through the model together.

    References
    ----------
    .. [1] Luo et al., Understanding the Effective Receptive Field in Deep CNNs (2016).
    .. [2] Ding et al., Scaling Up Your Kernels to 31x31 (2022), for the side that holds a share.
    """

    name: ClassVar[str] = "effective_field"
    samples: int = 16
    resamples: int = 200
    max_layers: int = 24
    chunk: int = 4

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        with untouched(subject.model):
            found = survey(subject, MAX_CALLS)
            layers = convolutions(found, subject.model)
            chosen = evenly(layers, self.max_layers)
            try:
                averages = self._averages(subject, found, chosen, self.chunk, progress)
            except FoldedBatchError:
                averages = self._averages(subject, found, chosen, 1, progress)
        return trace_of(found, chosen, averages, len(layers))

    def _averages(
        self,
        subject: Subject,
        found: Survey,
        layers: Sequence[LayerField],
        chunk: int,
        progress: Progress,
    ) -> list[Average]:
        """Measure all layers, in rounds that fit into memory."""
        mapper = Mapper(subject, found.place, subject.generator())
        size = max(BUDGET // (self.samples * int(np.prod(found.input_size))), 1)
        averages: list[Average] = []
        for start in range(0, len(layers), size):
            group = layers[start : start + size]
            maps = {layer.name: Energies(found.input_size) for layer in group}
            for piece in pieces(subject, self.samples, chunk):
                for name, energy_BP in mapper.energies(piece, list(maps)).items():
                    for energy_P in energy_BP.cpu().numpy():
                        maps[name].add(energy_P)
            for layer in group:
                energies = maps.pop(layer.name)
                averages.append(average(energies, layer.centre, self.resamples, subject.seed))
                progress(len(averages), len(layers))
        return averages


def convolutions(found: Survey, model: nn.Module) -> list[LayerField]:
    """Convolutions that have a map, in the order in which they ran.

    Those that read a pooled vector, as in squeeze-excitation, have none.

    Raises
    ------
    NotApplicable
        No convolution is a module: the model calls them as functions.
    """
    modules = dict(model.named_modules())
    layers = [
        layer
        for layer in found.layers
        if dimensions(modules[layer.name.split("#")[0]]) and not np.isnan(layer.jump).all()
    ]
    if not layers:
        raise NotApplicable("the model calls its convolutions as functions, not as modules")
    return layers


def evenly(layers: Sequence[LayerField], most: int) -> list[LayerField]:
    """Choose at most ``most`` layers, evenly spaced, the first and the last among them."""
    places = np.linspace(len(layers) - 1, 0, min(most, len(layers))).round().astype(int)
    return [layers[place] for place in sorted(places)]


def trace_of(
    found: Survey, layers: Sequence[LayerField], averages: Sequence[Average], total: int
) -> xr.Dataset:
    """Label the fields of the chosen layers, out of ``total``."""
    names = {
        "layer": [layer.name for layer in layers],
        "axis": list(found.axes),
        "kind": ("layer", [layer.kind for layer in layers]),
    }
    variables = _maps(found, averages)
    for name, words in _PER_AXIS.items():
        values = np.array([getattr(average, name) for average in averages])
        variables[name] = _labelled(("layer", "axis"), values, words)
    for name, words in _WITH_INTERVAL.items():
        columns = np.array([getattr(average, name) for average in averages]).T
        for suffix, column in zip(("", "_low", "_high"), columns, strict=True):
            variables[name + suffix] = _labelled(("layer",), column, words + _SUFFIXES[suffix])
    for name, (words, unit) in _PER_LAYER.items():
        values = np.array([_value(average, name) for average in averages])
        variables[name] = _labelled(("layer",), values, words, unit)
    theoretical = np.array([layer.size_without_gates for layer in layers])
    variables["theoretical"] = _labelled(
        ("layer", "axis"), theoretical, "theoretical field, global gates ignored"
    )
    variables["input_size"] = _labelled(("axis",), np.array(found.input_size, float), "input size")
    samples = max(average.live_samples for average in averages)
    weights = "equal" if samples >= NORMALIZED_FROM else "by the energy of the sample"
    attrs = {"samples": samples, "layers_total": total, "sample_weights": weights}
    return xr.Dataset(variables, names, attrs)


def _maps(found: Survey, averages: Sequence[Average]) -> dict[str, xr.Variable]:
    """Energy maps of up to two axes; of three, their marginals."""
    shares = np.array([average.share for average in averages], np.float32)
    if len(found.axes) < 3:
        dims = ("layer", *(("timestep",) if len(found.axes) == 1 else found.axes))
        return {"energy": _labelled(dims, shares, "share of the energy", "1")}
    return {
        f"energy_{axis}": _labelled(
            ("layer", axis),
            shares.sum(axis=tuple(1 + other for other in range(3) if other != place)),
            f"share of the energy along {axis}",
            "1",
        )
        for place, axis in enumerate(found.axes)
    }


def _labelled(
    dims: tuple[str, ...], values: np.ndarray, words: str, unit: str = UNIT
) -> xr.Variable:
    """Variable with a name and a unit."""
    return xr.Variable(dims, values, {"long_name": words, "units": unit})


def _value(average: Average, name: str) -> float:
    """Read a number of an average, or of the Gaussian fitted to it."""
    owner = average.gaussian if name.startswith(_GAUSSIAN) else average
    return float(getattr(owner, name.removeprefix(_GAUSSIAN)))


_GAUSSIAN = "gaussian_"

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
