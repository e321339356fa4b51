"""One pass of a model with its memory watched: training, or serving.

Sizes are bytes of tensors, and of what convolutions and oneDNN's LSTM on a CPU hold within
themselves. What other operations allocate and free within themselves is not seen.
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

from probes.base import Batch, Inputs, Subject, call
from probes.errors import AnalyzerError
from probes.footprint.allocator import available, peaks
from probes.footprint.storages import Storages
from probes.footprint.workspace import BACKWARD, FORWARD, Workspaces
from probes.loss import objective
from probes.model.labels import WHOLE

LOSS = "(loss)"
"""Row of what is computed from the model's output."""


@dataclass
class Running:
    """Which module runs, and the memory that a gradient takes where it goes through one."""

    stack: list[str] = field(default_factory=list)
    rows: dict[str, None] = field(default_factory=dict)
    """Modules in the order in which they first saved something or returned."""
    passing: dict[str, int] = field(default_factory=dict)
    """Gradient of a module's output and of its input, of its largest call [byte]."""
    spare: dict[str, int] = field(default_factory=dict)
    """What only the backward pass of a module holds within an operation, of its largest [byte]."""
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
        self.rows.setdefault(name)
        passing = _passing(module, _differentiable(inputs), _differentiable(output))
        self.passing[name] = max(self.passing.get(name, 0), passing)
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            steps = _timesteps(module, tree_leaves(inputs, is_leaf=_packed)[0])
            self.timesteps[name] = self.timesteps.get(name, 0) + steps


