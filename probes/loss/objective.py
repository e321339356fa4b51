"""What the gradient is a gradient of: one loss per sample, whatever the user's loss returns.

Shapes: B sample, T position in time, K class.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_packed_sequence

from probes.base import Batch, Loss, Subject
from probes.errors import AnalyzerError
from probes.samples.layout import Layout, last_index
from probes.structure import leaves, mapped, opened, packed

IGNORED = -100
"""Class index that torch's cross entropy leaves out."""

CLASSIFYING = ("cross_entropy", "nll_loss")
"""Losses whose targets are class indices, so that the model's own choice can stand in for them."""


class Named(NamedTuple):
    """A loss of torch, told not to reduce."""

    name: str
    function: Callable[..., Tensor]
    classifying: bool
    ignored: int


def describe(subject: Subject) -> str:
    """Name the objective as reports print it."""
    if subject.loss is None:
        return "half the mean square of the model's own output (no loss was given)"
    name = subject.loss if isinstance(subject.loss, str) else _name(subject.loss)
    if all(Batch.of(item).targets is None for item in subject.batches):
        return f"{name} to the model's own most probable class (no targets were given)"
    return f"{name}, per sample"


def sample_losses(subject: Subject, outputs: Any, batch: Batch) -> Tensor:
    """Loss of each sample, averaged over its valid positions: (B,).

    Raises
    ------
    AnalyzerError
        The loss does not fit the outputs and targets, or needs targets that are not there.
    """
    loss_BT, valid_BT = _position_losses(subject, outputs, batch)
    return (loss_BT * valid_BT).sum(1) / valid_BT.sum(1).clamp_min(1)


def final_losses(subject: Subject, outputs: Any, batch: Batch) -> Tensor:
    """Loss of each sample's last valid position: (B,); its only loss if it has no positions.

    A user's own function is handed the last position alone where outputs and targets both have
    the inputs' time axis; what such a function returns for a whole sequence cannot be taken apart.

    Raises
    ------
    AnalyzerError
        As :func:`sample_losses`.
    """
    if callable(subject.loss) and _named(subject.loss) is None:
        layout = Layout.of(subject, batch)
        cut, in_outputs = _last_position(outputs, layout)
        targets, in_targets = _last_position(batch.targets, layout)
        if in_outputs and in_targets:
            outputs, batch = cut, replace(batch, targets=targets)
    loss_BT, valid_BT = _position_losses(subject, outputs, batch)
    return loss_BT.gather(1, last_index(valid_BT)[:, None])[:, 0]


def final_outputs(subject: Subject, outputs: Any, batch: Batch) -> Tensor:
    """Output of each sample at its last valid position: (B, ...); all of it without positions."""
    output, layout = _judged(subject, outputs, Layout.of(subject, batch))
    if not layout.has_time(output):
        return output
    output = output.movedim(layout.time_dim(output), 1)
    valid_BT = layout.valid(output.detach().flatten(2).sum(2) if output.dim() > 2 else output)
    return output[torch.arange(layout.samples, device=output.device), last_index(valid_BT)]


def final_results(subject: Subject, outputs: Any, batch: Batch) -> Tensor:
    """Losses (B,) or, where there is no loss, outputs (B, ...) of the last position; detached."""
    found = final_outputs if subject.loss is None else final_losses
    return found(subject, outputs, batch).detach()


def with_own_targets(subject: Subject, outputs: Any, batch: Batch) -> Batch:
    """Fix the model's own choice as the targets that a classifying loss lacks."""
    named = None if subject.loss is None else _named(subject.loss)
    if named is None or not named.classifying or batch.targets is not None:
        return batch
    output, layout = _judged(subject, outputs, Layout.of(subject, batch))
    targets = _classes(output, None, layout)[1]
    return replace(batch, targets=targets.movedim(0, layout.axis if targets.dim() > 1 else 0))


def prediction(subject: Subject, outputs: Any) -> Tensor:
    """Pick the tensor that is judged out of what the model returned.

    Raises
    ------
    AnalyzerError
        The model's output has no such part, or no floating-point tensor.
    """
    chosen = _chosen(subject, outputs)
    return pad_packed_sequence(chosen, batch_first=True)[0] if packed(chosen) else chosen


