"""Norms that neither round nor leave the range of float32.

Shapes: B sample; ... other axes.
"""

import torch
from torch import Tensor

SAFE = 1e-15
"""Norms above this, and below its inverse, are exact in float32 up to rounding: the squares of
vanishing or exploding values leave its range long before they do."""

_FEW = 2**16
"""Values that are summed in float64 at once, which takes a copy of them."""


def far(values: Tensor) -> bool:
    """Whether values are on a device that works on its own: to look at one waits for all before."""
    return values.device.type != "cpu"


def unsafe(norm_B: Tensor) -> Tensor | None:
    """Say which norms the range of float32 may have spoilt: (B,), also zero and nan; None if none.

    One look at the extremes settles most cases.
    """
    low, high = norm_B.aminmax()
    if float(low) > SAFE and float(high) < 1 / SAFE:
        return None
    return ~((norm_B > SAFE) & (norm_B < 1 / SAFE))


def rough(values: Tensor) -> Tensor:
    """Norm over all axes but the first, in float64: (B,), for values within a safe range.

    In two steps, as a sum of millions of squares in float32 loses half of its digits. Far from the
    CPU in float64 at once, for values of any size: it takes no longer there.
    """
    if values.dim() == 1:
        return values.abs().double()
    if far(values):
        exact_B: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1, dtype=torch.float64)
        return exact_B
    inner: Tensor = torch.linalg.vector_norm(values.flatten(min(2, values.dim() - 1)), dim=-1)
    inner = inner.double()
    norm_B: Tensor = torch.linalg.vector_norm(inner, dim=1) if inner.dim() == 2 else inner
    return norm_B


def by_sample(values: Tensor, dim: int = 0) -> Tensor:
    """Norm of each sample, whose axis is ``dim``, in float64: (B,), for values of any size."""
    first = values.movedim(dim, 0) if dim else values
    if first.dtype in (torch.float16, torch.bfloat16):
        first = first.float()
    norm_B = rough(first)
    if first.dtype != torch.float64 and not far(first):
        unsafe_B = unsafe(norm_B)
        if unsafe_B is not None:
            norm_B[unsafe_B] = rough(first[unsafe_B].double())
    return norm_B


def whole(values: Tensor) -> Tensor:
    """Norm over all elements, in float64."""
    if values.numel() > _FEW:
        return by_sample(values.unsqueeze(0))[0]
    norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return norm
