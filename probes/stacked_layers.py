"""What every layer of a stack of recurrent layers adds.

Shapes: N sample, L layer, K number of inputs kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import xarray as xr
from torch import Tensor

from probes.algebra.linear_map import explained, fitted
from probes.algebra.similarity import UNDEFINED, Similarity, linear_cka
from probes.algebra.spectrum import effective_rank
from probes.base import Progress, Subject, silent, variable
from probes.errors import AnalyzerError, NotApplicable
from probes.loss import objective
from probes.loss.replacement import grid
from probes.model.taps import untouched
from probes.recurrent.states.features import Features
from probes.recurrent.states.stacked import (
    Piece,
    Removed,
    features,
    gradients,
    halves,
    reach,
    without,
)
from probes.samples.selection import rows, spread
from probes.samples.timeline import Sequences, time_axis

POWER = 10
"""Independent positions per unit without which the rank of the states is not measured."""


@dataclass(frozen=True)
class StackedLayers:
    """Loss without each recurrent layer, the rank of its states, and how far back they reach.

    All recurrent layers that run are listed, both directions of one as one layer: those of stacked
    modules, of modules one after the other, and cells. A layer is left out in two ways. Replaced
    by the best linear map of what it reads at the same timestep, fitted on one half of the samples
    and applied to the other: what is lost is what its nonlinearity and memory are worth, since the
    layer above (or the head) could take over the map. And, where sizes allow, replaced by what it
    reads. The final cell state of a layer that is left out stays the initial one.

    The rank is that of the states at up to ``positions`` timesteps of each sample; it is undefined
    with fewer than ten independent positions per unit. How far back a layer reaches is seen from
    its state at the last timestep when all but the last inputs come from another sample.

    Costs a forward pass of ``seen`` samples; of ``samples`` samples one forward and backward pass,
    two forward ones for each layer (one where sizes differ), and ``points`` more. Keeps the
    samples, and the states of ``together`` of them.

    Parameters
    ----------
    samples : int
        Layers are left out on, evenly spread over the audit data.
    seen : int
        Samples, if there are as many, that rank, similarity and linear maps rest on.
    ablations : int
        Layers left out at most; of more, these are evenly spread.
    points : int
        Numbers of inputs kept that are tried, 3 or more; 0 leaves the reach out.
    positions : int
        Timesteps of each sample that the rank and the linear maps rest on, at most.
    together : int
        Samples that run at the same time.

    References
    ----------
    .. [1] Roy and Vetterli, The Effective Rank: A Measure of Effective Dimensionality, EUSIPCO
       (2007); here of the eigenvalues of the covariance.
    .. [2] Kornblith et al., Similarity of Neural Network Representations Revisited (2019).
    """

    name: ClassVar[str] = "stacked_layers"
    passes: ClassVar[float] = 7
    samples: int = 256
    seen: int = 512
    ablations: int = 30
    points: int = 10
    positions: int = 64
    together: int = 64

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        numbers = (self.samples, self.seen, self.positions, self.together)
        if min(numbers) < 1 or self.ablations < 0:
            raise AnalyzerError(
                "stacked_layers needs samples, seen, positions and together >= 1, and ablations "
                f">= 0: they are {', '.join(map(str, numbers))} and {self.ablations}"
            )
        if self.points < 3 and self.points:
            raise AnalyzerError(f"stacked_layers needs points >= 3, or 0: it is {self.points}")
        with untouched(subject.model, weights=True):
            chosen = rows(subject, max(self.seen, self.samples))
            seen = halves(subject, chosen, len(chosen), self.together)
            layers = features(subject, seen, self.positions)
            if len(layers) < 2:
                raise NotApplicable(_ALONE.format(next(iter(layers))) if layers else _NONE)
            progress(1, 4)
            parts = halves(subject, chosen, self.samples, self.together)
            loss_N, share_L = gradients(subject, parts, layers)
            progress(2, 4)
            names = [*layers]
            left = [names[at] for at in spread(len(names), self.ablations)]
            removed = without(subject, parts, layers, left)
            progress(3, 4)
            far = _reach(subject, parts, names, self.points)
        progress(4, 4)
        trace = _per_sample(loss_N, removed, far).merge(_per_layer(layers, share_L))
        places = [place for part in parts for place in part.places]
        attrs = {"objective": objective.describe(subject), "samples": len(places)}
        return (
            trace.assign_coords(sample=places)
            .sortby("sample")
            .assign_attrs(attrs, reach=far.reason)
        )


_NONE = "the model runs no recurrent layer of torch (LSTM, GRU, RNN or their cells)"
_ALONE = "the model runs one recurrent layer ({}): nothing is stacked on it"


class _Reach(NamedTuple):
    """Squared change of the last states."""

    change: Tensor
    """Shape (N, L, K)."""
    kept: list[int]
    reason: str
    """Why it was not measured; empty if it was."""


def _reach(subject: Subject, parts: Sequence[Piece], names: Sequence[str], points: int) -> _Reach:
    """Measure how far back every layer reaches, if the inputs have a time axis."""
    count = sum(len(part.places) for part in parts)
    nothing = torch.full((count, len(names), 0), torch.nan)
    if not points or count < 2:
        return _Reach(nothing, [], "it was left out, or the audit set is one sample")
    try:
        axis = time_axis(subject, parts[0].batch)
    except NotApplicable as reason:
        return _Reach(nothing, [], str(reason))
    lengths = [Sequences.of(subject, part.batch, axis).lengths for part in parts]
    kept = grid(int(torch.cat(lengths).max()), points)
    return _Reach(reach(subject, parts, names, axis, kept), kept, "")


def _per_sample(loss_N: Tensor, removed: Removed, far: _Reach) -> xr.Dataset:
    """Label what was measured of every sample."""
    dims = ("sample", "layer")
    return xr.Dataset(
        {
            "intact_loss": variable(loss_N, ("sample",), "loss of the intact model", "loss"),
            "loss_change": variable(
                removed.loss, dims, "loss with a linear map for the layer, less the intact", "loss"
            ),
            "decision_change": variable(
                removed.decisions, dims, "share of decisions that change with a linear map", "1"
            ),
            "skip_change": variable(
                removed.skipped, dims, "loss with the layer skipped, less the intact", "loss"
            ),
            "state_change": variable(
                far.change,
                (*dims, "kept"),
                "mean square change of the last state with all but the last inputs replaced",
                "state^2",
            ),
        },
        {"kept": far.kept},
    )


def _per_layer(layers: Mapping[str, Features], share_L: Tensor) -> xr.Dataset:
    """Label what was measured of every layer."""
    found = [*layers.values()]
    ends = torch.tensor([_similarity(layer) for layer in found], dtype=torch.float64).T
    numbers = {
        "effective_rank": (_rank, "directions that the states fill", "unit"),
        "independent": (Features.independent, "independent positions that were seen", "position"),
        "explained": (
            _explained,
            "variance of the states that a linear map of the input explains",
            "1",
        ),
    }
    measured = {
        name: (torch.tensor([function(layer) for layer in found]), words, unit)
        for name, (function, words, unit) in numbers.items()
    }
    measured |= {
        "gradient_share": (share_L, "share of the squared gradient of all recurrent weights", "1"),
        "similarity": (ends[0], "similarity of what the layer returns to what it reads", "1"),
        "similarity_low": (ends[1], "similarity, lower end of its interval", "1"),
        "similarity_high": (ends[2], "similarity, upper end of its interval", "1"),
    }
    return xr.Dataset(
        {
            name: variable(values, ("layer",), words, unit)
            for name, (values, words, unit) in measured.items()
        },
        {
            "layer": [*layers],
            "kind": ("layer", [layer.kind.partition("_")[0].upper() for layer in found]),
            "units": ("layer", [layer.units for layer in found]),
            "reads": ("layer", [layer.reads for layer in found]),
        },
    )


def _rank(layer: Features) -> float:
    """Effective rank of the states; nan where the positions are too few for it."""
    if layer.independent() < POWER * layer.units:
        return torch.nan
    return effective_rank(layer.states.matrix())


def _explained(layer: Features) -> float:
    """Variance that the linear map of each half explains in the other, on average."""
    if not all(joint.count for joint in layer.joint):
        return torch.nan
    first, second = layer.joint
    there = explained(fitted(first, layer.reads), second)
    return (there + explained(fitted(second, layer.reads), first)) / 2


def _similarity(layer: Features) -> Similarity:
    """Compare what a layer reads and returns at one position of every sample."""
    if not layer.inputs:
        return UNDEFINED
    return linear_cka(torch.cat(layer.inputs), torch.cat(layer.outputs))
