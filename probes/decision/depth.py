"""The layers of stacked recurrent modules, one by one, while a model runs.

Both directions of a layer are one: only together do they carry what flows through it.

Shapes: T timestep, B sample, D direction, P hidden state, E output feature (D * P).
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from probes.recurrent.backward.clock import Clock
from probes.recurrent.watching.interception import Interception, LayerCall


class Returned(NamedTuple):
    """What one layer of a recurrent module returned, to the layer above it and to the caller."""

    clock: Clock
    y: Tensor
    """Its output: (T, B, E), or packed."""
    states: tuple[Tensor, ...]
    """Its final hidden and, of an LSTM, cell states: (D, B, P) and (D, B, H), as sorted."""

    def parts(self, samples: int) -> list[tuple[Tensor, "Timed"]]:
        """List its tensors; none if it reads another number of sequences than ``samples``."""
        if self.clock.samples != samples:
            return []
        states = [(state, Timed(self.clock, final=True)) for state in self.states]
        return [(self.y, Timed(self.clock, final=False)), *states]


@dataclass(frozen=True)
class Timed:
    """Where samples and channels are in a tensor that a recurrent layer returned.

    Parameters
    ----------
    clock : Clock
        Of the call.
    final : bool
        Whether it is a final state rather than the output.
    """

    clock: Clock
    final: bool

    def rows(self, values: Tensor) -> Tensor:
        """Order the numbers of the tensor: (B, T or D, channel)."""
        ordered = values if self.final else self.clock.padded(values)
        return self.clock.by_sample(ordered, 1).transpose(0, 1)


def is_stacked(module: nn.Module) -> bool:
    """Whether this is a recurrent module of several layers."""
    return isinstance(module, nn.RNNBase) and module.num_layers > 1


def owner_of(label: str, names: Collection[str]) -> str:
    """Name the call whose layer has this label: "rnn#2" of "rnn#2.l1"; the label itself if none."""
    name, _, layer = label.rpartition(".")
    own = layer[:1] == "l" and layer[1:].isdigit() and label not in names
    return name if own else label


@contextmanager
def taken_apart(model: nn.Module, visit: Callable[[str, int, Returned], None]) -> Iterator[None]:
    """Show ``visit`` what every layer of every recurrent module returns, with name and number.

    Parameters
    ----------
    model : Module
        Not modified; what it computes stays the same.
    visit : callable
        ``visit(module, layer, returned)``, before anything is done with what is returned.
    """

    def compute(call: LayerCall) -> tuple[Tensor, ...]:
        y, *states = call.computed()
        site = call.sites[0]
        visit(site.module, site.layer, Returned(call.clock, y, tuple(states)))
        return y, *states

    with Interception(model, compute, refusing=False):
        yield
