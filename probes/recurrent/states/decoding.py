"""How much of past inputs a linear readout recovers from a recurrent state, on other sequences.

One factorization serves every lag and every ridge. Half of the sequences fit the readout and the
other half test it, then the other way round; what a readout is tested on takes no part in its fit,
in the choice of its ridge, nor in what is subtracted as the average.

Natural inputs resemble their neighbours in time, so that the present input alone tells of past
ones, and decoding a past input is no proof of memory. What is decoded here is therefore also the
new part of every past input: what a linear prediction from all inputs after it leaves over. The new
parts of different lags are uncorrelated, so the shares of them that are recovered add up to a
capacity that cannot exceed the size of the state; for white inputs it is that of Jaeger.

Shapes: T timestep, B sequence, H unit, I input feature, D input component, K lag (from 0), N row (a
timestep of a sequence), M target (K * D), W window (lags within one prediction, times D).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from probes.recurrent.states.novelty import JITTER, SMALLEST, novelty, window

RIDGES = (1e-12, 1e-8, 1e-6, 1e-4, 1e-2, 1.0)
"""Ridges that are tried, as a share of the mean variance of a unit; besides no readout at all."""

CHUNK = 2**20
"""Numbers in rows of targets at a time: so few that they stay in the processor's cache."""

BLOCK = 64
"""Targets whose new parts are computed together."""


class Sequences(NamedTuple):
    """States and inputs of one layer."""

    states: Tensor
    """Shape (T, B, H)."""
    inputs: Tensor
    """Shape (T, B, D)."""
    valid: Tensor
    """Which timesteps there are, shape (T, B)."""

    def of(self, rows: Tensor) -> "Sequences":
        """Pick sequences."""
        return Sequences(*(values[:, rows.to(values.device)] for values in self))

    def mean(self) -> tuple[Tensor, Tensor]:
        """Average over the sequences at every timestep: (T, H) and (T, D)."""
        weight_TB = self.valid.to(self.states) / self.valid.sum(1, keepdim=True).clamp_min(1)
        states_TH = torch.einsum("tbh,tb->th", self.states, weight_TB)
        return states_TH, torch.einsum("tbd,tb->td", self.inputs, weight_TB.to(self.inputs))


class Decoded(NamedTuple):
    """Sums over the timesteps of each sequence, tested on readouts that never saw it."""

    past_energy: Tensor
    """Square of the input ``k`` steps back, less its average at that timestep, summed over the
    components, shape (B, K)."""
    past_error: Tensor
    """Square of what the readout misses of it."""
    present_error: Tensor
    """Square of what a readout of the present input alone misses of it."""
    new_energy: Tensor
    """Square of the new part of that input, in units of its variance."""
    new_error: Tensor
    """Square of what the readout misses of the new part."""
    new_numbers: Tensor
    """Numbers that are new at every lag, at most D, shape (K,)."""
    rows: int
    """Timesteps that a readout was fitted on."""
    predictors: int
    """Numbers that the new part of an input is predicted from at most."""


def decode(sequences: Sequences, lags: int, generator: torch.Generator) -> Decoded:
    """Decode past inputs from states, every sequence by readouts fitted on others.

    Parameters
    ----------
    sequences : Sequences
        At least four.
    lags : int
        Lags after 0; there must be more timesteps.
    generator : torch.Generator
        Deals the sequences into halves; on the CPU.

    References
    ----------
    .. [1] Jaeger, Short term memory in echo state networks (2001).
    """
    samples = sequences.valid.shape[1]
    halves = torch.randperm(samples, generator=generator).chunk(2)
    sums = torch.zeros(5, samples, lags + 1, dtype=torch.float64)
    new_numbers, rows = [], []
    for own, other in (halves, halves[::-1]):
        train, test = sequences.of(own), sequences.of(other)
        mean = train.mean()
        fitted = _fit(train, mean, lags)
        sums[:, other] = _tested(test, mean, fitted, lags)
        new_numbers.append(fitted.new_numbers)
        rows.append(fitted.rows)
    energy, error, present, new_energy, new_error = sums.unbind(0)
    size = sequences.inputs.shape[2]
    predictors = window(lags, size) - size
    counted_K = torch.stack(new_numbers).double().mean(0)
    return Decoded(energy, error, present, new_energy, new_error, counted_K, min(rows), predictors)


