"""How far back in time the output of a model depends on its inputs.

Shapes: B sample, T timestep or lag, F input feature.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import xarray as xr
from torch import Tensor

from probes.base import Progress, Subject, call, silent, variable
from probes.errors import AnalyzerError
from probes.loss import objective
from probes.loss.replacement import Replacement, grid
from probes.model.taps import differentiable, differentiable_recurrence, untouched
from probes.recurrent.watching.resumption import Resumption
from probes.samples.timeline import by_lag

SHARES = (0.01, 0.05)
"""Shares of the total excess loss near which the numbers of inputs kept lie closest."""

Evaluate = Callable[[list[int]], Tensor]
"""Excess loss for some numbers of inputs kept: (B, kept)."""


@dataclass(frozen=True)
class MemoryHorizon:
    """What the inputs before the last few are worth to the last output, and their gradient.

    Everything older than the last ``kept`` inputs of a sample is replaced by what another sample
    of the audit set has in its place, counted from the end; a shorter one is repeated. The excess
    loss is that of the last position. Without a loss it is half the mean square distance between
    the outputs with and without the replacement. Works for any model with time in its inputs.

    Costs up to about ``points * donors / 3 + 1`` forward and backward passes of the samples (the
    replacements are forward passes). Recurrent layers in one direction resume where the inputs
    begin like earlier ones; where their states are all that a model remembers, which is tried, it
    is run on the inputs from there on alone: a fifth of the cost. Keeps one copy of the inputs, and
    the states in one run of them and one of the donors' in up to 256 MiB.

    Parameters
    ----------
    points : int
        Numbers of inputs kept that are tried: two thirds from 0 to all on a geometric scale, the
        rest where the excess falls below 1 % and 5 % of its total.
    donors : int
        Donors per sample, whose excess losses are averaged.
    samples : int
        The first batches that hold as many samples are measured.

    References
    ----------
    .. [1] Khandelwal et al., Sharp Nearby, Fuzzy Far Away: How Neural Language Models Use Context
       (2018).
    """

    name: ClassVar[str] = "memory_horizon"
    passes: ClassVar[float] = 9
    points: int = 24
    donors: int = 1
    samples: int = 512

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        if self.points < 3 or self.donors < 1 or self.samples < 2:
            raise AnalyzerError(
                f"memory_horizon needs points >= 3, donors >= 1 and samples >= 2: they are "
                f"{self.points}, {self.donors} and {self.samples}"
            )
        replacement = Replacement.of(subject, self.donors, self.samples, Resumption(subject.model))
        timesteps = replacement.timesteps
        with untouched(subject.model):
            replacement = replacement.intact()
            evaluate = partial(_excess, replacement)
            kept, excess_BK = _curve(evaluate, timesteps, self.points, progress)
            reaches = [_reach(replacement, index) for index in range(len(replacement.sequences))]
        return _trace(replacement, kept, excess_BK, torch.cat(reaches))


def _excess(replacement: Replacement, kept: list[int]) -> Tensor:
    """Excess loss with everything but the last ``kept`` replaced: (B, kept); nan if shorter."""
    older = [range(count, replacement.timesteps) for count in kept]
    excess_BK = replacement.excess(older)
    return excess_BK.masked_fill(replacement.lengths[:, None] < torch.tensor(kept), torch.nan)


def _reach(replacement: Replacement, index: int) -> Tensor:
    """Root mean square over features of d loss / d input by lag, of one batch: (B, T)."""
    own, subject = replacement.sequences[index], replacement.subject
    batch = own.batch.to(subject.device, subject.dtype)
    with (
        differentiable(subject.model, batch) as (inputs, leaves),
        differentiable_recurrence(subject.model),
    ):
        outputs = call(subject.model, inputs)
        loss = objective.final_losses(subject, outputs, batch).sum()
        if not loss.requires_grad:
            raise AnalyzerError(
                "the loss has no gradient with respect to the inputs: the model runs under "
                "torch.no_grad, or it or the loss detaches its result"
            )
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
    timesteps = replacement.timesteps
    reach_BT = torch.full((len(own.lengths), timesteps), torch.nan, dtype=torch.float64)
    for leaf, gradient in zip(leaves, found, strict=True):
        values = torch.zeros_like(leaf) if gradient is None else gradient
        ordered = by_lag(own, values.double().cpu())
        if ordered is not None:
            rms_BT = ordered.flatten(2).square().mean(2).sqrt() if ordered.dim() > 2 else ordered
            reach_BT[:, : rms_BT.shape[1]] = rms_BT.abs()[:, :timesteps]
            break
    return reach_BT


def _curve(
    evaluate: Evaluate, timesteps: int, points: int, progress: Progress
) -> tuple[list[int], Tensor]:
    """Evaluate numbers of inputs kept from 0 to all, closer where the excess becomes small."""
    kept = grid(timesteps, points - points // 3)
    excess_BK = evaluate(kept)
    progress(len(kept), points)
    while len(kept) < points:
        between = _between(kept, excess_BK)
        if between is None:
            break
        at = sum(count < between for count in kept)
        kept.insert(at, between)
        excess_BK = torch.cat([excess_BK[:, :at], evaluate([between]), excess_BK[:, at:]], 1)
        progress(len(kept), points)
    progress(points, points)
    return kept, excess_BK


def _between(kept: list[int], excess_BK: Tensor) -> int | None:
    """Choose the next number of inputs kept to try; None where nothing is left to learn.

    It halves the gap across which the mean excess falls below one of ``SHARES``; when they are
    closed, the widest of the gaps beside the first, which decide how sure its place is.
    """
    last = len(kept) - 1
    crossings = [_crossing(excess_BK, share) for share in SHARES]
    beside = [gap for gap in (crossings[0] - 1, crossings[0] + 1) if 0 <= gap < last]
    beside.sort(key=lambda gap: kept[gap] - kept[gap + 1])
    for gap in (*crossings, *beside):
        if gap < 0 or gap >= last:
            continue
        low, high = kept[gap], kept[gap + 1]
        if high - low > 1:
            return (low + high) // 2
    return None


def _crossing(excess_BK: Tensor, share: float) -> int:
    """Place of the last number kept whose mean excess is above ``share``; -2 if there is none."""
    known_BK = ~excess_BK.isnan()
    above_K = excess_BK.nan_to_num().sum(0)
    total_K = (known_BK * excess_BK[:, :1]).sum(0)
    dear_K = ((above_K > share * total_K) & (total_K > 0)).tolist()
    return max((place for place, dear in enumerate(dear_K) if dear), default=-2)


def _trace(
    replacement: Replacement, kept: list[int], excess_BK: Tensor, reach_BT: Tensor
) -> xr.Dataset:
    """Label what was measured."""
    return xr.Dataset(
        {
            "excess_loss": variable(
                excess_BK,
                ("sample", "kept"),
                "loss of the last position with all but the last inputs replaced, less the intact",
                "loss",
            ),
            "reach": variable(
                reach_BT,
                ("sample", "lag"),
                "rms gradient of the loss of the last position at the input",
                "loss / input",
            ),
            **replacement.by_sample("replace older ones"),
        },
        {"kept": kept, "lag": range(replacement.timesteps)},
        replacement.facts(),
    )
