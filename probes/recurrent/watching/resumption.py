"""Run a model again on inputs that begin like earlier ones, without what is known already.

What a recurrent layer read and returned is kept. Where a later run hands it the same beginning,
the layer goes on from the state that it had there, and what it returned before is put in front. It
is the data that are compared, layer by layer, so nothing has to be known of the model: what stands
before a layer may be anything, and a layer that reads something else from the first timestep on is
run as ever. Numbers differ from those of a whole run by no more than rounding, as matrix products
over fewer timesteps are added up in another order.

Calls that cannot be cut are run as ever: packed and bidirectional ones, cells, and layers between
which dropout is on.

Shapes: T timestep, B sample, I input feature, P hidden state.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from probes.base import Inputs, call
from probes.recurrent.watching.interception import FUSED, FusedCall, RecurrentCalls

PARTS = 32
"""Places in time at which the cell state of an LSTM is kept, at most."""

LEAST = 4
"""Timesteps between them, at least."""

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
        taken = sum(ran.bytes for ran in cutting.ran)
        if keep is not None and taken <= self._free:
            self._free -= taken
            self._kept[keep] = cutting.ran
        return outputs


@dataclass(frozen=True, eq=False)
class _Ran:
    """What one layer read and returned in one call."""

    weights: Sequence[Tensor]
    x: Tensor
    """Shape (T, B, I)."""
    before: tuple[Tensor, ...]
    y: Tensor
    """Shape (T, B, P)."""
    step: int
    states: Sequence[tuple[Tensor, ...]]
    """After every ``step`` timesteps."""

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        kept = [self.x, self.y, *(part for state in self.states for part in state)]
        return sum(values.nbytes for values in kept)

    def alike(self, weights: Sequence[Tensor], x: Tensor, states: Sequence[Tensor]) -> int:
        """Count the steps of :attr:`step` timesteps that would be the same again."""
        if len(weights) != len(self.weights) or x.shape != self.x.shape:
            return 0
        pairs = zip((*weights, *states), (*self.weights, *self.before), strict=True)
        if not all(one is other or torch.equal(one, other) for one, other in pairs):
            return 0
        equal_T = (x == self.x).flatten(1).all(1)
        return int(equal_T.int().cumprod(0).sum()) // self.step


class _Cutting(RecurrentCalls):
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
        """Compute one layer, from where it is known."""
        earlier = next(self._earlier, None)
        steps = 0 if earlier is None else earlier.alike(weights, x, states)
        if earlier is None or not steps:
            ys, after, done = [], states, 0
        else:
            done, after = steps * earlier.step, earlier.states[steps - 1]
            ys = [earlier.y[:done]]
        step = max(LEAST, -(-len(x) // PARTS)) if self._keeping else len(x)
        marks = []
        for start in range(done, len(x), step):
            y, *ends = call.layer(weights, x[start : start + step], after)
            after = tuple(ends)
            ys.append(y)
            marks.append(after)
        whole = ys[0] if len(ys) == 1 else torch.cat(ys)
        if self._keeping:
            # Copies: the model may change its inputs and states in place.
            read = x.clone() if x.data_ptr() == call.x.data_ptr() else x
            before = tuple(state.clone() for state in states)
            self.ran.append(_Ran(weights, read, before, whole, step, marks))
        return whole, *after
