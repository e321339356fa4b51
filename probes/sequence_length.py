"""What a model makes of sequences of other lengths than those of the audit.

Shapes: B sample, L length, T timestep.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
import xarray as xr
from torch import Tensor

from probes.base import Progress, Subject, call, silent, variable
from probes.errors import REFUSALS, AnalyzerError, first_line
from probes.loss.replacement import Replacement
from probes.model.taps import untouched
from probes.recurrent.watching.resumption import Resumption
from probes.samples.layout import Layout
from probes.samples.timeline import relengthed
from probes.structure import tensors


@dataclass(frozen=True)
class SequenceLength:
    """Loss of the last position on shorter and on longer sequences.

    Of shorter sequences the last inputs are read alone, from the state in which the model starts;
    longer ones have inputs of another sample in front. Measured is the excess loss of the last
    position over that at the own length; without a loss, half the mean square distance of the
    output from that at the own length. Beside the shorter ones stands what the same inputs cost
    with another sample's in place of the older ones, as the memory horizon has it: the difference
    is due to the length alone. Works for any model with time in its inputs; a length that the model
    does not take is named.

    Costs as much as reading all the sequences, ``2 ** (longer + 1)`` forward passes and about three
    more.

    Parameters
    ----------
    shorter : int
        How often the length is halved.
    longer : int
        How often it is doubled.
    samples : int
        The first batches that hold as many samples are measured.

    References
    ----------
    .. [1] Press, Smith & Lewis, Train Short, Test Long (2022), for the loss by length.
    """

    name: ClassVar[str] = "sequence_length"
    passes: ClassVar[float] = 4
    shorter: int = 3
    longer: int = 2
    samples: int = 512

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        if self.shorter < 0 or self.longer < 0 or self.samples < 2:
            raise AnalyzerError(
                f"sequence_length needs shorter >= 0, longer >= 0 and samples >= 2: they are "
                f"{self.shorter}, {self.longer} and {self.samples}"
            )
        replacement = Replacement.of(subject, 1, self.samples, Resumption(subject.model))
        own = replacement.timesteps
        halves = {-(-own // 2**count) for count in range(1, self.shorter + 1)} - {own}
        shorter, longer = sorted(halves), [own * 2**count for count in range(1, self.longer + 1)]
        columns: dict[int, Tensor | _Unknown] = {}
        others = [*shorter, *longer]
        with untouched(subject.model):
            replacement = replacement.intact()
            everything = [range(own), *(range(length, own) for length in shorter)]
            worth_BL = replacement.excess(everything)
            for done, length in enumerate(others):
                progress(done, len(others))
                columns[length] = _excess(replacement, length)
            progress(len(others), len(others))
        return _trace(replacement, columns, worth_BL)


class _Unknown(NamedTuple):
    """Why there is no loss at a length."""

    taken: bool
    """Whether the model takes sequences of this length."""
    reason: str


def _excess(replacement: Replacement, length: int) -> Tensor | _Unknown:
    """Excess loss at a length: (B,)."""
    subject, found = replacement.subject, []
    for index, rows in enumerate(replacement.rows()):
        own = replacement.sequences[index]
        layout, donors = Layout.of(subject, own.batch), replacement.donors(rows)
        longer = max(0, length - replacement.timesteps)
        made = relengthed(own, donors, length, longer, layout).batch
        batch = made.to(subject.device, subject.dtype)
        try:
            with torch.no_grad():
                outputs = call(subject.model, batch.inputs)
        except REFUSALS as error:
            return _Unknown(False, first_line(error))
        if [tensor.shape for tensor in tensors(outputs)] == replacement.shapes[index]:
            # Its positions are others than those of the inputs: so are those of the targets.
            batch = replace(batch, targets=own.batch.to(subject.device, subject.dtype).targets)
        try:
            found.append(replacement.change(index, outputs, batch))
        except REFUSALS as error:
            told = str(error) if isinstance(error, AnalyzerError) else first_line(error)
            return _Unknown(True, told)
    return torch.cat(found)


def _trace(
    replacement: Replacement, columns: dict[int, Tensor | _Unknown], worth_BL: Tensor
) -> xr.Dataset:
    """Label what was measured."""
    own, count = replacement.timesteps, len(worth_BL)
    lengths = sorted([own, *columns])
    shorter = lengths[: lengths.index(own)]
    excess_BL = torch.full((count, len(lengths)), torch.nan, dtype=torch.float64)
    replaced_BL = excess_BL.clone()
    replaced_BL[:, : len(shorter)] = worth_BL[:, 1:]
    excess_BL[:, len(shorter)] = 0
    unknown: dict[int, _Unknown] = {}
    for place, length in enumerate(lengths):
        column = columns.get(length)
        if isinstance(column, Tensor):
            # A loss that is undefined at this length alone is the worst there is.
            undefined_B = column.isnan() & ~worth_BL[:, 0].isnan()
            excess_BL[:, place] = column.masked_fill(undefined_B, torch.inf)
        elif column is not None:
            unknown[length] = column
    for values_BL in (excess_BL, replaced_BL):
        for place, length in enumerate(shorter):
            values_BL[replacement.lengths <= length, place] = torch.nan
    known = _Unknown(True, "")
    kind = ("sample", "length")
    return xr.Dataset(
        {
            "excess_loss": variable(
                excess_BL,
                kind,
                "loss of the last position of a sequence of this length, less that at its own",
                "loss",
            ),
            "replaced_loss": variable(
                replaced_BL,
                kind,
                "the same with another sample's inputs in place of those that are left out",
                "loss",
            ),
            "whole_loss": variable(
                worth_BL[:, 0], ("sample",), "the same with another sample's inputs alone", "loss"
            ),
            **replacement.by_sample("are put in front"),
            "taken": xr.DataArray(
                [unknown.get(length, known).taken for length in lengths],
                dims="length",
                attrs={"long_name": "whether the model takes this length", "units": "1"},
            ),
            "reason": xr.DataArray(
                [unknown.get(length, known).reason for length in lengths],
                dims="length",
                attrs={"long_name": "why there is no loss, if there is none", "units": "1"},
            ),
        },
        {"length": lengths},
        replacement.facts(),
    )
