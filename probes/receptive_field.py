"""Which part of the input each layer can see at all, from the structure of the network alone."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import xarray as xr

from probes.base import Progress, Subject, silent
from probes.field.labels import RECURRENT, named, rate_of
from probes.field.survey import LayerField, Survey, survey
from probes.model.taps import untouched

UNIT = "input position"


@dataclass(frozen=True)
class ReceptiveField:
    """Theoretical receptive field of the centre unit of every layer.

    Fields are propagated as intervals of input positions through every operator that the forward
    runs, so that residual, dilated, transposed, shared, functional and in-place graphs are exact.
    The axes are those that the first convolution slides along.

    Sizes are those of an infinite canvas, as the literature gives them, and can exceed the input;
    ``start`` and ``stop`` are clipped to the input. A layer that depends on the whole input along
    some axis (global pooling, attention, recurrence, squeeze-excitation and all behind it) is
    WHOLE_INPUT, and its size along that axis is the input's; ``size_without_gates`` ignores what
    maps are multiplied by, divided by or centered with if it is computed from the whole input.
    Normalization statistics are taken as constants (Araujo et al.), although those of group and
    instance normalization are global. Behind an operator without a rule all is UNKNOWN, and nan.

    Costs one symbolic forward of one sample, without arithmetic: about 0.1 forward+backward of a
    batch, 1 to 2 ms per layer. Where the forward needs values it runs on real tensors instead.
    Memory: the length of each axis for each tensor alive.

    Parameters
    ----------
    max_calls : int
        Calls listed of a module that is called more than once; the k-th is called ``name#k``.

    References
    ----------
    .. [1] Araujo, Norris and Sim, Computing Receptive Fields of Convolutional Neural Networks
       (Distill 2019).
    .. [2] Richter et al., Should You Go Deeper? (2021), for the minimal field.
    """

    name: ClassVar[str] = "receptive_field"
    passes: ClassVar[float] = 0.1
    max_calls: int = 8

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        with untouched(subject.model):
            found = survey(subject, self.max_calls)
        progress(1, 1)
        return trace_of(subject, found)


def trace_of(subject: Subject, found: Survey) -> xr.Dataset:
    """Label a survey."""
    layers = found.layers
    coords = {
        "layer": [layer.name for layer in layers],
        "axis": list(found.axes),
        "kind": ("layer", [layer.kind for layer in layers]),
    }
    variables = {name: _variable(layers, name, words) for name, words in _VARIABLES.items()}
    for name, words in _TEXTS.items():
        values = np.array([getattr(layer, name) for layer in layers], dtype=str)
        variables[name] = xr.Variable("layer", values, {"long_name": words, "units": "1"})
    variables["input_size"] = xr.Variable(
        "axis", np.array(found.input_size, float), {"long_name": "input size", "units": UNIT}
    )
    attrs: dict[str, str | int | float] = {
        "tensors": f"real ({found.fallback})" if found.fallback else "symbolic",
        "calls_left_out": found.unlisted,
        "convention": "sizes on an infinite canvas; normalization statistics taken as constants",
        "recurrent": named(subject.model, RECURRENT),
    }
    return xr.Dataset(variables, coords, attrs | rate_of(subject, found))


def _variable(layers: tuple[LayerField, ...], name: str, words: str) -> xr.Variable:
    """One number per layer and axis."""
    values = np.array([getattr(layer, name) for layer in layers], dtype=float)
    return xr.Variable(("layer", "axis"), values, {"long_name": words, "units": UNIT})


_VARIABLES = {
    "size": "theoretical field",
    "size_without_gates": "theoretical field, global gates ignored",
    "jump": "distance of neighbouring units",
    "minimal": "field along the shortest path",
    "minimal_input": "field along the shortest path of what the layer reads",
    "start": "first position seen by the centre unit",
    "stop": "last position seen by the centre unit",
}

_TEXTS = {"status": "whether the field is known", "reason": "why"}
