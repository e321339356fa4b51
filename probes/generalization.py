"""How a model does on data it was trained on and on others, and what either asks of its weights.

Shapes: B sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
import xarray as xr
from torch import Tensor
from torch.utils._pytree import tree_leaves

from probes.base import Batch, Progress, Subject, call, silent, variable
from probes.errors import AnalyzerError, NotApplicable
from probes.loss.objective import describe, sample_losses
from probes.model.taps import untouched, with_leaves
from probes.samples.alike import merged
from probes.samples.selection import pieces, rows
from probes.sides.gradients import NULL, gradients_of_sides
from probes.sides.permutation import permuted
from probes.sides.score import sample_scores
from probes.weight_gradient.interception import ApartError, SampleGradients, differentiate
from probes.weight_gradient.layers import parameters_by_layer
from probes.weight_gradient.recurrent import RecurrentWeights, factors_recorded
from probes.weight_gradient.sketch import Sketches, SketchLedger

TRAINED, HELD_OUT = "trained on", "held out"

DRAWS = 8
"""How often targets are exchanged for the losses; gradients are measured for the first."""


@dataclass(frozen=True)
class Generalization:
    """Losses and gradients on data that the model was trained on, and on data that it was not.

    Told for every sample are its loss, whether it is classified right (where the loss is one of
    classification), the norm of its gradient by the weights of each layer, its inner product with
    the mean gradient of its own side and of the other, and its mean cosine with the samples of
    both. The same once more for the held-out samples with each other's targets: what all of this
    is where targets tell nothing. Dropout is off, as in all probes: the training loss is that of
    the network as it is deployed.

    Gradients are kept as random projections of ``dimensions`` each (layers with fewer weights: as
    they are), in which inner products are off by about the norms over the root of that number.

    Costs 5 to 10 forward and backward passes of the samples of one side.
    Keeps the inputs of the samples, up to 128 MiB of projections (more only with thousands of
    samples), and three copies of the weights; beside it what one batch takes.

    Parameters
    ----------
    samples : int
        Of each side, spread evenly over all of its data.

    References
    ----------
    .. [1] Fort, Nowak, Jastrzebski and Narayanan, Stiffness: A New Perspective on Generalization
       in Neural Networks, arXiv:1901.09491 (2019).
    .. [2] Chatterjee and Zielinski, Making Coherence Out of Nothing At All: Measuring the
       Evolution of Gradient Alignment, arXiv:2008.01217 (2020).
    .. [3] Zhang, Bengio, Hardt, Recht and Vinyals, Understanding deep learning requires
       rethinking generalization, ICLR (2017).
    """

    name: ClassVar[str] = "generalization"
    passes: ClassVar[float] = 8
    samples: int = 128

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        if self.samples < 2:
            raise AnalyzerError(f"generalization needs samples >= 2: it is {self.samples}")
        layers = parameters_by_layer(subject.model)
        if not layers:
            raise NotApplicable("the model has no trainable parameters")
        sides = _sides(subject, self.samples)
        null = [first for first, *_ in sides[1].exchanged if first]
        rows_of_null = len(_places(sides[1]))
        sketches = Sketches(
            layers, sides[0].size + sides[1].size + rows_of_null, subject.generator()
        )
        total = len(sides[0].batches) + len(sides[1].batches) + len(null)
        run = _Run(sketches, total, progress)
        with untouched(subject.model, weights=True):
            for side in sides:
                for batch, exchanged in zip(side.batches, side.exchanged, strict=True):
                    outputs = run.add(side.subject, batch)
                    run.note(side.subject, outputs, batch, exchanged)
            if not run.refusal:
                for batch in null:
                    run.add(sides[1].subject, batch)
        trace = _trace(run, sides, layers)
        return trace.assign_attrs(objective=describe(sides[0].subject))


class _Set(NamedTuple):
    """Samples that are compared with others."""

    subject: Subject
    batches: list[Batch]
    size: int
    exchanged: list[list[Batch | None]]
    """The same batches with each other's targets, where samples can exchange them; ``DRAWS``
    times."""


def _sides(subject: Subject, samples: int) -> tuple[_Set, _Set]:
    """Choose samples of both sides."""
    sides = subject.sides()
    if sides is None:
        raise NotApplicable(
            "there are no data to compare the audit data with: give data that the model was not "
            "trained on (--held-out) or, where the audit data are such, those that it was "
            "(--trained-on)"
        )
    if subject.loss is None:
        raise NotApplicable(
            "no loss was given, so that nothing can be said of the targets: give one (--loss)"
        )
    # Where the batches were made smaller for lack of memory, so are those of the other side.
    size = max(subject.batch_size(Batch.of(item)) for item in subject.batches)
    trained, held = (_chosen(side, samples, size) for side in sides)
    if _same(trained.batches, held.batches):
        raise NotApplicable(
            "the data held out are the very samples that the model was trained on: there is no gap "
            "to measure between them"
        )
    return trained, held


def _same(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    """Whether two lists of batches have the same inputs and targets."""
    leaves = [
        tree_leaves([(batch.inputs, batch.targets) for batch in batches])
        for batches in (one, other)
    ]
    return len(leaves[0]) == len(leaves[1]) and all(map(_equal, *leaves))


def _equal(one: Any, other: Any) -> bool:
    """Whether two leaves of batches are the same."""
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return str(one) == str(other)
    alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return alike and torch.equal(one, other)


def _chosen(side: Subject, samples: int, size: int) -> _Set:
    """Choose samples of one side."""
    chosen = rows(side, samples)
    batches = merged(side, (batch for _, batch in pieces(side, chosen, size)), size)
    if any(batch.targets is None for batch in batches):
        raise NotApplicable(
            "the audit data, or those they are compared with, have no targets: the gap between "
            "them is one of how well targets are met"
        )
    generator = side.generator()
    exchanged = [permuted(side, batches, generator) for _ in range(DRAWS)]
    return _Set(side, batches, len(chosen), [[*column] for column in zip(*exchanged, strict=True)])


@dataclass
class _Run:
    """What was found so far."""

    sketches: Sketches
    total: int
    progress: Progress
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    """Of every sample of both sides, by name."""
    rows: int = 0
    """Gradients that were measured."""
    done: int = 0
    refusal: str = ""
    """Why gradients do not come apart by sample; empty if they do."""

    def add(self, subject: Subject, batch: Batch) -> Any:
        """Run one batch, backward too where gradients come apart by sample: outputs."""
        outputs = None
        if not self.refusal:
            try:
                outputs = _measured(subject, batch, self.sketches, self.rows)
            except ApartError as reason:
                self.refusal = str(reason)
        if self.refusal:
            # With a graph: what does not come apart may be a model that differentiates by itself.
            outputs = call(subject.model, with_leaves(batch.inputs)[0])
        self.rows += subject.batch_size(batch)
        self.done += 1
        self.progress(self.done, self.total)
        return outputs

    def note(
        self, subject: Subject, outputs: Any, batch: Batch, exchanged: list[Batch | None]
    ) -> None:
        """Keep losses and scores, with the targets and, on average, with exchanged ones."""
        own = _told(subject, outputs, batch)
        draws = [_told(subject, outputs, other) for other in exchanged if other]
        for name, values in own.items():
            null = torch.full_like(values, torch.nan)
            if draws:
                null = torch.stack([draw[name] for draw in draws]).mean(0)
            self.values.setdefault(name, []).append(values)
            self.values.setdefault(f"{name}_null", []).append(null)


def _told(subject: Subject, outputs: Any, batch: Batch) -> dict[str, Tensor]:
    """Losses and, where there are classes, scores of a batch: (B,)."""
    loss_B = sample_losses(subject, outputs, batch).detach()
    score_B = sample_scores(subject, outputs, batch)
    return {"loss": loss_B} if score_B is None else {"loss": loss_B, "score": score_B}


def _measured(subject: Subject, batch: Batch, sketches: Sketches, start: int) -> Any:
    """Run one batch forward and backward: outputs, and the gradients into the sketches."""
    parameters = {n: w for n, w in subject.model.named_parameters() if w.is_floating_point()}
    ledger = SketchLedger(parameters, subject.batch_size(batch), sketches, start)
    mode = SampleGradients(ledger, subject.batch_axis)
    # Copies: a model may change its inputs in place, and they are read again.
    inputs, _ = with_leaves(batch.inputs)
    with mode, factors_recorded(subject.model) as recordings:
        outputs = call(subject.model, inputs)
    recurrent = RecurrentWeights(subject.model, ledger, recordings)
    loss = sample_losses(subject, outputs, batch).sum()
    if not loss.requires_grad:
        raise AnalyzerError(
            "the loss has no gradient: the model runs under torch.no_grad, or it or the loss "
            "detaches its result"
        )
    ledger.forward = False
    found = differentiate(loss, [*parameters.values(), ledger.anchor], mode)
    recurrent.deposit(() if recordings is None else recordings.take())
    ledger.close(dict(zip(parameters, found, strict=False)))
    return outputs


def _trace(
    run: _Run, sides: tuple[_Set, _Set], layers: Mapping[str, Mapping[str, Tensor]]
) -> xr.Dataset:
    """Label what was found."""
    variables = {
        name: variable(torch.cat(parts), ("sample",), *_VALUES[name])
        for name, parts in run.values.items()
    }
    names = [TRAINED] * sides[0].size + [HELD_OUT] * sides[1].size
    trace = xr.Dataset(variables, {"side": ("sample", names)}).assign_attrs(
        without_gradient="", not_measured="", refusal=run.refusal
    )
    if run.refusal:
        return trace
    sizes = sides[0].size, sides[1].size, _places(sides[1])
    gradients = gradients_of_sides(run.sketches, layers, *sizes)
    return trace.merge(gradients).assign_attrs(gradients.attrs)


def _places(side: _Set) -> list[int]:
    """Places of the samples that have another one's targets."""
    found, start = [], 0
    for batch, exchanged in zip(side.batches, side.exchanged, strict=True):
        stop = start + side.subject.batch_size(batch)
        found += [*range(start, stop)] if exchanged[0] else []
        start = stop
    return found


_VALUES = {
    "loss": ("loss of the sample", "loss"),
    "score": ("share of the sample that is right", "1"),
    "loss_null": (f"loss of the sample, {NULL}", "loss"),
    "score_null": (f"share of the sample that is right, {NULL}", "1"),
}
