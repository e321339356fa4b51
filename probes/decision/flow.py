"""What flows through each layer while the input moves from the baseline to the sample.

Shapes: B sample, P position (everything but samples and channels), C channel.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

from probes.decision.depth import Returned, Timed, is_stacked, owner_of, taken_apart
from probes.model.labels import label_of, module_of
from probes.samples.layout import batch_dim

CARRIED = 0.9
"""Share of a layer's conductance that its carriers hold."""

_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


@dataclass(frozen=True)
class Part:
    """Where samples and channels are in one tensor that a layer returned.

    Parameters
    ----------
    samples, channels : int
        Axes, counted from the front; of no use for packed data.
    packed : PackedSequence, optional
        What it is the data of.
    """

    samples: int
    channels: int
    packed: PackedSequence | None = None

    def rows(self, values: Tensor) -> Tensor:
        """Order the numbers of the tensor: (B, P, C)."""
        if self.packed is not None:
            sequence = self.packed._replace(data=values)
            return pad_packed_sequence(sequence, batch_first=True)[0].flatten(2)
        if self.samples == self.channels:
            return values[:, None, None]
        turned = values.movedim((self.samples, self.channels), (0, -1))
        return turned.reshape(len(turned), -1, turned.shape[-1])


def parts_of(
    module: nn.Module, output: Any, samples: int, axis: int
) -> Sequence[tuple[Tensor, Part | Timed]]:
    """Take apart what a layer returned.

    Returns
    -------
    sequence of (Tensor, Part)
        Its floating-point tensors; empty if one of them does not keep the samples apart.
    """
    if isinstance(output, Returned):
        return output.parts(samples)
    found: list[tuple[Tensor, Part]] = []
    for place, leaf in enumerate(tree_leaves(output, is_leaf=_packed)):
        if _packed(leaf):
            found.append((leaf.data, Part(0, 0, leaf)))
        elif isinstance(leaf, Tensor) and leaf.is_floating_point():
            at = batch_dim(leaf, samples, _axis(module, place, axis))
            if at is None:
                return []
            channels = leaf.dim() - 1
            if isinstance(module, _CONVOLUTIONS):
                channels -= len(module.kernel_size)
            found.append((leaf, Part(at, channels)))
    return found


def _packed(value: Any) -> bool:
    """Whether this is a packed sequence."""
    return isinstance(value, PackedSequence)


def _axis(module: nn.Module, place: int, axis: int) -> int:
    """Axis where samples are to be expected: sizes alone cannot tell them from timesteps."""
    if isinstance(module, nn.RNNBase):
        return 0 if module.batch_first and place == 0 else 1
    if isinstance(module, nn.MultiheadAttention):
        return 0 if module.batch_first or place else 1
    return axis


