"""Gates in front of the branches of a model, and models without some of their blocks.

Shapes: B sample, F feature.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from probes.depth.blocks import Edit, Key, Site
from probes.depth.survey import Block
from probes.samples.layout import batch_dim


@dataclass(eq=False)
class Gates:
    """Multiplies every branch by a gate of one for each sample, and looks at what passes.

    The output stays the same to the last bit.

    Parameters
    ----------
    blocks : mapping of Key to Block
        Those to look at.
    samples, axis : int
        Size and place of the batch axis of the inputs.
    gates : dict of Key to Tensor, shape (B,)
        Leaves to differentiate with respect to; of blocks that can be left out.
    squares : dict of Key to list of Tensor, shape (B,)
        Squared norms of the branch and of the shortcut, over all calls.
    outputs, shortcuts : dict of Key to Tensor, shape (B, F)
        Output and shortcut of the first call, averaged over positions.
    """

    blocks: Mapping[Key, Block]
    samples: int
    axis: int
    gates: dict[Key, Tensor] = field(default_factory=dict)
    squares: dict[Key, list[Tensor]] = field(default_factory=dict)
    outputs: dict[Key, Tensor] = field(default_factory=dict)
    shortcuts: dict[Key, Tensor] = field(default_factory=dict)

    def __call__(self, site: Site) -> Tensor | None:
        """Look at a site and gate it."""
        if not _ends(site, self.blocks):
            return None
        dim = batch_dim(site.output, self.samples, self.axis)
        if dim is None:
            return None
        pooled = _pooled(site.output, dim, site.node.channel)
        self.outputs.setdefault(site.key, pooled)
        if site.shortcut is None or self.blocks[site.key].reason:
            return None
        self.shortcuts.setdefault(site.key, _pooled(site.shortcut, dim, site.node.channel))
        branch = site.output - site.shortcut if site.branch is None else site.branch
        self._measure(site.key, [branch, site.shortcut], dim)
        ones_B = site.output.new_ones(self.samples)
        gate_B = self.gates.setdefault(site.key, ones_B.requires_grad_())
        shape = [self.samples if axis == dim else 1 for axis in range(site.output.dim())]
        return site.output + (gate_B - 1).reshape(shape) * branch

    def _measure(self, key: Key, values: list[Tensor], dim: int) -> None:
        """Add up the squared norms of each sample."""
        flat = [value.detach().movedim(dim, 0).flatten(1) for value in values]
        norms = [torch.linalg.vector_norm(value, dim=1).double().square() for value in flat]
        known = self.squares.get(key)
        self.squares[key] = norms if known is None else [*map(torch.add, known, norms)]


def without(blocks: Mapping[Key, Block], removed: Collection[Key]) -> Edit:
    """Leave blocks out: what remains of each is its shortcut, or what the layer reads."""

    def edit(site: Site) -> Tensor | None:
        if site.key not in removed or not _ends(site, blocks) or site.shortcut is None:
            return None
        # A copy, for the model may overwrite what it takes for a sum.
        return site.shortcut.clone()

    return edit


def _ends(site: Site, blocks: Mapping[Key, Block]) -> bool:
    """Whether one of the blocks ends here: a layer with normalization ends behind it."""
    block = blocks.get(site.key)
    return block is not None and block.normed == site.normed


def _pooled(values: Tensor, dim: int, channel: int) -> Tensor:
    """Average over positions: (B, F), in single precision on the CPU."""
    channel %= values.dim()
    if channel == dim:
        channel = values.dim() - 1 if dim != values.dim() - 1 else 0
    last = values.detach().movedim((dim, channel), (0, -1))
    return last.reshape(len(last), -1, last.shape[-1]).mean(1).float().cpu()
