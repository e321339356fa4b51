"""What probes must leave as it was: everything that a user can see of a model and around it."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn


def precisions() -> list[Any]:
    backends = torch.backends
    # Before torch 2.9 some of these are not there.
    owners = [
        getattr(backend, kind, None)
        for backend in (backends.cuda, backends.cudnn, backends.mkldnn)
        for kind in ("matmul", "conv", "rnn")
    ]
    return [getattr(owner, "fp32_precision", None) for owner in owners]


@pytest.fixture(name="precisions")
def how_precise() -> Callable[[], list[Any]]:
    return precisions


def settings() -> list[Any]:
    backends = torch.backends
    return [
        backends.cudnn.enabled,
        backends.cudnn.benchmark,
        backends.cudnn.deterministic,
        torch.is_grad_enabled(),
        *precisions(),
    ]


def state(model: nn.Module) -> dict[str, Any]:
    values = [*model.named_parameters(), *model.named_buffers()]
    gradients = [(name, weight.grad) for name, weight in model.named_parameters()]
    return {
        "bits": {name: value.detach().clone() for name, value in values},
        "identity": {name: (id(value), value.data_ptr()) for name, value in values},
        "gradients": {name: None if g is None else g.clone() for name, g in gradients},
        "flags": {name: weight.requires_grad for name, weight in model.named_parameters()},
        "modules": {name: (id(m), m.training) for name, m in model.named_modules()},
        "hooks": [
            {key: list(table) for key, table in vars(module).items() if key.endswith("_hooks")}
            for module in model.modules()
        ],
        "attributes": [list(vars(module)) for module in model.modules()],
        "torch random": torch.get_rng_state(),
        "numpy random": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python random": random.getstate(),
        "settings": settings(),
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


@pytest.fixture
def changes() -> Callable[[nn.Module], Callable[[], list[str]]]:
    """``changed = changes(model)`` looks now; ``changed()`` names what has changed since."""

    def look(model: nn.Module) -> Callable[[], list[str]]:
        before = state(model)

        def changed() -> list[str]:
            after = state(model)
            return [name for name in before if not same(before[name], after[name])]

        return changed

    return look
