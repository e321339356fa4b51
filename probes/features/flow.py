"""Which layers read which, and the activation functions behind them, while a model runs."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probes.base import Inputs
from probes.depth.provenance import Held, Node, Provenance
from probes.model.labels import WHOLE
from probes.recurrent.backward.record import Site

INPUT = "(inputs)"
"""Stands for the inputs of the model among the sources of a layer."""

RELU = ("relu", "relu_", "relu6", "threshold", "threshold_")
"""Activation functions that are exactly zero where a unit is not active."""

BOUNDED = {"tanh": -1.0, "tanh_": -1.0, "sigmoid": 0.0, "sigmoid_": 0.0}
"""Activation functions with an upper end at 1, and where their lower end is."""

_LAYER = re.compile(r"_l(\d+)(_reverse)?$")


class Activation(NamedTuple):
    """What an activation function made of the units of a layer."""

    layer: str
    function: str
    """Without the underscore of its version in place."""
    values: Tensor
    channel: int
    """Axis of the units: 1 or the last one."""


class Flow(TorchFunctionMode):
    """Follow values from layer to layer while a model runs inside the ``with`` block.

    Parameters
    ----------
    model : Module
        Only read.
    inputs : Inputs
        What it is called with.
    watch : callable, optional
        Called with what every activation function behind a layer returns.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        watch: Callable[[Activation], None] | None = None,
    ) -> None:
        super().__init__()
        held = Held(owners(model), {id(buffer) for buffer in model.buffers()})
        self._held = held
        self._provenance = Provenance.of(held, inputs)
        self._sources: dict[Node, frozenset[str]] = {}
        self._watch = watch
        self.reads: dict[str, frozenset[str]] = {}
        """Sources of every layer with a weight matrix: layers, and :data:`INPUT`."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and note what it made."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        output = func(*args, **kwargs)
        node = self._provenance.record(name, [*args, *kwargs.values()], output)
        if node is not None:
            before = frozenset[str]().union(*map(self._from, node.parents))
            layers = frozenset(self._held.owners[weight] for weight in node.weights)
            for layer in layers:
                self.reads[layer] = self.reads.get(layer, frozenset()) | before
            self._sources[node] = layers or before
            if self._watch is not None and isinstance(output, Tensor):
                self._activated(name, node, output)
        return output

    def _from(self, node: Node) -> frozenset[str]:
        """Layers that a value comes from without another layer between them."""
        return self._sources.get(node, frozenset([INPUT]))

    def _activated(self, name: str, node: Node, output: Tensor) -> None:
        """Show what an activation function made of a layer: of several, of the latest."""
        if not (name in RELU or name in BOUNDED) or self._watch is None:
            return
        layers = self._sources[node] - {INPUT}
        latest = [layer for layer in self.reads if layer in layers]
        if latest:
            self._watch(Activation(latest[-1], name.removesuffix("_"), output, node.channel))


def owners(model: nn.Module) -> dict[int, str]:
    """Name the layer of every weight matrix: "encoder.l1" in a recurrent module of several."""
    modules = dict(model.named_modules())
    kinds = (nn.RNNBase, nn.RNNCellBase)
    found = {weight: name or WHOLE for weight, name in Held.by(model).owners.items()}
    for name, weight in model.named_parameters():
        owner = name.rpartition(".")[0]
        module = modules.get(owner)
        if isinstance(module, kinds) and id(weight) in found:
            place = _LAYER.search(name)
            found[id(weight)] = Site(owner, "", int(place[1]) if place else 0).label
    return found
