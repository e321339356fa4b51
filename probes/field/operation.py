"""One call of an operator as the rules see it: its arguments by name, and what they depend on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from probes.field.intervals import Field, everything


@dataclass(frozen=True)
class Reading:
    """Which question the propagation answers.

    Parameters
    ----------
    extended : bool
        Whether feature maps go on beyond their edges, as on an infinite canvas: sizes are then
        those of the literature. Otherwise fields are clipped to the input.
    gates : bool
        Whether a map depends on a gate or a statistic of the whole map that it is multiplied
        by, divided by or centered with.
    """

    extended: bool
    gates: bool


EXTENDED = Reading(extended=True, gates=True)
UNGATED = Reading(extended=True, gates=False)
CLIPPED = Reading(extended=False, gates=True)


class ValuesNeededError(RuntimeError):
    """The rule needs the values of a tensor that has none, because the pass is symbolic."""


@dataclass
class Operation:
    """One call of an operator.

    Parameters
    ----------
    func : OpOverload
        What was called.
    args, kwargs
        What it was called with.
    shape : tuple of int
        Of the first tensor among the arguments, before the call.
    outs : list of Tensor
        What it returned.
    lookup : callable
        Field of a tensor, or None if it depends on no input.
    reading : Reading
        Which question is answered.
    where : str
        Module that made the call.
    """

    func: OpOverload
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    shape: tuple[int, ...]
    outs: list[Tensor]
    lookup: Callable[[Tensor], Field | None]
    reading: Reading
    where: str = ""
    gated: bool = field(default=False, init=False)
    """Set by a rule whose answer depends on ``reading.gates``."""

    @property
    def base(self) -> str:
        """Name of the operator, the same whether it works in place or not."""
        return base_name(self.func)

    @property
    def output(self) -> tuple[int, ...]:
        """Shape of the first tensor that was returned."""
        return tuple(self.outs[0].shape)

    def __getitem__(self, name: str) -> Any:
        """Argument called ``name`` in the operator's schema, or its default."""
        position, default = _parameters(self.func)[name]
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def __contains__(self, name: str) -> bool:
        return name in _parameters(self.func)

    def get(self, name: str, default: Any = None) -> Any:
        """Argument called ``name``, or ``default`` if the operator has none of that name."""
        if name not in self:
            return default
        return self[name]

    def field(self, value: Any) -> Field | None:
        """Look up what ``value`` depends on; None for no tensor, or no input."""
        return self.lookup(value) if isinstance(value, Tensor) else None

    def main(self) -> Field | None:
        """Look up what the first argument depends on."""
        return self.field(self.args[0])

    def sources(self) -> list[tuple[Tensor, Field]]:
        """Tensors among the arguments that depend on the input, lists included."""
        found = []
        values = [*self.args, *read_values(self.func, self.kwargs)]
        for value in values:
            for item in value if isinstance(value, list | tuple) else [value]:
                known = self.field(item)
                if known is not None:
                    found.append((item, known))
        return found

    def cause(self, words: str) -> str:
        """Say what makes a span the whole input, and where."""
        return f"{words} ({self.base}) in {self.where or 'the model itself'}"

    def whole(self, words: str, *, known: bool = True) -> list[Field]:
        """Let every output depend on all that any operand depends on, because of ``words``."""
        axes = [*zip(*(field for _, field in self.sources()), strict=True)]
        cause = self.cause(words)
        return [
            tuple(everything(spans, out.dim(), cause, known=known) for spans in axes)
            for out in self.outs
        ]


Rule = Callable[[Operation], Sequence[Field | None]]
"""What each output depends on; a single answer stands for all outputs, None for no input."""


def named(rule: Rule, names: str) -> dict[str, Rule]:
    """Enter one rule into a table under several names, separated by spaces."""
    return dict.fromkeys(names.split(), rule)


@cache
def base_name(func: OpOverload) -> str:
    """Name of an operator without namespace, overload and the underscore of in-place variants."""
    name: str = func.overloadpacket.__name__
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def read_values(func: OpOverload, kwargs: Mapping[str, Any]) -> list[Any]:
    """Keyword arguments but for those that results are written to (``out``)."""
    return [value for name, value in kwargs.items() if name not in written_names(func)]


@cache
def written_names(func: OpOverload) -> frozenset[str]:
    """Keywords of the tensors that results are written to: ``out``, or one for each result."""
    return frozenset(argument.name for argument in func._schema.arguments if argument.is_out)


@cache
def _parameters(func: OpOverload) -> dict[str, tuple[int, Any]]:
    """Position and default of every argument."""
    return {
        argument.name: (position, argument.default_value if argument.has_default_value() else None)
        for position, argument in enumerate(func._schema.arguments)
    }
