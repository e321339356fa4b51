"""Backend settings that change results: full float32 precision, no autotuning, put back after.

torch 2.9 has a second interface to the same settings (``fp32_precision``); once a process has used
it, reading the first one may raise, so both are saved and each is set only where it can be.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_LOWER = ("tf32", "bf16")


@contextmanager
def exact() -> Iterator[None]:
    """Compute matrix products, convolutions and recurrences in full float32, the same way twice."""
    cudnn = torch.backends.cudnn
    modes = cudnn.benchmark, cudnn.deterministic
    first, second = _first(), _second()
    try:
        cudnn.benchmark, cudnn.deterministic = False, True
        if first is not None:
            _set_first("highest", False)
        for owner, _ in second:
            if owner.fp32_precision in _LOWER:
                owner.fp32_precision = "ieee"
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = modes
        if first is not None:
            _set_first(*first)
        for owner, precision in second:
            owner.fp32_precision = precision


def _first() -> tuple[str, bool] | None:
    """Read the first interface; None where the second one has been used against it."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_first(matmul: str, convolution: bool) -> None:
    """Write the first interface."""
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution


def _second() -> list[tuple[Any, str]]:
    """Read the second interface: who owns the setting, and what it is; empty before torch 2.9."""
    backends = torch.backends
    owners: list[Any] = [
        getattr(backend, kind, None)
        for backend in (backends.cuda, backends.cudnn, backends.mkldnn)
        for kind in ("matmul", "conv", "rnn")
    ]
    return [(owner, owner.fp32_precision) for owner in owners if hasattr(owner, "fp32_precision")]
