"""Weights of recurrent layers, from what the recurrent engine keeps of a backward pass.

Shapes: T timestep, B sample, G row of all gates, I input feature.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from probes.recurrent.backward.bptt import Factor
from probes.recurrent.backward.record import Site, StateGradients
from probes.recurrent.backward.recordings import Recordings
from probes.recurrent.watching.naming import recurrent_modules
from probes.recurrent.watching.split import recorded
from probes.weight_gradient.contribution import Contribution, Formed
from probes.weight_gradient.ledger import Ledger
from probes.weight_gradient.product import Product

_PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


@contextmanager
def factors_recorded(model: nn.Module) -> Iterator[Recordings | None]:
    """Record what the gradients of recurrent weights are made of; None without such layers."""
    if not recurrent_modules(model):
        yield None
        return
    with recorded(model, keep="factors", weights=True, required=False) as recordings:
        yield recordings


class RecurrentWeights:
    """Weights of the recurrent layers that ran forward, for a ledger.

    Parameters
    ----------
    model : Module
        That ran.
    ledger : Ledger
        Receives the gradients of every sample; their sum over the samples is left to autograd.
    recordings : Recordings, optional
        Of the forward pass, with ``keep="factors"``; None without recurrent layers.
    """

    def __init__(self, model: nn.Module, ledger: Ledger, recordings: Recordings | None) -> None:
        self._modules: Mapping[str, nn.Module] = dict(model.named_modules())
        self._ledger = ledger
        segments = [] if recordings is None else recordings.segments
        for site in dict.fromkeys(segment.site for segment in segments):
            for part in _PARTS:
                name = self._name(site, part)
                if name is not None:
                    ledger.enter(name)

    def deposit(self, states: tuple[StateGradients, ...]) -> None:
        """Measure what a backward pass left."""
        for state in states:
            for factor in state.measured.factors:
                name = self._name(state.site, factor.weight)
                if name is not None:
                    self._ledger.deposit(name, _contribution(factor), add=False)

    def _name(self, site: Site, part: str) -> str | None:
        """Name the parameter that is one part of a layer, if it is a parameter."""
        module = self._modules.get(site.module)
        suffix = f"_l{site.layer}" + "_reverse" * site.reverse
        whole = part if isinstance(module, nn.RNNCellBase) else part + suffix
        return self._ledger.name(getattr(module, whole, None))


def _contribution(factor: Factor) -> Contribution:
    """Put samples first."""
    left_BTG = factor.left.transpose(0, 1)
    if factor.right is None:
        return Formed(left_BTG.sum(1))
    return Product(left_BTG, factor.right.transpose(0, 1))
