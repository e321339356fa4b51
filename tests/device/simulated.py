"""A second device on any machine: its tensors mix with none of the CPU's; waiting for it counts.

Tensors of the device hold their values in a tensor of the CPU that only :class:`Device` sees. Where
CUDA would refuse an operation for tensors on two devices, so does it; where CUDA would make the CPU
wait until all is computed, it notes the line. What it cannot show: other rounding, other kernels.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten

PLACE = torch.device("meta")
"""What the tensors of the simulated device say: a device that torch knows and cannot compute on."""

WAITING = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.unique_dim.default,
}
"""Operations whose result, or its shape, the CPU needs to go on."""

MIXING = {
    aten._index_put_impl_.default,
    aten._to_copy.default,
    aten.copy_.default,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
}
"""Operations that take tensors of two devices: copies, and indices of the CPU."""

PACKING = {aten._pack_padded_sequence.default, aten._pad_packed_sequence.default}
"""Operations that take lengths of the CPU and return others as their second result."""


class Remote(Tensor):
    """A tensor of the simulated device."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "Remote":
        self: Remote = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=PLACE,
        )
        self.held = held
        return self

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    # Lists of indices would become tensors of the real "meta", which have no values.
    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_spelled(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_spelled(index), value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError(f"{func}: the simulated device is switched off")


class Device(TorchDispatchMode):
    """The simulated device, while this mode is on.

    Attributes
    ----------
    waits : Counter
        How often each line of the package waited for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        remote = any(isinstance(tensor, Remote) for tensor in tensors)
        wanted = torch.device(kwargs["device"]) if kwargs.get("device") else None
        if not remote and wanted != PLACE:
            return func(*args, **kwargs)
        _refuse(func, args, kwargs, tensors)
        into_cpu = func is aten.copy_.default and not isinstance(args[0], Remote)
        fetched = into_cpu or wanted not in (None, PLACE)
        if fetched or func in WAITING or _selects(func, args) or _sends(tensors, kwargs):
            self.waits[_line()] += 1
        if wanted == PLACE:
            kwargs["device"] = torch.device("cpu")
        found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if into_cpu:
            return args[0]
        if fetched:
            return found
        if func in PACKING:
            return Remote(found[0]), found[1]
        return return_and_correct_aliasing(func, args, kwargs, tree_map(_remote, found))


def _refuse(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
) -> None:
    """Raise where CUDA would; single numbers of the CPU go with anything."""
    here = _of_the_cpu(tensors)
    if here and len(here) < len(tensors) and func not in MIXING | PACKING:
        raise RuntimeError(f"{func}: tensors on two devices, {_line()}")
    if func is aten.index.Tensor and not isinstance(args[0], Remote):
        raise RuntimeError(f"{func}: values of the CPU, indices of the device, {_line()}")
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the CPU, {_line()}")


def _selects(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an index is a mask of the device: how much it selects decides on the shape."""
    return func is aten.index.Tensor and any(
        isinstance(index, Remote) and index.dtype == torch.bool for index in args[1]
    )


def _sends(tensors: list[Tensor], kwargs: dict[str, Any]) -> bool:
    """Whether values of the CPU are copied to the device; a single number goes with the call."""
    return bool(_of_the_cpu(tensors)) and not kwargs.get("non_blocking")


def _of_the_cpu(tensors: list[Tensor]) -> list[Tensor]:
    """Pick the tensors of the CPU that are more than a single number."""
    return [tensor for tensor in tensors if not isinstance(tensor, Remote) and tensor.dim()]


def _line() -> str:
    """Name the line of the package that is at work."""
    stack = reversed(traceback.extract_stack())
    frame = next(f for f in stack if "/tests/" not in f.filename and "/torch/" not in f.filename)
    return f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno} {frame.line}"


def _spelled(index: Any) -> Any:
    """Turn lists of indices into tensors."""
    if isinstance(index, tuple):
        return tuple(_spelled(part) for part in index)
    if not isinstance(index, (list, range)):
        return index
    return torch.tensor(index) if len(index) else torch.empty(0, dtype=torch.long)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Remote) else value


def _remote(value: Any) -> Any:
    return Remote(value) if isinstance(value, Tensor) else value


@contextmanager
def simulated_device() -> Iterator[Device]:
    """Switch the device on."""
    # These two never reach a dispatch mode with the device that they are given.
    tensor, autocast = torch.tensor, torch.is_autocast_enabled

    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        found = tensor(*args, **kwargs)
        return found if device is None else found.to(device)

    def enabled(kind: str = "cpu") -> bool:
        return kind != PLACE.type and autocast(kind)

    with patch("torch.tensor", made), patch("torch.is_autocast_enabled", enabled), Device() as on:
        yield on


def moved(model: nn.Module) -> nn.Module:
    """Move the weights and buffers of a model to the device, in place; what is tied stays so."""
    weights = {
        weight: nn.Parameter(Remote(weight.detach()), weight.requires_grad)
        for weight in model.parameters()
    }
    for module in model.modules():
        for name, weight in module._parameters.items():
            module._parameters[name] = None if weight is None else weights[weight]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else Remote(buffer)
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    return model
