"""One layer of a recurrent module as an operation that measures its own backward pass.

Shapes: T timestep, B sample, D direction, I input feature, P hidden state, H unit, E output
feature (D * P). Data without suffix may be packed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from probes.recurrent.bptt import Factor, Local, Past, Scan, backpropagate, replay
from probes.recurrent.cells import Gates, Weights
from probes.recurrent.chunks import Change, Chunks
from probes.recurrent.clock import Clock
from probes.recurrent.record import Measured, Recordings, Trajectory

Fused = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""``fused(x, (h0, c0) or (h0,))``: output and final states of one layer, by torch."""

FLOAT32_SAFE = 1e-15
"""Norms above this, and below its inverse, are exact in float32 up to rounding."""


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
        count = len(flat) // len(self.keys)
        own = list(flat[direction * count : (direction + 1) * count])
        w_hr = own.pop() if len(own) % 2 else None
        b_ih, b_hh = own[2:] or (None, None)
        return Weights(own[0], own[1], b_ih, b_hh, w_hr)


class _Arriving(NamedTuple):
    """Gradients that reach a layer from outside."""

    y: Tensor | None
    """Of its output."""
    h: Tensor | None
    """Of its final hidden states, shape (D, B, P)."""
    c: Tensor | None = None
    """Of its final cell states, shape (D, B, H)."""


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
        outside = _Arriving(*arriving[:-1])
        through = _chunked if plan.recordings.chunking is not None else _whole
        changes = [through(inside, direction, outside) for direction in range(len(plan.keys))]
        dx_TBI: Tensor | None = None
        for direction, change in enumerate(changes):
            if change.x is not None:
                part_TBI = plan.clock.turned(change.x, direction == 1)
                dx_TBI = part_TBI if dx_TBI is None else dx_TBI.add_(part_TBI)
        weights = [factor.summed() for change in changes for factor in change.factors]
        return (
            None,
            None,
            None if dx_TBI is None else plan.clock.packed(dx_TBI),
            _stacked([change.h0 for change in changes], h0_DBP),
            None if c0_DBH is None else _stacked([change.c0 for change in changes], c0_DBH),
            *(weights if any(needs_weights) else (None,) * len(flat)),
        )


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


def _whole(inside: _Inside, direction: int, arriving: _Arriving) -> Change:
    """Scan one direction over all timesteps, and leave the measurement."""
    plan = inside.plan
    past = _past(plan.clock, direction, inside.x, inside.y, inside.h0, inside.c0)
    weights = plan.weights(inside.flat, direction)
    gates = replay(plan.kind, weights, past)
    local = Local.of(plan.kind, gates, weights)
    outside = _outside(plan.clock, direction, past.hidden, past.c0, arriving)
    adjoint = backpropagate(plan.kind, weights, local, *outside)
    scan = Scan(plan.kind, weights, past.x, past.before, local, adjoint)
    _leave(plan, direction, past, gates, scan)
    return Change(
        scan.x_gradient() if inside.needs_x else None,
        adjoint.h0,
        adjoint.c0,
        scan.factors() if inside.needs_weights else (),
    )


def _chunked(inside: _Inside, direction: int, arriving: _Arriving) -> Change:
    """Scan one direction in chunks, and hand over what that adds to the weights' gradients."""
    plan, chunking = inside.plan, inside.plan.recordings.chunking
    assert chunking is not None
    key, clock = plan.keys[direction], plan.clock
    if chunking.size == 1:
        past = _past(clock, direction, inside.x, inside.y, inside.h0, inside.c0)
        weights = plan.weights(inside.flat, direction)
        local = Local.of(plan.kind, replay(plan.kind, weights, past), weights)
        grid = chunking.offsets[key], chunking.begins[key]
        chunks = chunking.chunks[key] = Chunks(plan.kind, weights, past, local, *grid)
        outside = _outside(clock, direction, past.hidden, past.c0, arriving)
        change = chunks.cut(*outside, needs_x=inside.needs_x)
    else:
        chunks = chunking.chunks[key]
        hidden_TBP = cell_TBH = None
        if any(gradient is not None for gradient in arriving):
            past = chunks.past
            hidden_TBP, cell_TBH = _outside(clock, direction, past.hidden, past.c0, arriving)
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
    return torch.stack([zeros if gradient is None else gradient for gradient in gradients])


def _past(
    clock: Clock, direction: int, x: Tensor, y: Tensor, h0_DBP: Tensor, c0_DBH: Tensor | None
) -> Past:
    """Put what one direction saw into the order in which it reads."""
    units = h0_DBP.shape[-1]
    own_TBP = clock.padded(y)[..., direction * units : (direction + 1) * units]
    hidden_TBP = clock.turned(own_TBP, direction == 1)
    return Past(
        clock.turned(clock.padded(x), direction == 1),
        torch.cat([h0_DBP[direction].unsqueeze(0), hidden_TBP[:-1]]),
        hidden_TBP,
        None if c0_DBH is None else c0_DBH[direction],
    )


