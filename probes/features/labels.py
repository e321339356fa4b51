"""A trace out of what was measured of the features of every layer.

Shapes: L layer, U unit, J direction, G group, R response (a layer behind an activation function),
K copy, N sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import xarray as xr
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from probes.base import variable
from probes.features.layers import Layer
from probes.features.observation import Observed
from probes.features.parameters import Parameters, shares
from probes.features.restriction import Changes, Subspace
from probes.features.summary import Summary


@dataclass
class Found:
    """What was measured of the trained network.

    Parameters
    ----------
    observed : Observed
        Activation functions, and who reads whom.
    summaries : dict of str to Summary
        By layer.
    halves : dict of str to pair of Subspace
        Of the layers that can be restricted.
    samples, groups : int
    """

    observed: Observed
    summaries: dict[str, Summary]
    halves: dict[str, tuple[Subspace, Subspace]]
    samples: int
    groups: int

    @property
    def seen(self) -> set[str]:
        """Layers that ran."""
        return {*self.summaries} | self.observed.apart | {*self.observed.reads}

    def is_read(self, label: str) -> bool:
        """Whether another layer reads this one: the width of the others is the output's."""
        reads = self.observed.reads.items()
        return any(label in sources for reader, sources in reads if reader != label)


@dataclass
class Nulls:
    """Directions and effective rank, (2,), of each layer of copies with new random weights."""

    copies: list[dict[str, Tensor]] = field(default_factory=list)
    kept: str = ""
    """Parameters that still are as trained."""
    reason: str = ""
    """Why there are none."""


def labelled(
    found: Found, layers: Mapping[str, Layer], own: Mapping[str, Parameters], nulls: Nulls
) -> xr.Dataset:
    """Label what was measured of the layers and their units."""
    labels = [label for label in layers if label in found.summaries]
    order = [label for label in found.observed.reads if label in found.summaries]
    labels = [*order, *(label for label in labels if label not in order)]
    trace = (
        _layers(found, labels)
        .merge(_units(found, labels))
        .merge(_costs(found, layers, own, labels))
    )
    trace = trace.merge(_responses(found)).merge(_copies(nulls, labels))
    coords = {
        "layer": labels,
        "kind": ("layer", [layers[label].kind for label in labels]),
        "width": ("layer", [layers[label].width for label in labels]),
        "most": ("layer", [layers[label].most for label in labels]),
        "read": ("layer", [int(found.is_read(label)) for label in labels]),
    }
    return trace.assign_coords(coords).assign_attrs(
        untrained=nulls.reason, untrained_kept=nulls.kept
    )


_SPREAD = {
    "directions": "fewest principal directions that hold the level of the variance",
    "effective_rank": "exponential of the entropy of the shares of variance",
    "participation": "participation ratio of the variances",
}


def _layers(found: Found, labels: Sequence[str]) -> xr.Dataset:
    """Label numbers of layers."""
    ones = [found.summaries[label] for label in labels]
    spread_XL = torch.stack([one.spread for one in ones], 1)
    spread_GLX = _stacked([one.spread_without for one in ones], found.groups)
    copies_GL = _stacked([one.copies_without[:, None] for one in ones], found.groups)[..., 0]
    single = torch.float32
    variables = {}
    for at, (name, words) in enumerate(_SPREAD.items()):
        variables[name] = variable(spread_XL[at], ("layer",), words, "direction")
        variables[f"{name}_without"] = variable(
            spread_GLX[..., at], ("group", "layer"), f"{words}, without a group of samples",
            "direction",
        )  # fmt: skip
    numbers = {
        "independent": ("positions that count as independent", "position"),
        "rank": ("directions that vary at all", "direction"),
        "copies": ("units that say the same as one before them", "unit"),
    }
    for name, (words, unit) in numbers.items():
        values = torch.tensor([getattr(one, name) for one in ones], dtype=torch.float64)
        variables[name] = variable(values, ("layer",), words, unit)
    variables["copies_without"] = variable(
        copies_GL, ("group", "layer"), "units that say the same, without a group of samples", "unit"
    )
    variables["variance"] = variable(
        _padded([one.variances for one in ones]), ("layer", "direction"),
        "share of the variance along each principal direction", "1", single,
    )  # fmt: skip
    return xr.Dataset(variables)


def _units(found: Found, labels: Sequence[str]) -> xr.Dataset:
    """Label what is known of single units."""
    ones = [found.summaries[label] for label in labels]
    dims, single = ("layer", "unit"), torch.float32
    return xr.Dataset(
        {
            "constant": variable(
                _padded([one.constant for one in ones]), dims, "whether the unit never varies", "1",
                single,
            ),
            "twin": variable(
                _padded([one.twin for one in ones]), dims, "first unit that says the same", "unit",
                single,
            ),
        }
    )  # fmt: skip


