"""How far back in time the output of a model depends on its inputs.

Shapes: B sample, T timestep or lag, F input feature.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import xarray as xr
from torch import Tensor

from probes import objective
from probes.base import Batch, Inputs, Progress, Subject, call, silent, variable
from probes.errors import AnalyzerError, NotApplicable
from probes.taps import differentiable, differentiable_recurrence, untouched
from probes.timeline import Sample, Sequences, by_lag, donated, samples, spliced, time_axis

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

    Costs about ``points * donors / 3 + 1`` forward and backward passes (the replacements are
    forward passes); keeps one copy of the audit inputs.

    Parameters
    ----------
    points : int
        Numbers of inputs kept that are tried: two thirds from 0 to all on a geometric scale, the
        rest where the excess falls below 1 % and 5 % of its total.
    donors : int
        Donors per sample, whose excess losses are averaged.

    References
    ----------
    .. [1] Khandelwal et al., Sharp Nearby, Fuzzy Far Away: How Neural Language Models Use Context
       (2018).
    """

    name: ClassVar[str] = "memory_horizon"
    points: int = 24
    donors: int = 1

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        if self.points < 3 or self.donors < 1:
            raise AnalyzerError(
                f"memory_horizon needs points >= 3 and donors >= 1: they are {self.points} and "
                f"{self.donors}"
            )
        batches = [Batch.of(item) for item in subject.batches]
        axis = time_axis(subject, next(iter(subject)))
        subject = replace(subject, batches=batches, time_axis=axis)
        audited = _Audited.of(subject, axis, self.donors)
        with untouched(subject.model):
            audited = audited.intact()
            kept, excess_BK = _curve(audited.excess, audited.timesteps, self.points, progress)
            reach_BT = torch.cat([audited.reach(index) for index in range(len(batches))])
        return _trace(audited, kept, excess_BK, reach_BT)


def donors_of(count: int, generator: torch.Generator) -> Tensor:
    """Draw another sample for every sample, each once, along one random cycle through all."""
    cycle = torch.randperm(count, generator=generator)
    donor_B = torch.empty_like(cycle)
    donor_B[cycle] = cycle.roll(1)
    return donor_B


