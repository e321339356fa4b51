"""Gradient of every sample, kept as a random projection, layer by layer.

Shapes: N sample (row of all that are kept), B sample of a batch, P element of a parameter,
K dimension of the projection.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from probes.weight_gradient.contribution import Contribution
from probes.weight_gradient.ledger import ELSEWHERE, Ledger

MOST = 4096
"""Dimensions of a sketch, at most: inner products are off by a 64th of the norms or so."""

LEAST = 64
"""Dimensions of a sketch, at least, whatever the memory: off by an eighth."""

ROOM = 2**27
"""Bytes of sketches, of all samples and layers together."""


class Sketches:
    """Random projections of the gradient of every sample, one for each layer.

    Every element of a layer's weights gets a random sign and one of K places, and elements in the
    same place are added up. Inner products are kept on average; that of two gradients is off by
    about their norms over the root of K. Layers of K elements or fewer are kept as they are.

    Parameters
    ----------
    layers : mapping of str to mapping of str to Tensor
        Parameters by name, for every layer.
    rows : int
        Samples, of all batches.
    generator : Generator
        Of signs and places; on the CPU.

    Attributes
    ----------
    reasons : dict of str to str
        Why a parameter is not measured, by its name.
    reached : set of str
        Parameters that a gradient arrived at.

    References
    ----------
    .. [1] Charikar, Chen and Farach-Colton, Finding frequent items in data streams (2004).
    """

    def __init__(
        self, layers: Mapping[str, Mapping[str, Tensor]], rows: int, generator: torch.Generator
    ) -> None:
        self.reasons: dict[str, str] = {}
        self.reached: set[str] = set()
        self._generator = generator
        self._rows = rows
        self._owner = {name: layer for layer, owned in layers.items() for name in owned}
        sizes = {layer: sum(w.numel() for w in owned.values()) for layer, owned in layers.items()}
        most = dimensions([*sizes.values()], rows)
        self._exact = {layer for layer, size in sizes.items() if size <= most}
        self.dimensions = {layer: min(size, most) for layer, size in sizes.items()}
        """Of every layer's sketch."""
        self._starts = {
            name: sum(w.numel() for w in [*owned.values()][:place])
            for owned in layers.values()
            for place, name in enumerate(owned)
        }
        self._draws: dict[str, tuple[Tensor, Tensor]] = {}
        self._values: dict[str, Tensor] = {}

    def exact(self, layer: str) -> bool:
        """Whether the gradients of a layer are kept as they are."""
        return layer in self._exact

    def of(self, layer: str) -> Tensor:
        """Return what was kept of a layer, zero where nothing arrived: (N, K), in float64."""
        if layer not in self._values:
            return torch.zeros(self._rows, self.dimensions[layer], dtype=torch.float64)
        return self._values[layer].double()

    def add(self, name: str, contribution: Contribution, start: int) -> None:
        """Add one use of a parameter by the samples of a batch, which begin at row ``start``."""
        layer = self._owner[name]
        if layer not in self._values:
            self._values[layer] = contribution.gradient.new_zeros(
                self._rows, self.dimensions[layer]
            )
        values = self._values[layer][start:]
        self.reached.add(name)
        for some in contribution.pieces():
            gradient_BP = contribution.rows(some).explicit().flatten(1)
            own = values[some.start : some.start + len(gradient_BP)]
            if layer in self._exact:
                first = self._starts[name]
                own[:, first : first + gradient_BP.shape[1]] += gradient_BP
            else:
                own += self._folded(name, gradient_BP, own.shape[1])

    def _folded(self, name: str, gradient_BP: Tensor, places: int) -> Tensor:
        """Put the elements in random order, with random signs, and add up every K-th: (B, K)."""
        count = gradient_BP.shape[1]
        padding = -count % places
        if name not in self._draws:
            signs = torch.randint(0, 2, (count,), generator=self._generator) * 2 - 1
            order = torch.randperm(count + padding, generator=self._generator)
            self._draws[name] = signs.to(gradient_BP), order.to(gradient_BP.device)
        signs_P, order = self._draws[name]
        mixed = functional.pad(gradient_BP * signs_P, (0, padding)).index_select(1, order)
        return mixed.view(len(mixed), -1, places).sum(1)


def dimensions(sizes: list[int], rows: int) -> int:
    """Choose the largest power of two that fits into ``ROOM`` with float32."""
    found = MOST
    while found > LEAST and 4 * rows * sum(min(size, found) for size in sizes) > ROOM:
        found //= 2
    return found


class SketchLedger(Ledger):
    """A ledger that keeps sketches of the gradients, and neither norms nor sums.

    Parameters
    ----------
    parameters, samples
        As for :class:`Ledger`.
    sketches : Sketches
        Receives the gradients.
    start : int
        Row of the first sample.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], samples: int, sketches: Sketches, start: int
    ) -> None:
        super().__init__(parameters, samples)
        self._sketches, self._start = sketches, start

    def deposit(self, name: str, contribution: Contribution, *, add: bool = True) -> None:
        """Add one use of a parameter to the sketches."""
        self._sketches.add(name, contribution, self._start)
        if not add:
            self._added.add(name)

    def close(self, elsewhere: Mapping[str, Tensor | None]) -> None:
        """Note which parameters were not measured.

        Parameters
        ----------
        elsewhere : mapping of str to Tensor or None
            What arrived at each parameter in another way.
        """
        for name, rest in elsewhere.items():
            if rest is not None and name not in self._added:
                self._reasons.setdefault(name, ELSEWHERE)
        for name, reason in self._reasons.items():
            self._sketches.reasons.setdefault(name, reason)
