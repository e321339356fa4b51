"""Catch the operations that weights take part in, and take their backward pass apart by sample.

Shapes: B sample; ... other axes.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointError

from probes.algebra.norms import by_sample
from probes.errors import AnalyzerError
from probes.weight_gradient import convolution, linear, normalization
from probes.weight_gradient.contribution import Contribution
from probes.weight_gradient.ledger import Call, Ledger
from probes.weight_gradient.operation import Arrived, Operation, Use, Wanted

_READERS: Mapping[Any, Callable[..., Use]] = {
    functional.linear: linear.linear,
    functional.embedding: linear.embedding,
    functional.batch_norm: normalization.batch_norm,
    functional.group_norm: normalization.group_norm,
    functional.instance_norm: normalization.instance_norm,
    functional.layer_norm: normalization.layer_norm,
    **{f: convolution.convolution(f) for f in (torch.conv1d, torch.conv2d, torch.conv3d)},
    **{
        f: convolution.transposed_convolution(f)
        for f in (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
    },
}


_TOKEN = (0, 65521)
"""Shape of an empty tensor that each call saves, and finds again unless layers are recomputed in
another way than they were computed."""

NESTED = "the model or the loss differentiates by itself"
RECOMPUTED = "the model recomputes its layers in the backward pass, in another way"


class ApartError(Exception):
    """The backward pass does not come apart by sample; the message says why."""


def differentiate(
    loss: Tensor, inputs: Sequence[Tensor], mode: AbstractContextManager[Any]
) -> tuple[Tensor | None, ...]:
    """Differentiate a scalar; None where it does not depend on an input.

    As ``torch.autograd.grad(loss, inputs, allow_unused=True)``, which suspends all modes.

    Parameters
    ----------
    loss, inputs : Tensor, sequence of Tensor
        As of ``torch.autograd.grad``.
    mode : context manager
        The :class:`SampleGradients` that the loss was computed in, active again, for models that
        recompute layers in the backward pass.

    Raises
    ------
    ApartError
        The model recomputes layers outside of ``mode``, or differentiates by itself.
    AnalyzerError
        The model recomputes layers in a way that torch does not differentiate, or overwrites what
        the backward pass needs.
    """
    engine: Any = torch.autograd.Variable._execution_engine
    start = (torch.ones_like(loss),)
    try:
        with mode:
            found: tuple[Tensor | None, ...] = engine.run_backward(
                (loss,), start, False, False, tuple(inputs), True, accumulate_grad=False
            )
    except CheckpointError as error:
        raise ApartError(RECOMPUTED) from error
    except RuntimeError as error:
        if "inplace operation" in str(error):
            told = str(error).splitlines()[0]
            raise AnalyzerError(f"torch cannot differentiate the model: {told}") from error
        if "use_reentrant" not in str(error):
            raise
        raise AnalyzerError(
            "the model checkpoints activations with use_reentrant=True, which computes no "
            "gradients of single tensors: use use_reentrant=False, or no checkpointing"
        ) from error
    return found


class SampleGradients(TorchFunctionMode):
    """Take the gradients of weights apart by sample, of a model that runs forward inside.

    Parameters
    ----------
    ledger : Ledger
        Receives them.
    axis : int
        Batch axis of the inputs.
    """

    def __init__(self, ledger: Ledger, axis: int) -> None:
        super().__init__()
        self._ledger, self._axis = ledger, axis

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Catch the operations that are known; let everything else pass."""
        kwargs = kwargs or {}
        if func not in _READERS or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        use = _READERS[func](*args, **kwargs)
        names = [self._ledger.name(use.weight), self._ledger.name(use.bias)]
        known = [name for name in names if name is not None]
        if not known:
            return func(*args, **kwargs)
        dim = use.operation.batch_dim(use.x, self._ledger.samples, self._axis)
        reason = self._refusal(use, dim)
        if reason or dim is None:
            for name in known:
                self._ledger.refuse(name, reason)
            return func(*args, **kwargs)
        call = self._ledger.call(known)
        weights = (
            tensor if tensor is None or name is None else tensor.detach()
            for tensor, name in zip((use.weight, use.bias), names, strict=True)
        )
        recipient = _Recipient(self._ledger, call, use.operation, dim, *names)
        return _Apart.apply(recipient, self._ledger.anchor, use.x, *weights)  # type: ignore[no-untyped-call]

    def _refusal(self, use: Use, dim: int | None) -> str:
        """Say why a call does not come apart by sample; empty if it does."""
        if use.refusal:
            return use.refusal
        if torch.is_autocast_enabled(use.x.device.type):
            return "it runs under autocast"
        if dim is None:
            shape = "x".join(map(str, use.x.shape))
            return f"it is applied to {shape}, which has no axis of {self._ledger.samples} samples"
        return ""


class _Recipient(NamedTuple):
    """Where the gradients of one call go."""

    ledger: Ledger
    call: Call
    operation: Operation
    dim: int
    weight: str | None
    bias: str | None


class _Apart(torch.autograd.Function):
    """An operation of torch forwards; backwards, by sample.

    Apply it to ``(recipient, anchor, x, weight, bias)``. Parameters come without a gradient of
    their own: what the backward pass adds to them goes to the ledger, so that whatever arrives at
    them in another way shows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        recipient: _Recipient,
        anchor: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        """Run the operation of torch without a graph."""
        output, *kept = recipient.operation.run(x, weight, bias)
        ctx.recipient = recipient
        ctx.save_for_backward(x.new_empty(_TOKEN), x, weight, *kept)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Pass the gradient of the input on; leave those of the weights."""
        to: _Recipient = ctx.recipient
        if to.ledger.forward:
            raise ApartError(NESTED)
        # May recompute layers, which the mode has to catch; the rest is none of its business.
        token, x, weight, *kept = ctx.saved_tensors
        if token.shape != _TOKEN:
            raise ApartError(RECOMPUTED)
        arrived = Arrived(gradient, x, weight, tuple(kept), to.dim)
        with torch._C.DisableTorchFunction():
            return None, None, *_apart(to, arrived, ctx.needs_input_grad[2:])


def _apart(to: _Recipient, arrived: Arrived, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Propagate one call back, sample by sample: gradients that autograd goes on with."""
    wanted = Wanted(needs[0], to.weight is not None or needs[1], to.bias is not None or needs[2])
    parts = to.operation.backward(arrived, wanted)
    if parts.x is not None:
        to.call.x_gradient = by_sample(parts.x, to.dim)
    weights = (
        _left(to.ledger, name, part) if want else None
        for name, part, want in zip(to[-2:], parts[1:], wanted[1:], strict=True)
    )
    return parts.x, *weights


def _left(ledger: Ledger, name: str | None, part: Contribution | None) -> Tensor | None:
    """Deposit the gradient of a parameter; sum that of any other tensor, for autograd."""
    if part is None or name is None:
        return None if part is None else part.total()
    ledger.deposit(name, part)
    return None
