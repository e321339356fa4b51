"""One pass of a model with its memory watched: training, or serving.

Sizes are bytes of tensors. What an operation allocates and frees within itself is not seen.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from probes import objective
from probes.base import Batch, Inputs, Subject, call
from probes.footprint.storages import Storages
from probes.layer_rows import WHOLE

LOSS = "(loss)"
"""Row of what is computed from the model's output."""


@dataclass
class Running:
    """Which module runs, and the memory that a gradient takes where it goes through one."""

    stack: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    passing: dict[str, int] = field(default_factory=dict)
    """Gradient of a module's output and of its input, of its largest call [byte]."""
    timesteps: dict[str, int] = field(default_factory=dict)
    """What recurrent modules read, in all calls."""

    @property
    def name(self) -> str:
        """The innermost module; the loss once the model has returned."""
        return self.stack[-1] if self.stack else LOSS

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Follow the calls of all modules while the block runs."""
        with ExitStack() as stack:
            for name, module in model.named_modules():

                def enter(_module: nn.Module, _args: Any, name: str = name or WHOLE) -> None:
                    self.stack.append(name)

                def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                    self._leave(module, (args, kwargs), output)

                stack.callback(module.register_forward_pre_hook(enter).remove)
                handle = module.register_forward_hook(leave, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Note what a call had in and out."""
        name = self.stack.pop()
        self.calls[name] = self.calls.get(name, 0) + 1
        passing = sum(map(nbytes, _differentiable((inputs, output))))
        self.passing[name] = max(self.passing.get(name, 0), passing)
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            steps = _timesteps(module, tree_leaves(inputs, is_leaf=_packed)[0])
            self.timesteps[name] = self.timesteps.get(name, 0) + steps


def _packed(value: Any) -> bool:
    """Whether this is a packed sequence."""
    return isinstance(value, PackedSequence)


def _timesteps(module: nn.Module, first: Any) -> int:
    """Count the timesteps that a recurrent module reads in one call."""
    if isinstance(module, nn.RNNCellBase):
        return 1
    if isinstance(first, PackedSequence):
        return len(first.batch_sizes)
    return int(first.shape[int(module.batch_first) if first.dim() == 3 else 0])


def _differentiable(values: Any) -> list[Tensor]:
    """List the tensors that a gradient goes through."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.requires_grad]


def nbytes(tensor: Tensor) -> int:
    """Size of a tensor's values [byte]."""
    return tensor.numel() * tensor.element_size()


class Live(TorchDispatchMode):
    """Follows every storage that an operation makes until it is freed.

    Parameters
    ----------
    storages : Storages
        Where they are counted.
    running : Running
        Says who makes them.
    """

    def __init__(self, storages: Storages, running: Running) -> None:
        super().__init__()
        self.storages, self.running = storages, running
        self.peak = 0
        self.place = ""
        """Module that ran at the peak."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and count what it returned."""
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.storages.add(leaf, self.running.name)
        if self.storages.total > self.peak:
            self.peak, self.place = self.storages.total, self.running.name
        return result


@dataclass(frozen=True)
class Training:
    """Memory of forward, loss and backward [byte]."""

    saved: dict[str, int]
    """Saved for backward, by the module that saved it first."""
    running: Running
    peak: int
    """Most that was alive at once beside parameters, buffers and inputs; gradients included."""
    allocated: int | None
    """The same as the allocator of the device has it."""


@dataclass(frozen=True)
class Serving:
    """Memory of a forward pass without gradients [byte]."""

    peak: int
    """Most that was alive at once beside parameters, buffers and inputs."""
    place: str
    """Module that ran at the peak."""
    allocated: int | None
    """The same as the allocator of the device has it."""


def training(subject: Subject, batch: Batch) -> Training:
    """Run forward, loss and backward in the model's present mode."""
    model = subject.model
    running, held = Running(), _held(model, batch.inputs)
    saved, live = Storages(held), Live(Storages(held), running)

    def pack(tensor: Tensor) -> Tensor:
        saved.add(tensor, running.name)
        return tensor

    for weight in model.parameters():
        weight.grad = None
    with _allocated(subject.device) as allocator, running.watching(model), live:
        with saved_tensors_hooks(pack, _same):
            outputs = call(model, batch.inputs)
            loss = objective.sample_losses(subject, outputs, batch).mean()
        del outputs
        rows = {name: size for name, size in saved.bytes.items() if size}
        torch.autograd.backward(loss)
    for weight in model.parameters():
        weight.grad = None
    return Training(rows, running, live.peak, allocator.peak)


def _same(tensor: Tensor) -> Tensor:
    """Give back what was saved."""
    return tensor


def serving(subject: Subject, batch: Batch) -> Serving:
    """Run forward without gradients in the model's present mode."""
    running = Running()
    live = Live(Storages(_held(subject.model, batch.inputs)), running)
    with (
        _allocated(subject.device) as allocator,
        torch.no_grad(),
        running.watching(subject.model),
        live,
    ):
        call(subject.model, batch.inputs)
    return Serving(live.peak, live.place, allocator.peak)


def _held(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """List what is there before the pass."""
    given = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return [*model.parameters(), *model.buffers(), *given]


@dataclass
class _Allocator:
    """Most that a device's allocator handed out beyond what it had before."""

    peak: int | None = None


@contextmanager
def _allocated(device: torch.device) -> Iterator[_Allocator]:
    """Measure by the allocator of a GPU while the block runs; of a CPU nothing is known."""
    found = _Allocator()
    if device.type != "cuda":
        yield found
        return
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield found
    torch.cuda.synchronize(device)
    found.peak = torch.cuda.max_memory_allocated(device) - before