class _Fitted(NamedTuple):
    """Readouts of one half of the sequences."""

    weights: Tensor
    """From states to the past inputs and to their new parts, shape (H, 2 M)."""
    present: Tensor
    """From the present input to the past inputs, shape (D, M)."""
    filters: Tensor
    """From past inputs to their new parts, shape (M, M)."""
    width: int
    """Inputs that one new part depends on at most, W."""
    new_numbers: Tensor
    """As of :class:`Novelty`."""
    rows: int

    def new(self, past_NM: Tensor) -> Tensor:
        """Compute the new part of every past input: (N, M)."""
        filters_MM, parts = self.filters.to(past_NM), []
        for start in range(0, past_NM.shape[1], BLOCK):
            used = slice(max(0, start - self.width), start + BLOCK)
            parts.append(past_NM[:, used] @ filters_MM[used, start : start + BLOCK])
        return torch.cat(parts, 1)


def _fit(train: Sequences, mean: tuple[Tensor, Tensor], lags: int) -> _Fitted:
    """Fit every readout; one part of the sequences chooses the ridges fitted on the other."""
    samples, size = train.inputs.shape[1:]
    parts = torch.arange(samples).chunk(2)
    one, other = (_moments(train.of(part), mean, lags) for part in parts)
    present_DM = one.present + other.present
    new = novelty(one.window + other.window, one.rows + other.rows, lags, size)
    filters_MM = new.whole()
    one, other = (
        own._replace(cross=torch.cat([own.cross, own.cross @ filters_MM], 1))
        for own in (one, other)
    )
    ridges_M = _chosen(one, other, size)
    values_H, vectors_HH = torch.linalg.eigh(one.states + other.states)
    weights_HM = _ridge(values_H, vectors_HH, one.cross + other.cross, ridges_M)
    scale = present_DM[:, :size].diagonal().mean().clamp_min(SMALLEST)
    ridge_DD = JITTER * scale * torch.eye(size)
    present_DM = torch.linalg.solve(present_DM[:, :size] + ridge_DD, present_DM)
    return _Fitted(
        weights_HM,
        present_DM,
        filters_MM,
        window(lags, size),
        new.new_numbers,
        one.rows + other.rows,
    )


class _Moments(NamedTuple):
    """Sums of products over the rows of some sequences."""

    states: Tensor
    """Of states, shape (H, H)."""
    cross: Tensor
    """Of states and targets, shape (H, M)."""
    present: Tensor
    """Of the present input and all lagged ones, shape (D, M)."""
    window: Tensor
    """Of the newest inputs, shape (W, W)."""
    rows: int


def _moments(part: Sequences, mean: tuple[Tensor, Tensor], lags: int) -> _Moments:
    """Sum products over rows."""
    units, size = part.states.shape[2], part.inputs.shape[2]
    width, count = window(lags, size), (lags + 1) * size
    states_HH = torch.zeros(units, units, dtype=torch.float64)
    cross_HM = torch.zeros(units, count, dtype=torch.float64)
    present_DM = torch.zeros(size, count, dtype=torch.float64)
    window_WW = torch.zeros(width, width, dtype=torch.float64)
    total = 0
    for states_NH, lagged_NM, _ in _rows(part, mean, lags):
        # In double precision: it is inverted without a ridge, and inputs may be nearly alike.
        window_NW = lagged_NM[:, :width].cpu().double()
        states_HH += (states_NH.t() @ states_NH).cpu()
        cross_HM += (states_NH.t() @ lagged_NM).cpu()
        present_DM += (lagged_NM[:, :size].t() @ lagged_NM).cpu()
        window_WW += window_NW.t() @ window_NW
        total += len(states_NH)
    return _Moments(states_HH, cross_HM, present_DM, window_WW, total)


