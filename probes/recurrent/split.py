"""Take recurrent layers apart while a model runs, without touching the model.

Every call of torch's fused recurrent operations is caught on its way and computed layer by layer
instead, with bit-equal results, so that the states of every layer have a gradient.

Shapes: T timestep, B sample, D direction, P hidden state, H unit, N element of packed data.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probes.errors import AnalyzerError
from probes.recurrent.clock import Clock
from probes.recurrent.layer import Fused, Plan, RecurrentLayer
from probes.recurrent.naming import Names, recurrent_modules
from probes.recurrent.record import Keep, Recordings, Segment, Site
from probes.recurrent.refusals import (
    callers,
    calls_of,
    refuse,
    refuse_scripted,
    refuse_unseen,
)

_VF: Any = torch._VF
_CLASSES = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}
_FUSED = {getattr(_VF, kind): kind for kind in _CLASSES}
_CELLS = {getattr(_VF, f"{kind}_cell"): kind for kind in _CLASSES}
_ORDER = (
    *("input", "data", "batch_sizes", "hx", "params", "has_biases"),
    *("num_layers", "dropout", "train", "bidirectional", "batch_first"),
)
_FORWARDS = {module.forward.__code__ for module in (nn.LSTM, nn.GRU, nn.RNN)}


@contextmanager
def recorded(
    model: nn.Module,
    *,
    keep: Keep = "norms",
    weights: bool = False,
    required: bool = True,
    pulses: bool = False,
) -> Iterator[Recordings]:
    """Record the recurrent layers that ``model`` runs inside the block.

    The outputs are bit-equal to those of torch without gradients. Differentiate them afterwards
    with :meth:`probes.recurrent.record.Recordings.gradients`, as often as needed.

    Parameters
    ----------
    model : Module
        Not modified. Gradients must be enabled, and the model in eval mode if it has dropout.
    keep : "norms", "factors" or "all"
        Whether a backward pass keeps norms over units only, what the gradients of the weights are
        made of as well, or every state, gate and gradient.
    weights : bool
        Whether the weights of the recurrent layers can be differentiated too, at extra cost.
    required : bool
        Whether it is an error that no recurrent layer runs.
    pulses : bool
        Whether backward passes are to begin at the recurrent layers themselves, as
        :func:`probes.recurrent.truncate.truncated` needs.

    Yields
    ------
    Recordings
        Filled while the model runs.

    Raises
    ------
    AnalyzerError
        A recurrent layer runs where it cannot be measured; the message names it.
    NotApplicable
        No recurrent layer of torch ran.
    """
    refuse_scripted(model)
    recordings = Recordings(keep)
    recordings.pulses = {} if pulses else None
    modules = recurrent_modules(model)
    with calls_of(modules) as called, _Interception(model, recordings, weights):
        yield recordings
    if required and not recordings.segments:
        refuse_unseen(modules, called)


@dataclass(frozen=True, eq=False)
class _Call:
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
    def of(cls, function: Callable[..., Any], arguments: Sequence[Any]) -> "_Call":
        """Read (x, states, weights, ...) or, of packed data, (x, batch_sizes, states, ...)."""
        packed = isinstance(arguments[3], list | tuple)
        x, *sizes = arguments[: 1 + packed]
        states, *rest = arguments[1 + packed :]
        states = (states,) if isinstance(states, Tensor) else tuple(states)
        return cls(function, _FUSED[function], x, sizes[0] if packed else None, states, *rest)

    @property
    def directions(self) -> int:
        """Number of directions of every layer."""
        return 2 if self.bidirectional else 1

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


class _Interception(TorchFunctionMode):
    """Compute recurrent operations layer by layer; let everything else pass."""

    def __init__(self, model: nn.Module, recordings: Recordings, weights: bool) -> None:
        super().__init__()
        self._names = Names(model)
        self._recordings = recordings
        self._weights = weights
        self._ends: dict[str, tuple[int, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Catch the recurrent operations."""
        kwargs = kwargs or {}
        if func in _FUSED:
            named = [kwargs[name] for name in _ORDER if name in kwargs]
            return self._module(_Call.of(func, [*args, *named]))
        if func in _CELLS:
            return self._cell(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _module(self, call: _Call) -> tuple[Tensor, ...]:
        """Compute a whole module, one layer after the other."""
        name = self._admitted(call.kind, call.x, call.weights)
        if call.train and call.dropout and call.layers > 1:
            raise AnalyzerError(
                f"{_shown(name, call.kind)} drops states between its layers at random: put the "
                "model in eval mode"
            )
        clock = call.clock()
        sequence = self._sequence(name, call.states[0], packed=call.batch_sizes is not None)
        y = call.x.transpose(0, 1) if call.batch_first else call.x
        final: list[Sequence[Tensor]] = []
        for layer in range(call.layers):
            sites = [
                Site(name, call.kind, layer, reverse, sequence)
                for reverse in (False, True)[: call.directions]
            ]
            states = tuple(state.chunk(call.layers)[layer].contiguous() for state in call.states)
            count = len(call.weights) // call.layers
            weights = call.weights[layer * count : (layer + 1) * count]
            y, *after = self._layer(partial(call.layer, weights), sites, clock, y, states, weights)
            final.append(after)
        ends = [torch.cat(states) for states in zip(*final, strict=True)]
        self._ends[name] = (sequence, ends[0].detach())
        # A copy: the model may change its output in place, and the layer still needs it.
        return (y.transpose(0, 1) if call.batch_first else y).clone(), *ends

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
        kind = _CELLS[function]
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
        _, *after = self._layer(
            step,
            [Site(name, kind, sequence=sequence)],
            Clock(1, len(input)),
            input.unsqueeze(0),
            tuple(state.unsqueeze(0) for state in states),
            weights,
        )
        self._ends[name] = (sequence, after[0][0].detach())
        return (after[0][0], after[1][0]) if kind == "lstm" else after[0][0]

    def _layer(
        self,
        fused: Fused,
        sites: list[Site],
        clock: Clock,
        x: Tensor,
        states: tuple[Tensor, ...],
        weights: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Compute one layer and record that it ran."""
        h0_DBP, c0_DBH = states if len(states) == 2 else (states[0], None)
        cells = 0 if c0_DBH is None else c0_DBH.shape[-1]
        length_B = clock.by_sample(clock.lengths(), 0)
        keys = tuple(
            self._recordings.enter(
                Segment(site, clock.timesteps, h0_DBP.shape[-1], cells, length_B)
            )
            for site in sites
        )
        plan = Plan(sites[0].kind, fused, clock, self._recordings, keys)
        if not self._weights:
            weights = [weight.detach() for weight in weights]
        *outputs, pulse = RecurrentLayer.apply(  # type: ignore[no-untyped-call]
            plan, self._recordings.anchor, x, h0_DBP, c0_DBH, *weights
        )
        if self._recordings.pulses is not None:
            self._recordings.pulses[keys[0]] = pulse
        return tuple(outputs)

    def _admitted(
        self, kind: str, x: Tensor, weights: Sequence[Tensor], *, cell: bool = False
    ) -> str:
        """Name the module that is being called, unless it cannot be measured."""
        name = self._names.of(weights, kind)
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
