"""What recurrent layers read while a model runs forwards.

For what needs the states and gates of every timestep, but no gradient of a loss: nothing runs
backwards here, so that layers which no loss reaches are read like the others.

Shapes: as in :mod:`probes.recurrent.backward.cells`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves, tree_map

from probes.base import Batch, Subject, call
from probes.errors import AnalyzerError
from probes.recurrent.backward.cells import Weights
from probes.recurrent.backward.clock import Clock
from probes.recurrent.backward.record import Site
from probes.recurrent.backward.recordings import Recordings
from probes.recurrent.watching.interception import Interception, LayerCall
from probes.recurrent.watching.naming import recurrent_modules
from probes.recurrent.watching.reading import Reading
from probes.recurrent.watching.refusals import calls_of, refuse_scripted, refuse_unseen
from probes.recurrent.watching.split import Recorder
from probes.samples.layout import Layout


class Read(NamedTuple):
    """What the recurrent layers of a model read of one batch."""

    samples: int
    readings: list[Reading]
    """Of the layers that read the samples of the batch one by one; or, of a batch that is one
    sample, all of its rows."""
    not_per_sample: list[str]
    """Layers that read another number of sequences than there are samples."""
    not_called: list[str]
    """Recurrent modules that did not run."""

    def first(self, count: int) -> "Read":
        """Leave out all but the first ``count`` samples."""
        if self.samples <= count:
            return self
        readings = [reading.rows(0, count) for reading in self.readings]
        return self._replace(samples=count, readings=readings)


def read(subject: Subject, batch: Batch) -> Read:
    """Run the model on a batch, and collect what its recurrent layers read.

    Call it inside :func:`probes.model.taps.untouched`.

    Parameters
    ----------
    subject : Subject
        Whose model runs.
    batch : Batch
        On the device of the model.

    Raises
    ------
    NotApplicable
        The model runs no recurrent layer of torch.
    AnalyzerError
        A layer runs where it cannot be read, or none can be told apart by samples.
    """
    layout = Layout.of(subject, batch)
    with observed(subject.model) as calls:
        call(subject.model, batch.inputs)
    found = list(_joined(calls, layout))
    called = {reading.site.module for reading in found}
    kept, other = [], []
    for reading in found:
        told = layout.samples in (1, reading.hidden.shape[1])
        kept.append(reading) if told else other.append(reading.site.label)
    if not kept:
        raise AnalyzerError(
            f"{found[0].site.label} reads {found[0].hidden.shape[1]} sequences for the "
            f"{layout.samples} samples of a batch, so that it cannot be told which are whose: "
            "check batch_first and batch_axis, or give batches of one sample"
        )
    missing = [name for name in recurrent_modules(subject.model) if name not in called]
    return Read(layout.samples, kept, other, missing)


def first_samples(subject: Subject, count: int) -> Iterator[Batch]:
    """Yield the first ``count`` samples, in the batches of the subject.

    The last batch stays whole where its inputs hold tensors without the batch axis, such as
    initial states.
    """
    for batch in subject:
        total = subject.batch_size(batch)
        yield _cut(batch, subject.batch_axis, total, count) if count < total else batch
        count -= total
        if count <= 0:
            return


def _cut(batch: Batch, axis: int, total: int, width: int) -> Batch:
    """Keep the first ``width`` samples of the inputs and lengths."""
    lengths = None if batch.lengths is None else batch.lengths[:width]
    if isinstance(batch.inputs, PackedSequence):
        padded, own = pad_packed_sequence(batch.inputs, batch_first=True)
        ordered = batch.inputs.sorted_indices is None
        packed = pack_padded_sequence(
            padded[:width], own[:width], batch_first=True, enforce_sorted=ordered
        )
        return Batch(packed, lengths=lengths)
    tensors = [leaf for leaf in tree_leaves(batch.inputs) if isinstance(leaf, Tensor)]
    if any(leaf.dim() <= axis or leaf.shape[axis] != total for leaf in tensors):
        return batch

    def cut(leaf: Any) -> Any:
        return leaf.narrow(axis, 0, width) if isinstance(leaf, Tensor) else leaf

    return Batch(tree_map(cut, batch.inputs), lengths=lengths)


class _Seen(NamedTuple):
    """One layer during one call of its module, as torch computed it."""

    sites: Sequence[Site]
    clock: Clock
    x: Tensor
    states: tuple[Tensor, ...]
    y: Tensor
    flat: list[Tensor]

    def weights(self, direction: int) -> Weights:
        """Pick the weights of one direction."""
        return Weights.of(self.flat, direction, len(self.sites))


@contextmanager
def observed(model: nn.Module) -> Iterator[list[_Seen]]:
    """Collect every call of a recurrent layer inside the block, in order; see :func:`read`.

    Raises
    ------
    NotApplicable
        No recurrent layer of torch ran.
    AnalyzerError
        A recurrent layer runs where it cannot be read.
    """
    refuse_scripted(model)
    watch, modules = _Watch(), recurrent_modules(model)
    with calls_of(modules) as called, Interception(model, watch):
        yield watch.seen
    if not watch.seen:
        refuse_unseen(modules, called)


class _Watch:
    """Keep what goes into every layer and comes out of it."""

    def __init__(self) -> None:
        # Computed as the engine does, so that states are told apart from tensors without a past.
        self._recorder = Recorder(Recordings())
        self.seen: list[_Seen] = []

    def __call__(self, call: LayerCall) -> tuple[Tensor, ...]:
        """Compute one layer as the engine does."""
        # Copies: the model may change its inputs and states in place afterwards. What goes from
        # layer to layer it never sees.
        read = call.x.detach().clone() if call.sites[0].layer == 0 else call.x.detach()
        before = tuple(state.detach().clone() for state in call.states)
        outputs = self._recorder(call)
        flat = [weight.detach() for weight in call.weights]
        self.seen.append(_Seen(call.sites, call.clock, read, before, outputs[0].detach(), flat))
        return outputs


def _joined(calls: list[_Seen], layout: Layout) -> Iterator[Reading]:
    """Put the calls that make up a sequence one after the other, layer by layer."""
    groups: dict[Site, list[_Seen]] = {}
    for one in calls:
        for site in one.sites:
            groups.setdefault(site, []).append(one)
    for site, group in groups.items():
        direction = int(site.reverse)
        entries = groups[replace(site, layer=0)]
        parts = [
            _part(site, one, _ordered(entry, direction)(entry.clock.padded(entry.x)), layout)
            for one, entry in zip(group, entries, strict=True)
        ]
        yield parts[0] if len(parts) == 1 else _chained(parts)


def _chained(parts: list[Reading]) -> Reading:
    """Join the readings of several calls along time."""
    return replace(
        parts[0],
        x=torch.cat([part.x for part in parts]),
        before=torch.cat([part.before for part in parts]),
        hidden=torch.cat([part.hidden for part in parts]),
        entering=torch.cat([part.entering for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
        calls=tuple(timesteps for part in parts for timesteps in part.calls),
        cells=tuple(cell for part in parts for cell in part.cells),
    )


def _ordered(one: _Seen, direction: int) -> Callable[[Tensor], Tensor]:
    """From the order of a call to that of reading, with the samples as in the batch."""
    clock = one.clock
    return lambda values: clock.by_sample(clock.turned(values, direction == 1), 1)


def _part(site: Site, one: _Seen, entering: Tensor, layout: Layout) -> Reading:
    """Read one direction of one call."""
    direction, clock = int(site.reverse), one.clock
    ordered = _ordered(one, direction)
    first, *cells = (clock.by_sample(state[direction], 0) for state in one.states)
    units = first.shape[-1]
    hidden = ordered(clock.padded(one.y)[..., direction * units : (direction + 1) * units])
    return Reading(
        site,
        one.weights(direction),
        ordered(clock.padded(one.x)),
        torch.cat([first.unsqueeze(0), hidden[:-1]]),
        hidden,
        entering,
        _valid(clock, site.reverse, layout).to(hidden.device),
        (clock.timesteps,),
        tuple(cells),
    )


def _valid(clock: Clock, reverse: bool, layout: Layout) -> Tensor:
    """Which timesteps are no padding, in the order of reading: (T, B)."""
    steps_T1 = torch.arange(clock.timesteps)[:, None]
    lengths_B = clock.by_sample(clock.lengths(), 0)
    if clock.batch_sizes is not None:
        return steps_T1 < lengths_B
    # Padding that the model reads too: the end of the data, so a reverse direction begins with it.
    known = layout.timesteps
    if layout.lengths is not None and layout.samples == clock.samples:
        longest = int(layout.lengths.max())
        if clock.timesteps == known or (known is None and clock.timesteps >= longest):
            lengths_B = torch.minimum(lengths_B, layout.lengths.to(lengths_B))
    return clock.turned(steps_T1 < lengths_B, reverse)
