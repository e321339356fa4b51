"""How strongly the final state of recurrent layers depends on the states and inputs before it.

Shapes: B sample, K lag, L layer, T timestep.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import xarray as xr
from torch import Tensor

from probes.base import Progress, Subject, silent, variable
from probes.errors import AnalyzerError, NotApplicable
from probes.model.taps import untouched
from probes.recurrent.reach.jacobian import linearized
from probes.recurrent.reach.norms import Chosen, reach_norms
from probes.recurrent.reach.spectral import DOUBT, TOLERANCE
from probes.recurrent.reach.stacks import stacks
from probes.recurrent.watching.reading import Reading
from probes.recurrent.watching.watch import Read, read
from probes.samples.excerpt import pieces

STACKS = 24
"""Stacks measured at most, in the order in which they run."""

_STATE = "log10 of the Frobenius norm of d(final hidden state) / d(hidden and cell state)"
_INPUT = "log10 of the Frobenius norm of d(final hidden state) / d(input)"
_SPECTRAL = "log10 of the spectral norm of d(final hidden state) / d(states of all layers)"
_MISSING = "what the spectral norm is estimated to lack"
_MARGIN = "what the spectral norm lacks at most, but for the chance spectral_doubt"


@dataclass(frozen=True)
class StateReach:
    """Size of the derivative of the final state by earlier states and inputs, lag by lag.

    What is differentiated is the hidden state of the last layer of a recurrent module after the
    last timestep of a sample; by the hidden and cell state of every layer of the module ``lag``
    steps before (both, as independent coordinates), and by the input of the module ``lag`` steps
    before. Layers of one module are one stack. In a bidirectional module each layer and direction
    is a stack of its own, whose inputs are given; so is a cell that is called in a loop. Paths
    outside of a module, such as an output that is fed back as an input, are not followed.

    The Frobenius norm is exact in layers of up to ``seeds`` units, whose rows are all followed; in
    others it is estimated from ``seeds`` random combinations of the rows, whose square is unbiased.

    The spectral norm of the derivative by all states of the stack is measured at about 20 lags:
    exactly where all rows are followed, and in the first ``spectral`` samples by block power
    iteration where they are not. What that gives is never more than the norm. What it still lacks
    is estimated (``spectral_missing``): up to 2 % where the iteration converged; where it is more,
    it was ended by its cost, and the number is a lower bound only. No estimate but a bound is
    ``spectral_margin``, which holds in 999 of 1000 cases and is wide. Both are zero where the norm
    is exact.

    Costs, of ``samples`` samples, about 1 forward and backward pass to run the layers and to
    compute their gates anew, 2.5 for 400 lags with 8 seeds, and 2 to 3 for the spectral norm, whose
    iterations are limited at every lag. Keeps, of ``chunk`` samples, the states and inputs of all
    recurrent layers, and about eight times the states of one stack over the lags.

    Parameters
    ----------
    samples : int
        Samples measured, the first ones of the audit set.
    seeds : int
        Random combinations of rows per sample.
    lags : int
        Largest lag [timestep].
    chunk : int
        Samples that go through the model together.
    spectral : int
        Samples whose spectral norm is measured where not all rows are followed; 0 for none.

    References
    ----------
    .. [1] Pascanu et al., On the difficulty of training recurrent neural networks (2013).
    """

    name: ClassVar[str] = "state_reach"
    passes: ClassVar[float] = 6
    samples: int = 32
    seeds: int = 8
    lags: int = 400
    chunk: int = 32
    spectral: int = 2

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        if min(self.samples, self.seeds, self.lags, self.chunk) < 1 or self.spectral < 0:
            raise AnalyzerError(
                "state_reach needs samples, seeds, lags and chunk >= 1 and spectral >= 0: they are "
                f"{self.samples}, {self.seeds}, {self.lags}, {self.chunk} and {self.spectral}"
            )
        generator = subject.generator()
        passes: list[_Pass] = []
        done = 0
        for batch in pieces(subject, self.samples, self.chunk):
            with untouched(subject.model):
                found = read(subject, batch)
            passes.append(self._measured(found, done, generator))
            done += found.samples
            progress(done, self.samples)
        if not passes:
            raise AnalyzerError("there are no batches to measure with")
        return _trace(passes)

    def _measured(self, read_: Read, done: int, generator: torch.Generator) -> "_Pass":
        """Follow every stack back from its end in one batch."""
        wanted = min(max(self.spectral - done, 0), read_.samples)
        chosen = Chosen(self.seeds, wanted)
        found: dict[str, _Stack] = {}
        left_out = dict.fromkeys(read_.not_per_sample, "it reads no sequence for each sample")
        for label, readings in stacks(read_.readings).items():
            rows = readings[0].hidden.shape[1]
            if rows != read_.samples:
                left_out[label] = f"it reads {rows} sequences for one sample"
            elif len(found) == STACKS:
                left_out[label] = f"only the first {STACKS} are measured"
            else:
                found[label] = self._followed(readings, chosen, generator)
        return _Pass(read_.samples, found, left_out)

    def _followed(
        self, readings: Sequence[Reading], chosen: Chosen, generator: torch.Generator
    ) -> "_Stack":
        """Follow one stack back from the end of every sample."""
        length_B = readings[0].valid.sum(0).cpu()
        count = min(self.lags + 1, len(readings[0].valid))
        layers, residuals = zip(*(linearized(one, count) for one in readings), strict=True)
        units = readings[-1].hidden.shape[-1]
        norms = reach_norms(layers, units, chosen, generator)
        past_BK = torch.arange(count) >= length_B[:, None]
        return _Stack(
            tuple(reading.site.label for reading in readings),
            norms.state.masked_fill(past_BK[:, None], torch.nan),
            norms.input.masked_fill(past_BK, torch.nan),
            norms.spectral.masked_fill(past_BK[:, None], torch.nan),
            length_B,
            units,
            readings[0].kind,
            max(residuals),
        )


class _Stack(NamedTuple):
    """One stack in one batch; all norms as decimal logarithms."""

    layers: tuple[str, ...]
    state: Tensor
    """Shape (B, L, K)."""
    input: Tensor
    """Shape (B, K)."""
    spectral: Tensor
    """Norm, what it is estimated to lack and what at most; (B, 3, K), nan where not measured."""
    lengths: Tensor
    """Shape (B,) [timestep]."""
    units: int
    kind: str
    residual: float
    """Largest error of the replay as a share of the largest hidden state."""


class _Pass(NamedTuple):
    """One batch."""

    samples: int
    stacks: dict[str, _Stack]
    left_out: dict[str, str]
    """Label of a stack -> why it was not measured."""


def _trace(passes: list[_Pass]) -> xr.Dataset:
    """Label what was measured, aligned at the end of every sample."""
    known: dict[str, _Stack] = {}
    left_out: dict[str, str] = {}
    for one in passes:
        known |= {label: stack for label, stack in one.stacks.items() if label not in known}
        left_out |= one.left_out
    omitted = "; ".join(f"{label}: {reason}" for label, reason in left_out.items())
    if not known:
        raise NotApplicable(f"no recurrent layer could be followed: {omitted}")
    lags = max(stack.input.shape[1] for one in passes for stack in one.stacks.values())
    if lags < 2:
        raise NotApplicable("the recurrent layers read one timestep: there is nothing before it")
    state = torch.cat([_joined(passes, label, "state", lags) for label in known], 1)
    columns = {
        name: torch.stack([_joined(passes, label, name, lags) for label in known], 1)
        for name in ("input", "spectral")
    }
    spectral = columns["spectral"].unbind(2)
    length = torch.stack([_lengths_of(passes, label) for label in known], 1)
    by_stack = ("sample", "stack", "lag")
    return xr.Dataset(
        {
            "state_reach": variable(state, ("sample", "layer", "lag"), _STATE, "decades"),
            "input_reach": variable(columns["input"], by_stack, _INPUT, "decades"),
            "spectral_reach": variable(spectral[0], by_stack, _SPECTRAL, "decades"),
            "spectral_missing": variable(spectral[1], by_stack, _MISSING, "decades"),
            "spectral_margin": variable(spectral[2], by_stack, _MARGIN, "decades"),
            "length": variable(length, ("sample", "stack"), "valid timesteps", "timestep"),
        },
        {
            "layer": [layer for stack in known.values() for layer in stack.layers],
            "stack_of": (
                "layer",
                [label for label, stack in known.items() for _ in stack.layers],
            ),
            "stack": list(known),
            "kind": ("stack", [stack.kind for stack in known.values()]),
            "units": ("stack", [stack.units for stack in known.values()]),
            "lag": range(lags),
        },
        {
            "left_out": omitted,
            "spectral_tolerance": TOLERANCE / math.log(10),
            "spectral_doubt": DOUBT,
            "replay_residual": max(
                stack.residual for one in passes for stack in one.stacks.values()
            ),
        },
    )


def _joined(passes: list[_Pass], label: str, name: str, lags: int) -> Tensor:
    """Join one quantity of a stack over all batches: (B, ..., K), nan where not measured."""
    example = next(one.stacks[label] for one in passes if label in one.stacks)
    between = getattr(example, name).shape[1:-1]
    parts = []
    for one in passes:
        part = torch.full((one.samples, *between, lags), torch.nan, dtype=torch.float64)
        if label in one.stacks:
            values = getattr(one.stacks[label], name)
            part[..., : values.shape[-1]] = values
        parts.append(part)
    return torch.cat(parts)


def _lengths_of(passes: list[_Pass], label: str) -> Tensor:
    """Count the valid timesteps of every sample in one stack: (B,); nan if not measured."""
    nothing = torch.full((1,), torch.nan)
    return torch.cat(
        [
            one.stacks[label].lengths if label in one.stacks else nothing.expand(one.samples)
            for one in passes
        ]
    )
