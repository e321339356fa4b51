"""Run a model again on inputs that begin like earlier ones, without what is known already.

What a recurrent layer read and returned is kept. Where a later run hands it the same beginning,
the layer goes on from the state that it had there, and what it returned before is put in front. It
is the data that are compared, layer by layer, so nothing has to be known of the model: what stands
before a layer may be anything, and a layer that reads something else from the first timestep on is
run as ever. Where the caller knows from which timestep on inputs differ, and that nothing but the
states of recurrent layers remembers what came before, the whole model is run on the rest alone.
Numbers differ from those of a whole run by no more than rounding, as matrix products over fewer
timesteps are added up in another order.

Calls that cannot be cut are run as ever: packed and bidirectional ones, cells, and layers between
which dropout is on.

Shapes: T timestep, B sample, I input feature, P hidden state.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from probes.base import Inputs, call
from probes.loss.rest import Unlike
from probes.recurrent.watching.interception import FUSED, FusedCall, RecurrentCalls

PARTS = 32
"""Parts of equal length between which the states of a layer are kept."""

FINER = 8
"""Towards the end they get shorter: down to this part of what is left."""

BYTES = 2**28
"""Memory that kept runs may take."""


class Resumption:
    """Runs of a model on inputs that have their beginning in common.

    Parameters
    ----------
    model : Module
        Not modified.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: dict[Hashable, list[_Ran]] = {}
        self._free = BYTES

    def __call__(self, inputs: Inputs, *, like: Hashable = None, keep: Hashable = None) -> Any:
        """Run the model.

        Parameters
        ----------
        inputs : Inputs
            Of the model.
        like : hashable, optional
            Name of a kept run whose inputs may have begun in the same way.
        keep : hashable, optional
            Name to keep this run by, if there is memory for it; then all of it is run.
        """
        earlier = () if keep is not None else self._kept.get(like, ())
        with _Cutting(earlier, keeping=keep is not None) as cutting:
            outputs = call(self._model, inputs)
        if keep is not None and _bytes(cutting.ran) <= self._free:
            self._free -= _bytes(cutting.ran)
            self._kept[keep] = cutting.ran
        return outputs

    def starts(self, like: Hashable) -> Sequence[int]:
        """List the timesteps at which every layer of a kept run that was cut can go on."""
        return _starts(self._kept.get(like, ()))

    def rest(self, inputs: Inputs, *, like: Hashable, start: int) -> Any:
        """Run the model on later timesteps alone, from the states of a kept run.

        The outputs are those of a whole run if nothing but these states depends on what came
        before. That is for the caller to know.

        Parameters
        ----------
        inputs : Inputs
            Of the model, without the first ``start`` timesteps.
        like : hashable
            Name of a kept run that began with these.
        start : int
            One of :meth:`starts`.

        Raises
        ------
        Unlike
            The recurrent layers are called in another way than in the kept run.
        """
        with _Rest(self._kept[like], start) as rest:
            outputs = call(self._model, inputs)
        rest.done()
        return outputs

    def release(self, name: Hashable) -> None:
        """Keep nothing but the states of a run, which is enough for :meth:`rest`."""
        ran = self._kept.get(name, [])
        self._free += _bytes(ran)
        self._kept[name] = [replace(one, read=None) for one in ran]
        self._free -= _bytes(self._kept[name])


@dataclass(frozen=True, eq=False)
class _Ran:
    """What one layer read and returned in one call."""

    weights: Sequence[Tensor]
    before: tuple[Tensor, ...]
    states: Mapping[int, tuple[Tensor, ...]]
    """By the number of timesteps before, up to all of them."""
    read: tuple[Tensor, Tensor] | None
    """Input and output, shapes (T, B, I) and (T, B, P), unless they were released."""

    @property
    def timesteps(self) -> int:
        """Number of timesteps."""
        return max(self.states)

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        states = (part for state in self.states.values() for part in state)
        return sum(values.nbytes for values in (*(self.read or ()), *states))

    def alike(self, weights: Sequence[Tensor], x: Tensor, states: Sequence[Tensor]) -> int:
        """Count the timesteps that would be the same again, up to a known state."""
        if self.read is None or self.read[0].shape != x.shape or len(weights) != len(self.weights):
            return 0
        pairs = zip((*weights, *states), (*self.weights, *self.before), strict=True)
        if not all(one is other or torch.equal(one, other) for one, other in pairs):
            return 0
        equal_T = (x == self.read[0]).flatten(1).all(1)
        equal = int(equal_T.int().cumprod(0).sum())
        return max((step for step in self.states if step <= equal), default=0)


