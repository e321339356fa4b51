"""The recurrent layers that ran, and backward passes through them.

Shapes: as in :mod:`probes.recurrent.backward.cells`.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from probes.errors import AnalyzerError
from probes.recurrent.backward.chunks import Chunks, Receive
from probes.recurrent.backward.record import Keep, Measured, Segment, Site, StateGradients, joined


@dataclass(eq=False)
class Chunking:
    """Backward passes in chunks that double, while they run.

    Parameters
    ----------
    receive : callable
        Handed what each pass adds to the gradients of the weights.
    offsets : sequence of int
        Of every call and direction: where its first timestep is in the grid of chunks.
    begins : sequence of bool
        Of every call and direction: whether no timestep comes before.
    """

    receive: Receive
    offsets: Sequence[int]
    begins: Sequence[bool]
    size: int = 1
    chunks: dict[int, Chunks] = field(default_factory=dict)


class Recordings:
    """The recurrent layers that ran, and what each backward pass through them leaves.

    Parameters
    ----------
    keep : "norms", "factors" or "all"
        How much to keep of a backward pass.

    Attributes
    ----------
    anchor : Tensor
        A leaf that every recorded layer depends on with derivative zero: differentiating with
        respect to it runs through all of them and forms no other gradient.
    pulses : dict
        For every call of a layer a scalar that depends on the layer alone, with derivative zero:
        a backward pass from these runs through the recurrent layers and what is between them.
        Empty unless they are asked for, as they keep the graph alive: clear it after use.
    given : dict
        Likewise, what each call was given: its input and the states before.
    chunking : Chunking or None
        Set while backward passes are cut into chunks.
    """

    def __init__(self, keep: Keep = "norms") -> None:
        self.keep = keep
        self.anchor = torch.zeros((), requires_grad=True)
        self.segments: list[Segment] = []
        self.pulses: dict[int, Tensor] | None = None
        self.given: dict[int, tuple[Tensor, ...]] = {}
        self.chunking: Chunking | None = None
        self._measured: dict[int, Sequence[Measured]] = {}

    def enter(self, segment: Segment) -> int:
        """Register a layer that ran; return the key to deposit its measurement under."""
        self.segments.append(segment)
        return len(self.segments) - 1

    @property
    def longest(self) -> int:
        """Timesteps of the longest sequence."""
        totals: dict[Site, int] = {}
        for segment in self.segments:
            totals[segment.site] = totals.get(segment.site, 0) + segment.timesteps
        return max(totals.values())

    def deposit(self, key: int, measured: Sequence[Measured]) -> None:
        """Keep what the backward pass running now measured, of every scalar."""
        self._measured[key] = measured

    def gradients(self, loss: Tensor) -> tuple[StateGradients, ...]:
        """Differentiate ``loss`` with respect to every recorded state.

        May be called several times, with different losses of the same forward pass. Call it after
        the block of :func:`probes.recurrent.watching.split.recorded` rather than inside, where it
        is slower.

        Parameters
        ----------
        loss : Tensor
            Summed if it has several elements. The samples of a batch do not interact in a model
            in eval mode, so the sum of per-sample losses gives per-sample gradients.

        Raises
        ------
        AnalyzerError
            The loss does not depend on any recurrent layer through differentiable operations.
        """
        self._measured.clear()
        self._backward(loss.sum())
        self._refuse_unreached()
        return self.take()

    def each(self, losses: Sequence[Tensor]) -> list[tuple[StateGradients, ...]]:
        """Differentiate several losses of the same forward pass, as :meth:`gradients` does.

        In one backward pass if the model can be differentiated by ``torch.func.vmap``, which takes
        half as much again as that of one loss; where nothing arrives from one of the losses all is
        zero then. Otherwise one after the other.

        Raises
        ------
        AnalyzerError
            One of the losses does not depend on any recurrent layer.
        """
        if self.keep != "norms" or not all(loss.requires_grad for loss in losses):
            return [self.gradients(loss) for loss in losses]
        self._measured.clear()
        total = torch.stack([loss.sum() for loss in losses])

        def through(seed: Tensor) -> Tensor:
            self._backward(total, seed)
            return seed

        try:
            with warnings.catch_warnings(action="ignore"):  # of operations that are slower so
                torch.func.vmap(through)(torch.eye(len(losses)).to(total))
        except RuntimeError:  # whatever of the model cannot be differentiated so
            return [self.gradients(loss) for loss in losses]
        self._refuse_unreached()
        measured, self._measured = self._measured, {}
        return [
            self._handed({key: parts[place] for key, parts in measured.items()})
            for place in range(len(losses))
        ]

    def take(self) -> tuple[StateGradients, ...]:
        """Hand over what the last backward pass left, in the order in which the layers ran."""
        measured, self._measured = self._measured, {}
        return self._handed({key: parts[0] for key, parts in measured.items()})

    def _backward(self, scalars: Tensor, seeds: Tensor | None = None) -> None:
        """Run through all recurrent layers, and form no other gradient."""
        if scalars.requires_grad:
            torch.autograd.grad(scalars, [self.anchor], seeds, retain_graph=True, allow_unused=True)

    def _refuse_unreached(self) -> None:
        """Refuse a loss that no layer has a gradient of."""
        if not self._measured:
            names = ", ".join(dict.fromkeys(segment.site.label for segment in self.segments))
            raise AnalyzerError(
                f"the loss does not depend on the states of {names}: the model detaches them, or "
                "its output or the loss does not use them"
            )

    def _handed(self, measured: Mapping[int, Measured]) -> tuple[StateGradients, ...]:
        """Join the calls of every layer."""
        keys: dict[Site, list[int]] = {}
        for key, segment in enumerate(self.segments):
            keys.setdefault(segment.site, []).append(key)
        return tuple(
            joined([self.segments[key] for key in group], [measured.get(key) for key in group])
            for group in keys.values()
        )
