"""How strongly the final state of recurrent layers depends on the states and inputs before it.

Shapes: B sample, K lag, L layer, T timestep.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from probes.base import Batch, Progress, Subject, call, silent, variable
from probes.errors import AnalyzerError, NotApplicable
from probes.model.taps import untouched
from probes.recurrent.backward.record import StateGradients
from probes.recurrent.reach.jacobian import linearized
from probes.recurrent.reach.norms import Chosen, reach_norms
from probes.recurrent.reach.spectral import DOUBT, TOLERANCE
from probes.recurrent.reach.stacks import obstacle, read_at, stacks, valid_lengths
from probes.recurrent.watching.split import recorded
from probes.samples.excerpt import pieces
from probes.samples.layout import Layout

SPECTRAL_SAMPLES = 2
"""Samples whose spectral norm is measured at least, by iteration where it is not exact."""

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

    The Frobenius norm is exact for the first ``samples * seeds // units`` samples (all of them in
    layers of up to ``seeds`` units); for the others it is estimated from ``seeds`` random
    combinations of the rows, whose square is unbiased.

    The spectral norm of the derivative by all states of the stack is measured at about 20 lags:
    exactly where the Frobenius norm is exact, and in the first ``SPECTRAL_SAMPLES`` samples by
    block power iteration where it is not. What that gives is never more than the norm. What it
    still lacks is estimated (``spectral_missing``): up to 1 % where the iteration converged; where
    it is more, it was ended by its cost, and the number is a lower bound only. No estimate but a
    bound is ``spectral_margin``, which holds in 999 of 1000 cases and is wide. Both are zero where
    the norm is exact.

    Costs, of ``samples`` samples, about 2 forward and backward passes in recurrent layers, about 3
    for 400 lags with 8 seeds, as much again for the exact part, and 3 to 6 for the iteration, whose
    steps are limited at every lag. Keeps about twenty times the states of all recurrent layers of
    ``chunk`` samples.

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

    References
    ----------
    .. [1] Pascanu et al., On the difficulty of training recurrent neural networks (2013).
    """

    name: ClassVar[str] = "state_reach"
    passes: ClassVar[float] = 9
    samples: int = 32
    seeds: int = 8
    lags: int = 400
    chunk: int = 8

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        if min(self.samples, self.seeds, self.lags, self.chunk) < 1:
            raise AnalyzerError(
                f"state_reach needs samples, seeds, lags and chunk >= 1: they are {self.samples}, "
                f"{self.seeds}, {self.lags} and {self.chunk}"
            )
        generator = subject.generator()
        passes: list[_Pass] = []
        done = 0
        for batch in pieces(subject, self.samples, self.chunk):
            with untouched(subject.model):
                passes.append(self._measured(subject, batch, done, generator))
            done += passes[-1].samples
            progress(done, self.samples)
        if not passes:
            raise AnalyzerError("there are no batches to measure with")
        return _trace(passes)

    def _measured(
        self, subject: Subject, batch: Batch, done: int, generator: torch.Generator
    ) -> "_Pass":
        """Run one batch, and follow every stack back from its end."""
        layout = Layout.of(subject, batch)
        with recorded(subject.model, keep="all") as recordings:
            outputs = call(subject.model, batch.inputs)
        modules = dict(subject.model.named_modules())
        found: dict[str, _Stack] = {}
        left_out: dict[str, str] = {}
        for label, states in stacks(recordings.gradients(_summed(outputs))).items():
            reason = obstacle(states, modules, layout)
            if len(found) == STACKS:
                reason = f"only the first {STACKS} are measured"
            if reason:
                left_out[label] = reason
                continue
            units = states[-1].units
            exact, least = (
                min(max(wanted - done, 0), layout.samples)
                for wanted in (self.samples * self.seeds // units, SPECTRAL_SAMPLES)
            )
            chosen = Chosen(exact, max(least, exact), self.seeds)
            found[label] = self._followed(states, modules, layout, chosen, generator)
        return _Pass(layout.samples, found, left_out)

    def _followed(
        self,
        states: Sequence[StateGradients],
        modules: Mapping[str, nn.Module],
        layout: Layout,
        chosen: Chosen,
        generator: torch.Generator,
    ) -> "_Stack":
        """Follow one stack back from the end of every sample."""
        length_B = valid_lengths(states[0], layout)
        count = min(self.lags + 1, int(length_B.max()))
        layers = []
        for state in states:
            trajectory = state.measured.trajectory
            assert trajectory is not None
            at_KB = read_at(length_B, count, state.site.reverse).to(trajectory.hidden.device)
            layers.append(linearized(state.site, modules[state.site.module], trajectory, at_KB))
        norms = reach_norms(layers, states[-1].units, chosen, generator)
        past_BK = torch.arange(count) >= length_B[:, None]
        return _Stack(
            tuple(state.site.label for state in states),
            norms.state.masked_fill(past_BK[:, None], torch.nan),
            norms.input.masked_fill(past_BK, torch.nan),
            norms.spectral.masked_fill(past_BK[:, None], torch.nan),
            length_B,
            states[-1].units,
            states[-1].site.kind.partition("_")[0].upper(),
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


class _Pass(NamedTuple):
    """One batch."""

    samples: int
    stacks: dict[str, _Stack]
    left_out: dict[str, str]
    """Label of a stack -> why it was not measured."""


def _summed(outputs: Any) -> Tensor:
    """Add up all that the model returned, so that every layer it needs has a gradient."""
    values = [*outputs.values()] if isinstance(outputs, Mapping) else outputs
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    sums = [tensor.sum().double() for tensor in tensors if tensor.requires_grad]
    return torch.stack(sums).sum() if sums else torch.zeros(())


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
