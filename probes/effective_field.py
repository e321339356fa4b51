"""Which part of the input really moves a layer's units, and by how much.

Shapes: B sample, P position of the input (all axes flattened).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import xarray as xr
from torch import nn

from probes.base import Progress, Subject, silent
from probes.errors import AnalyzerError, NotApplicable
from probes.field.average import Average, Energies, average, plain_sigma
from probes.field.labels import Nulls, trace_of
from probes.field.maps import FoldedBatchError, Mapper, dimensions
from probes.field.samples import pieces
from probes.field.sizes import diameter
from probes.field.survey import LayerField, Survey, survey
from probes.model.labels import module_of
from probes.model.nulls import untrained
from probes.model.taps import untouched

MAX_CALLS = 8
"""Calls considered of a convolution that is called more than once."""

BUDGET = 32_000_000
"""Numbers kept for the maps of all samples; more layers are measured in several rounds."""

MOST_KEPT = 0.1
"""Share of the weights that may stay as trained in a copy that counts as untrained."""


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

    Two things to hold it against come with it: the diameters of copies with random weights, and
    the energy outside of the theoretical field, which is zero if both are right.

    Costs, per layer, 0.2 to 0.3 of a bare forward+backward of the same samples, one forward for
    all, and a third of that on top for the copies with random weights. Memory: two copies of the
    weights, the graph of ``chunk`` samples, 4 bytes per sample, layer and input position
    up to 128 MB (more layers go in rounds, one more forward each), and 100 MB for the bootstrap.

    Parameters
    ----------
    samples : int
        Samples measured, if there are as many; those of the first one's shape.
    resamples : int
        Of the bootstrap.
    max_layers : int
        Largest number of convolutions that are all measured.
    deep_layers : int
        Convolutions measured if there are more, evenly spaced, first and last included.
    chunk : int
        Samples that go through the model together.
    null_seeds : int
        Copies of the network with new random weights that are measured for comparison.
    null_samples, null_layers : int
        Samples that each copy is measured on, and largest number of its layers, evenly spaced out
        of those measured.

    References
    ----------
    .. [1] Luo et al., Understanding the Effective Receptive Field in Deep CNNs (2016).
    .. [2] Ding et al., Scaling Up Your Kernels to 31x31 (2022), for the side that holds a share.
    """

    name: ClassVar[str] = "effective_field"
    passes: ClassVar[float] = 8
    samples: int = 16
    resamples: int = 200
    max_layers: int = 24
    deep_layers: int = 10
    chunk: int = 4
    null_seeds: int = 3
    null_samples: int = 2
    null_layers: int = 12

    def __post_init__(self) -> None:
        for setting in (
            "samples",
            "max_layers",
            "deep_layers",
            "chunk",
            "null_samples",
            "null_layers",
        ):
            if getattr(self, setting) < 1:
                raise AnalyzerError(f"effective_field.{setting} is less than 1")
        for setting in ("resamples", "null_seeds"):
            if getattr(self, setting) < 0:
                raise AnalyzerError(f"effective_field.{setting} is negative")

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        with untouched(subject.model):
            found = survey(subject, MAX_CALLS)
            layers = convolutions(found, subject.model)
            deep = len(layers) > self.max_layers
            chosen = evenly(layers, self.deep_layers if deep else self.max_layers)
            copied = min(self.null_layers, len(chosen)) * self.null_seeds
            steps = _Steps(progress, len(chosen) + copied)
            try:
                averages = self._averages(subject, found, chosen, steps)
                chunk = self.chunk
            except FoldedBatchError:
                chunk = 1
                averages = replace(self, chunk=1)._averages(subject, found, chosen, steps)
            nulls = replace(self, chunk=chunk)._nulls(subject, found, chosen, steps)
        return trace_of(subject, found, layers, chosen, averages, nulls)

    def _averages(
        self, subject: Subject, found: Survey, layers: Sequence[LayerField], steps: "_Steps"
    ) -> list[Average]:
        """Measure the trained network."""
        averages = []
        for layer, energies in self._energies(subject, found, layers, self.samples):
            averages.append(average(energies, layer.centre, self.resamples, subject.seed))
            steps.advance()
        return averages

    def _nulls(
        self, subject: Subject, found: Survey, layers: Sequence[LayerField], steps: "_Steps"
    ) -> Nulls:
        """Measure re-initialised copies on a few samples; say why where there can be none."""
        rows: list[np.ndarray] = []
        kept = ""
        seeds = range(subject.seed, subject.seed + self.null_seeds)
        try:
            for twin in untrained(subject.model, seeds) if seeds else ():
                kept = listed(twin.kept)
                if twin.kept_share > MOST_KEPT:
                    return Nulls.absent(f"no module initialises {kept}", len(layers))
                rows.append(self._null(replace(subject, model=twin.model), found, layers, steps))
        except NotApplicable as reason:
            return Nulls.absent(str(reason), len(layers))
        return Nulls(np.array(rows).reshape(len(rows), len(layers)), kept, "", self.null_samples)

    def _null(
        self, twin: Subject, found: Survey, layers: Sequence[LayerField], steps: "_Steps"
    ) -> np.ndarray:
        """Diameter of each layer of one copy; nan where it is not measured."""
        sigmas = {layer.name: np.full(len(found.axes), np.nan) for layer in layers}
        few = evenly(layers, self.null_layers)
        for layer, energies in self._energies(twin, found, few, self.null_samples):
            sigmas[layer.name] = plain_sigma(energies)
            steps.advance()
        return diameter(np.array([*sigmas.values()]))

    def _energies(
        self, subject: Subject, found: Survey, layers: Sequence[LayerField], samples: int
    ) -> Iterator[tuple[LayerField, Energies]]:
        """Yield the maps of every layer, in rounds that fit into memory."""
        mapper = Mapper(subject, found.place, subject.generator())
        size = max(BUDGET // (samples * int(np.prod(found.input_size))), 1)
        for start in range(0, len(layers), size):
            group = layers[start : start + size]
            maps = {layer.name: Energies(found.input_size) for layer in group}
            for piece in pieces(subject, samples, self.chunk):
                for name, energy_BP in mapper.energies(piece, list(maps)).items():
                    for energy_P in energy_BP.cpu().numpy():
                        maps[name].add(energy_P)
            for layer in group:
                yield layer, maps.pop(layer.name)


class _Steps:
    """Counts what is done, for the progress."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def advance(self) -> None:
        """Report one layer more."""
        self.done += 1
        self.progress(self.done, self.total)


def listed(names: Sequence[str], most: int = 4) -> str:
    """Write names as a sentence has them, the first few of many."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


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
        if dimensions(modules[module_of(layer.name, modules)]) and not np.isnan(layer.jump).all()
    ]
    if not layers:
        raise NotApplicable("the model calls its convolutions as functions, not as modules")
    return layers


def evenly(layers: Sequence[LayerField], most: int) -> list[LayerField]:
    """Choose at most ``most`` layers, evenly spaced, the first and the last among them."""
    places = np.linspace(len(layers) - 1, 0, min(most, len(layers))).round().astype(int)
    return [layers[place] for place in sorted(places)]