def _chosen(subject: Subject, outputs: Any) -> Any:
    """Pick the tensor or packed sequence that is judged."""
    chosen = known = opened(outputs)
    if subject.output is not None:
        try:
            chosen = known[subject.output]
        except (KeyError, IndexError, TypeError) as error:
            raise AnalyzerError(
                f"the model's output has no part {subject.output!r}: it is {_shape(outputs)}"
            ) from error
    elif isinstance(known, dict) and "logits" in known:
        chosen = known["logits"]
    for leaf in leaves(chosen):
        if packed(leaf) or (isinstance(leaf, Tensor) and leaf.is_floating_point()):
            if not packed(leaf) and not leaf.numel():
                raise AnalyzerError(f"the model returned an empty tensor: {_shape(outputs)}")
            return leaf
    raise AnalyzerError(f"the model returned no floating-point tensor: {_shape(outputs)}")


def _judged(subject: Subject, outputs: Any, layout: Layout) -> tuple[Tensor, Layout]:
    """Return the prediction batch first, and the layout with the lengths of a packed one."""
    chosen = _chosen(subject, outputs)
    if not packed(chosen):
        return layout.batch_first(chosen), layout
    output, lengths = pad_packed_sequence(chosen, batch_first=True)
    return output, layout._replace(lengths=lengths, timesteps=output.shape[1])


def _position_losses(subject: Subject, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss of each sample and position (B, T), and which of them count (B, T); T may be 1."""
    layout = Layout.of(subject, batch)
    named = None if subject.loss is None else _named(subject.loss)
    if callable(subject.loss) and named is None:
        loss = _called(subject.loss, outputs, batch.targets, layout)
        counted = torch.ones_like(loss)
    else:
        output, layout = _judged(subject, outputs, layout)
        targets = batch.targets
        if isinstance(targets, Tensor):
            targets = layout.batch_first(targets)
        loss, counted = _unreduced(named, output, targets, layout)
    loss_BT, counted_BT = _as_positions(loss), _as_positions(counted.to(loss))
    return loss_BT, counted_BT * layout.valid(loss_BT)


def _as_positions(loss: Tensor) -> Tensor:
    """(B,) -> (B, 1); (B, T) as it is; (B, T, ...) averaged over what follows."""
    if loss.dim() == 1:
        return loss[:, None]
    return loss if loss.dim() == 2 else loss.flatten(2).mean(2)


def _per_position(loss: Tensor, layout: Layout) -> Tensor:
    """Average over features: (B, K) is one position of K features, (B, T, ...) is T positions."""
    if loss.dim() == 1:
        return loss
    if loss.dim() == 2:
        return loss if layout.has_time(loss) else loss.mean(1)
    return loss.movedim(layout.time_dim(loss), 1).flatten(2).mean(2)


def _named(loss: Loss | str) -> Named | None:
    """Read the name of a loss or a loss module of torch; None for a function of the user's."""
    if isinstance(loss, str):
        function = getattr(functional, loss, None)
        if function is None:
            raise AnalyzerError(
                f"no loss called {loss!r} in torch.nn.functional: use cross_entropy, mse_loss, "
                "l1_loss, binary_cross_entropy_with_logits, ..., or pass a callable"
            )

        def unreduced(output: Tensor, targets: Tensor) -> Tensor:
            value: Tensor = function(output, targets, reduction="none")
            return value

        return Named(loss, unreduced, loss in CLASSIFYING, IGNORED)
    if not isinstance(loss, nn.Module) or getattr(loss, "reduction", None) not in ("mean", "sum"):
        return None
    module: Any = copy.copy(loss)
    module.reduction = "none"
    classifying = isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)
    return Named(_name(loss), module, classifying, getattr(loss, "ignore_index", IGNORED))