def _outside(
    clock: Clock, direction: int, like_TBP: Tensor, c0_BH: Tensor | None, arriving: _Arriving
) -> tuple[Tensor, Tensor | None]:
    """Gradient that arrives at every hidden and cell state from outside, in memory of its own."""
    last_B = clock.lengths().to(like_TBP.device) - 1
    rows_B = torch.arange(clock.samples, device=last_B.device)
    hidden_TBP = torch.zeros_like(like_TBP, memory_format=torch.contiguous_format)
    if arriving.y is not None:
        units = hidden_TBP.shape[-1]
        own_TBP = clock.padded(arriving.y)[..., direction * units : (direction + 1) * units]
        hidden_TBP.copy_(clock.turned(own_TBP, direction == 1))
    if arriving.h is not None:
        hidden_TBP[last_B, rows_B] += arriving.h[direction]
    if c0_BH is None:
        return hidden_TBP, None
    cell_TBH = c0_BH.new_zeros(clock.timesteps, *c0_BH.shape)
    if arriving.c is not None:
        cell_TBH[last_B, rows_B] += arriving.c[direction]
    return hidden_TBP, cell_TBH


def _leave(plan: Plan, direction: int, past: Past, gates: Gates, scan: Scan) -> None:
    """Deposit the measurement of one direction, in the order of the data and of the samples."""

    def ordered(values: Tensor) -> Tensor:
        # Detached: a recording that held the graph would be held by it in turn, for ever.
        return plan.clock.by_sample(plan.clock.turned(values, direction == 1), 1).detach()

    adjoint, keep = scan.adjoint, plan.recordings.keep
    measured = Measured(
        ordered(norms(adjoint.hidden)).cpu(),
        None if adjoint.cell is None else ordered(norms(adjoint.cell)).cpu(),
        ordered(norms(adjoint.recurrent_side)).cpu(),
        ordered(norms(past.hidden)).cpu(),
        _residual(plan.clock, gates, past.hidden),
        _trajectory(past, gates, scan, ordered) if keep == "all" else None,
        _factors(scan, ordered) if keep == "factors" else (),
    )
    plan.recordings.deposit(plan.keys[direction], measured)


def _factors(scan: Scan, ordered: Callable[[Tensor], Tensor]) -> tuple[Factor, ...]:
    """Put the factors of one direction in order; tensors that several share are put once."""
    seen: dict[int, Tensor] = {}

    def once(values: Tensor) -> Tensor:
        return seen.setdefault(id(values), ordered(values))

    return tuple(
        Factor(weight, once(left), None if right is None else once(right))
        for weight, left, right in scan.factors()
    )


def norms(values_TBH: Tensor) -> Tensor:
    """L2 norm over the last axis, in float64, of values of any magnitude.

    The squares of small float32 values underflow long before these do, and a vanishing gradient
    must not be measured as zero: where that is near, the norm is taken in float64.
    """
    norms_TB: Tensor = torch.linalg.vector_norm(values_TBH, dim=-1).double()
    if values_TBH.dtype != torch.float64:
        unsafe_TB = ~((norms_TB > FLOAT32_SAFE) & (norms_TB < 1 / FLOAT32_SAFE))
        if unsafe_TB.any():
            norms_TB[unsafe_TB] = torch.linalg.vector_norm(values_TBH[unsafe_TB].double(), dim=-1)
    return norms_TB


def _residual(clock: Clock, gates: Gates, hidden_TBP: Tensor) -> Tensor:
    """Largest error of the replay as a share of the largest hidden state: a scalar."""
    error_TBP = (gates.replayed - hidden_TBP[:: gates.every]).abs_()
    valid_TB1 = clock.valid(hidden_TBP)
    if valid_TB1 is not None:
        error_TBP *= valid_TB1[:: gates.every]
    largest = hidden_TBP.abs().amax()
    residual = error_TBP.amax() / largest.clamp_min(torch.finfo(largest.dtype).tiny)
    return residual.cpu().double()


def _trajectory(
    past: Past, gates: Gates, scan: Scan, ordered: Callable[[Tensor], Tensor]
) -> Trajectory:
    """Collect every tensor of one direction."""
    adjoint = scan.adjoint
    values = {
        "x": past.x,
        "before": past.before,
        "hidden": past.hidden,
        "gates": gates.activations,
        "hidden_gradient": adjoint.hidden,
        "input_side_gradient": scan.input_side,
        "recurrent_side_gradient": adjoint.recurrent_side,
    }
    if past.c0 is not None and gates.cell is not None and adjoint.cell is not None:
        values["cell_before"] = torch.cat([past.c0.unsqueeze(0), gates.cell[:-1]])
        values["cell"] = gates.cell
        values["cell_gradient"] = adjoint.cell
    return Trajectory(**{name: ordered(value) for name, value in values.items()})
