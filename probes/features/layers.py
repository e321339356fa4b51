"""The layers whose features are measured, and what of a feature map belongs to which sample.

Shapes: B sample, P position, S position that is looked at, C unit.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from probes.model.labels import WHOLE
from probes.recurrent.backward.record import Site
from probes.recurrent.states.features import Draw
from probes.samples.layout import Layout

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class Layer(NamedTuple):
    """A layer of a model."""

    module: str
    """Its name in ``named_modules()``."""
    kind: str
    width: int
    """Units, C: channels of a convolution, states of both directions of a recurrent layer."""
    reach: int
    """Numbers that a unit is a linear function of; C in recurrent layers, which are not linear."""
    channel: int
    """Axis of the units in what the module returns; 0 for recurrent layers."""
    features: int
    """Numbers that it reads at one position: channels, or features."""

    @property
    def recurrent(self) -> bool:
        """Whether its units are states."""
        return not self.channel

    @property
    def most(self) -> int:
        """Directions that the weights allow."""
        return min(self.width, self.reach)


class Seen(NamedTuple):
    """What a layer returned at some positions of every sample."""

    values: Tensor
    """Shape (B, S, C)."""
    valid: Tensor | None = None
    """Whether a position is no padding: (B, S); None where none is."""


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """List the convolutions, linear and recurrent layers of a model, by label."""
    found: dict[str, Layer] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__.removeprefix("Parametrized")
        if isinstance(module, CONVOLUTIONS):
            width, groups = module.out_channels, module.groups
            taps = module.weight[0, 0].numel() * module.in_channels
            # Groups read different channels: each has a reach of its own.
            reach = groups * min(width // groups, taps // groups)
            found[name or WHOLE] = Layer(name, kind, width, reach, 1, module.in_channels)
        elif isinstance(module, nn.Linear):
            width, reach = module.out_features, module.in_features
            found[name or WHOLE] = Layer(name, kind, width, reach, -1, reach)
        elif isinstance(module, nn.RNNBase):
            units = (module.proj_size or module.hidden_size) * (1 + module.bidirectional)
            for layer in range(module.num_layers):
                reads = units if layer else module.input_size
                found[Site(name, "", layer).label] = Layer(name, kind, units, units, 0, reads)
        elif isinstance(module, nn.RNNCellBase):
            units = module.hidden_size
            reads = module.input_size
            found[Site(name, "").label] = Layer(name, kind, units, units, 0, reads)
    return found


def by_sample(output: Tensor, channel: int, layout: Layout) -> Tensor | None:
    """Order what a layer returned: (B, ..., C), positions between.

    Positions folded into the batch axis, as by ``x.flatten(0, 1)``, are unfolded. None where the
    samples cannot be told apart.
    """
    last = output.movedim(channel, -1)
    for axis in (layout.axis, 0, 1):
        if axis < last.dim() - 1 and last.shape[axis] == layout.samples:
            return last.movedim(axis, 0)
    if last.dim() < 2 or not len(last) or len(last) % layout.samples:
        return None
    sizes = (layout.samples, -1) if layout.axis == 0 else (-1, layout.samples)
    return last.reshape(*sizes, *last.shape[1:]).movedim(layout.axis, 0)


def looked_at(first: Tensor, layout: Layout, drawn: Draw) -> Seen:
    """Take some positions out of values in the order of :func:`by_sample`."""
    sizes, valid_BP = first.shape[1:-1], _valid(first, layout)
    if not sizes:
        return Seen(first[:, None])
    if sizes.numel() <= drawn.most:
        return Seen(first.flatten(1, -2), valid_BP)
    at_BS = drawn.places(sizes.numel(), len(first)).to(first.device)
    row_B1 = torch.arange(len(first), device=first.device)[:, None]
    values = first[(row_B1, *torch.unravel_index(at_BS, sizes))]
    return Seen(values, None if valid_BP is None else valid_BP.gather(1, at_BS))


def largest(first: Tensor, layout: Layout) -> Tensor:
    """Largest value of every unit over all positions of a sample but padding: (B, C)."""
    if first.dim() == 2:
        return first
    valid_BP = _valid(first, layout)
    if valid_BP is not None:
        first = first.masked_fill(~valid_BP[..., None], -torch.inf)
    return first.amax(tuple(range(1, first.dim() - 1)))


def _valid(first: Tensor, layout: Layout) -> Tensor | None:
    """Whether positions are no padding: (B, P). Only a single axis of positions can be padded."""
    if first.dim() != 3 or layout.lengths is None:
        return None
    return layout.valid(first[..., 0]) > 0


def recurrent(y_TBE: Tensor, length_B: Tensor, drawn: Draw) -> Seen:
    """Take some timesteps out of the states of a recurrent layer."""
    first, timesteps = y_TBE.transpose(0, 1), len(y_TBE)
    at_BS = drawn.places(timesteps, len(first))
    if timesteps > drawn.most:
        first = first[torch.arange(len(first))[:, None], at_BS.to(first.device)]
    valid_BS = at_BS < length_B.cpu()[:, None]
    return Seen(first, None if valid_BS.all() else valid_BS.to(first.device))
