"""What is new in an input: what no linear prediction from the inputs after it tells.

Shapes: T timestep, B sequence, I input feature, D input component, K lag, M target (K * D), W
window: the lags within one prediction, from the newest to the one that is predicted, times D.
"""

from typing import NamedTuple

import torch
from torch import Tensor

WINDOW = 64
"""Numbers that a past input is predicted from at most."""

NOTHING_NEW = 1e-6
"""Variance of the new part, as a share of the input's, below which there is nothing to remember."""

JITTER = 1e-9
"""Share of the variance that is added where a covariance may be singular."""

SMALLEST = 1e-30
"""Variance below which there is none."""


def principal(inputs_TBI: Tensor, valid_TB: Tensor, components: int) -> tuple[Tensor, float]:
    """Take the first principal components of inputs about their average at every timestep.

    Returns
    -------
    Tensor, shape (T, B, D)
        With unit variance; D is 0 where the inputs do not differ between sequences.
    float
        Share of the inputs' variance that they hold.
    """
    weight_TB = valid_TB.to(inputs_TBI) / valid_TB.sum(1, keepdim=True).clamp_min(1)
    mean_TI = torch.einsum("tbi,tb->ti", inputs_TBI, weight_TB)
    centred_TBI = (inputs_TBI - mean_TI[:, None]) * valid_TB.unsqueeze(-1)
    rows_NI = centred_TBI.flatten(0, 1)
    covariance_II = (rows_NI.t() @ rows_NI).cpu().double() / valid_TB.sum().clamp_min(1).cpu()
    values_I, vectors_II = torch.linalg.eigh(covariance_II)
    values_I, vectors_II = values_I.flip(0), vectors_II.flip(1)
    kept = int((values_I > NOTHING_NEW * values_I[0].clamp_min(SMALLEST)).sum())
    kept = min(components, kept)
    scaled_ID = vectors_II[:, :kept] / values_I[:kept].sqrt()
    share = float(values_I[:kept].sum() / values_I.sum()) if kept else 0.0
    return inputs_TBI @ scaled_ID.to(inputs_TBI), share


class Novelty(NamedTuple):
    """How the new part of an input is computed from it and the inputs after it."""

    filters: list[Tensor]
    """For every lag up to the longest prediction: (W, D), from the newest input to the one
    predicted; the last is that of all lags beyond too."""
    new_numbers: Tensor
    """Components that are not told by the inputs after them, shape (K,)."""

    def whole(self) -> Tensor:
        """All filters as one matrix: (M, M)."""
        size, lags = self.filters[0].shape[1], len(self.new_numbers)
        whole_MM = torch.zeros(lags * size, lags * size, dtype=torch.float64)
        for lag in range(lags):
            own_WD = self.filters[min(lag, len(self.filters) - 1)]
            stop = (lag + 1) * size
            whole_MM[stop - len(own_WD) : stop, stop - size : stop] = own_WD
        return whole_MM


def window(lags: int, components: int) -> int:
    """Lags within one prediction, the predicted one included, times components."""
    return components * min(lags + 1, max(2, WINDOW // components + 1))


def novelty(window_WW: Tensor, rows: int, lags: int, size: int) -> Novelty:
    """Make inputs uncorrelated, from the newest to the oldest, by a Cholesky factorization.

    Parameters
    ----------
    window_WW : Tensor, shape (W, W)
        Products of the newest inputs, summed over ``rows`` timesteps.
    rows, lags, size : int
        Timesteps, lags after 0, and components of the input.

    Returns
    -------
    Novelty
        Whose new parts have unit covariance in these timesteps.
    """
    # Clamped: inputs that never differ have no variance, and nothing in them is new.
    scale = window_WW.diagonal().mean().clamp_min(SMALLEST)
    jitter_WW = JITTER * scale * torch.eye(len(window_WW), dtype=torch.float64)
    factor_WW = torch.linalg.cholesky(window_WW + jitter_WW)
    is_new_W = factor_WW.diagonal().square() > NOTHING_NEW * scale
    inverse_WW = torch.linalg.solve_triangular(
        factor_WW, torch.eye(len(factor_WW), dtype=torch.float64), upper=False
    )
    inverse_WW *= is_new_W[:, None] * rows**0.5
    blocks = range(0, len(inverse_WW), size)
    filters = [inverse_WW[start : start + size, : start + size].t() for start in blocks]
    count_K = is_new_W.view(-1, size).sum(1)
    beyond_K = count_K[-1:].expand(lags + 1 - len(count_K))
    return Novelty(filters, torch.cat([count_K, beyond_K]))