@dataclass
class Point:
    """What the tapped layers returned at one point of the path, and the gradients there."""

    values: dict[str, list[Tensor]] = field(default_factory=dict)
    gradients: dict[str, list[Tensor | None]] = field(default_factory=dict)
    parts: dict[str, Sequence[Part | Timed]] = field(default_factory=dict)

    def put(self, label: str, values: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Add tensors that no module returned, samples first and channels last."""
        self.values[label] = [value.detach() for value in values]
        self.gradients[label] = [*gradients]
        self.parts[label] = [Part(0, value.dim() - 1) for value in values]


@contextmanager
def tapped(model: nn.Module, labels: Sequence[str], samples: int, axis: int) -> Iterator[Point]:
    """Collect what layers return while the block runs, and the gradients when they arrive.

    What is done to an output in place afterwards reaches neither.

    Parameters
    ----------
    model : Module
        Contains the layers.
    labels : sequence of str
        As :func:`calls` gives them.
    samples, axis : int
        Size and place of the batch axis of the inputs.
    """
    point = Point()

    def keep(label: str, module: nn.Module, output: Any) -> None:
        if label not in labels:
            return
        found = parts_of(module, output, samples, axis)
        point.values[label] = [value.detach().clone() for value, _ in found]
        point.parts[label] = [part for _, part in found]
        arrived: list[Tensor | None] = [None] * len(found)
        point.gradients[label] = arrived
        for place, (value, _) in enumerate(found):
            if value.requires_grad:
                value.register_hook(_filing(arrived, place))  # type: ignore[no-untyped-call]

    names = dict(model.named_modules())
    with calls(model, {module_of(owner_of(label, names), names) for label in labels}, keep):
        yield point


def _filing(arrived: list[Tensor | None], place: int) -> Callable[[Tensor], None]:
    """Return a hook that puts a gradient in its place."""

    def arrive(gradient: Tensor) -> None:
        arrived[place] = gradient.detach().clone()

    return arrive


@contextmanager
def calls(
    model: nn.Module, names: set[str], visit: Callable[[str, nn.Module, Any], None]
) -> Iterator[dict[str, int]]:
    """Show what modules return to ``visit``, with a label for each call; count the calls.

    The label is the module's name, with ``#k`` for the k-th call after the first. Of a recurrent
    module of several layers it is followed by ``.l0``, ``.l1`` and so on, and each layer is shown,
    as a :class:`probes.decision.depth.Returned`.
    """
    count: dict[str, int] = {}
    stacked = {name: m for name, m in model.named_modules() if name in names and is_stacked(m)}
    apart: set[str] = set()

    def layer(name: str, number: int, returned: Returned) -> None:
        if name in stacked:
            apart.add(name)
            call = label_of(name, count.get(name, 0) + 1)
            visit(f"{call}.l{number}" if call else f"l{number}", stacked[name], returned)

    with ExitStack() as stack:
        if stacked:
            stack.enter_context(taken_apart(model, layer))
        for name, module in model.named_modules():
            if name not in names:
                continue

            def hook(module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                count[name] = number = count.get(name, 0) + 1
                # One whole if it runs out of sight.
                if name not in apart:
                    visit(label_of(name, number), module, output)

            stack.callback(module.register_forward_hook(hook).remove)
        yield count


class Flow(NamedTuple):
    """What flowed through one layer, on the CPU in float64."""

    total: Tensor
    """Conductance of each sample: (B,) [score]."""
    coarse: Tensor
    """The same from every second point of the path: (B,)."""
    carriers: Tensor
    """Share of the channels that hold most of it, without regard to sign: (B,) [1]."""
    channels: int


class Path:
    """Adds up conductances along a path, one point after the other.

    Between two points a layer's output changes, and each change is worth the gradient there,
    averaged over both ends.
    """

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._channels: dict[str, list[Tensor]] = {}
        self._coarse: dict[str, Tensor] = {}

    def add(self, point: Point) -> None:
        """Go on to the next point; their number must be odd in the end."""
        self._points.append(point)
        if len(self._points) == 1:
            return
        for label in point.values:
            steps = _worth(label, *self._points[-2:])
            before = self._channels.get(label, [torch.zeros_like(step) for step in steps])
            self._channels[label] = [old + step for old, step in zip(before, steps, strict=True)]
            if len(self._points) == 3:
                wide = [step_BC.sum(1) for step_BC in _worth(label, self._points[0], point)]
                self._coarse[label] = self._coarse.get(label, 0) + torch.stack(wide).sum(0)
        if len(self._points) == 3:
            self._points = self._points[-1:]

    def flows(self) -> dict[str, Flow]:
        """Sum up, by label."""
        found = {}
        for label, channels in self._channels.items():
            total_B = torch.stack([part_BC.sum(1) for part_BC in channels]).sum(0).cpu()
            used = [part_BC for part_BC in channels if bool((part_BC != 0).any())] or channels[:1]
            joined_BC = torch.cat(used, 1).cpu()
            coarse_B = self._coarse[label].cpu()
            found[label] = Flow(total_B, coarse_B, carriers(joined_BC), joined_BC.shape[1])
        return found


def _worth(label: str, start: Point, stop: Point) -> list[Tensor]:
    """Value the change of each tensor from one point to another, by channel: (B, C)."""
    worth = []
    for place, part in enumerate(stop.parts[label]):
        ends = [point.gradients[label][place] for point in (start, stop)]
        change = stop.values[label][place] - start.values[label][place]
        mean = sum((0.5 * end for end in ends if end is not None), torch.zeros_like(change))
        worth.append(part.rows(change * mean).double().sum(1))
    return worth


def carriers(channel_BC: Tensor) -> Tensor:
    """Smallest share of channels that hold most of each sample's magnitude: (B,); nan of none."""
    size_BC = channel_BC.abs().sort(1, descending=True).values
    held_BC = size_BC.cumsum(1)
    enough_BC = held_BC >= CARRIED * held_BC[:, -1:]
    share_B = (enough_BC.double().argmax(1) + 1) / channel_BC.shape[1]
    return share_B.double().where(held_BC[:, -1] > 0, torch.nan)
