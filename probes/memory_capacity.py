"""How many past inputs can be read from the states of recurrent layers by a linear readout.

Shapes: T timestep, B sample, I input feature, P hidden state, L layer, K lag (from 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import pad

from probes.base import Progress, Subject, silent, variable
from probes.errors import AnalyzerError
from probes.model.taps import untouched
from probes.recurrent.backward.record import Site
from probes.recurrent.states.decoding import Decoded, Sequences, decode
from probes.recurrent.states.novelty import principal
from probes.recurrent.watching.table import coordinates, joined
from probes.recurrent.watching.watch import Read, first_samples, read

FEWEST = 8
"""Sequences that are needed to fit, choose and test readouts on different ones."""

SUMS = {
    "past_energy": "square of the input, summed over the timesteps",
    "past_error": "square of what a readout of the state misses of the input",
    "present_error": "square of what a readout of the present input misses of the input",
    "new_energy": "square of the new part of the input, summed over the timesteps",
    "new_error": "square of what a readout of the state misses of the new part",
}
"""Variables of the trace by sample, layer and lag, and what they are called."""

FACTS = {
    "components": ("principal components of the input that are decoded", "1"),
    "input_share": ("share of the input's variance in them", "1"),
    "rows": ("timesteps of all sequences that a readout was fitted on", "timestep"),
    "predictors": ("numbers that the new part of an input is predicted from at most", "1"),
}
"""Likewise by layer, with units."""


@dataclass(frozen=True)
class MemoryCapacity:
    """What a linear readout of each layer's hidden state recovers of the input ``k`` steps back.

    The input is that of the recurrent module, reduced to its first principal components, about its
    average at each timestep; lags count back in the order in which a direction reads. Every
    sequence is decoded by ridge regressions that were fitted on others. Beside the input itself
    the new part of it is decoded: what the inputs after it do not tell by a linear prediction.
    Natural inputs resemble their neighbours, so that only the new part tells what is remembered;
    the recovered shares of it, times the numbers that are new, add up to the linear memory
    capacity, at most the size of the state. What is stored otherwise than linearly, or only in the
    cell state of an LSTM, is not seen.

    Costs about 1.3 forward and backward passes of the samples (100 lags; LSTM or GRU, three of a
    plain RNN, which is cheaper); keeps the inputs and hidden states of all recurrent layers for all
    samples that are measured.

    Parameters
    ----------
    lags : int
        Longest lag; at most half of the timesteps are used for it.
    components : int
        Principal components of the inputs that are decoded.
    samples : int
        How many samples are measured, the first of the audit data.

    References
    ----------
    .. [1] Jaeger, Short term memory in echo state networks (2001).
    """

    name: ClassVar[str] = "memory_capacity"
    passes: ClassVar[float] = 4
    lags: int = 100
    components: int = 4
    samples: int = 256

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        if self.lags < 1 or self.components < 1 or self.samples < FEWEST:
            raise AnalyzerError(
                f"memory_capacity needs lags >= 1, components >= 1 and samples >= {FEWEST}: they "
                f"are {self.lags}, {self.components} and {self.samples}"
            )
        kept = _Kept.of(subject, self.samples)
        generator, rows = subject.generator(), {}
        for done, site in enumerate(kept.layers):
            rows[site] = self._decoded(kept.layers[site], generator)
            progress(done + 1, len(kept.layers))
        return _trace(kept, rows)

    def _decoded(self, layer: "_Layer", generator: torch.Generator) -> "_Row":
        """Decode one layer, where it has enough sequences and timesteps for it."""
        valid_TB = _common(layer.valid)
        present_B = valid_TB.any(0)
        timesteps, sequences = int(valid_TB.any(1).sum()), int(present_B.sum())
        lags = min(self.lags, timesteps // 2)
        if sequences < FEWEST or lags < 1:
            return _Row(None, present_B, 0, torch.nan)
        components_TBD, share = principal(layer.inputs, valid_TB, self.components)
        size = components_TBD.shape[2]
        if not size:
            return _Row(None, present_B, 0, 0.0)
        own = present_B.nonzero()[:, 0]
        found = decode(Sequences(layer.states, components_TBD, valid_TB).of(own), lags, generator)
        return _Row(found, present_B, size, share)


class _Layer(NamedTuple):
    """What one layer read and returned, all batches side by side."""

    states: Tensor
    """Shape (T, B, P)."""
    inputs: Tensor
    """Shape (T, B, I)."""
    valid: Tensor
    """Shape (T, B)."""


class _Row(NamedTuple):
    """One layer of the trace."""

    decoded: Decoded | None
    present: Tensor
    """Which samples it read, shape (B,)."""
    components: int
    share: float
    """Of the inputs' variance."""

    def facts(self) -> dict[str, float]:
        """List the numbers of :data:`FACTS`."""
        return {
            "components": self.components,
            "input_share": self.share,
            "rows": self.decoded.rows if self.decoded else 0,
            "predictors": self.decoded.predictors if self.decoded else 0,
        }