@dataclass(frozen=True)
class _Audited:
    """The audit set as sequences, with what the intact model makes of them.

    Parameters
    ----------
    subject : Subject
        Its batches stay where the user has them until they run.
    sequences : list of Sequences
        One for each batch.
    pool : list of Sample
        All sequences.
    donor : Tensor, shape (B,)
        Index of the donor of each; further donors follow along the cycle.
    draws : int
        Donors for each.
    results : list of Tensor
        For each batch the intact losses, or final outputs where there is no loss.
    """

    subject: Subject
    sequences: list[Sequences]
    pool: list[Sample]
    donor: Tensor
    draws: int
    results: list[Tensor]

    @classmethod
    def of(cls, subject: Subject, axis: int, draws: int) -> "_Audited":
        """Take the audit set apart."""
        sequences = [Sequences.of(subject, batch, axis) for batch in subject.batches]
        pool = [sample for batch in sequences for sample in samples(batch)]
        if len(pool) < 2:
            raise NotApplicable("the audit set is one sample: there is no other to replace it with")
        if max(sample.length for sample in pool) < 2:
            raise NotApplicable("the inputs have one timestep: there is nothing older to replace")
        return cls(subject, sequences, pool, donors_of(len(pool), subject.generator()), draws, [])

    @property
    def timesteps(self) -> int:
        """Length of the longest sequence."""
        return max(sample.length for sample in self.pool)

    def intact(self) -> "_Audited":
        """Run the intact sequences; the model's own choices become targets that are missing."""
        sequences, results = [], []
        for own in self.sequences:
            batch = own.batch.to(self.subject.device, self.subject.dtype)
            with torch.no_grad():
                outputs = call(self.subject.model, batch.inputs)
            batch = objective.with_own_targets(self.subject, outputs, batch)
            results.append(self._result(outputs, batch))
            sequences.append(replace(own, batch=replace(own.batch, targets=batch.targets)))
        return replace(self, sequences=sequences, results=results)

    def _result(self, outputs: object, batch: Batch) -> Tensor:
        """Losses (B,) or, where there is no loss, outputs (B, ...) of the last position."""
        if self.subject.loss is None:
            return objective.final_outputs(self.subject, outputs, batch).detach()
        return objective.final_losses(self.subject, outputs, batch).detach()

    def losses(self) -> Tensor:
        """Intact loss of the last position of every sample: (B,); 0 where there is no loss."""
        losses = torch.cat([result.double().cpu() for result in self.results])
        return torch.zeros(len(self.pool)) if self.subject.loss is None else losses

    def excess(self, kept: list[int]) -> Tensor:
        """Excess loss of every sample for some numbers of inputs kept: (B, kept)."""
        found, start = [], 0
        for index, own in enumerate(self.sequences):
            rows = torch.arange(start, start + len(own.lengths))
            found.append(self._batch_excess(index, rows, kept))
            start += len(own.lengths)
        return torch.cat(found)

    def _batch_excess(self, index: int, rows: Tensor, kept: list[int]) -> Tensor:
        """Excess loss of one batch, averaged over donors: (B, kept); nan with less context."""
        own, donor_B = self.sequences[index], torch.arange(len(self.pool))
        total_BK = torch.zeros(len(rows), len(kept), dtype=torch.float64)
        for _ in range(self.draws):
            donor_B = self.donor[donor_B]
            others = donated(own, [self.pool[donor] for donor in donor_B[rows].tolist()])
            for column, count in enumerate(kept):
                if count < own.lengths.max():
                    total_BK[:, column] += self._excess(index, spliced(own, others, count))
        context_BK = own.lengths[:, None] - torch.tensor(kept)
        return (total_BK / self.draws).masked_fill(context_BK < 0, torch.nan)

    def _excess(self, index: int, inputs: Inputs) -> Tensor:
        """Excess loss of one batch with other inputs: (B,)."""
        own, subject = self.sequences[index].batch, self.subject
        batch = replace(own, inputs=inputs).to(subject.device, subject.dtype)
        with torch.no_grad():
            result = self._result(call(subject.model, batch.inputs), batch)
        change = (result - self.results[index]).double()
        if subject.loss is None:
            change = 0.5 * change.flatten(1).square().mean(1)
        return change.cpu()

    def reach(self, index: int) -> Tensor:
        """Root mean square over features of d loss / d input by lag: (B, T)."""
        own, subject = self.sequences[index], self.subject
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
        reach_BT = torch.full((len(own.lengths), self.timesteps), torch.nan, dtype=torch.float64)
        for leaf, gradient in zip(leaves, found, strict=True):
            values = torch.zeros_like(leaf) if gradient is None else gradient
            ordered = by_lag(own, values.double().cpu())
            if ordered is not None:
                rms_BT = (
                    ordered.flatten(2).square().mean(2).sqrt() if ordered.dim() > 2 else ordered
                )
                reach_BT[:, : rms_BT.shape[1]] = rms_BT.abs()[:, : self.timesteps]
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


def grid(timesteps: int, points: int) -> list[int]:
    """Choose up to ``points`` whole numbers from 0 to ``timesteps``, dense at first."""
    if timesteps < points:
        return list(range(timesteps + 1))
    steps = {0, timesteps}
    for count in range(2, 8 * points):
        denser = {0} | {round(timesteps ** (step / (count - 1))) for step in range(count)}
        if len(denser) > points:
            break
        steps = denser
    return sorted(steps)


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


def _trace(audited: _Audited, kept: list[int], excess_BK: Tensor, reach_BT: Tensor) -> xr.Dataset:
    """Label what was measured."""
    described = objective.describe(audited.subject)
    if audited.subject.loss is None:
        described = (
            "half the mean square distance of the last output from that to the intact inputs "
            "(no loss was given)"
        )
    intact_B = audited.losses()
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
            "intact_loss": variable(intact_B, ("sample",), "intact loss, last position", "loss"),
            "donor": xr.DataArray(
                audited.donor.numpy(),
                dims="sample",
                attrs={"long_name": "sample whose inputs replace older ones", "units": "1"},
            ),
        },
        {"kept": kept, "lag": range(audited.timesteps)},
        {
            "sequence_length": audited.timesteps,
            "intact_loss": float(intact_B.mean()),
            "objective": described,
            "time_axis": audited.subject.time_axis,
        },
    )
