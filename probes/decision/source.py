"""The part of a model's inputs that a decision is attributed to, as tensors with samples first.

Shapes: B sample, P position, K output unit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from probes.base import Batch, Subject, call
from probes.decision.places import PADDING, Place, Timeline
from probes.decision.score import Decision
from probes.errors import AnalyzerError, NotApplicable
from probes.samples.timeline import Sequences

Run = Callable[[Sequence[Tensor]], Any]
"""Calls the model with other values in the place of the leaves."""

BASELINES = ("mean", "zero")


@dataclass(frozen=True)
class Source:
    """What is attributed to in a few samples, and how to run the model with other values there.

    Floating-point inputs; where there are none, what the embeddings return.

    Parameters
    ----------
    batch : Batch
        The samples.
    place : Place
        Where the numbers of the leaves are.
    leaves : list of Tensor
        Each (B, ...).
    run : callable
        Runs the model with other leaves, which are left as they are.
    """

    batch: Batch
    place: Place
    leaves: list[Tensor]
    run: Run

    @classmethod
    def of(cls, subject: Subject, batch: Batch, place: Place) -> "Source":
        """Find what to attribute to.

        Raises
        ------
        NotApplicable
            Neither an input nor the output of an embedding is floating-point and has the places.
        """
        leaves, run = _floats(subject, batch, place)
        if not leaves:
            leaves, run = _embedded(subject, batch, place)
        if not leaves:
            raise NotApplicable(
                "there is nothing to attribute a decision to: the inputs are integers, and no "
                "torch.nn.Embedding returns one entry for each of them"
            )
        return cls(batch, place, leaves, run)

    def units(self, leaves: Sequence[Tensor]) -> Tensor:
        """Run with other values of the leaves; return the outputs that are the decision: (B, K)."""
        return self.place.units(self.run(leaves), self.batch)

    def index(self) -> Tensor:
        """Place of each position: (B, P)."""
        with torch.no_grad():
            return self.place.index(self.batch, self.leaves[0], self.run(self.leaves))

    def baselines(self, values: Sequence[Tensor], index_BP: Tensor) -> list[Tensor]:
        """Fill the leaves with one number per feature; padding stays, and so is worth nothing."""
        filled = []
        for leaf, value_F in zip(self.leaves, values, strict=True):
            padding = self.place.spread(index_BP == PADDING, leaf)
            constant = self.place.from_features(value_F.to(leaf), leaf)
            filled.append(torch.where(padding, leaf, constant))
        return filled

    def decision(self, subject: Subject, baselines: Sequence[Tensor]) -> tuple[Decision, Tensor]:
        """Fix the decision; also how much its score differs from that at the baseline: (B,)."""
        with torch.no_grad():
            output_BK, baseline_BK = self.units(self.leaves), self.units(baselines)
        decision = Decision.of(subject, output_BK, baseline_BK)
        difference_B = decision.score(output_BK).double() - decision.score(baseline_BK).double()
        return decision, difference_B

    def scorer(self, decision: Decision) -> Callable[..., Tensor]:
        """Return the score of the decision as a function of the leaves."""

        def score(*leaves: Tensor) -> Tensor:
            score_B = decision.score(self.units(leaves))
            if torch.is_grad_enabled() and not score_B.requires_grad:
                raise AnalyzerError(
                    "the decision has no gradient with respect to the inputs: the model runs "
                    "under torch.no_grad, or detaches its result"
                )
            # Ties leaves that the model ignores to the score, with a gradient of zero.
            return score_B + sum(0 * leaf.flatten(1).sum(1) for leaf in leaves)

        return score


def means(sources: Iterator[Source], kind: str) -> list[Tensor]:
    """Average each feature over all samples and positions, padding left out; zeros for "zero"."""
    totals: list[Tensor] = []
    count = 0.0
    for source in sources:
        index_BP = source.index()
        valid_BP1 = (index_BP != PADDING)[:, :, None]
        for place, leaf in enumerate(source.leaves):
            values_BPF = source.place.positions(leaf).double()
            total_F = torch.where(valid_BP1, values_BPF, 0).sum((0, 1))
            if place == len(totals):
                totals.append(torch.zeros_like(total_F))
            if total_F.shape != totals[place].shape:
                raise NotApplicable(
                    f"samples have {len(totals[place])} and {len(total_F)} features: no baseline "
                    "can stand in for both"
                )
            totals[place] += total_F
        count += float(valid_BP1.sum())
    return [total_F / count * (kind == "mean") for total_F in totals]


def _floats(subject: Subject, batch: Batch, place: Place) -> tuple[list[Tensor], Run]:
    """Floating-point inputs that have places."""
    if isinstance(place, Timeline):
        return _floats_in_time(subject, place.sequences(batch))
    axis, total, leaves = subject.batch_axis, subject.batch_size(batch), []

    def own(value: Any) -> bool:
        return (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and value.dim() > axis
            and value.shape[axis] == total
            and place.fits(value.movedim(axis, 0), batch)
        )

    def keep(value: Any) -> Any:
        if own(value):
            leaves.append(value.movedim(axis, 0).detach())
        return value

    tree_map(keep, batch.inputs)

    def run(values: Sequence[Tensor]) -> Any:
        following = iter(values)

        def put(value: Any) -> Any:
            return next(following).movedim(0, axis).clone() if own(value) else value

        return call(subject.model, tree_map(put, batch.inputs))

    return leaves, run


def _floats_in_time(subject: Subject, sequences: Sequences) -> tuple[list[Tensor], Run]:
    """Floating-point inputs that have samples and timesteps."""
    tensors = sequences.tensors()

    def run(values: Sequence[Tensor]) -> Any:
        following = iter(values)
        mixed = [
            next(following).clone() if tensor.is_floating_point() else tensor for tensor in tensors
        ]
        return call(subject.model, sequences.replaced(mixed))

    return [tensor.detach() for tensor in tensors if tensor.is_floating_point()], run


def _embedded(subject: Subject, batch: Batch, place: Place) -> tuple[list[Tensor], Run]:
    """Find what the embeddings return for each sample, in the order in which they are called."""
    leaves: list[Tensor] = []
    axes = (subject.batch_axis, place.axis) if isinstance(place, Timeline) else (0,)
    front = tuple(range(len(axes)))

    def turned(output: Tensor) -> Tensor | None:
        if output.dim() <= len(axes):
            return None
        moved = output.movedim(axes, front)
        fits = moved.shape[0] == subject.batch_size(batch) and place.fits(moved, batch)
        return moved if fits else None

    def keep(output: Tensor) -> None:
        value = turned(output)
        if value is not None:
            leaves.append(value.detach())

    with _at_embeddings(subject.model, keep), torch.no_grad():
        call(subject.model, batch.inputs)

    def run(values: Sequence[Tensor]) -> Any:
        following = iter(values)

        def put(output: Tensor) -> Tensor | None:
            return None if turned(output) is None else next(following).movedim(front, axes).clone()

        with _at_embeddings(subject.model, put):
            return call(subject.model, batch.inputs)

    return leaves, run


@contextmanager
def _at_embeddings(model: nn.Module, visit: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Show what embeddings return to ``visit``, which may put something else in its place."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                handle = module.register_forward_hook(lambda _m, _a, output: visit(output))
                stack.callback(handle.remove)
        yield
