"""Passes with batches of several sizes, in the modes of training and of serving."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from probes.base import Batch, Inputs, Progress, Subject, first_tensor
from probes.errors import REFUSALS, AnalyzerError, NotApplicable
from probes.footprint.batches import repeated, shortened
from probes.footprint.passes import Serving, Training, nbytes, serving, training
from probes.model.taps import differentiable_recurrence, untouched
from probes.samples.timeline import time_axis


@dataclass(frozen=True)
class Pass:
    """What a batch of one size took."""

    samples: int
    timesteps: int | None
    inputs: int
    """Size of the batch [byte]."""
    training: Training
    serving: Serving


@dataclass(frozen=True)
class Sweep:
    """Passes of several sizes."""

    passes: list[Pass]
    """A quarter, half and all of the samples; then, if it can be, fewer timesteps."""
    mode: str
    """Mode of the model in training passes, with the reason where that is not train."""
    fixed: str
    """Why the number of timesteps was not varied; empty where it was."""


def sweep(subject: Subject, samples: int, progress: Progress) -> Sweep:
    """Measure passes with up to ``samples`` samples; leave the model as it was.

    Raises
    ------
    AnalyzerError
        There are no data, or the loss does not depend on any parameter.
    """
    axis, fixed = _axis(subject)
    with _as_trained(subject.model):
        whole = repeated(subject, samples)
        mode = _mode(subject, repeated(subject, samples // 4))
        run = partial(_pass, subject, axis, mode == "train")
        passes = []
        for index, count in enumerate((samples // 4, samples // 2, samples)):
            passes.append(run(whole if count == samples else repeated(subject, count)))
            progress(index + 1, 5)
        if axis is not None:
            few, full = repeated(subject, samples // 4), passes[0].timesteps or 0
            try:
                for timesteps in (full // 2, full * 3 // 4):
                    passes.append(run(shortened(subject, few, axis, timesteps)))
            except REFUSALS as error:
                del passes[3:]
                fixed = f"the model does not take shorter sequences ({_line(error)})"
    progress(5, 5)
    return Sweep(passes, mode, fixed)


def peak(subject: Subject, samples: int) -> int:
    """Most memory alive at once in a pass as probes run it, beside the parameters [byte]."""
    batch = repeated(subject, samples)
    with _as_trained(subject.model), differentiable_recurrence(subject.model):
        try:
            return training(subject, batch).peak
        except AnalyzerError:
            # There is nothing to train: all that runs is a forward pass.
            return serving(subject, batch).peak


def _axis(subject: Subject) -> tuple[int | None, str]:
    """Find the time axis, or why there is none to shorten."""
    batch = repeated(subject, 1)
    try:
        axis = time_axis(subject, batch)
    except NotApplicable as why:
        return None, str(why)
    timesteps = _timesteps(batch, axis)
    if timesteps < 4:
        return None, f"the sequences have {timesteps} timesteps, too few to shorten them"
    return axis, ""


def _timesteps(batch: Batch, axis: int) -> int:
    """Count the timesteps of the inputs."""
    inputs = batch.inputs
    if hasattr(inputs, "batch_sizes"):
        return len(inputs.batch_sizes)
    return first_tensor(inputs).shape[axis]


@contextmanager
def _as_trained(model: nn.Module) -> Iterator[None]:
    """Let those parameters require gradients that do in the user's model; all where none does."""
    flags = [weight.requires_grad for weight in model.parameters()]
    with untouched(model, weights=True):
        if any(flags):
            for weight, flag in zip(model.parameters(), flags, strict=True):
                weight.requires_grad_(flag)
        yield


def _mode(subject: Subject, batch: Batch) -> str:
    """Try whether the model runs in train mode; say why not."""
    subject.model.train()
    try:
        training(subject, batch)
    except REFUSALS as error:
        return f"eval, as the model does not run in train mode: {_line(error)}"
    return "train"


def _pass(subject: Subject, axis: int | None, train: bool, batch: Batch) -> Pass:
    """Measure a training and a serving pass."""
    model = subject.model
    model.train(train)
    # cuDNN has no backward pass of recurrent layers in eval mode.
    with nullcontext() if train else differentiable_recurrence(model):
        trained = training(subject, batch)
    model.eval()
    return Pass(
        subject.batch_size(batch),
        None if axis is None else _timesteps(batch, axis),
        _size(batch.inputs),
        trained,
        serving(subject, batch),
    )


def _size(inputs: Inputs) -> int:
    """Size of all tensors that the model is called with [byte]."""
    return sum(nbytes(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))


def _line(error: BaseException) -> str:
    """Write what was raised in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
