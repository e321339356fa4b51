"""All that an audit must leave as it was: the model, its hooks, the data, torch's settings."""

import random
import sys
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from probes.base import Batch, Subject
from probes.structure import leaves


def surroundings(subject: Subject) -> dict[str, Any]:
    """Take down everything; compare with :func:`changes`."""
    return {**_model(subject.model), **_settings(), **_random(), "data": _data(subject)}


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name what differs."""
    return [key for key in before if not _same(before[key], after[key])]


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and _bytes(left) == _bytes(right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def _bytes(values: Tensor) -> bytes:
    values = values.detach()
    if values.is_quantized:
        values = values.int_repr()
    return values.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _copied(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach().clone()


def _model(model: nn.Module) -> dict[str, Any]:
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    known = {name: t for name, t in tensors.items() if not nn.parameter.is_lazy(t)}
    named = dict(model.named_modules())
    return {
        "values": {name: _copied(value) for name, value in known.items()},
        "identity": {name: (id(t), t.data_ptr(), t._version >= 0) for name, t in known.items()},
        "gradients": {name: _copied(value.grad) for name, value in known.items()},
        "flags": {name: value.requires_grad for name, value in tensors.items()},
        "hooks of tensors": {n: list(t._backward_hooks or ()) for n, t in tensors.items()},
        "modes": {name: one.training for name, one in named.items()},
        "modules": {name: id(one) for name, one in named.items()},
        "hooks": {
            name: {key: list(held) for key, held in vars(one).items() if "_hooks" in key and held}
            for name, one in named.items()
        },
        "attributes": {
            name: {key: id(value) for key, value in vars(one).items()}
            for name, one in named.items()
        },
        "state": [*model.state_dict()] if len(known) == len(tensors) else [],
        "hooks of all modules": [
            len(getattr(modules, key)) for key in sorted(vars(modules)) if "_global_" in key
            and hasattr(getattr(modules, key), "__len__")
        ],
    }  # fmt: skip


def _settings() -> dict[str, Any]:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return {
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "matmul": (
            torch.get_float32_matmul_precision(),
            cuda.allow_tf32,
            cuda.allow_fp16_reduced_precision_reduction,
        ),
        "onednn": torch.backends.mkldnn.enabled,
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "gradients on": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "anomaly mode": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "default type": (torch.get_default_dtype(), torch.get_default_device()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "modes of torch": (
            torch._C._len_torch_function_stack(),
            torch._C._len_torch_dispatch_stack(),
        ),
        "numpy": np.geterr(),
        "warnings": list(warnings.filters),
        "recursion": sys.getrecursionlimit(),
    }


def _random() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - what must not move
    return {
        "random numbers of torch": torch.get_rng_state(),
        "random numbers of numpy": (kind, keys.tolist(), *rest),
        "random numbers of Python": random.getstate(),
    }


def _data(subject: Subject) -> list[Any]:
    found = []
    for batch in map(Batch.of, subject.batches):
        for leaf in leaves((batch.inputs, batch.targets, batch.lengths)):
            tensor = leaf.data if hasattr(leaf, "batch_sizes") else leaf
            if isinstance(tensor, Tensor):
                found += [_copied(tensor), tensor.requires_grad, tensor.grad is None]
    return found
