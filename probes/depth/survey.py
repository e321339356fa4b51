"""Which blocks a model has, and what they are called."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from probes.base import Inputs, call
from probes.depth.blocks import Edit, Key, Site, Watch
from probes.depth.provenance import Held, Node, Provenance, paths
from probes.model.labels import label_of

SHAPE = "it does not return the shape that it reads"
RECURRENT = "it reads what it returned before: it is part of a recurrence"


@dataclass(frozen=True)
class Block:
    """A part of a model.

    Parameters
    ----------
    key : Key
        What it is recognised by.
    name : str
        The module that holds its weights; the first and the last where none holds them alone.
    kind : str
        What stays when it is left out: "identity", "projection", or "layer" for a layer's input.
    layers : tuple of str
        Modules that own its weight matrices, in the order of the model.
    normed : bool
        Whether a normalization is left out with a layer.
    reason : str
        Why it cannot be left out; empty if it can.
    """

    key: Key
    name: str
    kind: str
    layers: tuple[str, ...]
    normed: bool
    reason: str


@dataclass(frozen=True)
class Survey:
    """The blocks of a model in the order in which they end, and the size of a forward pass.

    Parameters
    ----------
    blocks : tuple of Block
        Residual blocks, and layers outside of their branches.
    elements : int
        Numbers that all operations of the forward pass returned.
    """

    blocks: tuple[Block, ...]
    elements: int


def survey(model: nn.Module, inputs: Inputs) -> Survey:
    """Run ``model`` once and list its blocks; call it inside ``taps.untouched``."""
    held = Held.by(model)
    finds = _Finds(held.owners)
    with torch.no_grad(), watching(held, inputs, finds.note) as watch:
        call(model, inputs)
    return Survey(finds.blocks(), watch.elements)


@contextmanager
def watching(held: Held, inputs: Inputs, edit: Edit) -> Iterator[Watch]:
    """Show every end of a block to ``edit`` while the model runs on ``inputs``."""
    watch = Watch(Provenance.of(held, inputs), edit)
    with watch:
        yield watch


@dataclass(eq=False)
class _Finds:
    """Blocks found so far.

    Parameters
    ----------
    owners : mapping of int to str
        Name of the module that owns each weight matrix, by the identity of the parameter.
    """

    owners: Mapping[int, str]
    found: dict[Key, Block] = field(default_factory=dict)
    nodes: dict[Key, Node] = field(default_factory=dict)
    inside: frozenset[int] = frozenset()

    def note(self, site: Site) -> None:
        """Take down the end of a block; the normalization of a layer ends after the layer."""
        known = self.found.get(site.key)
        if site.key[0]:
            self.inside |= site.key[1] | site.beside
        if known is None or site.normed:
            layers = tuple(dict.fromkeys(n for w, n in self.owners.items() if w in site.key[1]))
            reason = SHAPE if site.shortcut is None else ""
            self.found[site.key] = Block(site.key, "", site.kind, layers, site.normed, reason)
            self.nodes[site.key] = site.node
        elif not known.key[0] and paths(self.nodes[site.key], site.node) is not None:
            self.found[site.key] = replace(known, reason=RECURRENT)

    def blocks(self) -> tuple[Block, ...]:
        """Residual blocks, and layers that are neither in a branch nor in a shortcut."""
        kept = [b for b in self.found.values() if b.key[0] or not b.key[1] & self.inside]
        return tuple(_named(kept))


def _named(blocks: Sequence[Block]) -> Iterator[Block]:
    """Give every block a name of its own."""
    uses = Counter[str]()
    for block in blocks:
        name = _name(block, blocks)
        uses[name] += 1
        yield replace(block, name=label_of(name, uses[name]))


def _name(block: Block, blocks: Sequence[Block]) -> str:
    """Name the module whose weights are all in the block, or the first and the last layer."""
    stem = _stem(block.layers)
    others = {layer for other in blocks for layer in other.layers} - {*block.layers}
    if stem and not any(f"{layer}.".startswith(f"{stem}.") for layer in others):
        return stem
    first, last = block.layers[0], block.layers[-1]
    return first if first == last else f"{first} to {last.removeprefix(stem).removeprefix('.')}"


def _stem(layers: Sequence[str]) -> str:
    """Innermost module that holds all layers; empty for the model itself."""
    parts = []
    for level in zip(*(layer.split(".") for layer in layers), strict=False):
        if len({*level}) > 1:
            break
        parts.append(level[0])
    return ".".join(parts)