def _costs(
    found: Found, layers: Mapping[str, Layer], own: Mapping[str, Parameters], labels: Sequence[str]
) -> xr.Dataset:
    """Label the parameters that only unused directions need."""
    # What a layer reads bounds its directions before the activation function, which makes more of
    # them: such units are not unused.
    directions = {
        label: float(one.spread[0]) * layers[label].width / layers[label].most
        for label, one in found.summaries.items()
        if len(one.variances)
    }
    features = {label: layer.features for label, layer in layers.items()}
    left = shares(layers, directions, found.observed.reads, features)
    counts = {
        "parameters": ("parameters of the layer", [own[label].kept(1.0, 1.0) for label in labels]),
        "kept_parameters": (
            "parameters with every layer as wide as its directions",
            [own[label].kept(*left[label]) for label in labels],
        ),
    }
    return xr.Dataset(
        {
            name: variable(
                torch.tensor(values, dtype=torch.float64), ("layer",), words, "parameter"
            )
            for name, (words, values) in counts.items()
        }
    )


def _responses(found: Found) -> xr.Dataset:
    """Label what units do behind activation functions."""
    keys = [*found.observed.responses]
    ones = [found.observed.responses[key] for key in keys]
    widest = max((one.width for one in ones), default=0)
    active_GRU = torch.full((found.groups, len(ones), widest), torch.nan)
    ends_GR2U = torch.full((found.groups, len(ones), 2, widest), torch.nan)
    samples_GR = torch.zeros(found.groups, len(ones))
    for at, one in enumerate(ones):
        samples_GR[:, at] = one.samples
        if one.active is not None:
            active_GRU[:, at, : one.width] = one.active
        if one.ends is not None:
            ends_GR2U[:, at, :, : one.width] = one.ends
    single = torch.float32
    return xr.Dataset(
        {
            "active": variable(
                active_GRU, ("group", "response", "response_unit"),
                "samples in which the unit is above zero", "sample", single,
            ),
            "at_end": variable(
                ends_GR2U, ("group", "response", "end", "response_unit"),
                "samples' shares of time at one end of the function, summed", "sample", single,
            ),
            "seen": variable(
                samples_GR, ("group", "response"), "samples of the group", "sample"
            ),
        },
        {
            "response": [f"{function} after {layer}" for layer, function in keys],
            "response_layer": ("response", [layer for layer, _ in keys]),
            "end": ["low", "high"],
        },
    )  # fmt: skip


def _copies(nulls: Nulls, labels: Sequence[str]) -> xr.Dataset:
    """Label the copies with new random weights."""
    nothing = torch.full((2,), torch.nan, dtype=torch.float64)
    table = [[row.get(label, nothing) for label in labels] for row in nulls.copies]
    values_KLX = (
        torch.stack([torch.stack(row) for row in table])
        if table
        else torch.empty(0, len(labels), 2)
    )
    return xr.Dataset(
        {
            f"untrained_{name}": variable(
                values_KLX[..., at], ("copy", "layer"), f"{words}, untrained copies", "direction"
            )
            for at, (name, words) in enumerate([*_SPREAD.items()][:2])
        }
    )


def loss_changes(changes: Changes | None, places: Sequence[int]) -> xr.Dataset:
    """Label the losses with restricted layers; no samples where that was not measured."""
    nothing = torch.empty(0)
    found = changes or Changes(nothing, nothing, nothing)
    variables = {
        "intact_loss": (found.loss, "loss of the intact model", "loss"),
        "loss_change": (
            found.change,
            "loss with all layers restricted to their directions, less the intact",
            "loss",
        ),
        "decision_change": (found.decisions, "share of decisions that change then", "1"),
    }
    return xr.Dataset(
        {
            name: variable(values, ("sample",), words, unit)
            for name, (values, words, unit) in variables.items()
        },
        {"sample": [*places] if changes else []},
    )


def _stacked(tables: Sequence[Tensor], groups: int) -> Tensor:
    """Put tables of up to ``groups`` rows side by side: (G, L, X); missing rows are nan."""
    padded = [
        torch.cat([table, table.new_full((groups - len(table), table.shape[1]), torch.nan)])
        for table in tables
    ]
    return torch.stack(padded, 1)


def _padded(values: Sequence[Tensor]) -> Tensor:
    """Put values of different lengths below each other; missing ones are nan."""
    return pad_sequence([one.double() for one in values], True, torch.nan)