class _Layers(RecurrentCalls):
    """Have the layers of recurrent modules computed one after the other."""

    def _module(self, call: FusedCall) -> tuple[Tensor, ...]:
        """Compute a whole module, one layer after the other."""
        return call.layer_by_layer(partial(self._layer, call))

    def _layer(
        self,
        call: FusedCall,
        _layer: int,
        x: Tensor,
        states: tuple[Tensor, ...],
        weights: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Compute one layer."""
        raise NotImplementedError


class _Cutting(_Layers):
    """Have recurrent modules resume where they can."""

    def __init__(self, earlier: Sequence[_Ran], *, keeping: bool) -> None:
        super().__init__()
        self._earlier = iter(earlier)
        self._keeping = keeping
        self.ran: list[_Ran] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Catch what can be cut."""
        kwargs = kwargs or {}
        if func in FUSED:
            module = FusedCall.of(func, args, kwargs)
            random = module.train and module.dropout and module.layers > 1
            if module.batch_sizes is None and not module.bidirectional and not random:
                return self._module(module)
        return func(*args, **kwargs)

    def _layer(
        self,
        call: FusedCall,
        _layer: int,
        x: Tensor,
        states: tuple[Tensor, ...],
        weights: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Compute one layer, from where it is known."""
        earlier = next(self._earlier, None)
        done = 0 if earlier is None else earlier.alike(weights, x, states)
        ys, after = [], states
        if earlier is not None and earlier.read is not None and done:
            ys, after = [earlier.read[1][:done]], earlier.states[done]
        marks: dict[int, tuple[Tensor, ...]] = {}
        stops = _marks(len(x)) if self._keeping else [len(x)] if done < len(x) else []
        for start, stop in pairwise([done, *stops]):
            y, *ends = call.layer(weights, x[start:stop], after)
            marks[stop] = after = tuple(ends)
            ys.append(y)
        whole = ys[0] if len(ys) == 1 else torch.cat(ys)
        if self._keeping:
            # Copies: the model may change its inputs and states in place.
            read = x.clone() if x.data_ptr() == call.x.data_ptr() else x
            before = tuple(state.clone() for state in states)
            self.ran.append(_Ran(weights, before, marks, (read, whole)))
        return whole, *after


class _Rest(_Layers):
    """Have recurrent modules go on from the states of a kept run, whatever they are handed."""

    def __init__(self, earlier: Sequence[_Ran], start: int) -> None:
        super().__init__()
        self._earlier = iter(earlier)
        self._start = start

    def _cell(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Refuse what no state is known of."""
        raise Unlike

    def _layer(
        self,
        call: FusedCall,
        _layer: int,
        x: Tensor,
        _states: tuple[Tensor, ...],
        weights: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Compute what is left for one layer."""
        earlier = next(self._earlier, None)
        if earlier is None or len(x) + self._start != earlier.timesteps:
            raise Unlike
        return call.layer(weights, x, earlier.states[self._start])

    def done(self) -> None:
        """See that no call is missing."""
        if next(self._earlier, None) is not None:
            raise Unlike


def _bytes(ran: Sequence[_Ran]) -> int:
    """Memory that a kept run takes."""
    return sum(one.bytes for one in ran)


def _marks(timesteps: int) -> list[int]:
    """List where parts of a sequence end."""
    left = [0]
    while left[-1] < timesteps:
        left.append(left[-1] + max(1, min(left[-1] // FINER, timesteps // PARTS)))
    return [timesteps - count for count in left if count < timesteps][::-1]


def _starts(ran: Sequence[_Ran]) -> Sequence[int]:
    """List where states of all layers are known, if all of them read equally many timesteps."""
    lengths = {one.timesteps for one in ran}
    return [*ran[0].states][:-1] if len(lengths) == 1 else ()