def _rows(
    part: Sequences, mean: tuple[Tensor, Tensor], lags: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield states (N, H), lagged inputs (N, M), newest first, and whose they are (N,)."""
    timesteps, samples, size = part.inputs.shape
    width = max(1, CHUNK // ((timesteps - lags) * (lags + 1) * size))
    for start in range(0, samples, width):
        states_TBH, inputs_TBD, valid_TB = (values[:, start : start + width] for values in part)
        states_TBH = states_TBH - mean[0][:, None]
        inputs_TBD = inputs_TBD - mean[1][:, None]
        # Padding is at one end only, so both ends of a window tell about all of it.
        usable_TB = valid_TB[lags:] & valid_TB[: timesteps - lags]
        slices = [inputs_TBD[lags - lag : timesteps - lag] for lag in range(lags + 1)]
        whose_B = torch.arange(start, start + valid_TB.shape[1]).to(valid_TB.device)
        whole = (states_TBH[lags:], torch.stack(slices, 2), whose_B.expand_as(usable_TB))
        if bool(usable_TB.all()):
            states_NH, past_NKD, whose_N = (values.flatten(0, 1) for values in whole)
        else:
            states_NH, past_NKD, whose_N = (values[usable_TB] for values in whole)
        yield states_NH, past_NKD.flatten(1), whose_N


def _chosen(fit: _Moments, choose: _Moments, size: int) -> Tensor:
    """Choose the ridge of every lag that misses least on other sequences: (M,)."""
    # All in the basis in which the fit is diagonal, so that a ridge takes one product.
    values_H, vectors_HH = torch.linalg.eigh(fit.states)
    cross_HM, other_HM = vectors_HH.t() @ fit.cross, vectors_HH.t() @ choose.cross
    states_HH = vectors_HH.t() @ choose.states @ vectors_HH
    misses = [torch.zeros(fit.cross.shape[1] // size, dtype=torch.float64)]
    for ridge in RIDGES:
        weights_HM = cross_HM / _penalized(values_H, torch.tensor([ridge]).double())
        # Up to the energy of the target, which is the same for every ridge.
        missed_M = (weights_HM * (states_HH @ weights_HM - 2 * other_HM)).sum(0)
        misses.append(missed_M.view(-1, size).sum(1))
    grid = torch.tensor([torch.inf, *RIDGES], dtype=torch.float64)
    return grid[torch.stack(misses).argmin(0)].repeat_interleave(size)


def _ridge(values_H: Tensor, vectors_HH: Tensor, cross_HM: Tensor, ridges_M: Tensor) -> Tensor:
    """Weights of ridge regressions that share their eigenvectors: (H, M)."""
    return vectors_HH @ ((vectors_HH.t() @ cross_HM) / _penalized(values_H, ridges_M))


def _penalized(values_H: Tensor, ridges_M: Tensor) -> Tensor:
    """Variances with ridges, which are shares of the mean variance: (H, M)."""
    # A state that never moves has no variance, and no weight either.
    return values_H.clamp_min(0)[:, None] + ridges_M * values_H.mean().clamp_min(SMALLEST)


def _tested(test: Sequences, mean: tuple[Tensor, Tensor], fitted: _Fitted, lags: int) -> Tensor:
    """Sum squares of the targets and of what is missed of them, per sequence: (5, B, K)."""
    samples, size = test.inputs.shape[1:]
    sums = torch.zeros(5, samples, lags + 1, dtype=torch.float64)

    def add(place: int, values_NM: Tensor, of_BN: Tensor) -> None:
        """Square in place: what is squared is needed no more."""
        of_each_BM = (of_BN @ values_NM.square_()).cpu().double()
        sums[place] += of_each_BM.view(samples, -1, size).sum(2)

    for states_NH, past_NM, whose_N in _rows(test, mean, lags):
        of_BN = (whose_N == torch.arange(samples, device=whose_N.device)[:, None]).to(past_NM)
        past_HM, new_HM = fitted.weights.to(states_NH).chunk(2, 1)
        new_NM = fitted.new(past_NM)
        present_NM = past_NM[:, :size] @ fitted.present.to(past_NM)
        add(2, present_NM.sub_(past_NM), of_BN)
        add(1, torch.addmm(past_NM, states_NH, past_HM, alpha=-1), of_BN)
        add(4, torch.addmm(new_NM, states_NH, new_HM, alpha=-1), of_BN)
        add(0, past_NM, of_BN)
        add(3, new_NM, of_BN)
    return sums
