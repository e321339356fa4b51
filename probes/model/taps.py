"""The only module that touches a model's state, and it always puts it back."""

import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from probes.base import Batch, Inputs
from probes.errors import AnalyzerError, NotApplicable
from probes.model import precision
from probes.structure import leaves, packed


@contextmanager
def untouched(model: nn.Module, *, weights: bool = False) -> Iterator[None]:
    """Run ``model`` for inference with gradients enabled, then put everything back.

    Inside, the model is in eval mode, its parameters require no gradient (all floating ones do
    with ``weights``), matrix products keep full float32 precision, and what torch.compile compiled
    runs uncompiled, so that hooks see its layers. Afterwards, also after an
    exception, modes, flags, parameters, gradients, buffers, hooks, other attributes of modules,
    random states and backend settings are as they were. It keeps one copy of the weights: some
    models change them in ``forward`` (max-norm constraints).

    Parameters
    ----------
    model : Module
        Any module; wrappers are not removed here.
    weights : bool
        Whether gradients with respect to the parameters are wanted.
    """
    with ExitStack() as stack:
        stack.enter_context(_random_states())
        stack.enter_context(precision.exact())
        stack.enter_context(_eager())
        # Leaving inference mode also turns gradients on.
        stack.enter_context(torch.inference_mode(False))
        _refuse_lazy(model)
        stack.enter_context(_values(model))
        stack.enter_context(_gradients(model))
        stack.enter_context(_attributes(model))
        model.eval()
        for weight in model.parameters():
            weight.requires_grad_(weights and weight.is_floating_point())
        yield


def _refuse_lazy(model: nn.Module) -> None:
    """Refuse layers whose parameters have no shape yet."""
    named = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, tensor in named if is_lazy(tensor)]
    if lazy:
        raise AnalyzerError(
            f"the model has lazy layers without a shape yet ({', '.join(lazy[:8])}): run it once "
            "on an example first"
        )


def _eager() -> AbstractContextManager[Any]:
    """Run compiled modules and functions as they were written."""
    # Whatever is compiled has imported this; importing it only to say so would take seconds.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def _random_states() -> Iterator[None]:
    """Restore the random number generators of torch on all devices, of numpy and of Python."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - restored, not used
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _attributes(model: nn.Module) -> Iterator[None]:
    """Restore the attributes of every module: mode, hooks, registered tensors, kept states."""
    modes = {module: module.training for module in model.modules()}
    attributes = {module: dict(vars(module)) for module in modes}
    tables = [
        (table, dict(table))
        for held in attributes.values()
        for table in held.values()
        if type(table) in (dict, OrderedDict)
    ]
    try:
        yield
    finally:
        for module, held in attributes.items():
            vars(module).clear()
            vars(module).update(held)
        for table, entries in tables:
            table.clear()
            table.update(entries)
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _values(model: nn.Module) -> Iterator[None]:
    """Restore what is in every parameter and buffer."""
    before = [
        (tensor, tensor.data, tensor.detach().clone())
        for tensor in [*model.parameters(), *model.buffers()]
    ]
    try:
        yield
    finally:
        for tensor, data, values in before:
            tensor.data = data
            if not same_bits(data, values):
                data.copy_(values)


@contextmanager
def _gradients(model: nn.Module) -> Iterator[None]:
    """Restore the gradients and flags of every parameter."""
    before = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    try:
        yield
    finally:
        for weight, required, gradient in before:
            weight.requires_grad_(required)
            weight.grad = gradient


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors of one shape and type are equal, nan being equal to nan."""
    if torch.equal(left, right):
        return True
    both_nan = (left != left) & (right != right)
    return bool(((left == right) | both_nan).all())


