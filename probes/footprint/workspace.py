"""What convolutions on a CPU hold within themselves, as the allocator has it.

oneDNN copies what a convolution reads and returns into layouts of its own, and other kernels lay
out columns. All of that is freed before the operation returns, so that no tensor shows it.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from probes.footprint.allocator import available, recorded

FORWARD = frozenset({torch.ops.aten.convolution.default, torch.ops.aten._convolution.default})
"""Their second argument is the weight."""

BACKWARD = frozenset({torch.ops.aten.convolution_backward.default})
"""Its third argument is the weight."""


class Workspaces:
    """Runs operations, and measures every kind of call of a convolution once."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def run(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, int]:
        """Run an operation; say how much it held at once beyond what it returned [byte].

        That is zero for all but convolutions on a CPU, and while a profiler of the caller runs:
        there cannot be two.
        """
        if function not in FORWARD | BACKWARD:
            return function(*args, **kwargs), 0
        key = function, *map(_kind, tree_leaves((args, kwargs)))
        if key in self._known or not available(args[0].device):
            return function(*args, **kwargs), self._known.get(key, 0)
        with recorded() as record:
            result = function(*args, **kwargs)
        changes = record.changes()
        self._known[key] = max(accumulate(changes, initial=0)) - sum(changes)
        return result, self._known[key]


def _kind(leaf: Any) -> Hashable:
    """Tell calls apart by what their memory depends on."""
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    strides = leaf.stride() if leaf.layout is torch.strided else ()
    return leaf.dtype, leaf.layout, leaf.shape, strides
