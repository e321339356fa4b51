"""One layer of a recurrent module as an operation that measures its own backward pass.

Shapes: T timestep, B sample, D direction, I input feature, P hidden state, H unit, E output
feature (D * P), V scalar that is differentiated. Data without suffix may be packed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from probes.recurrent.backward.bptt import Adjoint, Factor, Local, Past, Scan, backpropagate
from probes.recurrent.backward.cells import Weights
from probes.recurrent.backward.chunks import Change, Chunks
from probes.recurrent.backward.clock import Clock
from probes.recurrent.backward.deposit import Norms, Order, factors, norms, trajectory
from probes.recurrent.backward.outside import Arriving, Several, outside, past_of
from probes.recurrent.backward.record import Measured
from probes.recurrent.backward.recordings import Recordings
from probes.recurrent.backward.replay import Backwards, replayed

Fused = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""``fused(x, (h0, c0) or (h0,))``: output and final states of one layer, by torch."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How to run one layer, and where to leave what its backward pass measures.

    Parameters
    ----------
    kind : str
        "lstm", "gru", "rnn_tanh" or "rnn_relu".
    fused : callable
        The operation of torch, for this layer alone.
    clock : Clock
        Of the call.
    recordings : Recordings
        Receives the measurement.
    keys : tuple of int
        Key of each direction in the recordings.
    """

    kind: str
    fused: Fused
    clock: Clock
    recordings: Recordings
    keys: tuple[int, ...]

    def weights(self, flat: Sequence[Tensor], direction: int) -> Weights:
        """Pick the weights of one direction out of the flat list of the layer."""
        return Weights.of(flat, direction, len(self.keys))


class RecurrentLayer(torch.autograd.Function):
    """The fused operation forwards; backwards, analytic backpropagation through time.

    Apply it to ``(plan, anchor, x, h0, c0 or None, *weights)``. The forward pass keeps what goes
    in and what comes out, and nothing of what happens inside. The weights are for the backward
    pass alone: torch rounds differently forwards with weights that require no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        anchor: Tensor,
        x: Tensor,
        h0_DBP: Tensor,
        c0_DBH: Tensor | None,
        *flat: Tensor,
    ) -> tuple[Tensor, ...]:
        """Run the operation of torch without a graph."""
        states = (h0_DBP,) if c0_DBH is None else (h0_DBP, c0_DBH)
        outputs = plan.fused(x, states)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        # States copied: models keep theirs in buffers, and overwrite them before the backward pass.
        h0_DBP, c0_DBH = h0_DBP.clone(), None if c0_DBH is None else c0_DBH.clone()
        ctx.save_for_backward(x, h0_DBP, c0_DBH, outputs[0], *flat)
        return *outputs, anchor.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        """Propagate back through each direction, and pass the gradients on."""
        plan: Plan = ctx.plan
        x, h0_DBP, c0_DBH, y, *flat = ctx.saved_tensors
        _, _, needs_x, _, _, *needs_weights = ctx.needs_input_grad
        inside = _Inside(plan, x, y, h0_DBP, c0_DBH, flat, needs_x, any(needs_weights))
        # The last one belongs to the pulse, and is always zero.
        found = _Through.apply(inside, *arriving[:-1])  # type: ignore[no-untyped-call]
        dx, dh0_DBP, dc0_DBH, *weights = found
        return None, None, dx, dh0_DBP, dc0_DBH, *(weights or (None,) * len(flat))


class _Through(torch.autograd.Function):
    """The backward pass of a layer, which takes several scalars at once under ``vmap``."""

    @staticmethod
    def forward(inside: "_Inside", *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        """Propagate the gradient of one scalar back through each direction."""
        return _passed(inside, Arriving.of(arriving))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: it is differentiated once."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], inside: "_Inside", *arriving: Tensor | None
    ) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
        """Propagate those of several."""
        count = info.batch_size
        first = [
            values
            if values is None
            else values.expand(count, *values.shape)
            if dim is None
            else values.movedim(dim, 0)
            for values, dim in zip(arriving, in_dims[1:], strict=True)
        ]
        found = _passed(inside, Arriving.of(first, count))
        return found, tuple(None if values is None else 0 for values in found)


@dataclass(frozen=True, eq=False)
class _Inside:
    """What the forward pass of a layer left for its backward pass."""

    plan: Plan
    x: Tensor
    y: Tensor
    h0: Tensor
    c0: Tensor | None
    flat: Sequence[Tensor]
    needs_x: bool
    needs_weights: bool


def _passed(inside: _Inside, arriving: Arriving) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs, the states before, and the weights; scalars, if several, first."""
    plan = inside.plan
    through = _chunked if plan.recordings.chunking is not None else _whole
    changes = [through(inside, direction, arriving) for direction in range(len(plan.keys))]
    if arriving.scalars:
        each = [_inputs(plan.clock, changes, scalar) for scalar in range(arriving.scalars)]
        dx = torch.stack([one for one in each if one is not None]) if inside.needs_x else None
    else:
        dx = _inputs(plan.clock, changes)
    return (
        dx,
        _stacked([change.h0 for change in changes], inside.h0),
        None if inside.c0 is None else _stacked([change.c0 for change in changes], inside.c0),
        *(factor.summed() for change in changes for factor in change.factors),
    )


