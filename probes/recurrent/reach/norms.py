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

    exact: int
    """All rows are followed."""
    spectral: int
    """The spectral norm is measured: by iteration where not all rows are followed."""
    seeds: int
    """Random combinations of rows of every other sample."""


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
    like, exact = layers[0].slopes, chosen.exact
    count, total = like.shape[:2]
    scale = np.geomspace(1, max(count - 1, 1), SPECTRAL_LAGS)
    wanted = sorted({round(lag) for lag in scale if lag < count})
    state_BLK = torch.empty(total, len(layers), count, dtype=torch.float64)
    input_BK = torch.empty(total, count, dtype=torch.float64)
    spectral_B3K = torch.full((total, 3, count), torch.nan, dtype=torch.float64)
    if exact:
        found = reach(_of_samples(layers, slice(exact)), all_rows(exact, like, units), wanted)
        state_BLK[:exact] = found.state.permute(2, 1, 0)
        input_BK[:exact] = found.input.T
        for lag, norm_B in found.spectral.items():
            spectral_B3K[:exact, :, lag] = functional.pad(norm_B[:, None], (0, 2))
    if exact < chosen.spectral and wanted:
        part = _of_samples(layers, slice(exact, chosen.spectral))
        largest = torch.stack(spectral_norms(part, wanted, generator), 1)
        spectral_B3K[exact : chosen.spectral, :, wanted] = largest
    if exact < total:
        rows = random_rows(total - exact, chosen.seeds, like, units, generator)
        found = reach(_of_samples(layers, slice(exact, None)), rows)
        state_BLK[exact:] = found.state.permute(2, 1, 0)
        input_BK[exact:] = found.input.T
    decade = math.log(10)
    return ReachNorms(state_BLK / decade, input_BK / decade, spectral_B3K / decade)


def _of_samples(layers: Sequence[Linearized], chosen: slice) -> list[Linearized]:
    """Cut samples out of all layers."""
    return [
        replace(
            layer,
            slopes=layer.slopes[:, chosen],
            carry=None if layer.carry is None else layer.carry[:, chosen],
            through=None if layer.through is None else layer.through[:, chosen],
        )
        for layer in layers
    ]