class _Kept(NamedTuple):
    """What all layers read of all samples."""

    samples: int
    layers: dict[Site, _Layer]
    remarks: dict[str, str]

    @classmethod
    def of(cls, subject: Subject, samples: int) -> "_Kept":
        """Run the model on the first samples."""
        found: list[Read] = []
        for batch in first_samples(subject, samples):
            with untouched(subject.model):
                one = read(subject, batch)
            found.append(one.first(samples - sum(before.samples for before in found)))
        if not found:
            raise AnalyzerError("there are no batches to measure with")
        counts = [one.samples for one in found]
        sites = dict.fromkeys(reading.site for one in found for reading in one.readings)
        told = {site: _beside(site, found) for site in sites}
        other = [name for one in found for name in one.not_per_sample]
        remarks = {
            "not_called": joined(name for one in found for name in one.not_called),
            "not_per_sample": joined([*other, *(s.label for s in told if told[s] is None)]),
        }
        return cls(sum(counts), {s: layer for s, layer in told.items() if layer}, remarks)


def _beside(site: Site, found: Sequence[Read]) -> _Layer | None:
    """Put what one layer read of every batch side by side; None where rows are no samples."""
    own = [next((r for r in one.readings if r.site == site), None) for one in found]
    pairs = [*zip(own, found, strict=True)]
    if any(r is not None and r.hidden.shape[1] != one.samples for r, one in pairs):
        return None
    first = next(r for r in own if r is not None)
    timesteps = max(len(r.hidden) for r in own if r is not None)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for reading, one in pairs:
        if reading is None:
            states = first.hidden.new_zeros(timesteps, one.samples, first.hidden.shape[2])
            inputs = first.entering.flatten(2)
            inputs = inputs.new_zeros(timesteps, one.samples, inputs.shape[2])
            valid = first.valid.new_zeros(timesteps, one.samples)
        else:
            missing = timesteps - len(reading.hidden)
            states = pad(reading.hidden, (0, 0, 0, 0, 0, missing))
            inputs = pad(reading.entering.flatten(2), (0, 0, 0, 0, 0, missing))
            valid = pad(reading.valid, (0, 0, 0, missing))
        parts.append((states, inputs, valid))
    states, inputs, valid = (torch.cat(column, 1) for column in zip(*parts, strict=True))
    return _Layer(states, inputs, valid)


def _common(valid_TB: Tensor) -> Tensor:
    """Leave out the timesteps that fewer than half of the sequences reach: (T, B)."""
    reached_T = valid_TB.sum(1) >= 0.5 * valid_TB.any(0).sum()
    return valid_TB & reached_T[:, None]


def _trace(kept: _Kept, rows: dict[Site, _Row]) -> xr.Dataset:
    """Label what was measured; nan where a layer could not be decoded."""
    decoded = [row.decoded for row in rows.values() if row.decoded is not None]
    lags = max((len(one.new_numbers) for one in decoded), default=1)
    sums = torch.full((len(SUMS), kept.samples, len(rows), lags), torch.nan).double()
    new_numbers_LK = torch.full((len(rows), lags), torch.nan).double()
    for place, row in enumerate(rows.values()):
        if row.decoded is not None:
            count = len(row.decoded.new_numbers)
            new_numbers_LK[place, :count] = row.decoded.new_numbers
            for table_BLK, name in zip(sums, SUMS, strict=True):
                table_BLK[row.present.cpu(), place, :count] = getattr(row.decoded, name)
    dims = ("sample", "layer", "lag")
    variables = {
        name: variable(table, dims, long_name, "1")
        for table, (name, long_name) in zip(sums, SUMS.items(), strict=True)
    }
    name = "numbers that are new at this lag"
    variables["new_numbers"] = variable(new_numbers_LK, dims[1:], name, "1")
    for key, (long_name, unit) in FACTS.items():
        values_L = torch.tensor([float(row.facts()[key]) for row in rows.values()])
        variables[key] = variable(values_L, dims[1:2], long_name, unit)
    units = {site: kept.layers[site].states.shape[2] for site in rows}
    return xr.Dataset(variables, {**coordinates(units), "lag": range(lags)}, kept.remarks)
