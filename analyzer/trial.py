"""The model and its loss run once before anything is measured: what does not fit is said."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from analyzer.imports import told
from probes.base import Batch, Subject, call
from probes.errors import AnalyzerError
from probes.loss.objective import sample_losses
from probes.model.taps import copied_inputs, copies, same_bits, untouched
from probes.structure import leaves, packed

TOLERANCE = 1e-3
"""Share of the largest output by which a model may differ from itself: sums in another order."""


@contextmanager
def tried(subject: Subject) -> Iterator[None]:
    """Try a subject on its first batch; in the block it can be measured.

    A model that changes its inputs in place is given copies of them in the block.

    Raises
    ------
    AnalyzerError
        There are no data, the model or the loss does not run on the first batch, or the model
        does not begin anew with every call.
    """
    sizes = [subject.batch_size(Batch.of(item)) for item in subject.batches]
    if not any(sizes):
        raise AnalyzerError("the audit data are empty: no batch with samples")
    if not all(sizes):
        raise AnalyzerError(f"batch {sizes.index(0) + 1} of the audit data has no samples")
    batch = next(iter(subject))
    given = copies(batch.inputs)
    with untouched(subject.model), torch.no_grad():
        with told("the model, on the first batch of the audit data,"):
            outputs = call(subject.model, given)
        first = [value.clone() for value in _tensors(outputs)]
        with told("the loss, on the first batch of the audit data,"):
            sample_losses(subject, outputs, batch)
        again = _tensors(call(subject.model, copies(batch.inputs)))
    if not _alike(first, again):
        raise AnalyzerError(
            "the model answers the same inputs differently when it is called again: it goes on "
            "from a state that it keeps; begin anew in its forward method, or audit a wrapper "
            "that resets it"
        )
    pairs = zip(_tensors(batch.inputs), _tensors(given), strict=True)
    unchanged = all(same_bits(before, after) for before, after in pairs)
    with nullcontext() if unchanged else copied_inputs(subject.model):
        yield


def _tensors(values: Any) -> list[Tensor]:
    """List the tensors in what a model is given or returns."""
    found = (leaf.data if packed(leaf) else leaf for leaf in leaves(values))
    return [leaf for leaf in found if isinstance(leaf, Tensor)]


def _alike(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Tell whether two answers are the same up to rounding."""
    return len(first) == len(second) and all(map(_close, first, second))


def _close(first: Tensor, second: Tensor) -> bool:
    """Tell whether two tensors are the same up to rounding; of integers, whether in shape."""
    if first.shape != second.shape:
        return False
    if not first.is_floating_point():
        return True
    finite = first[first.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(first, second, TOLERANCE, TOLERANCE * largest, equal_nan=True)
