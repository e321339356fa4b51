"""What arrives at every parameter during one backward pass, sample by sample."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.algebra.norms import by_sample
from probes.weight_gradient.contribution import Contribution, measured

SHARED = 2**30
"""Bytes of per-sample gradient kept, in all, for parameters that are used more than once."""

ELSEWHERE = "reaches the loss through operations that are not taken apart by sample"
"""Why a parameter is not measured that an operation uses which is not known here."""

UNUSED = "no gradient reaches it"
"""Why a parameter is not measured that the loss does not depend on."""


@dataclass
class Call:
    """One call of an operation with weights."""

    x_gradient: Tensor | None = None
    """Norm of what it passes back to its input, for each sample: (B,), once that is known."""


class Ledger:
    """Norms of every sample's gradient, and the gradient summed over the samples.

    Parameters
    ----------
    parameters : mapping of str to Tensor
        By name.
    samples : int
        In the batch.

    Attributes
    ----------
    anchor : Tensor
        A leaf that everything recorded depends on with derivative zero: it has to be among what is
        differentiated with respect to.
    latest : dict of str to Call
        Most recent call with the weights of each module, until somebody takes it out.
    forward : bool
        Whether the backward pass that is measured has yet to begin: what runs backward before is
        another one, and what runs forward later is recomputed.
    """

    def __init__(self, parameters: Mapping[str, Tensor], samples: int) -> None:
        self.samples = samples
        self.anchor = torch.zeros((), requires_grad=True)
        self.latest: dict[str, Call] = {}
        self.forward = True
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._uses: dict[str, int] = {}
        self._totals: dict[str, Tensor] = {}
        self._norms: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}
        self._added: set[str] = set()
        self._bytes = 0
        self._reasons: dict[str, str] = {}

    def name(self, tensor: Tensor | None) -> str | None:
        """Name the parameter that ``tensor`` is, if it is one."""
        return self._names.get(id(tensor))

    def enter(self, name: str) -> None:
        """Count a use of a parameter, so that it is known whether there are several."""
        if self.forward:
            self._uses[name] = self._uses.get(name, 0) + 1

    def call(self, names: list[str]) -> Call:
        """Enter a call with some parameters."""
        for name in names:
            self.enter(name)
        call = Call()
        if self.forward:
            self.latest[names[0].rpartition(".")[0]] = call
        return call

    def refuse(self, name: str, reason: str) -> None:
        """Say why a use of a parameter is not measured."""
        self._reasons.setdefault(name, reason)

    def deposit(self, name: str, contribution: Contribution, *, add: bool = True) -> None:
        """Measure one use of a parameter; without ``add`` autograd adds it up as well."""
        if self._uses[name] > 1:
            total = self._keep(name, contribution)
        else:
            self._norms[name], total = measured(contribution)
        if add:
            known = self._totals.get(name)
            self._totals[name] = total if known is None else known + total
        else:
            self._added.add(name)

    def _keep(self, name: str, contribution: Contribution) -> Tensor:
        """Add to the gradient of every sample, whose norm is that of the sum over all uses."""
        total = contribution.total()
        needed = total.nbytes * self.samples
        if name not in self._kept and self._bytes + needed > SHARED:
            self.refuse(
                name,
                f"it is used {self._uses[name]} times, and its gradient for every sample would "
                f"take {needed / 2**20:.0f} MiB",
            )
            return total
        if name not in self._kept:
            self._bytes += needed
            self._kept[name] = total.new_zeros(self.samples, *total.shape)
        for some in contribution.pieces():
            self._kept[name][some] += contribution.rows(some).explicit()
        return total

    def total(self, name: str, elsewhere: Tensor | None) -> Tensor | None:
        """Sum the gradient of a parameter over its uses and the samples.

        Parameters
        ----------
        name : str
            Of the parameter.
        elsewhere : Tensor, optional
            Its gradient through the operations that were not recorded.
        """
        found = self._totals.get(name)
        if found is None or elsewhere is None:
            return elsewhere if found is None else found
        return found + elsewhere

    def norms(self, name: str, elsewhere: Tensor | None) -> tuple[Tensor | None, str]:
        """Norm of every sample's gradient, shape (B,), or None and the reason.

        Parameters
        ----------
        name, elsewhere : str, Tensor or None
            As for :meth:`total`; anything elsewhere means that what was recorded is not all.
        """
        if name in self._reasons:
            return None, self._reasons[name]
        if elsewhere is not None and name not in self._added:
            return None, ELSEWHERE
        if name in self._kept:
            return by_sample(self._kept[name]), ""
        if name in self._norms:
            return self._norms[name], ""
        return None, UNUSED