def _passing(module: nn.Module, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Size of the gradients of a module's output and input, which are there together."""
    whole = sum(map(nbytes, [*inputs, *outputs]))
    if not isinstance(module, nn.RNNBase) or not outputs:
        return whole
    # Within a stack, input and output of a layer are both as wide as its output. Without cuDNN,
    # and but for the LSTM, the gradients of all gates of all timesteps are there at once.
    gates = 1 if outputs[0].is_cuda else _GATES.get(module.mode, 1)
    within = 2 if int(module.num_layers) > 1 else 1
    return max(whole, max(gates, within) * nbytes(outputs[0]))


_GATES = {"GRU": 3}
"""Gates whose gradients torch keeps for all timesteps."""


def _packed(value: Any) -> bool:
    """Whether this is a packed sequence."""
    return isinstance(value, PackedSequence)


def _timesteps(module: nn.Module, first: Any) -> int:
    """Count the timesteps that a recurrent module reads in one call."""
    if isinstance(module, nn.RNNCellBase):
        return 1
    if isinstance(first, PackedSequence):
        return len(first.batch_sizes)
    batch_first: Any = module.batch_first
    return int(first.shape[int(batch_first) if first.dim() == 3 else 0])


def _differentiable(values: Any) -> list[Tensor]:
    """List the tensors that a gradient goes through."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.requires_grad]


def nbytes(tensor: Tensor) -> int:
    """Size of a tensor's values [byte]."""
    return tensor.numel() * tensor.element_size()


FILLED = 5
"""Outputs' worth of a workspace of oneDNN's LSTM that its forward pass fills: four gates and the
cell state. The rest, twice as much, is memory of the process only once backward writes to it."""


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage that an operation makes until it is freed.

    Parameters
    ----------
    storages : Storages
        Where they are counted.
    running : Running
        Says who makes them.
    spare : dict of int to int
        Filled with the unused bytes of storages, by their ids.
    """

    def __init__(self, storages: Storages, running: Running, spare: dict[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages, self.running, self.spare = storages, running, spare
        self.peaks: dict[str, int] = {}
        """Most that was alive while a module ran, by its name [byte]."""
        self._workspaces = Workspaces()
        self._users: dict[int, str] = {}
        """Modules, by the ids of the storages of the weights that they convolve with."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and count what it returned and what it held within itself."""
        result, within = self._workspaces.run(function, args, kwargs or {})
        if function in FORWARD:
            self._users[_key(args[1])] = self.running.name
        elif function in BACKWARD:
            self._spare(self._users.get(_key(args[2]), LOSS), within)
        elif function is torch.ops.aten.mkldnn_rnn_layer.default:
            within = self._within(result[0], result[3])
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.storages.add(leaf, self.running.name)
        if function is torch.ops.aten.mkldnn_rnn_layer_backward.default:
            within = sum(self.spare.pop(_key(leaf), 0) for leaf in args if isinstance(leaf, Tensor))
        name = self.running.name
        self.peaks[name] = max(self.peaks.get(name, 0), self.storages.total + within)
        return result

    @property
    def peak(self) -> int:
        """Most that was alive at once [byte]."""
        return max(self.peaks.values(), default=0)

    def _within(self, output: Tensor, workspace: Tensor | None) -> int:
        """Note what forward leaves unused of a workspace; size what it needs without one.

        Without gradients oneDNN makes room for the states of all timesteps, and frees it.
        """
        if workspace is None:
            return nbytes(output)
        spare = max(0, nbytes(workspace) - FILLED * nbytes(output))
        self.spare[_key(workspace)] = spare
        self._spare(self.running.name, spare)
        return 0

    def _spare(self, name: str, size: int) -> None:
        """Note what the backward pass of a module holds within an operation."""
        self.running.spare[name] = max(self.running.spare.get(name, 0), size)


def _key(tensor: Tensor) -> int:
    """Tell storages apart."""
    return id(tensor.untyped_storage())


@dataclass(frozen=True)
class Training:
    """Memory of forward, loss and backward [byte]."""

    saved: dict[str, int]
    """Saved for backward, by the module that saved it first."""
    gradients: dict[str, int]
    """Of the parameters that the loss depends on."""
    running: Running
    forward: dict[str, int]
    """Most that was alive at once, while a module ran, beside parameters, buffers and inputs."""
    peak: int
    """The same of the whole pass; gradients included."""
    allocated: int | None
    """The same as the allocator of the device has it."""


@dataclass(frozen=True)
class Serving:
    """Memory of a forward pass without gradients [byte]."""

    peaks: dict[str, int]
    """Most that was alive at once beside parameters, buffers and inputs, while a module ran."""
    allocated: int | None
    """The same as the allocator of the device has it."""

    @property
    def peak(self) -> int:
        """Most that was alive at once [byte]."""
        return max(self.peaks.values(), default=0)


def training(subject: Subject, batch: Batch) -> Training:
    """Run forward, loss and backward in the model's present mode."""
    model = subject.model
    running, held = Running(), _held(model, batch.inputs)
    spare: dict[int, int] = {}
    saved, live = Storages(held, spare), Live(Storages(held, spare), running, spare)

    def pack(tensor: Tensor) -> Tensor:
        running.rows.setdefault(running.name)
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
        if not loss.requires_grad:
            raise AnalyzerError(
                "the loss does not depend on any parameter that requires a gradient: the model "
                "runs under torch.no_grad, or it or the loss detaches its result"
            )
        torch.autograd.backward(loss)
    for name, size in running.spare.items():
        running.passing[name] = running.passing.get(name, 0) + size
    gradients = {
        name: nbytes(weight.grad)
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    forward = {name: size for name, size in live.peaks.items() if name != LOSS}
    return Training(rows, gradients, running, forward, live.peak, allocator.peak)


def _same(tensor: Tensor) -> Tensor:
    """Give back what was saved."""
    return tensor


def serving(subject: Subject, batch: Batch) -> Serving:
    """Run forward without gradients in the model's present mode.

    On a CPU a second time with nothing but the allocator watched, where that can be: watched
    operations leave memory alone that others write in place, and the allocator counts what is
    never written. The smaller of both counts.
    """
    running = Running()
    live = Live(Storages(_held(subject.model, batch.inputs)), running, {})
    with (
        _allocated(subject.device) as allocator,
        torch.no_grad(),
        running.watching(subject.model),
        live,
    ):
        call(subject.model, batch.inputs)
    found = live.peaks
    if available(subject.device):
        with torch.no_grad():
            handed_out = peaks(subject.model, batch.inputs)
        found = {name: min(size, handed_out.get(name, size)) for name, size in found.items()}
    return Serving(found, allocator.peak)


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
