"""Watch every layer of recurrent modules while a model runs, or put something in its place.

What a layer passes on can be changed without its recurrence: then the layer above, and whoever
else reads its states, see the changed ones, while the next timestep starts from its own.

Both directions of a layer are one. A layer that is replaced returns what a function makes of its
input at the same timestep; its final hidden states are the ends of that, and its cell state stays
the initial one.

Shapes: T timestep, B sample, I input feature, E output feature (directions * hidden state), D
direction, P hidden state. Data without suffix may be packed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from probes.recurrent.backward.clock import Clock
from probes.recurrent.backward.record import Site
from probes.recurrent.watching.interception import CELLS, FusedCall, RecurrentCalls
from probes.recurrent.watching.naming import Names

Substitute = Callable[[Tensor], Tensor]
"""What takes the place of a layer: (..., I) -> (..., E)."""


class Reading(NamedTuple):
    """What a layer read and returned in one call, in the order of the data and of the samples."""

    label: str
    """Name of the layer, such as "encoder.l1"."""
    kind: str
    """"lstm", "gru", "rnn_tanh" or "rnn_relu"."""
    x: Tensor
    """Shape (T, B, I), zero past the end of a sample."""
    y: Tensor
    """Shape (T, B, E), likewise."""
    lengths: Tensor
    """Valid timesteps of each sample: (B,)."""
    weights: tuple[Tensor, ...]
    """Weights of both directions."""


class Layers(RecurrentCalls):
    """Run recurrent modules layer by layer, bit-equal to torch but for what is replaced.

    Parameters
    ----------
    model : Module
        Not modified; call it inside the ``with`` block.
    replaced : mapping of str to callable
        What takes the place of a layer, by its label.
    watch : callable, optional
        Called with every reading of a layer that is not replaced.
    passed : mapping of str to callable
        What hidden states are changed by, (..., E) -> (..., E), on their way out of a layer, by
        its label. A state that comes back as it was passed on, to the next call of the module or
        cell, is taken for the unchanged one.
    """

    def __init__(
        self,
        model: nn.Module,
        replaced: Mapping[str, Substitute] | None = None,
        watch: Callable[[Reading], None] | None = None,
        passed: Mapping[str, Substitute] | None = None,
    ) -> None:
        super().__init__()
        self._passed = passed or {}
        self._own: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._names = Names(model)
        self._replaced = replaced or {}
        self._watch = watch

    def _module(self, call: FusedCall) -> tuple[Tensor, ...]:
        """Compute a whole module, one layer after the other."""
        name, clock = self._names.of(call.weights, call.kind), call.clock()
        own: list[Tensor] = []

        def run(
            layer: int, x: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]
        ) -> Sequence[Tensor]:
            label = Site(name, call.kind, layer).label
            if label in self._replaced:
                y = self._replaced[label](x)
                own.append(_ends(clock.padded(y), clock.lengths(), states[0]))
                return y, own[-1], *states[1:]
            y, *after = call.layer(weights, x, states)
            self._see(label, call.kind, clock, (x, y), tuple(weights))
            own.append(after[0])
            if label in self._passed:
                y = self._passed[label](y)
                after[0] = _ends(clock.padded(y), clock.lengths(), states[0])
            return y, *after

        before = tuple(map(self._unchanged, call.states))
        found = replace(call, states=before).layer_by_layer(run)
        if self._passed:
            self._own[found[1]] = torch.cat(own)
        return found

    def _cell(
        self,
        function: Callable[..., Any],
        input: Tensor,
        hx: Tensor | Sequence[Tensor],
        *weights: Tensor | None,
        **named: Tensor | None,
    ) -> Any:
        """Compute one call of a cell: a layer of one timestep."""
        kind = CELLS[function]
        used = tuple(weight for weight in (*weights, *named.values()) if weight is not None)
        label = Site(self._names.of(used, kind), kind).label
        if label in self._replaced:
            h = self._replaced[label](input).clone()
            return h if isinstance(hx, Tensor) else (h, hx[1])
        states = (hx,) if isinstance(hx, Tensor) else hx
        before = [self._unchanged(state) for state in states]
        after = function(input, before[0] if isinstance(hx, Tensor) else before, *weights, **named)
        h = after if isinstance(after, Tensor) else after[0]
        rows = input.unsqueeze(0), h.unsqueeze(0)
        self._see(label, kind, Clock(1, len(input)), rows, used)
        if label not in self._passed:
            return after
        changed = self._passed[label](h)
        self._own[changed] = h
        return changed if isinstance(after, Tensor) else (changed, after[1])

    def _unchanged(self, state: Tensor) -> Tensor:
        """Look up what a state was before it was passed on."""
        own: Tensor | None = self._own.get(state)  # type: ignore[no-untyped-call]
        return state if own is None else own

    def _see(
        self,
        label: str,
        kind: str,
        clock: Clock,
        data: tuple[Tensor, Tensor],
        weights: tuple[Tensor, ...],
    ) -> None:
        """Show what a layer did."""
        if self._watch is None:
            return
        x_TBI, y_TBE = (clock.by_sample(clock.padded(part), 1) for part in data)
        length_B = clock.by_sample(clock.lengths(), 0)
        self._watch(Reading(label, kind, x_TBI, y_TBE, length_B, weights))


def _ends(y_TBE: Tensor, length_B: Tensor, before_DBP: Tensor) -> Tensor:
    """Last outputs of each direction, in its order of reading: (D, B, P)."""
    rows_B = torch.arange(len(length_B), device=y_TBE.device)
    units = before_DBP.shape[-1]
    last_BP = y_TBE[length_B.to(y_TBE.device) - 1, rows_B, :units]
    return torch.stack([last_BP, y_TBE[0, :, units:]][: len(before_DBP)])
