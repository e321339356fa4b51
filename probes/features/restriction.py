"""What the loss changes by when layers pass on only the directions that hold their variance.

Of a recurrent layer that is the sequence of hidden states, both directions together, and the final
ones: what the layer above and the head read, as of any other layer. Its own recurrence keeps all
of the state, since the directions are those of what is passed on, and those of a small variance
may be what it remembers by.

Shapes: C unit, J direction, N sample.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probes.base import Batch, Subject, call
from probes.features.layers import Layer
from probes.features.moments import Pooled
from probes.features.numbers import directions, spectrum
from probes.loss.removal import Intact
from probes.recurrent.watching.bypass import Layers
from probes.samples.selection import pieces


class Subspace(NamedTuple):
    """An affine subspace."""

    mean: Tensor
    """Shape (C,)."""
    basis: Tensor
    """Columns of unit length: (C, J)."""

    @classmethod
    def of(cls, whole: Pooled, level: float) -> "Subspace":
        """Span the fewest directions that hold ``level`` of the variance."""
        found = spectrum(whole.whole)
        count = float(directions(found.variances, level))
        return cls(whole.mean, found.directions[:, : 0 if count != count else int(count)])

    def project(self, values: Tensor, channel: int) -> Tensor:
        """Move values to the nearest point, along the axis of the units."""
        mean, basis = self.mean.to(values), self.basis.to(values)
        last = values.movedim(channel, -1) - mean
        return (last @ basis @ basis.T + mean).movedim(-1, channel)


class Changes(NamedTuple):
    """What each sample's loss is, and changes by."""

    loss: Tensor
    """Of the intact model: (N,)."""
    change: Tensor
    """With all layers restricted at once: (N,)."""
    decisions: Tensor
    """Share of the decisions that change: (N,); nan where there are none."""


def restricted(
    subject: Subject,
    chosen: Mapping[int, int],
    layers: Mapping[str, Layer],
    halves: Mapping[str, tuple[Subspace, Subspace]],
    together: int,
    step: Callable[[int], None],
) -> Changes:
    """Run the model with restricted layers, each by what the other half of the samples fills.

    Parameters
    ----------
    subject : Subject
        Whose objective it is.
    chosen : mapping of int to int
        Place of each sample in the audit data -> its half, 0 or 1.
    layers : mapping of str to Layer
        All that are restricted, at least.
    halves : mapping of str to pair of Subspace
        Of the layers that are restricted, fitted on each half.
    together : int
        Samples that run at the same time.
    step : callable
        Told how many samples are done.

    Returns
    -------
    Changes
        In the order of the places.
    """
    rows: dict[int, Tensor] = {}
    for half in (0, 1):
        other = {label: pair[1 - half] for label, pair in halves.items()}
        own = [place for place, side in chosen.items() if side == half]
        for places, batch in pieces(subject, own, together):
            found = _changes(subject, batch, layers, other)
            rows |= dict(zip(places, found.double().cpu().T, strict=True))
            step(len(places))
    loss, change, decisions = torch.stack([rows[place] for place in sorted(rows)], 1)
    return Changes(loss, change, decisions)


def _changes(
    subject: Subject, batch: Batch, layers: Mapping[str, Layer], spaces: Mapping[str, Subspace]
) -> Tensor:
    """Loss, its change and that of the decisions: (3, B)."""
    with torch.no_grad():
        intact = Intact.of(subject, call(subject.model, batch.inputs), batch)
        with _projected(subject.model, layers, spaces):
            outputs = call(subject.model, intact.batch.inputs)
        return torch.stack([intact.loss, intact.change(outputs), intact.decisions(outputs)])


@contextmanager
def _projected(
    model: nn.Module, layers: Mapping[str, Layer], spaces: Mapping[str, Subspace]
) -> Iterator[None]:
    """Put the nearest point of a subspace in the place of what each layer passes on."""
    modules = dict(model.named_modules())
    states: dict[str, Callable[[Tensor], Tensor]] = {}
    with ExitStack() as stack:
        for label, space in spaces.items():
            if layers[label].recurrent:
                states[label] = partial(space.project, channel=-1)
                continue

            def project(
                _module: nn.Module,
                _args: Any,
                output: Tensor,
                space: Subspace = space,
                channel: int = layers[label].channel,
            ) -> Tensor:
                return space.project(output, channel)

            hook = modules[layers[label].module].register_forward_hook(project)
            stack.callback(hook.remove)
        stack.enter_context(Layers(model, passed=states) if states else nullcontext())
        yield
