"""Values of the tensors in a file, looked at in no more memory than the file takes."""

import torch
from torch import Tensor


def finite(tensor: Tensor) -> bool:
    """Tell whether every value is a number; quantised values always are."""
    if tensor.is_quantized or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    values = _values(tensor)
    try:
        # torch has no isfinite for some 8-bit types.
        return bool(torch.isfinite(values.float() if values.itemsize == 1 else values).all())
    except NotImplementedError:
        # Numbers of 4 bits, which are all finite.
        return True


def _values(tensor: Tensor) -> Tensor:
    """Return every value of a tensor, and no more of them than are in memory."""
    if tensor.layout is torch.sparse_coo:
        # Not coalesced, as nobody has compared the indices of a file with the shape.
        return tensor._values()
    if tensor.layout is not torch.strided:
        return tensor.values()
    if tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes():
        return tensor
    # A hostile file repeats values along expanded or overlapping axes, far beyond all memory.
    last = sum(
        (count - 1) * step for count, step in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return tensor.as_strided((last + 1,), (1,))
