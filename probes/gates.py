"""What the gates of recurrent layers do: how open they are, and how long their units hold on.

Shapes: B sample, T timestep, K gate of one kind of layer, A gate of any kind, L layer, H unit.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import xarray as xr
from torch import Tensor

from probes.base import Progress, Subject, silent, variable
from probes.errors import AnalyzerError
from probes.recurrent.backward.cells import CLOSED, OPEN
from probes.recurrent.backward.record import Site
from probes.recurrent.watching.reading import Reading
from probes.recurrent.watching.table import Tables, measured

GATES = {
    "lstm": ("input", "forget", "candidate", "output"),
    "gru": ("reset", "update", "candidate"),
    "rnn_tanh": ("state",),
    "rnn_relu": ("state",),
}
"""Gates of every kind of layer, in the order of torch. Of a candidate, and of the state of a
network without gates, the activation is measured."""

ORDER = ("input", "forget", "reset", "update", "candidate", "output", "state")
"""All of them, in the order of a trace."""

HOLDING = ("forget", "update")
"""Gates that multiply the state on its way to the next timestep."""

CHUNK = 2**24
"""Activations of gates computed at a time."""


@dataclass(frozen=True)
class Gates:
    """How open every gate of every unit is, and the timescale that its mean stands for.

    For each sample, layer, direction, gate and unit: the mean activation over the valid timesteps,
    the share of them at which it is open (above 0.9) and closed (below 0.1). Of a candidate, and of
    a tanh network's state, open and closed are the ends of the tanh (above 0.9, below -0.9); of a
    ReLU network, closed is zero and open is undefined. The timescale of a unit is
    -1 / ln(mean forget gate) in an LSTM, and of the update gate in a GRU, where that is the share
    of the state that is carried on, over all samples. It is the unit's own, not how long the
    network remembers. Layers without gates have no timescale.

    Costs about one forward and backward pass of the samples; keeps the inputs and outputs of all
    recurrent layers for one batch, the gates of some samples of one layer, and three numbers per
    sample, gate and unit.

    Parameters
    ----------
    samples : int
        How many samples are measured, the first of the audit data.

    References
    ----------
    .. [1] Karpathy, Johnson and Fei-Fei, Visualizing and understanding recurrent networks (2015).
    .. [2] Tallec and Ollivier, Can recurrent neural networks warp time? (2018).
    .. [3] Mahto et al., Multi-timescale representation learning in LSTM language models (2021).
    """

    name: ClassVar[str] = "gates"
    passes: ClassVar[float] = 1
    samples: int = 256

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        if self.samples < 1:
            raise AnalyzerError(f"gates needs samples >= 1: it is {self.samples}")
        return _trace(measured(subject, self.samples, _opened, progress))


def _opened(reading: Reading) -> dict[str, Tensor]:
    """Measure the gates of one layer, some samples at a time: (B, K, H) each."""
    high_K, low_K = _ends(reading.site.kind)
    parts: list[tuple[Tensor, ...]] = []
    for chunk in reading.chunks(CHUNK):
        gates_TBKH, _, _, residual = chunk.replay()
        high_KH, low_KH = high_K.to(gates_TBKH)[:, None], low_K.to(gates_TBKH)[:, None]
        parts.append(
            (
                _averaged(gates_TBKH, chunk.valid),
                _averaged((gates_TBKH > high_KH).to(gates_TBKH), chunk.valid),
                _averaged((gates_TBKH <= low_KH).to(gates_TBKH), chunk.valid),
                torch.full((gates_TBKH.shape[1],), residual),
                chunk.valid.sum(0),
            )
        )
    mean, opened, closed, residual_B, length_B = (
        torch.cat(column) for column in zip(*parts, strict=True)
    )
    if reading.site.kind == "rnn_relu":
        opened = torch.full_like(opened, torch.nan)
    return {
        "mean": mean,
        "open": opened,
        "closed": closed,
        "residual": residual_B,
        "length": length_B,
    }


def _ends(kind: str) -> tuple[Tensor, Tensor]:
    """Where every gate of a layer counts as open and as closed: (K,) each."""
    names = GATES[kind]
    bounded = [name not in ("candidate", "state") for name in names]
    if kind == "rnn_relu":
        return torch.full((1,), torch.inf), torch.zeros(1)
    return (
        torch.full((len(names),), OPEN),
        torch.tensor([CLOSED if gate else -OPEN for gate in bounded]),
    )


def _averaged(values_TBKH: Tensor, valid_TB: Tensor) -> Tensor:
    """Average over the valid timesteps of each sample: (B, K, H)."""
    flat_BTG = values_TBKH.flatten(2).transpose(0, 1)
    mask_B1T = valid_TB.t().unsqueeze(1).to(values_TBKH)
    total_BG = torch.bmm(mask_B1T, flat_BTG).squeeze(1)
    # Divided at the end: what is 1 all the time is then exactly 1.
    return (total_BG / valid_TB.sum(0)[:, None]).view(values_TBKH.shape[1:])


def _trace(tables: Tables) -> xr.Dataset:
    """Label what was measured; every gate that some layer has gets its place."""
    sites = list(tables.units)
    names = [gate for gate in ORDER if any(gate in GATES[site.kind] for site in sites)]
    mean_BLAH = _placed(tables.table("mean"), sites, names)
    dims = ("sample", "layer", "gate", "unit")
    single = torch.float32
    open_BLAH = _placed(tables.table("open"), sites, names)
    closed_BLAH = _placed(tables.table("closed"), sites, names)
    variables = {
        "mean": variable(mean_BLAH, dims, "mean activation", "1", single),
        "open": variable(open_BLAH, dims, "share of time open", "1", single),
        "closed": variable(closed_BLAH, dims, "share of time closed", "1", single),
        "timescale": variable(
            _timescales(mean_BLAH, names), ("layer", "unit"), "timescale of the unit", "timestep"
        ),
        "length": variable(
            tables.table("length").nan_to_num(0).amax(1), ("sample",), "valid timesteps", "timestep"
        ),
    }
    return xr.Dataset(variables, {**tables.coordinates(), "gate": names}).assign_attrs(
        replay_residual=tables.worst("residual"), **tables.remarks
    )


def _placed(values_BLKH: Tensor, sites: list[Site], names: list[str]) -> Tensor:
    """Move the gates of every kind of layer to the place of their name: (B, L, A, H)."""
    samples, layers, _, units = values_BLKH.shape
    placed_BLAH = torch.full((samples, layers, len(names), units), torch.nan).double()
    for layer, site in enumerate(sites):
        for place, gate in enumerate(GATES[site.kind]):
            placed_BLAH[:, layer, names.index(gate)] = values_BLKH[:, layer, place]
    return placed_BLAH


def _timescales(mean_BLAH: Tensor, names: list[str]) -> Tensor:
    """Timescale of every unit of the layers that have a gate that holds: (L, H)."""
    mean_LAH = mean_BLAH.nanmean(0)
    timescale_LH = torch.full_like(mean_LAH[:, 0], torch.nan)
    for gate in HOLDING:
        if gate in names:
            # Of a gate that is exactly 1, infinite.
            own_LH = 1 / mean_LAH[:, names.index(gate)].log().abs()
            timescale_LH = torch.where(own_LH.isnan(), timescale_LH, own_LH)
    return timescale_LH
