"""What the last output of a model loses when inputs of a sample are replaced by another's.

Shapes: B sample, W set of inputs that are replaced, T timestep.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from probes.base import Batch, Subject, variable
from probes.errors import AnalyzerError, NotApplicable
from probes.loss import objective
from probes.loss.rest import Run, Unlike, since, usable_starts
from probes.samples.timeline import Sample, Sequences, samples, spliced, time_axis
from probes.structure import tensors


@dataclass(frozen=True)
class Replacement:
    """Samples as sequences, each with a donor, and what the intact model makes of them.

    A donor is another sample of the audit set. Its inputs are lined up with the sample's from the
    end; a shorter one is repeated. Make one with :meth:`of`, then let :meth:`intact` run.

    Parameters
    ----------
    subject : Subject
        Its batches stay where the user has them until they run; its time axis is known.
    sequences : list of Sequences
        One for each batch.
    pool : list of Sample
        All sequences.
    donor : Tensor, shape (B,)
        Index of the donor of each; further donors follow along the cycle.
    draws : int
        Donors for each, over whom losses are averaged.
    run : Run
        Runs the model.
    results : list of Tensor
        For each batch the intact losses, or final outputs where there is no loss.
    shapes : list of list of torch.Size
        For each batch those of the tensors that the model returns.
    starts : list of list of int
        For each batch the timesteps from which on it can be run alone, in order.
    """

    subject: Subject
    sequences: list[Sequences]
    pool: list[Sample]
    donor: Tensor
    draws: int
    run: Run
    results: list[Tensor]
    shapes: list[list[torch.Size]]
    starts: list[list[int]]

    @classmethod
    def of(cls, subject: Subject, draws: int, limit: int, run: Run) -> "Replacement":
        """Take the audit set apart: the first batches that hold ``limit`` samples.

        Raises
        ------
        NotApplicable
            The inputs have no time axis or one timestep, or there is one sample alone.
        """
        batches: list[Batch] = []
        count = 0
        for item in subject.batches:
            batches.append(Batch.of(item))
            count += subject.batch_size(batches[-1])
            if count >= limit:
                break
        axis = time_axis(subject, batches[0].to(subject.device, subject.dtype))
        subject = replace(subject, batches=batches, time_axis=axis)
        sequences = [Sequences.of(subject, batch, axis) for batch in batches]
        pool = [sample for batch in sequences for sample in samples(batch)]
        if len(pool) < 2:
            raise NotApplicable("the audit set is one sample: there is no other to replace it with")
        if max(sample.length for sample in pool) < 2:
            raise NotApplicable("the inputs have one timestep: there is nothing older to replace")
        donor_B = donors_of(len(pool), subject.generator())
        return cls(subject, sequences, pool, donor_B, draws, run, [], [], [])

    @property
    def timesteps(self) -> int:
        """Length of the longest sequence."""
        return max(sample.length for sample in self.pool)

    @property
    def lengths(self) -> Tensor:
        """Valid timesteps of every sample: (B,)."""
        return torch.tensor([sample.length for sample in self.pool])

    def intact(self) -> "Replacement":
        """Run the intact sequences; the model's own choices become targets that are missing."""
        subject = self.subject
        sequences, results, shapes, starts = [], [], [], []
        for index, own in enumerate(self.sequences):
            batch, name = own.batch.to(subject.device, subject.dtype), ("intact", index)
            with torch.no_grad():
                outputs = self.run(batch.inputs, keep=name)
                batch = objective.with_own_targets(subject, outputs, batch)
                there = replace(own, batch=batch)
                result = objective.final_results(subject, outputs, batch)
                starts.append(usable_starts(subject, self.run, name, there, outputs, result))
            if starts[-1]:
                self.run.release(name)
            shapes.append([tensor.shape for tensor in tensors(outputs)])
            results.append(result)
            sequences.append(replace(own, batch=replace(own.batch, targets=batch.targets)))
        return replace(self, sequences=sequences, results=results, shapes=shapes, starts=starts)

    def losses(self) -> Tensor:
        """Intact loss of the last position of every sample: (B,); 0 where there is no loss."""
        losses = torch.cat([result.double().cpu() for result in self.results])
        return torch.zeros(len(self.pool)) if self.subject.loss is None else losses

    def excess(self, lags: Sequence[range]) -> Tensor:
        """Loss of the last position with the donors' inputs at some lags, less the intact one.

        Without a loss, half the mean square distance of the outputs.

        Parameters
        ----------
        lags : sequence of range
            Which inputs to replace, counted back from the last one of each sample.

        Returns
        -------
        Tensor, shape (B, W)
            0 where a sample has no input at these lags.
        """
        return torch.cat(
            [self._batch_excess(index, rows, lags) for index, rows in enumerate(self.rows())]
        )

    def donors(self, rows: Tensor, draw: int = 0) -> list[Sample]:
        """List the donors of some samples."""
        donor_B = self.donor
        for _ in range(draw):
            donor_B = self.donor[donor_B]
        return [self.pool[donor] for donor in donor_B[rows].tolist()]

    def rows(self) -> Iterator[Tensor]:
        """Yield which samples each batch holds."""
        start = 0
        for own in self.sequences:
            yield torch.arange(start, start + len(own.lengths))
            start += len(own.lengths)

    def change(self, index: int, outputs: Any, batch: Batch) -> Tensor:
        """Excess loss of one batch of which the model made something else: (B,).

        Raises
        ------
        AnalyzerError
            It cannot be compared with what the model makes of the intact inputs.
        """
        result, intact = objective.final_results(self.subject, outputs, batch), self.results[index]
        if result.shape != intact.shape:
            raise AnalyzerError(
                f"the output has the shape {tuple(result.shape)} and {tuple(intact.shape)} for the "
                "intact inputs, and no position in time to compare: give a loss and targets"
            )
        change = (result - intact).double()
        if self.subject.loss is None:
            # Of an output that is one number for each timestep, one for each sample is left.
            change = 0.5 * change.reshape(len(change), -1).square().mean(1)
        return change.cpu()

    def _batch_excess(self, index: int, rows: Tensor, lags: Sequence[range]) -> Tensor:
        """Excess loss of one batch, averaged over donors: (B, W)."""
        own = self.sequences[index]
        total_BW = torch.zeros(len(rows), len(lags), dtype=torch.float64)
        longest = int(own.lengths.max())
        for draw in range(self.draws):
            donors = self.donors(rows, draw)
            for column, replaced in enumerate(lags):
                if not replaced or replaced.start >= longest:
                    continue
                begin: Hashable = ("intact", index)
                known = longest - replaced.stop
                if replaced.stop >= longest:
                    begin, known = ("donor", draw, index), longest - replaced.start
                total_BW[:, column] += self._excess(index, donors, replaced, begin, known)
        return total_BW / self.draws

    def _excess(
        self, index: int, donors: Sequence[Sample], lags: range, begin: Hashable, known: int
    ) -> Tensor:
        """Excess loss of one batch, whose first ``known`` timesteps are those of a run: (B,)."""
        if known >= int(self.sequences[index].lengths.max()):
            change = self._changed(index, donors, lags, keep=begin)
            if self.starts[index]:
                self.run.release(begin)
            return change
        start = max((start for start in self.starts[index] if start <= known), default=0)
        if start and start in self.run.starts(begin):
            try:
                return self._changed(index, donors, lags, like=begin, start=start)
            except Unlike:
                pass  # what the model does depends on the data: all of it is run
        return self._changed(index, donors, lags, like=begin)

    def _changed(
        self,
        index: int,
        donors: Sequence[Sample],
        lags: range,
        *,
        like: Hashable = None,
        keep: Hashable = None,
        start: int = 0,
    ) -> Tensor:
        """Excess loss of one batch by one run, from a timestep on: (B,)."""
        subject, own = self.subject, since(self.subject, self.sequences[index], start)
        inputs = spliced(own, donors, lags.start, lags.stop)
        batch = replace(own.batch, inputs=inputs).to(subject.device, subject.dtype)
        with torch.no_grad():
            if start:
                outputs = self.run.rest(batch.inputs, like=like, start=start)
            else:
                outputs = self.run(batch.inputs, like=like, keep=keep)
        return self.change(index, outputs, batch)

    def by_sample(self, use: str) -> dict[str, xr.DataArray]:
        """Label the intact losses and the donors, which are put to some use."""
        return {
            "intact_loss": variable(
                self.losses(), ("sample",), "intact loss, last position", "loss"
            ),
            "donor": xr.DataArray(
                self.donor.numpy(),
                dims="sample",
                attrs={"long_name": f"sample whose inputs {use}", "units": "1"},
            ),
        }

    def facts(self) -> dict[str, Any]:
        """Say on what the losses rest, for the attributes of a trace."""
        described = objective.describe(self.subject)
        if self.subject.loss is None:
            described = (
                "half the mean square distance of the last output from that to the intact inputs "
                "(no loss was given)"
            )
        return {
            "sequence_length": self.timesteps,
            "intact_loss": float(self.losses().mean()),
            "objective": described,
            "time_axis": self.subject.time_axis,
        }


def donors_of(count: int, generator: torch.Generator) -> Tensor:
    """Draw another sample for every sample, each once, along one random cycle through all."""
    cycle = torch.randperm(count, generator=generator)
    donor_B = torch.empty_like(cycle)
    donor_B[cycle] = cycle.roll(1)
    return donor_B


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
