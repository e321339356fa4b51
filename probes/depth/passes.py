"""Forward and backward passes with gates, and forward passes without some blocks.

Shapes: N sample, B sample of a piece, K block, R removal, F feature.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.algebra.similarity import UNDEFINED, Similarity, linear_cka
from probes.base import Subject, call
from probes.depth.blocks import PROJECTION, Key
from probes.depth.edits import Gates, without
from probes.depth.provenance import Held
from probes.depth.survey import Block, watching
from probes.errors import AnalyzerError
from probes.loss.removal import Intact
from probes.model.taps import differentiable_recurrence
from probes.samples.selection import pieces

Step = Callable[[int], None]
"""Called with the number of samples that a pass has just run."""


@dataclass(frozen=True, eq=False)
class Slopes:
    """What one forward and backward pass with gates leaves; nan where a block has no gate.

    Parameters
    ----------
    loss : Tensor, shape (N,)
        Loss of the intact model.
    gate_gradient : Tensor, shape (N, K)
        Derivative of each sample's loss by the gate of each block.
    ratio : Tensor, shape (N, K)
        Norm of the branch as a share of that of the shortcut.
    similarity : list of Similarity
        Of the output of each block to what it reads; to the output of the block before where what
        it reads has another shape.
    """

    loss: Tensor
    gate_gradient: Tensor
    ratio: Tensor
    similarity: list[Similarity]


@dataclass(frozen=True, eq=False)
class Removals:
    """What leaving out does to each sample.

    Parameters
    ----------
    loss, decisions : Tensor, shape (N, R)
        Loss less the intact one; share of the decisions that change.
    """

    loss: Tensor
    decisions: Tensor


def slopes(
    subject: Subject, blocks: Sequence[Block], chosen: Sequence[int], size: int, step: Step
) -> Slopes:
    """Run the chosen samples forward and backward once, ``size`` at a time.

    Raises
    ------
    AnalyzerError
        The loss has no gradient.
    """
    generator, held = subject.generator(), Held.by(subject.model)
    losses, parts, gated = [], [], []
    for _, batch in pieces(subject, chosen, size):
        gates = Gates(
            {block.key: block for block in blocks}, subject.batch_size(batch), subject.batch_axis
        )
        with (
            differentiable_recurrence(subject.model),
            watching(held, batch.inputs, gates),
        ):
            outputs = call(subject.model, batch.inputs)
        intact = Intact.of(subject, outputs, batch)
        losses.append(intact.loss.double().cpu())
        parts.append(_gradients(intact.sensitive(outputs, generator), gates, blocks))
        gated.append(gates)
        step(gates.samples)
    return Slopes(
        torch.cat(losses),
        torch.cat(parts),
        torch.cat([_ratios(gates, blocks) for gates in gated]),
        _similarities(gated, blocks),
    )


def removed(
    subject: Subject,
    blocks: Sequence[Block],
    removals: Sequence[Collection[Key]],
    chosen: Sequence[int],
    size: int,
    step: Step,
) -> Removals:
    """Run the chosen samples once for every set of blocks that is left out."""
    known, held = {block.key: block for block in blocks}, Held.by(subject.model)
    losses, decisions = [], []
    for _, batch in pieces(subject, chosen, size):
        with torch.no_grad():
            intact = Intact.of(subject, call(subject.model, batch.inputs), batch)
            columns = []
            for keys in removals:
                with watching(held, batch.inputs, without(known, keys)):
                    outputs = call(subject.model, batch.inputs)
                columns.append((intact.change(outputs), intact.decisions(outputs)))
                step(len(intact.loss))
        losses.append(_columns([change for change, _ in columns], len(intact.loss)))
        decisions.append(_columns([share for _, share in columns], len(intact.loss)))
    return Removals(torch.cat(losses), torch.cat(decisions))


def _gradients(loss_B: Tensor, gates: Gates, blocks: Sequence[Block]) -> Tensor:
    """Differentiate by every gate: (B, K); nan of a block without one."""
    if gates.gates and not loss_B.requires_grad:
        raise AnalyzerError(
            "the loss has no gradient: the model runs under torch.no_grad, or it or the loss "
            "detaches its result"
        )
    leaves = [*gates.gates.values()]
    found = torch.autograd.grad(loss_B.sum(), leaves, allow_unused=True) if leaves else ()
    # A gate that the loss does not depend on changes nothing.
    by_key = {
        key: torch.zeros_like(leaf) if gradient is None else gradient
        for (key, leaf), gradient in zip(gates.gates.items(), found, strict=True)
    }
    unknown_B = torch.full_like(loss_B, torch.nan)
    return _columns([by_key.get(block.key, unknown_B) for block in blocks], len(loss_B))


def _columns(values: Sequence[Tensor], samples: int) -> Tensor:
    """Put values of each sample side by side, in float64 on the CPU: (B, how many)."""
    columns = [value.detach().double().cpu() for value in values]
    return torch.stack(columns, 1) if columns else torch.zeros(samples, 0, dtype=torch.float64)


def _ratios(gates: Gates, blocks: Sequence[Block]) -> Tensor:
    """Norm of every branch as a share of that of its shortcut: (B, K)."""
    unknown_B = torch.full((gates.samples,), torch.nan)
    squares = [gates.squares.get(block.key) for block in blocks]
    shares = [unknown_B if pair is None else (pair[0] / pair[1]).sqrt() for pair in squares]
    return _columns(shares, gates.samples)


def _similarities(gated: Sequence[Gates], blocks: Sequence[Block]) -> list[Similarity]:
    """Compare the output of every block with what it reads, or with that of the block before."""
    found, last = [], None
    for block in blocks:
        after = _features([gates.outputs.get(block.key) for gates in gated])
        read = _features([gates.shortcuts.get(block.key) for gates in gated])
        before = last if read is None or block.kind == PROJECTION else read
        known = [features for features in (before, after) if features is not None]
        found.append(linear_cka(*known) if len(known) == 2 else UNDEFINED)
        last = after
    return found


def _features(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Join the pieces; None where one is missing."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None
