"""Passes over a model with its recurrent layers watched, differentiated or replaced.

Shapes: N sample, B sample of a piece, L layer, K number of inputs kept, E feature of a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from probes.algebra.linear_map import fitted
from probes.base import Batch, Subject, call
from probes.loss.removal import Intact
from probes.loss.replacement import donors_of
from probes.model.taps import differentiable_recurrence
from probes.recurrent.states.features import Draw, Features, last_states, read
from probes.recurrent.watching.bypass import Layers, Substitute
from probes.samples.layout import Layout
from probes.samples.selection import pieces, spread
from probes.samples.timeline import Sequences, samples, spliced


class Piece(NamedTuple):
    """Samples of one half that run together."""

    half: int
    places: list[int]
    batch: Batch


class Removed(NamedTuple):
    """What each sample's loss and decisions change by without a layer; nan where not measured."""

    loss: Tensor
    """With the best linear map in its place, shape (N, L)."""
    decisions: Tensor
    """Share of the decisions that change then, shape (N, L)."""
    skipped: Tensor
    """Change of the loss with what the layer reads in its place, shape (N, L)."""


def halves(subject: Subject, chosen: Sequence[int], most: int, size: int) -> list[Piece]:
    """Cut samples into two halves, and up to ``most`` of them, evenly spread, into pieces.

    Whatever ``most`` is, no sample is in the other half.
    """
    found = []
    for half, count in ((0, -(-most // 2)), (1, most // 2)):
        own = chosen[half::2]
        few = [own[at] for at in spread(len(own), count)]
        found += [Piece(half, places, batch) for places, batch in pieces(subject, few, size)]
    return found


def features(subject: Subject, parts: Sequence[Piece], positions: int) -> dict[str, Features]:
    """Watch every recurrent layer, by label, in the order in which they first run."""
    generator = subject.generator()
    found: dict[str, Features] = {}
    for part in parts:
        drawn = Draw.of(len(part.places), positions, generator)
        for reading in read(subject.model, part.batch, Layout.of(subject, part.batch)):
            widths = reading.x.shape[-1], reading.y.shape[-1]
            weights = tuple(id(weight) for weight in reading.weights)
            known = found.setdefault(reading.label, Features(reading.kind, *widths, weights))
            known.add(reading, part.half, drawn)
    return found


def gradients(
    subject: Subject, parts: Sequence[Piece], layers: Mapping[str, Features]
) -> tuple[Tensor, Tensor]:
    """Loss of every sample (N,), and each layer's share of the squared gradient (L,)."""
    generator = subject.generator()
    weights = [weight for weight in subject.model.parameters() if weight.requires_grad]
    used = [w for w in weights if any(id(w) in layer.weights for layer in layers.values())]
    total = [torch.zeros_like(weight, dtype=torch.float64) for weight in used]
    losses = []
    for part in parts:
        with differentiable_recurrence(subject.model):
            outputs = call(subject.model, part.batch.inputs)
        intact = Intact.of(subject, outputs, part.batch)
        losses.append(intact.loss.double().cpu())
        loss = intact.sensitive(outputs, generator).sum()
        if used and loss.requires_grad:
            for sum_, gradient in zip(
                total, torch.autograd.grad(loss, used, allow_unused=True), strict=True
            ):
                if gradient is not None:
                    sum_ += gradient
    squares = {id(w): float(sum_.square().sum()) for w, sum_ in zip(used, total, strict=True)}
    by_layer = torch.tensor(
        [sum(squares.get(weight, 0.0) for weight in layer.weights) for layer in layers.values()],
        dtype=torch.float64,
    )
    return torch.cat(losses), by_layer / by_layer.sum()


def without(
    subject: Subject,
    parts: Sequence[Piece],
    layers: Mapping[str, Features],
    chosen: Sequence[str],
) -> Removed:
    """Leave each of the chosen layers out, with what was fitted on the other half of the samples.

    Parameters
    ----------
    subject : Subject
        Whose objective it is.
    parts : sequence of Piece
        The samples.
    layers : mapping of str to Features
        As :func:`features` found them.
    chosen : sequence of str
        Layers to leave out.
    """
    maps = {
        label: [fitted(joint, layers[label].reads) for joint in layers[label].joint]
        for label in chosen
        if all(joint.count for joint in layers[label].joint)
    }
    rows = []
    for part in parts:
        with torch.no_grad():
            intact = Intact.of(subject, call(subject.model, part.batch.inputs), part.batch)
        unknown_B = torch.full_like(intact.loss, torch.nan)
        columns = []
        for label, layer in layers.items():
            linear: Substitute | None = maps[label][1 - part.half] if label in maps else None
            changes = _changed(subject, intact, label, linear)
            same = label in maps and layer.reads == layer.units
            skipped = _changed(subject, intact, label, _same if same else None)
            columns.append(
                [unknown_B if value is None else value for value in (*changes, skipped[0])]
            )
        rows.append(torch.stack([torch.stack(column) for column in columns]).double().cpu())
    loss, decisions, skipped_LN = torch.cat(rows, 2).unbind(1)
    return Removed(loss.T, decisions.T, skipped_LN.T)


def _same(x: Tensor) -> Tensor:
    """Pass on what a layer reads."""
    return x


def _changed(
    subject: Subject, intact: Intact, label: str, substitute: Substitute | None
) -> tuple[Tensor | None, Tensor | None]:
    """Change of the loss and of the decisions with something in the place of a layer."""
    if substitute is None:
        return None, None
    with torch.no_grad(), Layers(subject.model, {label: substitute}):
        outputs = call(subject.model, intact.batch.inputs)
    return intact.change(outputs), intact.decisions(outputs)


def reach(
    subject: Subject, parts: Sequence[Piece], layers: Sequence[str], axis: int, kept: Sequence[int]
) -> Tensor:
    """Squared change of every layer's last state with all but the last inputs replaced.

    Parameters
    ----------
    subject : Subject
        Its seed draws the donors.
    parts : sequence of Piece
        The samples, which are each other's donors.
    layers : sequence of str
        Labels.
    axis : int
        Where time is in the inputs.
    kept : sequence of int
        Numbers of inputs kept.

    Returns
    -------
    Tensor, shape (N, L, K)
        nan where a layer has no state for each sample, and with more inputs kept than there are.
    """
    subject = replace(subject, time_axis=axis)
    sequences = [Sequences.of(subject, part.batch, axis) for part in parts]
    pool = [sample for own in sequences for sample in samples(own)]
    donor_N = donors_of(len(pool), subject.generator()).tolist()
    found, start = [], 0
    for own in sequences:
        count = len(own.lengths)
        donors = [pool[donor] for donor in donor_N[start : start + count]]
        start += count
        intact = _last(subject, own.batch, layers, count)
        changes_LKB = torch.full((len(layers), len(kept), count), torch.nan, dtype=torch.float64)
        for place, number in enumerate(kept):
            replaced = replace(own.batch, inputs=spliced(own, donors, number))
            now = _last(subject, replaced, layers, count)
            for row, label in enumerate(layers):
                if label in now and label in intact:
                    changes_LKB[row, place] = (now[label] - intact[label]).square().mean(1).cpu()
            changes_LKB[:, place, own.lengths < number] = torch.nan
        found.append(changes_LKB)
    return torch.cat(found, 2).permute(2, 0, 1)


def _last(subject: Subject, batch: Batch, layers: Sequence[str], count: int) -> dict[str, Tensor]:
    """Last states of the layers that have one for each sample."""
    states = last_states(read(subject.model, batch, Layout.of(subject, batch)))
    return {label: states[label] for label in layers if len(states.get(label, ())) == count}
