"""What the gradients of recurrent weights are made of, for some of the audit data.

Shapes: T timestep, B sample of a piece, N sample of all pieces, G row and I column of a weight.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from probes.base import Batch, Progress, Subject, call
from probes.loss.objective import sample_losses
from probes.model.taps import differentiable_recurrence, untouched
from probes.recurrent.backward.bptt import Factor, bundled
from probes.recurrent.backward.record import Site, StateGradients
from probes.recurrent.shares.halves import Terms
from probes.recurrent.watching.naming import parameter_name
from probes.recurrent.watching.split import recorded
from probes.samples.layout import Layout
from probes.samples.selection import pieces, rows

CHECKED = 2
"""Samples on which the gradients are compared with those of torch."""


class Part(NamedTuple):
    """One layer and direction in one piece of the data."""

    factors: dict[str, Factor]
    """By the name of the weight."""
    lengths: Tensor
    """Timesteps that each sample's row has: (B,)."""
    valid: Tensor
    """Those of them that are no padding: (B,)."""


@dataclass
class Collected:
    """What the backward passes of all pieces left.

    Parameters
    ----------
    chosen : list of int
        Places of the samples in the audit data.

    Attributes
    ----------
    samples : list of int
        Of every piece.
    parts : list of dict
        Of every piece, by layer and direction.
    others : dict
        Layers that read another number of sequences than there are samples, and how many.
    unreached : list of Site
        Layers that no gradient reached.
    residual : float
        Largest replay residual.
    """

    chosen: list[int]
    samples: list[int] = field(default_factory=list)
    parts: list[dict[Site, Part]] = field(default_factory=list)
    others: dict[Site, int] = field(default_factory=dict)
    unreached: list[Site] = field(default_factory=list)
    residual: float = 0.0

    def sites(self) -> list[Site]:
        """List what has a gradient."""
        return list(dict.fromkeys(site for parts in self.parts for site in parts))

    def known(self, site: Site) -> Part:
        """Return the first part of a layer and direction."""
        return next(parts[site] for parts in self.parts if site in parts)

    def bundles(self, site: Site) -> list[list[str]]:
        """Name the weights whose products have the left factor in common, together."""
        together = bundled(self.known(site).factors.values())
        return [[factor.weight for factor in bundle] for bundle in together]

    def lengths(self, site: Site) -> Tensor:
        """Count the timesteps of each sample in one layer: (N,)."""
        return self._per_sample(site, lambda part: part.lengths)

    def valid(self, site: Site) -> Tensor:
        """Count those that are no padding: (N,)."""
        return self._per_sample(site, lambda part: part.valid)

    def terms(self, site: Site, names: list[str]) -> Terms:
        """Join the pieces, aligned at the first timestep; zero where there is nothing.

        Parameters
        ----------
        site : Site
            Layer and direction.
        names : list of str
            Weights whose products have the left factor in common.
        """
        left_TNG = self._joined(site, names[0], lambda factor: factor.left)
        assert left_TNG is not None
        ones_TN1 = left_TNG.new_ones(*left_TNG.shape[:2], 1)
        rights = [self._joined(site, name, lambda factor: factor.right) for name in names]
        columns = [ones_TN1 if right is None else right for right in rights]
        stops = torch.tensor([column.shape[2] for column in columns]).cumsum(0).tolist()
        # Columns of zeros, as products with an odd number of columns are up to half slower.
        spare_TNI = ones_TN1.new_zeros(*left_TNG.shape[:2], -stops[-1] % 8)
        right_TNI = torch.cat([*columns, spare_TNI], 2)
        return Terms(left_TNG, right_TNI, tuple(pairwise([0, *stops])), self.valid(site) // 2)

    def _joined(
        self, site: Site, name: str, pick: Callable[[Factor], Tensor | None]
    ) -> Tensor | None:
        """One side of the factors of one weight: (T, N, ...)."""
        like = pick(self.known(site).factors[name])
        if like is None:
            return None
        own = [pick(parts[site].factors[name]) if site in parts else None for parts in self.parts]
        timesteps = max(len(values) for values in own if values is not None)
        padded = [
            _padded(values, like, timesteps, samples)
            for values, samples in zip(own, self.samples, strict=True)
        ]
        return padded[0] if len(padded) == 1 else torch.cat(padded, 1)

    def _per_sample(self, site: Site, pick: Callable[[Part], Tensor]) -> Tensor:
        """Join numbers of samples; zero where a layer did not run."""
        values = [
            pick(parts[site]) if site in parts else torch.zeros(count, dtype=torch.long)
            for parts, count in zip(self.parts, self.samples, strict=True)
        ]
        return torch.cat(values)


def collect(subject: Subject, chosen: list[int], memory: float, progress: Progress) -> Collected:
    """Run samples forwards and backwards; begin again with fewer where they do not fit.

    Parameters
    ----------
    subject : Subject
        Its model is left as it was found.
    chosen : list of int
        Places of the samples.
    memory : float
        That the result may take [byte].
    progress : callable
        Follows the samples.
    """
    found = Collected(chosen)
    for places, batch in pieces(subject, chosen, len(chosen)):
        with untouched(subject.model):
            states = _differentiated(subject, batch)
        layout = Layout.of(subject, batch)
        parts: dict[Site, Part] = {}
        for state in states:
            if len(state.lengths) != len(places):
                found.others[state.site] = len(state.lengths)
            elif not state.reached:
                found.unreached.append(state.site)
            else:
                parts[state.site] = _part(state, layout)
                found.residual = max(found.residual, float(state.measured.residual))
        fitting = max(2, int(memory * len(places) / max(_bytes(parts), 1)))
        if not found.parts and fitting < len(chosen):
            return collect(subject, rows(subject, fitting), memory, progress)
        found.parts.append(parts)
        found.samples.append(len(places))
        progress(sum(found.samples), len(chosen))
    return found


def _differentiated(subject: Subject, batch: Batch) -> tuple[StateGradients, ...]:
    """Run one piece forwards and backwards."""
    with recorded(subject.model, keep="factors") as recordings:
        outputs = call(subject.model, batch.inputs)
    return recordings.gradients(sample_losses(subject, outputs, batch))


def _part(state: StateGradients, layout: Layout) -> Part:
    """Keep the factors of one layer."""
    factors = {factor.weight: factor for factor in state.measured.factors}
    if state.site.kind != "gru":
        # Only in a GRU is it another gradient than that of the other bias.
        factors.pop("bias_hh", None)
    valid_B = state.lengths
    if layout.lengths is not None:
        # Padding is that of the inputs; a layer after a convolution may read fewer timesteps.
        timesteps, known = len(state.measured.hidden), layout.timesteps
        longest = int(layout.lengths.max())
        if timesteps == known or (known is None and timesteps >= longest):
            valid_B = torch.minimum(valid_B, layout.lengths.to(valid_B))
    return Part(factors, state.lengths, valid_B)


def _bytes(parts: dict[Site, Part]) -> int:
    """Memory that factors take; several weights share some of them."""
    tensors = [
        values
        for part in parts.values()
        for factor in part.factors.values()
        for values in (factor.left, factor.right)
        if values is not None
    ]
    return sum({t.data_ptr(): t.nelement() * t.element_size() for t in tensors}.values())


def _padded(values: Tensor | None, like: Tensor, timesteps: int, samples: int) -> Tensor:
    """Fill up with zeros to (timesteps, samples, ...)."""
    if values is not None and len(values) == timesteps:
        return values
    found = like.new_zeros(timesteps, samples, *like.shape[2:])
    if values is not None:
        found[: len(values)] = values
    return found


def autograd_residual(subject: Subject, found: Collected) -> float:
    """Largest relative difference from torch's own weight gradients, on the first few samples.

    nan where no weight is a parameter of the model, as under parametrizations.
    """
    _, batch = next(pieces(subject, found.chosen[:CHECKED], CHECKED))
    expected = _torch_gradients(subject, batch)
    count = subject.batch_size(batch)
    ours: dict[str, Tensor] = {}
    for site, part in found.parts[0].items():
        for weight, factor in part.factors.items():
            right = None if factor.right is None else factor.right[:, :count]
            name = parameter_name(site, weight, expected)
            own = Factor(weight, factor.left[:, :count], right).summed()
            ours[name] = ours[name] + own if name in ours else own
    residuals = [
        float((own - expected[name]).norm() / expected[name].norm())
        for name, own in ours.items()
        if name in expected
    ]
    return max(residuals, default=torch.nan)


def _torch_gradients(subject: Subject, batch: Batch) -> dict[str, Tensor]:
    """Gradients of the parameters by torch's own recurrent layers, where they are not zero."""
    model = subject.model
    with untouched(model, weights=True), differentiable_recurrence(model):
        loss = sample_losses(subject, call(model, batch.inputs), batch).sum()
        named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        given = torch.autograd.grad(loss, [*named.values()], allow_unused=True)
    return {
        name: gradient
        for name, gradient in zip(named, given, strict=True)
        if gradient is not None and gradient.any()
    }
