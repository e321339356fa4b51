"""The same samples with each other's targets: what a loss is where targets tell nothing."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from probes.base import Batch, Subject
from probes.loss.replacement import donors_of
from probes.samples.alike import joined, signature


def permuted(
    subject: Subject, batches: Sequence[Batch], generator: torch.Generator
) -> list[Batch | None]:
    """Give every sample the targets of another one.

    Targets are exchanged between all batches in which they have the same shape. Where samples have
    lengths, only timesteps count that both have.

    Parameters
    ----------
    subject : Subject
        Says where samples are.
    batches : sequence of Batch
    generator : Generator
        Of the choice.

    Returns
    -------
    list of Batch or None
        None for a batch whose samples find no other one.
    """
    found: list[Batch | None] = [None] * len(batches)
    for places in _alike(subject, batches).values():
        own = [batches[place] for place in places]
        if sum(subject.batch_size(batch) for batch in own) > 1:
            for place, batch in zip(places, _exchanged(subject, own, generator), strict=True):
                found[place] = batch
    return found


def _alike(subject: Subject, batches: Sequence[Batch]) -> dict[Hashable, list[int]]:
    """Put together the batches whose targets can be exchanged: signature -> places."""
    places: dict[Hashable, list[int]] = {}
    for place, batch in enumerate(batches):
        own = signature(batch.targets, subject.batch_size(batch), subject.batch_axis)
        key = own, batch.lengths is None
        places.setdefault(key, []).append(place)
    return places


def _exchanged(
    subject: Subject, batches: Sequence[Batch], generator: torch.Generator
) -> Iterator[Batch]:
    """Exchange targets between batches in which they have the same shape."""
    sizes = [subject.batch_size(batch) for batch in batches]
    donor_B = donors_of(sum(sizes), generator)
    flat = [tree_flatten(batch.targets) for batch in batches]
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    given = [_given([*column], sizes, subject.batch_axis, donor_B) for column in columns]
    for place, batch in enumerate(batches):
        targets = tree_unflatten([column[place] for column in given], flat[place][1])
        yield replace(batch, targets=targets, lengths=_lengths(batches, place, donor_B, sizes))


def _given(leaves: list[Any], sizes: list[int], axis: int, donor_B: Tensor) -> list[Any]:
    """Exchange one leaf of the targets."""
    whole, dim = joined(leaves, sizes[0], axis)
    if dim is None:
        return leaves
    given = whole.index_select(dim, donor_B.to(whole.device))
    return [*torch.split(given, sizes, dim)]


def _lengths(
    batches: Sequence[Batch], place: int, donor_B: Tensor, sizes: list[int]
) -> Tensor | None:
    """Timesteps that both a sample and its donor have: (B,)."""
    if batches[place].lengths is None:
        return None
    every_B = torch.cat([torch.as_tensor(batch.lengths).cpu() for batch in batches])
    return torch.split(torch.minimum(every_B, every_B[donor_B]), sizes)[place]