@contextmanager
def differentiable(model: nn.Module, batch: Batch) -> Iterator[tuple[Inputs, list[Tensor]]]:
    """Make what the model reads differentiable.

    Floating-point inputs become leaves. Where there are none, the output of every
    :class:`torch.nn.Embedding` becomes one while the model runs. The model is given copies of
    the leaves, so that it may change its inputs in place.

    Yields
    ------
    inputs : Inputs
        To call the model with.
    leaves : list of Tensor
        What to differentiate with respect to; of embeddings, filled while the model runs.
    """
    inputs, leaves = with_leaves(batch.inputs)
    with ExitStack() as stack:
        if not leaves:
            embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
            if not embeddings:
                raise NotApplicable(
                    "the inputs are integers and the model has no torch.nn.Embedding: there is "
                    "nothing to differentiate with respect to"
                )

            def leaf(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
                leaves.append(output.detach().clone().requires_grad_())
                return leaves[-1].clone()

            for module in embeddings:
                stack.callback(module.register_forward_hook(leaf).remove)
        yield inputs, leaves


@contextmanager
def differentiable_recurrence(model: nn.Module) -> Iterator[None]:
    """Let recurrent layers be differentiated in eval mode, which cuDNN refuses."""
    cudnn = torch.backends.cudnn
    enabled = cudnn.enabled
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        cudnn.enabled = False
    try:
        yield
    finally:
        cudnn.enabled = enabled


def with_leaves(inputs: Inputs) -> tuple[Inputs, list[Tensor]]:
    """Replace floating-point inputs by copies of new leaves; return the leaves too."""
    leaves: list[Tensor] = []

    def visit(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        leaves.append(value.detach().clone().requires_grad_())
        return leaves[-1].clone()

    return _mapped(inputs, visit), leaves


def _mapped(inputs: Inputs, visit: Any) -> Inputs:
    """Apply ``visit`` to every tensor of ``inputs``."""
    if isinstance(inputs, PackedSequence):
        return inputs._replace(data=visit(inputs.data))
    mapped: Inputs = tree_map(visit, inputs)
    return mapped


@contextmanager
def copied_inputs(model: nn.Module) -> Iterator[None]:
    """Give ``model`` a copy of what it is called with, for one that changes its inputs in place."""

    def copied(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return copies(args), copies(kwargs)

    handle = model.register_forward_pre_hook(copied, prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def copies(inputs: Any) -> Any:
    """Copy every tensor of what a model is called with."""

    def copy(leaf: Any) -> Any:
        if packed(leaf):
            return leaf._replace(data=leaf.data.clone())
        return leaf.clone() if isinstance(leaf, Tensor) else leaf

    return tree_map(copy, inputs, is_leaf=packed)


def first_float(output: Any) -> Tensor | None:
    """Return the first floating-point tensor in what a module returned."""
    for leaf in leaves(output):
        value = leaf.data if isinstance(leaf, PackedSequence) else leaf
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return None


@contextmanager
def outputs(model: nn.Module, names: list[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the first floating output of each named module, one per call, while the block runs.

    The tensors are the ones that the model goes on with: an in-place operation after the module
    overwrites their values, while a tensor hook on them still sees the right gradient.
    """
    seen: dict[str, list[Tensor]] = {}
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for name in names:

            def keep(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                value = first_float(output)
                if value is not None:
                    seen.setdefault(name, []).append(value)

            stack.callback(modules[name].register_forward_hook(keep).remove)
        yield seen


def leaf_modules(model: nn.Module) -> list[str]:
    """Name the modules that compute: those without children, or that use them as mere storage.

    The latter are parametrized modules (weight norm and others), attention, whose projections are
    never called, and, listed besides their children, parts of the model with parameters of their
    own.
    """
    names: list[str] = []
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        whole = is_parametrized(module) or isinstance(module, nn.MultiheadAttention)
        owner = name and any(True for _ in module.parameters(recurse=False))
        if whole or owner or not any(True for _ in module.children()):
            names.append(name)
        if whole:
            inside.append(f"{name}." if name else "")
    return names
