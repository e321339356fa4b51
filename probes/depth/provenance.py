"""What every tensor of a forward pass was computed from.

The graph is kept in small nodes, not in tensors: no activation lives longer for it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

_PARAMETRIZED = ".parametrizations."

_SUMS = ("add", "add_", "__add__", "__iadd__", "__radd__", "sub", "sub_", "__sub__", "__isub__")
_PRODUCTS = ("mul", "mul_", "__mul__", "__imul__", "__rmul__", "div", "div_", "__truediv__")
_POINTWISE = frozenset([*_SUMS, *_PRODUCTS, "__itruediv__", "where", "addcmul"])
"""Operations that a matrix of parameters takes part in element by element: no layer."""

_MAKERS = ("new_", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like")
"""How the names of operations begin that read the shape of an operand, not its values."""


@dataclass(eq=False, slots=True)
class Node:
    """One value that depends on the inputs of the model.

    Parameters
    ----------
    index : int
        Order of computation.
    parents : tuple of Node
        What it was computed from, as far as that depends on the inputs.
    weights : frozenset of int
        Identities of the weight matrices that it was computed with, directly.
    dims : int
        Dimensions of the tensor.
    channel : int
        Where the features are: 1 behind a convolution, -1 behind other layers.
    """

    index: int
    parents: tuple["Node", ...]
    weights: frozenset[int]
    dims: int
    channel: int = -1


@dataclass(frozen=True)
class Path:
    """Everything between two nodes.

    Parameters
    ----------
    length : int
        Operations with weight matrices along the longest way.
    weights : frozenset of int
        All weight matrices on any way.
    """

    length: int
    weights: frozenset[int]


def paths(start: Node, end: Node, most: int = 4096) -> Path | None:
    """Find what lies on the ways from ``start`` to ``end``.

    Parameters
    ----------
    start, end : Node
        The start was computed before the end.
    most : int
        Nodes looked at before giving up, so that unrolled recurrences stay cheap.

    Returns
    -------
    Path or None
        None where the end does not depend on the start.
    """
    found, waiting = {end}, [end]
    while waiting and len(found) <= most:
        for parent in waiting.pop().parents:
            if parent.index >= start.index and parent not in found:
                found.add(parent)
                waiting.append(parent)
    if start not in found:
        return None
    lengths, weights = {start: 0}, frozenset[int]()
    for node in sorted(found - {start}, key=lambda node: node.index):
        before = [lengths[parent] for parent in node.parents if parent in lengths]
        if before:
            lengths[node] = max(before) + bool(node.weights)
            weights |= node.weights
    return Path(lengths[end], weights)


@dataclass(frozen=True)
class Held:
    """Tensors that a model holds.

    Parameters
    ----------
    owners : mapping of int to str
        Name of the module that owns each weight matrix, by the identity of the parameter.
    buffers : set of int
        Identities of the buffers.
    """

    owners: Mapping[int, str]
    buffers: set[int]

    @classmethod
    def by(cls, model: nn.Module) -> "Held":
        """List what ``model`` holds."""
        owners: dict[int, str] = {}
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                module, parametrized, _ = name.partition(_PARAMETRIZED)
                owners[id(weight)] = module if parametrized else name.rpartition(".")[0]
        return cls(owners, {id(buffer) for buffer in model.buffers()})


@dataclass(eq=False)
class Provenance:
    """Nodes of the tensors of one forward pass.

    Parameters
    ----------
    held : Held
        Of the model that runs.
    """

    held: "Held"
    _nodes: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    _constants: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    _count: int = 0
    _latest: Node | None = None

    @classmethod
    def of(cls, held: "Held", inputs: Any) -> "Provenance":
        """Begin with the inputs of the model."""
        begun = cls(held)
        for leaf in _tensors((inputs,)):
            begun._nodes[leaf] = begun._node((), frozenset(), leaf, -1)
        return begun

    def node(self, value: Any) -> Node | None:
        """Look up what a tensor depends on; None for what depends on no input."""
        if not isinstance(value, Tensor) or self._constant(value):
            return None
        found: Node | None = self._nodes.get(value)  # type: ignore[no-untyped-call]
        # Computed out of sight, such as by a custom autograd function: most likely just before.
        return found or self._latest

    def record(self, name: str, operands: Iterable[Any], outputs: Any) -> Node | None:
        """Note that an operation made ``outputs`` (changed, where they are operands)."""
        made = [*_tensors((outputs,))]
        if not made and name != "__setitem__":
            return None
        values = [*_tensors(operands)]
        made = made or values[:1]
        read = [] if name.startswith(_MAKERS) else values
        parents = tuple(dict.fromkeys(n for n in map(self.node, read) if n is not None))
        weights = frozenset[int]().union(*(self._weights(value) for value in values))
        if not parents:
            for value in made:
                self._constants[value] = weights
            return None
        weights = frozenset() if name in _POINTWISE else weights
        channel = max(parents, key=lambda parent: parent.index).channel
        if weights:
            channel = 1 if name.startswith("conv") else -1
        node = self._node(parents, weights, made[0], channel)
        for value in made:
            self._nodes[value] = node
        return node

    def alias(self, value: Tensor, node: Node) -> None:
        """Put a tensor in the place of that of ``node``."""
        self._nodes[value] = node

    def _node(
        self, parents: tuple[Node, ...], weights: frozenset[int], value: Tensor, channel: int
    ) -> Node:
        """Make the next node."""
        self._count += 1
        self._latest = Node(self._count, parents, weights, value.dim(), channel)
        return self._latest

    def _constant(self, value: Tensor) -> bool:
        """Whether a tensor is a parameter, a buffer, or made of these alone."""
        fixed = isinstance(value, nn.Parameter) or id(value) in self.held.buffers
        return fixed or value in self._constants

    def _weights(self, value: Tensor) -> frozenset[int]:
        """Weight matrices that a tensor is or was made of."""
        if id(value) in self.held.owners:
            return frozenset([id(value)])
        made: frozenset[int] | None = self._constants.get(value)  # type: ignore[no-untyped-call]
        return made or frozenset()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors in the arguments or results of an operation, in whatever they are kept."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, Mapping):
            yield from _tensors(value.values())
