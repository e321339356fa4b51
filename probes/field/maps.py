"""Energy maps: how strongly each input position moves the centre unit of each layer.

Shapes: B sample, C channel, P position of the input (all axes flattened).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from probes.base import Batch, Subject, call, first_tensor
from probes.errors import NotApplicable
from probes.field.samples import Place, flat_inputs
from probes.model.labels import label_of, module_of
from probes.model.taps import differentiable, first_float

DIMENSIONS = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
"""Spatial dimensions of the output of each kind of convolution."""


def dimensions(module: nn.Module) -> int:
    """Count the spatial dimensions of a convolution; 0 for any other module."""
    return next((count for kind, count in DIMENSIONS.items() if isinstance(module, kind)), 0)


@contextmanager
def centres(model: nn.Module, labels: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the centre unit of each convolution while the block runs.

    Parameters
    ----------
    model : Module
        Contains the convolutions.
    labels : sequence of str
        Module names, with ``#k`` for the k-th call after the first.

    Yields
    ------
    dict
        Label -> (B, C), copied at once: what is done to the output in place does not reach it.
    """
    seen: dict[str, Tensor] = {}
    calls: dict[str, int] = {}
    modules = dict(model.named_modules())

    def keep(name: str, output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        label = label_of(name, calls[name])
        value = first_float(output)
        if label in labels and value is not None:
            centre = value
            for _ in range(dimensions(modules[name])):
                centre = centre.select(-1, centre.shape[-1] // 2)
            seen[label] = centre.clone()

    with ExitStack() as stack:
        for name in {module_of(label, modules) for label in labels}:

            def hook(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                keep(name, output)

            stack.callback(modules[name].register_forward_hook(hook).remove)
        yield seen


@dataclass(frozen=True)
class Mapper:
    """Measures energy maps of a few samples at a time.

    Parameters
    ----------
    subject : Subject
        Its model is called.
    place : Place
        Which dimensions of which input are positions.
    signs : Generator
        Of the random signs, on the CPU.
    """

    subject: Subject
    place: Place
    signs: torch.Generator

    def energies(self, batch: Batch, labels: Sequence[str]) -> dict[str, Tensor]:
        """Energy of each sample at each position, for convolutions that have a gradient.

        For every sample the channels of the centre unit are summed with random signs, and the
        square of the gradient of that sum is summed over the channels of the input. Its
        expectation over the signs is the squared Frobenius norm of the unit's Jacobian at that
        position.

        Parameters
        ----------
        batch : Batch
            Samples that go through the model together.
        labels : sequence of str
            In the order in which the convolutions run.

        Returns
        -------
        dict
            Label -> (B, P), float64 [unit^2 / input^2].

        Raises
        ------
        FoldedBatchError
            A convolution has another batch size than the inputs, and they are several.
        NotApplicable
            The inputs are integers and reach no convolution through an embedding.
        """
        count, model = self.subject.batch_size(batch), self.subject.model
        found = {}
        leaves, structure = flat_inputs(batch)
        with ExitStack() as stack:
            whole = Batch(leaves[self.place.leaf])
            source, sources = stack.enter_context(differentiable(model, whole))
            seen = stack.enter_context(centres(model, labels))
            stack.enter_context(_differentiable_recurrence(model))
            leaves[self.place.leaf] = source
            call(model, tree_unflatten(leaves, structure))
            sources = self._positioned(sources, first_tensor(source))
            for label in reversed(labels):
                centre_BC = seen.pop(label, None)
                if centre_BC is not None and centre_BC.requires_grad:
                    found[label] = self._energy(_unfolded(centre_BC, count), sources)
        return found

    def _positioned(self, sources: list[Tensor], source: Tensor) -> list[Tensor]:
        """Leaves that have the positions of the input: itself, or what embeds it."""
        fitting = [leaf for leaf in sources if leaf.shape[: source.dim()] == source.shape]
        if not fitting:
            raise NotApplicable(
                "the inputs are integers that reach the convolutions without an embedding"
            )
        return fitting

    def _energy(self, centre_BC: Tensor, sources: list[Tensor]) -> Tensor:
        """One vector-Jacobian product: (B, P)."""
        draws_BC = torch.randint(0, 2, centre_BC.shape, generator=self.signs)
        signs_BC = (2 * draws_BC - 1).to(centre_BC)
        gradients = torch.autograd.grad(
            centre_BC, sources, signs_BC, retain_graph=True, materialize_grads=True
        )
        return torch.stack([self._positions(gradient) for gradient in gradients]).sum(0)

    def _positions(self, gradient: Tensor) -> Tensor:
        """Sum the square over all dimensions that are neither samples nor positions: (B, P)."""
        keep = (self.subject.batch_axis, *self.place.dims)
        others = [dim for dim in range(gradient.dim()) if dim not in keep]
        # Gradients of deep networks square to less than the smallest float32.
        square = gradient.double().square().permute(*keep, *others)
        return square.flatten(len(keep)).sum(-1).flatten(1) if others else square.flatten(1)


class FoldedBatchError(RuntimeError):
    """Samples cannot be told apart in the batch axis of a convolution: send one at a time."""


def _unfolded(centre_BC: Tensor, count: int) -> Tensor:
    """Centre units, one row per sample; of one sample cut into several, the middle piece's."""
    rows_BC = centre_BC[None] if centre_BC.dim() == 1 else centre_BC
    if len(rows_BC) == count:
        return rows_BC
    if count > 1:
        raise FoldedBatchError
    return rows_BC[len(rows_BC) // 2][None]


@contextmanager
def _differentiable_recurrence(model: nn.Module) -> Iterator[None]:
    """Keep cuDNN off where there are recurrent layers: it differentiates them in training only."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled and not recurrent):
        yield