def _unreduced(
    named: Named | None, output: Tensor, targets: Any, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Loss of each sample and position, and which of them count."""
    if named is None:
        loss = _per_position(0.5 * output.square(), layout)
        return loss, torch.ones_like(loss)
    if named.classifying:
        output, targets = _classes(output, targets, layout)
    if targets is None:
        raise AnalyzerError(f"the loss {named.name} needs targets, and the batches have none")
    if not named.classifying and isinstance(targets, Tensor):
        targets = _matched(named.name, output, targets)
    try:
        loss = named.function(output, targets)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise AnalyzerError(
            f"the loss {named.name} does not fit outputs {_shape(output)} and targets "
            f"{_shape(targets)}: {str(error).splitlines()[0]}"
        ) from error
    if named.classifying:
        indices = not targets.is_floating_point()
        return loss, targets != named.ignored if indices else torch.ones_like(loss)
    loss = _per_position(loss, layout)
    return loss, torch.ones_like(loss)


def _matched(name: str, output: Tensor, targets: Tensor) -> Tensor:
    """Give targets the type and shape of the outputs, adding axes of size 1 but never copying."""
    bare = [[size for size in tensor.shape if size != 1] for tensor in (output, targets)]
    if bare[0] != bare[1]:
        raise AnalyzerError(
            f"the loss {name} needs outputs and targets of one shape: they are {_shape(output)} "
            f"and {_shape(targets)}"
        )
    return targets.to(output.dtype).reshape(output.shape)


def _classes(output: Tensor, targets: Any, layout: Layout) -> tuple[Tensor, Any]:
    """Put the class axis second, and let the model's own choice stand in for missing targets.

    Outputs that fit both torch's (B, K, T) and (B, T, K) are taken for torch's.
    """
    if targets is None:
        if output.dim() == 3 and layout.time_dim(output) == 1:
            output = output.movedim(-1, 1)
        return output, output.detach().argmax(1)
    if not isinstance(targets, Tensor):
        return output, targets
    if not targets.is_floating_point():
        targets = targets.long()
    if targets.dim() == output.dim() == 2 and targets.shape[1] == 1 < output.shape[1]:
        targets = targets[:, 0]
    last = output.dim() >= 3 and output.shape[:-1] == targets.shape
    if last and output.shape[:1] + output.shape[2:] != targets.shape:
        output = output.movedim(-1, 1)
    return output, targets


def _called(loss: Loss, outputs: Any, targets: Any, layout: Layout) -> Tensor:
    """Call the user's loss; where it returns one number, call it for each sample alone."""
    value = loss(outputs, targets)
    if not isinstance(value, Tensor):
        raise AnalyzerError(f"the loss returned a {type(value).__name__}, not a tensor")
    if value.dim() and value.shape[0] == layout.samples:
        return value
    if value.numel() != 1:
        raise AnalyzerError(
            f"the loss returned shape {tuple(value.shape)}: expected one number, or one per "
            f"sample ({layout.samples})"
        )
    if layout.samples == 1:
        return value.reshape(1)
    alone = (
        loss(_sample(outputs, layout, b), _sample(targets, layout, b))
        for b in range(layout.samples)
    )
    return torch.stack([value.reshape(()) for value in alone])


def _sample(values: Any, layout: Layout, index: int) -> Any:
    """Cut one sample out of outputs or targets."""

    def cut(leaf: Any) -> Any:
        if packed(leaf):
            raise AnalyzerError(
                "the loss returned one number for packed outputs, which cannot be taken apart by "
                "sample: return one loss per sample"
            )
        if not isinstance(leaf, Tensor) or not leaf.dim():
            return leaf
        return leaf.narrow(layout.batch_dim(leaf), index, 1)

    return mapped(values, cut)


def _last_position(values: Any, layout: Layout) -> tuple[Any, bool]:
    """Cut the last valid position out of what has the inputs' time axis; say whether any has."""
    found = False

    def cut(values: Tensor) -> Tensor:
        nonlocal found
        found = True
        valid_BT = layout.valid(values.new_ones(values.shape[:2], dtype=torch.float32))
        rows_B = torch.arange(layout.samples, device=values.device)
        return values[rows_B, last_index(valid_BT)][:, None]

    return layout.along_time(values, cut), found


def _shape(value: Any) -> str:
    """Describe outputs or targets in a message."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    known = opened(value)
    if isinstance(known, dict):
        return "{" + ", ".join(f"{key}: {_shape(part)}" for key, part in known.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_shape(part) for part in value) + ")"
    return type(value).__name__


def _name(loss: Any) -> str:
    """Name of a callable: of a function itself, of a module its class."""
    return getattr(loss, "__name__", type(loss).__name__)