def _inputs(clock: Clock, changes: Sequence[Change], scalar: int | None = None) -> Tensor | None:
    """Gradient of the inputs by way of every direction; None where there is none."""
    dx_TBI: Tensor | None = None
    for direction, change in enumerate(changes):
        if change.x is not None:
            own_TBI = change.x if scalar is None else change.x[:, scalar]
            part_TBI = clock.turned(own_TBI, direction == 1)
            dx_TBI = part_TBI if dx_TBI is None else dx_TBI.add_(part_TBI)
    return None if dx_TBI is None else clock.packed(dx_TBI)


def _whole(inside: _Inside, direction: int, arriving: Arriving) -> Change:
    """Scan one direction over all timesteps, and leave the measurement."""
    plan = inside.plan
    past = past_of(plan.clock, direction, inside.x, inside.y, inside.h0, inside.c0)
    if plan.recordings.keep == "norms" and not inside.needs_weights:
        return _in_blocks(inside, direction, arriving, past)
    assert not arriving.scalars
    weights = plan.weights(inside.flat, direction)
    everything = plan.recordings.keep == "all"
    found = replayed(plan.kind, weights, past, plan.clock, everything=everything)
    arrived = outside(plan.clock, direction, past.hidden, past.c0, arriving)
    adjoint = backpropagate(plan.kind, weights, found.local, *arrived)
    scan = Scan(plan.kind, weights, past.x, past.before, found.local, adjoint)
    ordered = _order(plan, direction)
    kept: dict[str, Any] = {}
    if everything:
        kept["trajectory"] = trajectory(past, found, scan, ordered)
    elif plan.recordings.keep == "factors":
        kept["factors"] = factors(scan, ordered)
    _leave(plan, direction, past, found.residual, [Norms.of(adjoint)], **kept)
    return Change(
        scan.x_gradient() if inside.needs_x else None,
        adjoint.h0,
        adjoint.c0,
        scan.factors() if inside.needs_weights else (),
    )


def _in_blocks(inside: _Inside, direction: int, arriving: Arriving, past: Past) -> Change:
    """Scan for one scalar or several, block after block, so that little of it is kept."""
    plan, count = inside.plan, arriving.scalars or 1
    weights = plan.weights(inside.flat, direction)
    several = Several.of(plan.clock, direction, past, arriving)
    x_TVBI = None
    if inside.needs_x:
        timesteps, samples, features = past.x.shape
        x_TVBI = past.x.new_empty(timesteps, count, samples, features)
    parts: list[Norms] = []
    adjoint: Adjoint | None = None
    replay = Backwards(plan.kind, weights, past, plan.clock)
    for span, found in replay:
        local = Local(*(v if v is None else v.unsqueeze(1) for v in found))  # type: ignore[arg-type]
        hidden, cell = several.block(span)
        if adjoint is not None:
            hidden[-1] += adjoint.h0
            if cell is not None and adjoint.c0 is not None:
                cell[-1] += adjoint.c0
        adjoint = backpropagate(plan.kind, weights, local, hidden, cell)
        parts.append(Norms.of(adjoint))
        if x_TVBI is not None:
            part = past.part(span, None)
            scan = Scan(plan.kind, weights, part.x, part.before, local, adjoint)
            x_TVBI[span] = scan.x_gradient()
    assert adjoint is not None
    _leave(plan, direction, past, replay.residual, Norms.joined(parts[::-1]).apart())
    change = Change(x_TVBI, adjoint.h0, adjoint.c0)
    return change if arriving.scalars else _of_one(change)


