"""Parameters that only the unused directions of layers need."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from probes.features.layers import CONVOLUTIONS, Layer


class Parameters(NamedTuple):
    """Parameters of a layer by what their number is proportional to."""

    inputs: int = 0
    """To the features that it reads and to its width."""
    recurrent: int = 0
    """To the square of its width."""
    own: int = 0
    """To its width: biases, and the weights of depthwise convolutions."""

    def kept(self, reading: float, returning: float) -> float:
        """Count those left with shares of the features it reads, and of its width."""
        return returning * (reading * self.inputs + returning * self.recurrent + self.own)


class Share(NamedTuple):
    """What is left of a layer as wide as its directions."""

    reading: float
    """Share of the features that it reads."""
    returning: float
    """Share of its width."""


def parameters(model: nn.Module, layers: Mapping[str, Layer]) -> dict[str, Parameters]:
    """Count the parameters of every layer; those of a module used under two names once each."""
    modules = dict(model.named_modules())
    found = {}
    for label, layer in layers.items():
        module = modules[layer.module]
        sizes = {name: weight.numel() for name, weight in module.named_parameters()}
        if not layer.recurrent:
            matrix = sum(size for name, size in sizes.items() if "bias" not in name)
            bias = sum(sizes.values()) - matrix
            depthwise = isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels
            split = Parameters(0, 0, matrix + bias) if depthwise else Parameters(matrix, 0, bias)
        else:
            split = _recurrent(sizes, label.rpartition(".")[2])
        found[label] = split
    return found


def _recurrent(sizes: Mapping[str, int], layer: str) -> Parameters:
    """Count the parameters of one layer ("l1") of a recurrent module, or of a cell."""
    # Those of a cell have no number.
    own = {
        name: size
        for name, size in sizes.items()
        if (_NUMBERED.search(name) or ["", layer])[1] == layer
    }
    reads, again = (
        sum(size for name, size in own.items() if name.startswith(kinds))
        for kinds in ("weight_ih", ("weight_hh", "weight_hr"))
    )
    return Parameters(reads, again, sum(own.values()) - reads - again)


_NUMBERED = re.compile(r"_(l\d+)(?:_reverse)?$")


def shares(
    layers: Mapping[str, Layer],
    directions: Mapping[str, float],
    reads: Mapping[str, frozenset[str]],
    features: Mapping[str, int],
) -> dict[str, Share]:
    """Say what would be left of every layer if all were as wide as their directions.

    Layers whose outputs are summed, as behind a shortcut, keep as many units as all of their
    directions together, at most all. Layers without known directions keep all units; so do those
    that nothing reads, and those summed with something else than the layers given.

    Parameters
    ----------
    layers : mapping of str to Layer
    directions : mapping of str to float
        Of the layers where they are known.
    reads : mapping of str to frozenset of str
        Sources of every layer.
    features : mapping of str to int
        Numbers that every layer reads, by which sums are told from concatenations.
    """
    others = {reader: sorted(sources - {reader}) for reader, sources in reads.items()}
    read = {source for sources in others.values() for source in sources}
    stream = {label: {label} for label in {*layers, *read}}
    for reader, sources in others.items():
        if len(sources) > 1 and not _side_by_side(sources, layers, features.get(reader, 0)):
            joined = set[str]().union(*(stream[source] for source in sources))
            stream |= dict.fromkeys(joined, joined)
    returning = {}
    for label, layer in layers.items():
        known = [directions.get(one, layer.width) for one in stream[label]]
        whole = label not in read or not stream[label] <= {*layers}
        returning[label] = 1.0 if whole else min(sum(known) / layer.width, 1.0)
    found = {}
    for label in layers:
        widths = {one: layers[one].width for one in others.get(label, ()) if one in layers}
        kept = sum(returning[one] * width for one, width in widths.items())
        alone = len(widths) == len(others.get(label, ()))
        found[label] = Share(kept / sum(widths.values()) if widths and alone else 1.0,
                             returning[label])  # fmt: skip
    return found


def _side_by_side(sources: Sequence[str], layers: Mapping[str, Layer], features: int) -> bool:
    """Whether a layer reads its sources concatenated, not summed."""
    if any(source not in layers for source in sources):
        return False
    return features > 0 and features % sum(layers[source].width for source in sources) == 0
