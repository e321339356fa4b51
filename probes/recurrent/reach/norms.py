"""Norms of the derivative of the final state by every earlier one: some exact, some estimated.

Shapes: B sample, K lag, L layer.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from probes.recurrent.reach.jacobian import Linearized, all_rows, random_rows, reach
from probes.recurrent.reach.spectral import spectral_norms

SPECTRAL_LAGS = 20
"""Lags, on a geometric scale, at which the spectral norm is measured."""


class Chosen(NamedTuple):
    """How many of the first samples of a batch are measured in which way."""

    seeds: int
    """Random combinations of rows that are followed; all rows in layers of no more units."""
    spectral: int
    """Samples whose spectral norm is measured where not all rows are followed."""


class ReachNorms(NamedTuple):
    """Decimal logarithms of norms."""

    state: Tensor
    """By the states of every layer, shape (B, L, K)."""
    input: Tensor
    """By the input, shape (B, K)."""
    spectral: Tensor
    """By all states: norm, what it is estimated to lack and what at most; (B, 3, K), nan where it
    is not measured."""


def reach_norms(
    layers: Sequence[Linearized], units: int, chosen: Chosen, generator: torch.Generator
) -> ReachNorms:
    """Follow a stack of layers back from its final hidden state.

    Parameters
    ----------
    layers : sequence of Linearized
        From the one that reads the input to the one whose final state is meant.
    units : int
        Size of that state.
    chosen : Chosen
        What is measured of which samples.
    generator : torch.Generator
        Of the random combinations; on the CPU.
    """
    like, seeds = layers[0].slopes, chosen.seeds
    count, samples = like.shape[:2]
    scale = np.geomspace(1, max(count - 1, 1), SPECTRAL_LAGS)
    wanted = sorted({round(lag) for lag in scale if lag < count})
    spectral_B3K = torch.full((samples, 3, count), torch.nan, dtype=torch.float64)
    if units <= seeds:
        found = reach(layers, all_rows(samples, like, units), wanted)
        for lag, norm_B in found.spectral.items():
            spectral_B3K[:, :, lag] = functional.pad(norm_B[:, None], (0, 2))
    else:
        found = reach(layers, random_rows(samples, seeds, like, units, generator))
        if chosen.spectral and wanted:
            part = _of_samples(layers, chosen.spectral)
            largest = torch.stack(spectral_norms(part, wanted, generator), 1)
            spectral_B3K[: chosen.spectral, :, wanted] = largest
    state_BLK, input_BK = found.state.permute(2, 1, 0).cpu(), found.input.T.cpu()
    decade = math.log(10)
    return ReachNorms(state_BLK / decade, input_BK / decade, spectral_B3K / decade)


def _of_samples(layers: Sequence[Linearized], count: int) -> list[Linearized]:
    """Cut the first samples out of all layers."""
    return [
        replace(
            layer,
            slopes=layer.slopes[:, :count],
            carry=None if layer.carry is None else layer.carry[:, :count],
            through=None if layer.through is None else layer.through[:, :count],
        )
        for layer in layers
    ]