def _of_one(change: Change) -> Change:
    """Drop the axis of the scalars."""
    x = None if change.x is None else change.x[:, 0]
    h0, c0 = (None if values is None else values[0] for values in (change.h0, change.c0))
    return Change(x, h0, c0)


def _chunked(inside: _Inside, direction: int, arriving: Arriving) -> Change:
    """Scan one direction in chunks, and hand over what that adds to the weights' gradients."""
    plan, chunking = inside.plan, inside.plan.recordings.chunking
    assert chunking is not None
    key, clock = plan.keys[direction], plan.clock
    if key not in chunking.chunks:
        past = past_of(clock, direction, inside.x, inside.y, inside.h0, inside.c0)
        weights = plan.weights(inside.flat, direction)
        local = replayed(plan.kind, weights, past, clock).local
        grid = chunking.offsets[key], chunking.begins[key]
        chunks = chunking.chunks[key] = Chunks(plan.kind, weights, past, local, *grid)
        arrived = outside(clock, direction, past.hidden, past.c0, arriving)
        change = chunks.cut(chunking.size, *arrived, needs_x=inside.needs_x)
    else:
        chunks = chunking.chunks[key]
        hidden_TBP = cell_TBH = None
        if any(gradient is not None for gradient in (arriving.y, arriving.h, arriving.c)):
            past = chunks.past
            hidden_TBP, cell_TBH = outside(clock, direction, past.hidden, past.c0, arriving)
        if arriving.c is None:
            cell_TBH = None
        change = chunks.join(chunking.size, hidden_TBP, cell_TBH, needs_x=inside.needs_x)
    if change.factors:
        chunking.receive(key, tuple(_of_samples(clock, factor) for factor in change.factors))
    return change._replace(factors=())


def _of_samples(clock: Clock, factor: Factor) -> Factor:
    """Put the rows of a factor into the order of the samples."""
    right = None if factor.right is None else clock.by_sample(factor.right, 1)
    return factor._replace(left=clock.by_sample(factor.left, 1), right=right)


def _stacked(gradients: Sequence[Tensor | None], like_DBH: Tensor) -> Tensor:
    """Stack the gradients of all directions; zero where there is none."""
    if all(gradient is None for gradient in gradients):
        return torch.zeros_like(like_DBH)
    zeros = torch.zeros_like(like_DBH[0])
    return torch.stack([zeros if gradient is None else gradient for gradient in gradients], -3)


def _order(plan: Plan, direction: int) -> Order:
    """Put values into the order of the data and of the samples."""

    def ordered(values: Tensor) -> Tensor:
        # Detached: a recording that held the graph would be held by it in turn, for ever.
        return plan.clock.by_sample(plan.clock.turned(values, direction == 1), 1).detach()

    return ordered


def _leave(
    plan: Plan,
    direction: int,
    past: Past,
    residual: Tensor,
    sizes: Sequence[Norms],
    **kept: Any,
) -> None:
    """Deposit the measurement of one direction; ``kept`` are further fields of it."""
    ordered = _order(plan, direction)
    state_TB = ordered(norms(past.hidden)).cpu()
    measured = [
        Measured(
            ordered(own.hidden).cpu(),
            None if own.cell is None else ordered(own.cell).cpu(),
            ordered(own.gate).cpu(),
            state_TB,
            residual,
            **kept,
        )
        for own in sizes
    ]
    plan.recordings.deposit(plan.keys[direction], measured)
