"""What every timestep adds to the gradients of the recurrent weights, which all timesteps share.

Shapes: T timestep, N sample, K timestep of a part, G row and I column of a weight.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional

from probes.base import Progress, Subject, silent, variable
from probes.errors import AnalyzerError
from probes.loss.objective import describe
from probes.recurrent.backward.record import Site
from probes.recurrent.shares.collected import Collected, autograd_residual, collect
from probes.recurrent.shares.halves import Halved, Terms, halved
from probes.recurrent.shares.outer import inner
from probes.recurrent.watching.naming import recurrent_modules
from probes.samples.selection import rows

_GIB = 2**30


@dataclass(frozen=True)
class TimestepContribution:
    """Share, size and direction of each timestep's part of every shared weight's gradient.

    The gradient G of the mean loss by a recurrent weight is the sum over timesteps of C_t, each a
    sum over samples. Told are the share <C_t, G> / |G|^2 sample by sample (all shares add up to 1),
    the share of each timestep in the gradient of a sample's own loss (which does not vanish where
    training has converged; those of a sample add up to 1), the norm of C_t, its cosine with G, and
    the conflict: the cosine between what the first and what the second half of each sequence add.
    Exact: no outer product is approximated or left out.

    Timesteps are those of the data, from its start, in a reverse direction too: in ragged batches
    C_t sums over the samples that have a timestep t. Each sample is halved at the middle of its own
    length. Padding that the model reads contributes like any other input, to the second half.

    Costs 2.5 to 3 forward and backward passes of the samples measured. Keeps what the gradients
    are made of for all of them, about 4 * (G + I + H) bytes for a timestep of a layer, at most
    ``memory``: for long sequences it measures fewer samples, and says how many.

    Parameters
    ----------
    samples : int
        Audit samples that are measured, spread evenly over all of them.
    memory : float
        What may be kept [GiB].
    """

    name: ClassVar[str] = "timestep_contribution"
    passes: ClassVar[float] = 3
    samples: int = 64
    memory: float = 1.0

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        if self.samples < 2 or not self.memory > 0:
            raise AnalyzerError(
                "timestep_contribution needs samples >= 2 and memory > 0: they are "
                f"{self.samples} and {self.memory:g}"
            )
        chosen = rows(subject, self.samples)
        found = collect(subject, chosen, self.memory * _GIB, progress)
        residual = autograd_residual(subject, found)
        weights = [*_weights(found)]
        if not weights:
            site, sequences = next(iter(found.others.items()))
            raise AnalyzerError(
                f"{site.label} reads {sequences} sequences for the {sum(found.samples)} samples, "
                "so that it cannot be told which are whose: check batch_first and batch_axis"
            )
        return _trace(found, weights).assign_attrs(
            objective=describe(subject), gradient_residual=residual, **_remarks(subject, found)
        )


_PER_STEP = ("sample", "weight", "timestep")

_LABELS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "share": (_PER_STEP, "share of each sample and timestep in the gradient of the weight", "1"),
    "own_share": (_PER_STEP, "share of each timestep in the gradient of the sample's loss", "1"),
    "norm": (
        ("weight", "timestep"),
        "norm of what a timestep adds to the gradient of the mean loss",
        "loss / weight",
    ),
    "cosine": (
        ("weight", "timestep"),
        "cosine of what a timestep adds with the whole gradient",
        "1",
    ),
    "gradient": (("weight",), "norm of the gradient of the mean loss", "loss / weight"),
    "sample_gradient": (
        ("sample", "weight"),
        "norm of the gradient of the sample's loss",
        "loss / weight",
    ),
    "conflict": (("weight",), "cosine of the first with the second half", "1"),
    "conflict_without": (
        ("sample", "weight"),
        "cosine of the first with the second half, without the sample",
        "1",
    ),
    "sample_conflict": (
        ("sample", "weight"),
        "cosine of the first with the second half of the sample",
        "1",
    ),
    "length": (("sample", "weight"), "timesteps that are no padding", "timestep"),
}
"""Variables of the trace: dimensions, name, unit."""

_OF_THE_WHOLE = {
    "gradient": "norm",
    "sample_gradient": "sample_norm",
    "conflict": "cosine",
    "conflict_without": "cosine_without",
    "sample_conflict": "sample_cosine",
}
"""Variables of a weight as a whole, and what :class:`probes.recurrent.shares.halves.Halved` calls
them."""


class _Row(NamedTuple):
    """One weight over one sequence that its layer reads."""

    site: Site
    weight: str
    share: Tensor
    """(N, T), nan past the end of a sample."""
    own_share: Tensor
    """(N, T), nan past the end of a sample."""
    norm: Tensor
    """(T,)"""
    cosine: Tensor
    """(T,)"""
    whole: dict[str, Tensor]
    """Of the weight as a whole."""


def _weights(found: Collected) -> Iterator[_Row]:
    """Measure the weights of one layer after the other, over all sequences they are used for."""
    groups: dict[tuple[str, int, bool], list[Site]] = {}
    for site in found.sites():
        groups.setdefault((site.module, site.layer, site.reverse), []).append(site)
    for group in groups.values():
        for names in found.bundles(group[0]):
            terms = [found.terms(site, names) for site in group]
            whole = halved(terms)
            for sequence, site in enumerate(group):
                yield from _rows(found, site, names, terms[sequence], sequence, whole)


def _rows(
    found: Collected, site: Site, names: list[str], terms: Terms, sequence: int, whole: Halved
) -> Iterator[_Row]:
    """Compare every timestep with the gradients of the weights."""
    timesteps = terms.by_time()
    norm_WT = inner(timesteps, timesteps).clamp_min(0).sqrt().cpu()
    inner_WTN, own_WTN = whole.inner[sequence].cpu(), whole.own[sequence].cpu()
    past_TN = torch.arange(inner_WTN.shape[1])[:, None] >= found.lengths(site)
    for index, name in enumerate(names):
        own = {field: getattr(whole, field)[index].cpu() for field in _OF_THE_WHOLE.values()}
        inner_TN, norm_T = inner_WTN[index], norm_WT[index]
        yield _Row(
            site,
            name,
            (inner_TN / own["norm"].square()).masked_fill(past_TN, torch.nan).T,
            (own_WTN[index] / own["sample_norm"].square()).masked_fill(past_TN, torch.nan).T,
            norm_T,
            inner_TN.sum(1) / (norm_T * own["norm"]),
            own,
        )


def _trace(found: Collected, weights: list[_Row]) -> xr.Dataset:
    """Label what was measured."""
    count = sum(found.samples)
    timesteps = max(row.share.shape[1] for row in weights)
    values = {
        "share": _stacked([row.share for row in weights], timesteps),
        "own_share": _stacked([row.own_share for row in weights], timesteps),
        "norm": _stacked([row.norm / count for row in weights], timesteps),
        "cosine": _stacked([row.cosine for row in weights], timesteps),
        "length": torch.stack([found.valid(row.site) for row in weights], -1),
    }
    for name, field in _OF_THE_WHOLE.items():
        values[name] = torch.stack([row.whole[field] for row in weights], -1)
    values["gradient"] /= count
    variables = {name: variable(values[name], *labels) for name, labels in _LABELS.items()}
    facts = {"samples": count, "share_residual": _share_residual(weights)}
    return xr.Dataset(variables, _coordinates(weights, timesteps), facts)


def _stacked(values: list[Tensor], timesteps: int) -> Tensor:
    """Join values of weights (..., T) as (..., W, T), nan past the end of shorter ones."""
    padded = [
        functional.pad(value, (0, timesteps - value.shape[-1]), value=torch.nan) for value in values
    ]
    return torch.stack(padded, -2)


def _share_residual(weights: list[_Row]) -> float:
    """Largest difference from 1 of what all shares of a weight add up to."""
    sums: dict[tuple[str, int, bool, str], float] = {}
    for row in weights:
        key = row.site.module, row.site.layer, row.site.reverse, row.weight
        if row.whole["norm"]:
            sums[key] = sums.get(key, 0.0) + float(row.share.nansum())
    return max((abs(total - 1) for total in sums.values()), default=torch.nan)


def _coordinates(weights: list[_Row], timesteps: int) -> dict[str, Any]:
    """Name the weights."""
    sites = [row.site for row in weights]
    return {
        "weight": [f"{row.site.label}.{row.weight}" for row in weights],
        "layer": ("weight", [site.label for site in sites]),
        "parameter": ("weight", [row.weight for row in weights]),
        "kind": ("weight", [site.kind.partition("_")[0].upper() for site in sites]),
        "direction": ("weight", ["reverse" if site.reverse else "forward" for site in sites]),
        "timestep": range(timesteps),
    }


def _remarks(subject: Subject, found: Collected) -> dict[str, str | float]:
    """Say what was not measured."""
    reached = {site for parts in found.parts for site in parts}
    unreached = [site for site in found.unreached if site not in reached]
    called = {site.module for site in (*reached, *found.unreached, *found.others)}
    missing = [name for name in recurrent_modules(subject.model) if name not in called]
    return {
        "replay_residual": found.residual,
        "not_called": ", ".join(missing),
        "without_gradient": ", ".join(dict.fromkeys(site.label for site in unreached)),
        "not_per_sample": ", ".join(site.label for site in found.others),
    }
