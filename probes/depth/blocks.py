"""Residual blocks and layers that can be left out, recognised while a model runs.

A residual block is an addition of two values of one shape, the branch and the shortcut, where the
branch is computed from what the shortcut starts from by more layers than the shortcut. A layer
without a shortcut can be left out if it returns the shape that it reads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from torch.overrides import TorchFunctionMode

from probes.depth.provenance import Node, Provenance, paths

Key = tuple[bool, frozenset[int]]
"""Identity of a block: whether it has a shortcut, and the weight matrices in its branch.

What is computed with the same weights is one block, however often it is called.
"""

IDENTITY, PROJECTION, LAYER = "identity", "projection", "layer"

_SUMS = frozenset(["add", "add_", "__add__", "__iadd__", "__radd__"])
_DIFFERENCES = frozenset(["sub", "sub_", "__sub__", "__isub__"])
_NORMS = frozenset(["batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"])
_NO_LAYERS = ("embedding", "lstm", "gru", "rnn_", "multi_head_attention")


class Site(NamedTuple):
    """A place in a forward pass where a block ends."""

    key: Key
    kind: str
    """IDENTITY, PROJECTION or LAYER."""
    node: Node
    """Of the output."""
    output: Tensor
    shortcut: Tensor | None
    """What is left of the output without the block; None where nothing of its shape is."""
    branch: Tensor | None
    """What a residual block adds to the shortcut."""
    beside: frozenset[int] = frozenset()
    """Weight matrices in the shortcut."""
    normed: bool = False
    """Whether this is the end of the normalization behind a layer."""


Edit = Callable[[Site], Tensor | None]
"""Looks at a site, and may return another output."""


class _Sum(NamedTuple):
    """A residual addition, before it is computed."""

    found: "_Residual"
    shortcut: Tensor
    branch: Tensor


class _Residual(NamedTuple):
    """A residual block."""

    key: Key
    kind: str
    beside: frozenset[int]


@dataclass(eq=False)
class Watch(TorchFunctionMode):
    """Show every end of a block to ``edit`` while the block of the ``with`` statement runs.

    Parameters
    ----------
    provenance : Provenance
        Begun with the inputs of the model.
    edit : callable
        See :data:`Edit`.
    elements : int
        Numbers that all operations returned, so far.
    """

    provenance: Provenance
    edit: Edit
    elements: int = 0
    _layer: tuple[Node, Key, Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and look at what it made."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        joined = self._joined(name, args, kwargs)
        output = func(*args, **kwargs)
        node = self.provenance.record(name, [*args, *kwargs.values()], output)
        if node is None or not isinstance(output, Tensor):
            return output
        self.elements += output.numel()
        site = self._ended(joined, node, output) or self._layered(name, args, node, output)
        changed = None if site is None else self.edit(site)
        if changed is None:
            return output
        in_place = any(output is value for value in args)
        changed = output.copy_(changed) if in_place else changed
        self.provenance.alias(changed, node)
        return changed

    def _joined(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Sum | None:
        """Recognise a residual addition and take it apart, before it overwrites an operand."""
        minus = name in _DIFFERENCES
        if not (minus or name in _SUMS) or {*kwargs} - {"alpha"} or not _alike(args):
            return None
        left, right = args
        first, second = self.provenance.node(left), self.provenance.node(right)
        if first is None or second is None:
            return None
        found, swapped = _block(first, second), False
        if found is None:
            found, swapped = _block(second, first), True
        if found is None:
            return None
        factor = (-1 if minus else 1) * kwargs.get("alpha", 1)
        left = left.clone() if name.endswith("_") else left
        right = right if factor == 1 else factor * right
        return _Sum(found, *((right, left) if swapped else (left, right)))

    def _ended(self, joined: _Sum | None, node: Node, output: Tensor) -> Site | None:
        """Complete a residual addition."""
        if joined is None or joined.branch.shape != output.shape:
            return None
        key, kind, beside = joined.found
        return Site(key, kind, node, output, joined.shortcut, joined.branch, beside)

    def _layered(self, name: str, args: Sequence[Any], node: Node, output: Tensor) -> Site | None:
        """Recognise a layer, or the normalization that follows one."""
        if not output.is_floating_point():
            return None
        if node.weights and not name.startswith(_NO_LAYERS):
            sources = [a for a in args if self.provenance.node(a) is not None]
            if len(sources) != 1 or not sources[0].is_floating_point():
                return None
            self._layer = node, (False, node.weights), sources[0]
            return self._site(node, output, normed=False)
        if name in _NORMS and self._layer is not None and node.parents == (self._layer[0],):
            return self._site(node, output, normed=True)
        return None

    def _site(self, node: Node, output: Tensor, *, normed: bool) -> Site:
        """Describe the end of the latest layer."""
        assert self._layer is not None
        _, key, read = self._layer
        if read.shape != output.shape or read.dtype != output.dtype:
            return Site(key, LAYER, node, output, None, None, normed=normed)
        return Site(key, LAYER, node, output, read, None, normed=normed)


def _alike(operands: Sequence[Any]) -> bool:
    """Whether these are two floating-point tensors of one shape, with samples and features."""
    if len(operands) != 2 or not all(isinstance(value, Tensor) for value in operands):
        return False
    left, right = operands
    return bool(left.shape == right.shape and left.is_floating_point() and left.dim() > 1)


def _block(shortcut: Node, branch: Node) -> _Residual | None:
    """Identify the block if two operands of an addition are its shortcut and its branch."""
    start, used, weights = shortcut, 0, frozenset[int]()
    while True:
        path = None if start.index > branch.index else paths(start, branch)
        if path is not None:
            if path.length <= used or path.weights & weights:
                return None
            return _Residual((True, path.weights), PROJECTION if used else IDENTITY, weights)
        used, weights = used + bool(start.weights), weights | start.weights
        # One projection at most, and never a part of what another part is computed from: the
        # timesteps of a recurrence are no residual blocks.
        if len(start.parents) != 1 or used > 1 or start.parents[0].dims != start.dims:
            return None
        start = start.parents[0]
