"""Gradients of the parameters over all batches.

Shapes: B sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import xarray as xr
from torch import Tensor, nn

from probes.algebra.norms import whole
from probes.base import variable
from probes.weight_gradient.ledger import UNUSED, Ledger


@dataclass
class ParameterGradients:
    """Their sums, and norms by sample.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        By name.
    """

    parameters: Mapping[str, nn.Parameter]
    totals: dict[str, Tensor] = field(default_factory=dict)
    norms: list[dict[str, Tensor]] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    refusal: str = ""
    """Why nothing is caught, so that no operation comes apart by sample; empty if it does."""

    def add(self, ledger: Ledger, found: Sequence[Tensor | None]) -> None:
        """Add one batch: what autograd found beside what the ledger holds."""
        norms: dict[str, Tensor] = {}
        for name, rest in zip(self.parameters, found, strict=False):
            total = ledger.total(name, rest)
            if total is None:
                continue
            norm_B, reason = ledger.norms(name, rest)
            if norm_B is not None:
                norms[name] = norm_B
            else:
                self.reasons[name] = self.refusal or reason
            total = total.to_dense() if total.is_sparse else total
            self.totals[name] = self.totals[name] + total if name in self.totals else total
        self.norms.append(norms)
        self.sizes.append(ledger.samples)

    def missing(self) -> list[str]:
        """Name the parameters that no gradient reaches."""
        return [name for name in self.parameters if name not in self.totals]

    def labelled(self) -> xr.Dataset:
        """Label the norms of the parameters and of their gradients."""
        unknown = torch.tensor(torch.nan, dtype=torch.float64)
        samples = sum(self.sizes)
        norms = {name: whole(total).cpu() / samples for name, total in self.totals.items()}
        measured = {
            "parameter_gradient": (
                torch.stack([norms.get(name, unknown) for name in self.parameters]),
                ("parameter",),
                "norm of the gradient of the mean loss",
                "loss / weight",
            ),
            "parameter_gradient_per_sample": (
                torch.stack([self._by_sample(name) for name in self.parameters], 1),
                ("sample", "parameter"),
                "norm of the gradient of the sample's loss",
                "loss / weight",
            ),
            "parameter_norm": (
                torch.stack([whole(w.detach()).cpu() for w in self.parameters.values()]),
                ("parameter",),
                "norm of the parameter",
                "weight",
            ),
        }
        reasons = [self._reason(name) for name in self.parameters]
        return xr.Dataset(
            {name: variable(*arguments) for name, arguments in measured.items()},
            {
                "parameter": list(self.parameters),
                "not_per_sample": ("parameter", reasons),
            },
        )

    def _reason(self, name: str) -> str:
        """Say why a parameter is not measured by sample; empty if it is."""
        return self.reasons.get(name, "") if name in self.totals else UNUSED

    def _by_sample(self, name: str) -> Tensor:
        """Norm of every sample, on the CPU: (B,). Where others have a gradient, none is zero."""
        if self._reason(name):
            return torch.full((sum(self.sizes),), torch.nan, dtype=torch.float64)
        like = self.totals[name]
        parts = [
            norms[name] if name in norms else like.new_zeros(size, dtype=torch.float64)
            for norms, size in zip(self.norms, self.sizes, strict=True)
        ]
        return torch.cat(parts).cpu()
