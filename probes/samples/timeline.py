"""Where time is in the inputs of a model, and sequences made of two samples.

Time is counted back from the end of each sample: lag 0 is its last valid timestep.

Shapes: B sample, T timestep.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves, tree_map

from probes.base import Batch, Inputs, Subject, call, first_tensor
from probes.errors import AnalyzerError, NotApplicable
from probes.model.taps import untouched
from probes.samples.layout import Layout
from probes.structure import mapped

_ASK = "set time_axis to the axis of the inputs along which time runs"


def time_axis(subject: Subject, batch: Batch) -> int:
    """Find the time axis of the first input tensor, counted from the front.

    That of the subject if it is set, the other axis of integer (sample, timestep) inputs, or the
    axis that has as many entries as the first recurrent, 1-D convolutional or attention layer
    reads timesteps, which takes one forward pass. Packed inputs have it at axis 1, once padded.

    Raises
    ------
    NotApplicable
        The inputs have no time axis, or which it is cannot be told.
    """
    if isinstance(batch.inputs, PackedSequence):
        return 1
    shape = first_tensor(batch.inputs).shape
    if subject.time_axis is not None:
        if not -len(shape) <= subject.time_axis < len(shape):
            raise AnalyzerError(
                f"time_axis is {subject.time_axis}, but the inputs have {len(shape)} axes: "
                f"{tuple(shape)}"
            )
        return subject.time_axis % len(shape)
    if len(shape) == 2 and not first_tensor(batch.inputs).is_floating_point():
        return 1 - subject.batch_axis
    return _inferred(subject, batch, shape)


def _inferred(subject: Subject, batch: Batch, shape: torch.Size) -> int:
    """Find the axis as long as what the first layer with a sense of time reads."""
    with untouched(subject.model), _listening(subject.model) as heard, torch.no_grad():
        call(subject.model, batch.inputs)
    axes = [axis for axis in range(len(shape)) if axis != subject.batch_axis % len(shape)]
    for name, timesteps in heard.lengths():
        fitting = [axis for axis in axes if shape[axis] == timesteps]
        if len(fitting) == 1:
            return fitting[0]
        if len(fitting) > 1:
            raise NotApplicable(
                f"time runs along one of the axes {fitting} of the inputs {tuple(shape)}, as "
                f"{name} reads {timesteps} timesteps: {_ASK}"
            )
    if heard.lengths():
        raise NotApplicable(
            f"no axis of the inputs {tuple(shape)} is as long as what the layers read: {_ASK}"
        )
    raise NotApplicable(
        f"the inputs {tuple(shape)} have no time axis that can be told: the model has no "
        f"recurrent, 1-D convolutional or attention layer; if time is there, {_ASK}"
    )


class _Heard:
    """Timesteps that layers read or returned, in the order of their first calls."""

    def __init__(self) -> None:
        self.layers: list[tuple[str, int]] = []
        self.single: Counter[str] = Counter()

    def lengths(self) -> list[tuple[str, int]]:
        """List every layer with a number of timesteps.

        What reads one timestep with every call reads as many as it has calls; of such modules that
        are called once, as many as there are side by side: weights that are not shared in time.
        """
        often = [(name, count) for name, count in self.single.items() if count > 1]
        once = Counter(name.rpartition(".")[0] for name, count in self.single.items() if count == 1)
        together = [*self.layers, *often, *once.items()]
        return [(name or "the model", count) for name, count in together]


@contextmanager
def _listening(model: nn.Module) -> Iterator[_Heard]:
    """Note how many timesteps layers with a sense of time see while the block runs."""
    heard = _Heard()
    with ExitStack() as stack:
        for name, module in model.named_modules():

            def listen(
                module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name
            ) -> None:
                # What a causal convolution reads is padded, what it returns is not.
                values = ([*args, *kwargs.values()][:1], output)
                leaves = [tree_leaves(value, is_leaf=_packed) for value in values]
                seen = [_timesteps(module, found[0]) for found in leaves if found]
                stepwise = isinstance(module, nn.RNNBase) and set(seen) == {1}
                if stepwise or isinstance(module, nn.RNNCellBase):
                    heard.single[name] += 1
                else:
                    heard.layers += [(name, count) for count in seen if count is not None]

            handle = module.register_forward_hook(listen, with_kwargs=True)
            stack.callback(handle.remove)
        yield heard


def _packed(value: Any) -> bool:
    """Whether this is a packed sequence."""
    return isinstance(value, PackedSequence)


def _timesteps(module: nn.Module, value: Any) -> int | None:
    """Count the timesteps a layer reads; None of a layer that has no sense of time."""
    if isinstance(module, nn.RNNBase) and isinstance(value, PackedSequence):
        return len(value.batch_sizes)
    if not isinstance(value, Tensor) or value.dim() < 3:
        return None
    if isinstance(module, nn.Conv1d):
        return value.shape[2]
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return value.shape[int(module.batch_first)]
    return None


@dataclass(frozen=True)
class Sequences:
    """The sequences of one batch.

    Parameters
    ----------
    batch : Batch
        Whose inputs they are.
    batch_axis, axis : int
        Of the first input tensor.
    lengths : Tensor, shape (B,)
        Valid timesteps of each sample, on the CPU [timestep].
    """

    batch: Batch
    batch_axis: int
    axis: int
    lengths: Tensor

    @classmethod
    def of(cls, subject: Subject, batch: Batch, axis: int) -> "Sequences":
        """Read the sequences of ``batch``, whose time axis is ``axis``.

        Raises
        ------
        AnalyzerError
            A length is below 1 or above the size of the time axis.
        """
        if isinstance(batch.inputs, PackedSequence):
            return cls(batch, 0, 1, pad_packed_sequence(batch.inputs)[1])
        first = first_tensor(batch.inputs)
        batch_axis, timesteps = subject.batch_axis % first.dim(), first.shape[axis]
        if batch.lengths is None:
            lengths = torch.full((first.shape[batch_axis],), timesteps)
        else:
            lengths = torch.as_tensor(batch.lengths).cpu().long()
        if lengths.min() < 1 or lengths.max() > timesteps:
            raise AnalyzerError(
                f"lengths run from {lengths.min()} to {lengths.max()}, but the time axis of the "
                f"inputs {tuple(first.shape)} has {timesteps} timesteps"
            )
        return cls(batch, batch_axis, axis, lengths)

    def tensors(self) -> list[Tensor]:
        """List the input tensors that have time: (B, T, ...), time-first ones turned."""
        inputs = self.batch.inputs
        if isinstance(inputs, PackedSequence):
            return [pad_packed_sequence(inputs, batch_first=True)[0]]
        found: list[Tensor] = []

        def keep(value: Tensor) -> Tensor:
            found.append(value)
            return value

        self._visited(inputs, keep)
        return found

    def replaced(self, tensors: Sequence[Tensor]) -> Inputs:
        """Put other values in the place of :meth:`tensors`."""
        inputs, following = self.batch.inputs, iter(tensors)
        if not isinstance(inputs, PackedSequence):
            return self._visited(inputs, lambda _value: next(following))
        ordered = inputs.sorted_indices is None
        return pack_padded_sequence(
            next(following), self.lengths, batch_first=True, enforce_sorted=ordered
        )

    def _visited(self, inputs: Inputs, visit: Any) -> Inputs:
        """Replace every tensor that has the samples and timesteps of the first one."""
        first = first_tensor(inputs)
        samples, timesteps = first.shape[self.batch_axis], first.shape[self.axis]

        def each(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.dim() <= max(self.batch_axis, self.axis):
                return value
            if (value.shape[self.batch_axis], value.shape[self.axis]) != (samples, timesteps):
                return value
            turned = value.movedim((self.batch_axis, self.axis), (0, 1))
            return visit(turned).movedim((0, 1), (self.batch_axis, self.axis))

        visited: Inputs = tree_map(each, inputs)
        return visited


class Sample(NamedTuple):
    """One sequence of an audit set: its tensors (T, ...) and its valid timesteps."""

    tensors: list[Tensor]
    length: int


def samples(sequences: Sequences) -> list[Sample]:
    """Take a batch apart; nothing is copied."""
    tensors = sequences.tensors()
    return [
        Sample([tensor[row] for tensor in tensors], int(length))
        for row, length in enumerate(sequences.lengths)
    ]


def spliced(
    sequences: Sequences, donors: Sequence[Sample], kept: int, until: int | None = None
) -> Inputs:
    """Keep the last ``kept`` valid timesteps of each sample; older ones come from its donor.

    The donors are lined up with the ends of the sequences; one that is shorter is repeated towards
    the past. With ``until``, timesteps from the lag ``until`` on are the sample's own again.
    """
    tensors = [tensor.clone() for tensor in sequences.tensors()]
    for row, (donor, length) in enumerate(zip(donors, sequences.lengths.tolist(), strict=True)):
        first, stop = 0 if until is None else max(0, length - until), max(0, length - kept)
        if first == stop:
            continue
        ahead = donor.length - length
        for values, other in zip(tensors, donor.tensors, strict=True):
            values[row, first:stop] = _repeated(other, donor.length, first + ahead, stop + ahead)
    return sequences.replaced(tensors)


def _repeated(values: Tensor, period: int, first: int, stop: int) -> Tensor:
    """Cut timesteps out of a sequence that is repeated towards the past."""
    if first >= 0:
        return values[first:stop]
    return values[(torch.arange(first, stop) % period).to(values.device)]


def relengthed(
    sequences: Sequences, donors: Sequence[Sample], kept: int, longer: int, layout: Layout
) -> Sequences:
    """Keep the last ``kept`` inputs of each sequence, and put ``longer`` of its donor in front.

    Targets are cut likewise, or their first one is repeated, and whatever says how long the
    sequences are is changed with them.
    """
    before_B = sequences.lengths
    now_B = before_B.clamp_max(kept) + longer
    tensors = []
    for place, own in enumerate(sequences.tensors()):
        fronts = [
            _repeated(donor.tensors[place], donor.length, donor.length - longer, donor.length)
            for donor in donors
        ]
        tensors.append(_refitted(own, before_B, now_B, fronts))

    def target(values: Tensor) -> Tensor:
        fronts = [row[:1].expand(longer, *row.shape[1:]) for row in values]
        return _refitted(values, before_B, now_B, fronts)

    def told(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.is_floating_point():
            return value
        same = value.shape == before_B.shape and torch.equal(value.cpu().long(), before_B)
        return now_B.to(value) if same else value

    changed = replace(sequences, lengths=now_B)
    batch = Batch(
        mapped(changed.replaced(tensors), told),
        layout.along_time(sequences.batch.targets, target),
        None if sequences.batch.lengths is None else now_B,
    )
    return replace(changed, batch=batch)


def _refitted(values: Tensor, before_B: Tensor, now_B: Tensor, fronts: Sequence[Tensor]) -> Tensor:
    """Put the last timesteps of (B, T, ...) behind others, and its padding behind them."""
    made = values.new_zeros(len(values), int(now_B.max()), *values.shape[2:])
    rows = zip(fronts, before_B.tolist(), now_B.tolist(), strict=True)
    for row, (front, before, now) in enumerate(rows):
        own = now - len(front)
        made[row, : len(front)] = front
        made[row, len(front) : now] = values[row, before - own : before]
        if before < values.shape[1]:
            made[row, now:] = values[row, before]
    return made


def by_lag(sequences: Sequences, values: Tensor) -> Tensor | None:
    """Order values, which the inputs' axes come first in, by lag: (B, T, ...).

    Past the first timestep of a sample they are nan; None for values without these axes.
    """
    count, steps = sequences.tensors()[0].shape[:2]
    if isinstance(sequences.batch.inputs, PackedSequence):
        packed: PackedSequence = sequences.batch.inputs._replace(data=values)
        values_BT = pad_packed_sequence(packed, batch_first=True)[0]
    elif values.dim() <= max(sequences.batch_axis, sequences.axis):
        return None
    else:
        values_BT = values.movedim((sequences.batch_axis, sequences.axis), (0, 1))
    if values_BT.shape[:2] != (count, steps):
        return None
    source_BT = (sequences.lengths[:, None] - 1 - torch.arange(steps)).to(values.device)
    ordered = values_BT[torch.arange(count, device=values.device)[:, None], source_BT.clamp_min(0)]
    past_BT = (source_BT < 0).reshape(source_BT.shape + (1,) * (ordered.dim() - 2))
    return ordered.masked_fill(past_BT, torch.nan)
