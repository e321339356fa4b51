"""Catch the recurrent operations that a model runs, layer by layer, without touching the model.

Every call of torch's fused recurrent operations, and of its cells, is caught on its way; whoever
watches is handed its layers one after the other, and says what each of them returns.

Shapes: T timestep, B sample, D direction, P hidden state, H unit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probes.errors import AnalyzerError
from probes.recurrent.backward.clock import Clock
from probes.recurrent.backward.layer import Fused
from probes.recurrent.backward.record import Site
from probes.recurrent.watching.naming import Names
from probes.recurrent.watching.refusals import callers, refuse

_VF: Any = torch._VF
_CLASSES = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}
FUSED = {getattr(_VF, kind): kind for kind in _CLASSES}
"""Operation of torch for whole modules -> kind."""

CELLS = {getattr(_VF, f"{kind}_cell"): kind for kind in _CLASSES}
"""Operation of torch for one timestep of a cell -> kind."""

_ORDER = (
    *("input", "data", "batch_sizes", "hx", "params", "has_biases"),
    *("num_layers", "dropout", "train", "bidirectional", "batch_first"),
)
_FORWARDS = {module.forward.__code__ for module in (nn.LSTM, nn.GRU, nn.RNN)}


class LayerCall(NamedTuple):
    """One layer, in all its directions, during one call of its module."""

    fused: Fused
    """The operation of torch, for this layer alone."""
    sites: Sequence[Site]
    """Of every direction."""
    clock: Clock
    """Where its timesteps and samples are."""
    x: Tensor
    """Its input, time first or packed."""
    states: tuple[Tensor, ...]
    """Hidden and, of an LSTM, cell states before: (D, B, P) and (D, B, H)."""
    weights: Sequence[Tensor]
    """Of all directions, in the order of torch."""

    def computed(self) -> tuple[Tensor, ...]:
        """Return the output and the final states, by the operation of torch."""
        return self.fused(self.x, self.states)


Compute = Callable[[LayerCall], tuple[Tensor, ...]]
"""Returns the output and the final states of a layer."""


@dataclass(frozen=True, eq=False)
class FusedCall:
    """Arguments of a fused operation, the same for packed and for plain data."""

    function: Callable[..., Any]
    kind: str
    x: Tensor
    batch_sizes: Tensor | None
    states: tuple[Tensor, ...]
    weights: list[Tensor]
    biases: bool
    layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool = False

    @classmethod
    def of(
        cls, function: Callable[..., Any], positional: Sequence[Any], named: Mapping[str, Any]
    ) -> "FusedCall":
        """Read (x, states, weights, ...) or, of packed data, (x, batch_sizes, states, ...)."""
        arguments = [*positional, *(named[name] for name in _ORDER if name in named)]
        packed = isinstance(arguments[3], list | tuple)
        x, *sizes = arguments[: 1 + packed]
        states, *rest = arguments[1 + packed :]
        states = (states,) if isinstance(states, Tensor) else tuple(states)
        return cls(function, FUSED[function], x, sizes[0] if packed else None, states, *rest)

    @property
    def directions(self) -> int:
        """Number of directions of every layer."""
        return 2 if self.bidirectional else 1

    def weights_of(self, layer: int) -> list[Tensor]:
        """Pick the weights of one layer, of all its directions."""
        count = len(self.weights) // self.layers
        return self.weights[layer * count : (layer + 1) * count]

    def clock(self) -> Clock:
        """Say where every timestep and sample is."""
        if self.batch_sizes is None:
            samples, timesteps = self.x.shape[:2] if self.batch_first else self.x.shape[1::-1]
            return Clock(timesteps, samples)
        return Clock(len(self.batch_sizes), int(self.batch_sizes[0]), self.batch_sizes, _order())

    def layer(
        self, weights: Sequence[Tensor], x: Tensor, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Run one layer alone, by the same operation."""
        hx = states if self.kind == "lstm" else states[0]
        data = (x,) if self.batch_sizes is None else (x, self.batch_sizes)
        order = (False,) if self.batch_sizes is None else ()
        outputs: tuple[Tensor, ...] = self.function(
            *data, hx, list(weights), self.biases, 1, 0.0, False, self.bidirectional, *order
        )
        return outputs

    def layer_by_layer(self, run: "Run") -> tuple[Tensor, ...]:
        """Compute the whole module: every layer reads what the one before it returns.

        Parameters
        ----------
        run : callable
            Called with the number of each layer, its input (time first or packed), its states
            before and its weights; returns its output and its final states.

        Returns
        -------
        tuple of Tensor
            Output and final states, as the fused operation returns them.
        """
        y = self.x.transpose(0, 1) if self.batch_first else self.x
        final: list[Sequence[Tensor]] = []
        for layer in range(self.layers):
            states = tuple(state.chunk(self.layers)[layer].contiguous() for state in self.states)
            y, *after = run(layer, y, states, self.weights_of(layer))
            final.append(after)
        ends = [torch.cat(states) for states in zip(*final, strict=True)]
        # A copy: the model may change its output in place, and the layer, or what took its place
        # and returned its input, still needs it.
        return (y.transpose(0, 1) if self.batch_first else y).clone(), *ends


