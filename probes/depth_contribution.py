"""What every block of a network contributes to its loss.

Shapes: B sample, K block, R removal, F feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import xarray as xr
from torch import Tensor

from probes.base import Progress, Subject, silent, variable
from probes.depth.passes import Removals, Slopes, removed, slopes
from probes.depth.survey import Block, survey
from probes.errors import AnalyzerError, NotApplicable
from probes.loss import objective
from probes.model.taps import untouched
from probes.samples.selection import pieces, rows, spread

FEWEST = 32
"""Samples that blocks are left out on at least, if there are as many."""

LIGHTER = 4
"""How many more samples fit into memory where no gradient is wanted."""


@dataclass(frozen=True)
class DepthContribution:
    """Loss without each block, a first-order estimate of it, and how alike its ends are.

    Blocks are residual blocks, found on any forward pass: additions of a shortcut and of a branch
    that is computed from what the shortcut starts from (projections included). Layers outside of
    them can be left out, together with the normalization that follows, if they return the shape
    that they read. Blocks that share their weights are one.

    A block is left out by replacing its output by its shortcut; the loss of the same samples with
    and without it is compared. The estimate multiplies every branch by a gate g = 1 and takes
    -dL/dg + (dL/dg)^2 / 2 of each sample: one forward and backward pass for all blocks. Without a
    loss the change is half the mean square distance of the outputs. Blocks are also left out
    together, those with the smallest estimates first.

    Costs one forward and backward pass and ``min(blocks, ablations) + joint + 1`` forward passes
    of ``samples`` samples, fewer where that is more than ``work``. Keeps one forward pass of
    ``memory`` numbers, and the outputs of all blocks averaged over positions.

    Parameters
    ----------
    samples : int
        Evenly spread over the audit data.
    ablations : int
        Blocks left out at most; of more, these are spread evenly over the ranks of the estimate.
    joint : int
        Numbers of blocks that are left out together.
    memory : int
        Numbers that the operations of one forward pass may return; it sets how many samples run
        together.
    work : int
        Numbers that the operations of all ablations may return; beyond, fewer samples are used,
        but 32 at least.

    References
    ----------
    .. [1] Veit, Wilber and Belongie, Residual Networks Behave Like Ensembles of Relatively Shallow
       Networks (2016), for leaving blocks out.
    .. [2] Molchanov et al., Importance Estimation for Neural Network Pruning (2019), for the gates.
    """

    name: ClassVar[str] = "depth_contribution"
    passes: ClassVar[float] = 12
    samples: int = 256
    ablations: int = 30
    joint: int = 6
    memory: int = 2**28
    work: int = 10**11

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        if min(self.samples, self.memory, self.work) < 1 or min(self.ablations, self.joint) < 0:
            raise AnalyzerError(
                "depth_contribution needs samples, memory and work >= 1, and ablations and joint "
                f">= 0: they are {self.samples}, {self.memory}, {self.work}, {self.ablations} and "
                f"{self.joint}"
            )
        with untouched(subject.model):
            chosen = rows(subject, self.samples)
            _, batch = next(pieces(subject, chosen, 2))
            found = survey(subject.model, batch.inputs)
            blocks = _comparable(found.blocks)
            each = max(found.elements // subject.batch_size(batch), 1)
            size = max(self.memory // each, 1)
            step = _Steps(
                progress, len(chosen) * (1 + self.joint + min(len(blocks), self.ablations))
            )
            measured = slopes(subject, blocks, chosen, size, step)
            estimate_NK = _estimate(measured.gate_gradient, curved=subject.loss is None)
            order = _ranked(blocks, estimate_NK)
            removals = self._removals(order)
            most = max(self.work // (each * (len(removals) + 1)), FEWEST)
            subset = spread(len(chosen), most)
            keys = [[blocks[at].key for at in removal] for removal in removals]
            few = [chosen[at] for at in subset]
            left = removed(subject, blocks, keys, few, LIGHTER * size, step)
        step.finish()
        whole = _scattered(left, subset, len(chosen))
        trace = _contributions(blocks, chosen, measured, estimate_NK)
        return trace.merge(_ablations(blocks, order, removals, whole)).assign_attrs(
            objective=objective.describe(subject),
            removable=len(order),
            ablated_samples=len(subset),
            samples=len(chosen),
        )

    def _removals(self, order: Sequence[int]) -> list[list[int]]:
        """List what is left out, as places of blocks: single ones, then several at once."""
        single = (
            [[order[at]] for at in spread(len(order), self.ablations)] if self.ablations else []
        )
        counts = {round(len(order) * step / self.joint) for step in range(1, self.joint + 1)}
        return single + [[*order[:count]] for count in sorted(counts) if count > 1]


@dataclass
class _Steps:
    """Turns samples that ran into progress."""

    progress: Progress
    total: int
    done: int = 0

    def __call__(self, samples: int) -> None:
        """Count samples."""
        self.done = min(self.done + samples, self.total)
        self.progress(self.done, self.total)

    def finish(self) -> None:
        """Report the end."""
        self.progress(self.total, self.total)


def _comparable(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """Return the blocks, if there is something to say about them."""
    if len(blocks) < 2 and all(block.reason for block in blocks):
        raise NotApplicable(
            "the model has no residual block, and fewer than two layers outside of recurrences: "
            "there is no depth to compare (stacked recurrent layers are measured on their own)"
        )
    return blocks


def _estimate(gate_gradient_NK: Tensor, *, curved: bool) -> Tensor:
    """Change of each sample's loss without each block, to second order: (N, K).

    The squared gradient stands for the curvature. Where the change is a squared distance
    (``curved``) the first order is zero, and the gradient is that of the distance's root.
    """
    second_NK = 0.5 * gate_gradient_NK.square()
    return second_NK if curved else second_NK - gate_gradient_NK


def _ranked(blocks: Sequence[Block], estimate_NK: Tensor) -> list[int]:
    """Places of the blocks that can be left out, the smallest estimate first, unknown ones last."""
    mean_K = estimate_NK.mean(0).nan_to_num(torch.inf).tolist()
    return sorted(
        (at for at, block in enumerate(blocks) if not block.reason), key=lambda at: mean_K[at]
    )


def _scattered(left: Removals, subset: Sequence[int], samples: int) -> Removals:
    """Put what was measured on some samples among all of them: nan for the others."""

    def scatter(values: Tensor) -> Tensor:
        whole = torch.full((samples, values.shape[1]), torch.nan, dtype=values.dtype)
        whole[[*subset]] = values
        return whole

    return Removals(scatter(left.loss), scatter(left.decisions))


def _contributions(
    blocks: Sequence[Block], chosen: Sequence[int], measured: Slopes, estimate_NK: Tensor
) -> xr.Dataset:
    """Label what the pass with gates measured."""
    dims = ("sample", "block")
    ends = torch.tensor(measured.similarity, dtype=torch.float64).T
    names = {
        "similarity": "similarity of the output to what the block reads",
        "similarity_low": "similarity, lower end of its interval",
        "similarity_high": "similarity, upper end of its interval",
    }
    return xr.Dataset(
        {
            "intact_loss": variable(measured.loss, ("sample",), "loss of the intact model", "loss"),
            "gate_gradient": variable(
                measured.gate_gradient,
                dims,
                "derivative of the loss by the gate of the block",
                "loss",
            ),
            "estimate": variable(
                estimate_NK, dims, "estimate of the change of the loss without the block", "loss"
            ),
            "branch_ratio": variable(
                measured.ratio, dims, "norm of the branch as a share of the shortcut's", "1"
            ),
            **{
                name: variable(ends[place], ("block",), words, "1")
                for place, (name, words) in enumerate(names.items())
            },
        },
        {
            "sample": [*chosen],
            "block": [block.name for block in blocks],
            "kind": ("block", [block.kind for block in blocks]),
            "layers": ("block", [", ".join(block.layers) for block in blocks]),
            "reason": ("block", [block.reason for block in blocks]),
        },
    )


def _ablations(
    blocks: Sequence[Block], order: Sequence[int], removals: Sequence[Sequence[int]], left: Removals
) -> xr.Dataset:
    """Label what leaving out did: of single blocks, and of several at once."""
    single = {removal[0]: at for at, removal in enumerate(removals) if len(removal) == 1}
    joint = [at for at, removal in enumerate(removals) if len(removal) > 1]
    unknown_N = torch.full((len(left.loss),), torch.nan, dtype=torch.float64)

    def by_block(values_NR: Tensor) -> Tensor:
        columns = [
            values_NR[:, single[at]] if at in single else unknown_N for at in range(len(blocks))
        ]
        return torch.stack(columns, 1)

    ranks = {at: rank for rank, at in enumerate(order)}
    rank_K = torch.tensor([ranks.get(at, torch.nan) for at in range(len(blocks))])
    dims = ("sample", "block")
    return xr.Dataset(
        {
            "loss_change": variable(
                by_block(left.loss), dims, "loss without the block, less the intact loss", "loss"
            ),
            "decision_change": variable(
                by_block(left.decisions),
                dims,
                "share of decisions that change without the block",
                "1",
            ),
            "rank": variable(
                rank_K, ("block",), "place of the block when sorted by the estimate", "1"
            ),
            "joint_change": variable(
                left.loss[:, joint],
                ("sample", "removed"),
                "loss without the blocks with the smallest estimates, less the intact loss",
                "loss",
            ),
        },
        {"removed": [len(removals[at]) for at in joint]},
    )
