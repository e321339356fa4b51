"""Which parameters make up a layer."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from probes.model.labels import WHOLE

LAYERS = 64
"""Layers that are told apart, at most."""

_RECURRENT = re.compile(r"_l(\d+)(_reverse)?$")


def parameters_by_layer(model: nn.Module, most: int = LAYERS) -> dict[str, dict[str, Tensor]]:
    """Put the floating-point parameters of each layer together, in the order of the model.

    Parameters
    ----------
    model : Module
        Recurrent layers and directions of a module are layers of their own.
    most : int
        Where there are more layers, those of one module are put together, and so on outwards.

    Returns
    -------
    dict of str to dict of str to Tensor
        Name of the layer -> name -> parameter; empty without parameters.
    """
    modules = dict(model.named_modules())
    labels: dict[str, str] = {}
    for name, weight in model.named_parameters():
        if weight.is_floating_point():
            owner, _, own = name.rpartition(".")
            found = _RECURRENT.search(own) if isinstance(modules[owner], nn.RNNBase) else None
            parts = [owner] * bool(owner)
            if found:
                parts += [f"l{found[1]}", *["reverse"] * bool(found[2])]
            labels[name] = ".".join(parts)
    labels = _few(labels, most)
    layers: dict[str, dict[str, Tensor]] = {}
    for name, label in labels.items():
        layers.setdefault(label or WHOLE, {})[name] = model.get_parameter(name)
    return layers


def _few(labels: Mapping[str, str], most: int) -> dict[str, str]:
    """Cut labels to their first parts, as many as leave no more than ``most`` of them."""
    depth = max((label.count(".") for label in labels.values()), default=0) + 1
    while True:
        cut = {name: ".".join(label.split(".")[:depth]) for name, label in labels.items()}
        if len({*cut.values()}) <= most or depth == 1:
            return cut
        depth -= 1
