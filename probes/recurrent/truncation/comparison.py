"""Truncated gradients against the whole one, with and without some of the samples.

Shapes: T timestep, B sample, F feature, R group of samples, P number of the weights of a layer,
S number of a sketch, C chunk length, Q inner product.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from probes.recurrent.backward.bptt import Factor, bundled

SKETCH = 64
"""Rows and columns that the gradient of a group by one weight is projected onto."""

Key = tuple[str, int, bool]
"""Module, layer in it, whether in reverse: what has weights of its own."""


class Comparison(NamedTuple):
    """Truncated gradients against the whole one, in float64."""

    norm: Tensor
    """Norm of the whole gradient: a scalar."""
    cosine: Tensor
    """(C,), nan where a gradient is zero."""
    error: Tensor
    """Norm of the difference over that of the whole gradient: (C,)."""
    cosine_without: Tensor
    """Without each group: (R, C)."""
    error_without: Tensor
    """Without each group: (R, C)."""


class Gradients:
    """Sums over samples of the gradients for every chunk length, and sketches of those of groups.

    The gradients of a piece of the data begin with the shortest chunks; what each longer one adds
    is added to them, unless they begin again. For a piece with fewer chunk lengths than another its
    last one, which is the whole, goes on.

    A sketch is a random projection of a weight's rows and of its columns onto few of them. It is
    linear, keeps inner products on average, each up to a fifth or so, and up to ``SKETCH`` rows and
    columns exactly.

    Parameters
    ----------
    generator : Generator
        Of the signs.

    Attributes
    ----------
    layers : list of Key
        Those that a gradient arrived at.
    sizes : list of int
        Samples of every group.

    References
    ----------
    .. [1] Charikar, Chen and Farach-Colton, Finding frequent items in data streams (2004).
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.layers: list[Key] = []
        self.sizes: list[int] = []
        self._generator = generator
        self._signs: dict[tuple[Key, str], Tensor] = {}
        # Of all pieces, for every chunk length.
        self._totals: list[dict[Key, Tensor]] = []
        self._sketches: list[list[dict[Key, Tensor]]] = []
        # Of the pieces before this one, whole.
        self._whole: tuple[dict[Key, Tensor], list[dict[Key, Tensor]]] = {}, []
        # Of this piece, for the chunk length it has come to.
        self._steps = 0
        self._groups = 0
        self._total: dict[Key, dict[str, Tensor]] = {}
        self._sketch: dict[Key, Tensor] = {}

    def begin(self, samples: int, size: int) -> None:
        """Begin a piece of ``samples``, in groups of at most ``size``."""
        self._groups = -(-samples // size)
        self.sizes += [len(range(row, samples, self._groups)) for row in range(self._groups)]
        self._steps, self._total, self._sketch = 0, {}, {}

    def add(self, key: Key, factors: tuple[Factor, ...]) -> None:
        """Add to the gradients of one layer."""
        if key not in self.layers:
            self.layers.append(key)
        total, parts = self._total.setdefault(key, {}), []
        for bundle in bundled(factors):
            left = bundle[0].left
            ones = left.new_ones(*left.shape[:2], 1)
            rights = [ones if factor.right is None else factor.right for factor in bundle]
            name = bundle[0].weight
            own = torch.cat(rights, 2).flatten(0, 1).t() @ left.flatten(0, 1)
            total[name] = own if name not in total else total[name] + own
            columns = [
                self._folded(key, f"{factor.weight} columns", right)
                for factor, right in zip(bundle, rights, strict=True)
            ]
            rows_RKG = _grouped(self._folded(key, f"{name} rows", left), self._groups)
            columns_RKI = _grouped(torch.cat(columns, 2), self._groups)
            parts.append(torch.bmm(rows_RKG.transpose(1, 2), columns_RKI).flatten(1))
        sketch = torch.cat(parts, 1)
        self._sketch[key] = sketch if key not in self._sketch else self._sketch[key] + sketch

    def _folded(self, key: Key, name: str, values_TBF: Tensor) -> Tensor:
        """Give features random signs, and add up every ``SKETCH``-th, where there are more."""
        features = values_TBF.shape[2]
        if features <= SKETCH:
            return values_TBF
        if (key, name) not in self._signs:
            signs_F = torch.randint(0, 2, (features,), generator=self._generator) * 2 - 1
            self._signs[key, name] = signs_F.to(values_TBF)
        signed_TBF = values_TBF * self._signs[key, name]
        if features % SKETCH:
            signed_TBF = functional.pad(signed_TBF, (0, -features % SKETCH))
        return signed_TBF.view(*values_TBF.shape[:2], -1, SKETCH).sum(2)

    def next(self) -> None:
        """Go on to the next chunk length."""
        if self._steps == len(self._totals):
            self._totals.append(dict(self._whole[0]))
            self._sketches.append([*self._whole[1]])
        self._note(self._steps)
        self._steps += 1

    def again(self) -> None:
        """Begin again with gradients of zero, for the next chunk length."""
        self._total, self._sketch = {}, {}

    def end(self) -> None:
        """End the piece."""
        for steps in range(self._steps, len(self._totals)):
            self._note(steps)
        self._whole = dict(self._totals[-1]), [*self._sketches[-1]]

    def _note(self, steps: int) -> None:
        """Add what this piece has come to to what belongs to one chunk length."""
        totals = self._totals[steps]
        for key, weights in self._total.items():
            own_P = torch.cat([values.flatten() for values in weights.values()])
            totals[key] = totals[key] + own_P if key in totals else own_P
        self._sketches[steps].append({key: values.clone() for key, values in self._sketch.items()})

    def products(self, key: Key) -> tuple[Tensor, Tensor, Tensor]:
        """Compare the gradients of one layer.

        Returns
        -------
        exact, sketched : Tensor, shape (C, Q)
            Inner products of what is lost with itself and with the whole gradient, and of this
            with itself: of the gradients, and of their sketches.
        without : Tensor, shape (R, C, Q)
            Those of the sketches, without each group.
        """
        whole_P = self._totals[-1][key].double()
        whole_RS = self._joined(-1, key)
        exact, sketched, without = [], [], []
        for steps, totals in enumerate(self._totals):
            exact.append(_three(whole_P - totals[key].double(), whole_P))
            lost_RS = whole_RS - self._joined(steps, key)
            lost_S, whole_S = lost_RS.sum(0), whole_RS.sum(0)
            sketched.append(_three(lost_S, whole_S))
            without.append(_three(lost_S - lost_RS, whole_S - whole_RS))
        return torch.stack(exact), torch.stack(sketched), torch.stack(without, 1)

    def _joined(self, steps: int, key: Key) -> Tensor:
        """Sketches of all groups: (R, S), in float64; zero where a layer did not run."""
        pieces = self._sketches[steps]
        counts = [len(next(iter(piece.values()))) for piece in pieces]
        like = next(piece[key] for piece in pieces if key in piece)
        parts = [
            piece[key] if key in piece else like.new_zeros(count, like.shape[1])
            for piece, count in zip(pieces, counts, strict=True)
        ]
        return torch.cat(parts).double()


def compared(gradients: Gradients, layers: Sequence[Key]) -> tuple[list[Comparison], Comparison]:
    """Compare the gradients of every layer, and of all together."""
    products = [gradients.products(key) for key in layers]
    together = [torch.stack(parts).sum(0) for parts in zip(*products, strict=True)]
    return [_comparison(*layer) for layer in products], _comparison(*together)


def _comparison(exact_CQ: Tensor, sketched_CQ: Tensor, without_RCQ: Tensor) -> Comparison:
    """Put inner products into numbers; groups move the exact ones as they move the sketches."""
    cosine_C, error_C = _numbers(exact_CQ)
    near = _numbers(sketched_CQ)
    cosine_RC, error_RC = _numbers(without_RCQ)
    return Comparison(
        exact_CQ[-1, 2].sqrt().cpu(),
        cosine_C.cpu(),
        error_C.cpu(),
        (cosine_C + cosine_RC - near[0]).cpu(),
        (error_C + error_RC - near[1]).cpu(),
    )


def _three(lost: Tensor, whole: Tensor) -> Tensor:
    """Inner products along the last axis: (..., Q)."""
    pairs = (lost, lost), (lost, whole), (whole, whole)
    return torch.stack([torch.linalg.vecdot(*pair) for pair in pairs], -1)


def _numbers(products: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine of what is kept with the whole gradient, and norm of what is lost as its share."""
    lost, mixed, whole = products.unbind(-1)
    kept = (whole - 2 * mixed + lost).clamp_min(0)
    return (whole - mixed) / (kept * whole).sqrt(), (lost.clamp_min(0) / whole).sqrt()


def _grouped(values_TBF: Tensor, groups: int) -> Tensor:
    """Put the timesteps and samples of each group together: (R, T * B / R, F)."""
    timesteps, samples, features = values_TBF.shape
    if samples == groups:
        return values_TBF.transpose(0, 1)
    padded = functional.pad(values_TBF, (0, 0, 0, -samples % groups))
    return padded.view(timesteps, -1, groups, features).permute(2, 0, 1, 3).flatten(1, 2)