Run = Callable[[int, Tensor, tuple[Tensor, ...], list[Tensor]], Sequence[Tensor]]
"""Returns the output and the final states of a layer of a module."""


def _order() -> Tensor | None:
    """Where each sample is in the batch that packing sorted; None if it was not sorted."""
    for frame in callers():
        if frame.f_code in _FORWARDS:
            order: Tensor | None = frame.f_locals["unsorted_indices"]
            return order
    raise AnalyzerError(
        "a recurrent operation runs on packed data outside of torch.nn.LSTM, GRU and RNN: the "
        "order of the samples is not known there; call it through one of these"
    )


def _shown(name: str, kind: str, *, cell: bool = False) -> str:
    """Name a module and its class in a message."""
    return f"{name or 'the model'} ({_CLASSES[kind]}{'Cell' if cell else ''})"


class RecurrentCalls(TorchFunctionMode):
    """Hand recurrent operations to ``_module`` and ``_cell``; let everything else pass."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Catch the recurrent operations."""
        kwargs = kwargs or {}
        if func in FUSED:
            return self._module(FusedCall.of(func, args, kwargs))
        if func in CELLS:
            return self._cell(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _module(self, call: FusedCall) -> tuple[Tensor, ...]:
        """Compute a whole module."""
        raise NotImplementedError

    def _cell(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Compute one call of a cell."""
        raise NotImplementedError


class Interception(RecurrentCalls):
    """Have recurrent operations computed layer by layer; let everything else pass.

    Parameters
    ----------
    model : Module
        Not modified; call it inside the ``with`` block.
    compute : callable
        Called with every layer in turn; returns its output and its final states, as
        :meth:`LayerCall.computed` does.
    refusing : bool
        Whether circumstances are refused in which no gradient over time can be measured.

    Raises
    ------
    AnalyzerError
        While the model runs: a recurrent layer runs where it cannot be measured.
    """

    def __init__(self, model: nn.Module, compute: Compute, *, refusing: bool = True) -> None:
        super().__init__()
        self._refusing = refusing
        self._names = Names(model)
        self._compute = compute
        self._ends: dict[str, tuple[int, Tensor]] = {}

    def _module(self, call: FusedCall) -> tuple[Tensor, ...]:
        """Compute a whole module, one layer after the other."""
        name = self._admitted(call.kind, call.x, call.weights)
        if call.train and call.dropout and call.layers > 1:
            raise AnalyzerError(
                f"{_shown(name, call.kind)} drops states between its layers at random: put the "
                "model in eval mode"
            )
        clock = call.clock()
        sequence = self._sequence(name, call.states[0], packed=call.batch_sizes is not None)

        def run(
            layer: int, x: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]
        ) -> tuple[Tensor, ...]:
            sites = [
                Site(name, call.kind, layer, reverse, sequence)
                for reverse in (False, True)[: call.directions]
            ]
            fused = partial(call.layer, weights)
            return self._compute(LayerCall(fused, sites, clock, x, states, weights))

        found = call.layer_by_layer(run)
        self._ends[name] = (sequence, found[1].detach())
        return found

    def _cell(
        self,
        function: Callable[..., Any],
        input: Tensor,
        hx: Tensor | Sequence[Tensor],
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        """Compute one call of a cell: a layer of one timestep."""
        kind = CELLS[function]
        weights = [weight for weight in (w_ih, w_hh, b_ih, b_hh) if weight is not None]
        name = self._admitted(kind, input, weights, cell=True)
        states = (hx,) if isinstance(hx, Tensor) else tuple(hx)

        def step(x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            before = tuple(state[0] for state in states)
            after = function(x[0], before if kind == "lstm" else before[0], *weights)
            after = (after,) if isinstance(after, Tensor) else after
            # The hidden state twice: as the output and as the final state of one timestep.
            return after[0].clone().unsqueeze(0), *(state.unsqueeze(0) for state in after)

        sequence = self._sequence(name, states[0], packed=False)
        _, *after = self._compute(
            LayerCall(
                step,
                [Site(name, kind, sequence=sequence)],
                Clock(1, len(input)),
                input.unsqueeze(0),
                tuple(state.unsqueeze(0) for state in states),
                weights,
            )
        )
        self._ends[name] = (sequence, after[0][0].detach())
        return (after[0][0], after[1][0]) if kind == "lstm" else after[0][0]

    def _admitted(
        self, kind: str, x: Tensor, weights: Sequence[Tensor], *, cell: bool = False
    ) -> str:
        """Name the module that is being called, unless it cannot be measured."""
        name = self._names.of(weights, kind)
        if self._refusing:
            refuse(_shown(name, kind, cell=cell), [x, *weights])
        return name

    def _sequence(self, name: str, h0: Tensor, packed: bool) -> int:
        """Count the sequences that a module reads: a call that is handed no state begins one."""
        if name not in self._ends:
            return 0
        sequence, end = self._ends[name]
        # The state of the call before, or something the model made of it.
        handed = h0.data_ptr() == end.data_ptr() or h0.requires_grad
        goes_on = handed and not packed and h0.shape == end.shape
        return sequence if goes_on else sequence + 1
