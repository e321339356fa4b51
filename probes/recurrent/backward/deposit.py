"""What a backward pass through one layer leaves: norms over units, and more if it is asked for.

Shapes: as in :mod:`probes.recurrent.backward.cells`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from probes.algebra.norms import SAFE, far
from probes.recurrent.backward.bptt import Adjoint, Factor, Past, Scan
from probes.recurrent.backward.record import Trajectory
from probes.recurrent.backward.replay import Replayed

_LIFT = 2.0**100
"""Beyond :data:`probes.algebra.norms.SAFE` this brings numbers back, without rounding."""

Order = Callable[[Tensor], Tensor]
"""Puts (T, B, ...) into the order of the data and of the samples, detached."""


def norms(values_TBH: Tensor) -> Tensor:
    """L2 norm over the last axis, in float64, of values of any magnitude.

    The squares of small float32 values underflow long before these do, and a vanishing gradient
    must not be measured as zero: where that is near, values are scaled by a power of two first. Far
    from the CPU they are summed in float64 at once, which takes no longer there.
    """
    if far(values_TBH):
        exact_TB: Tensor = torch.linalg.vector_norm(values_TBH, dim=-1, dtype=torch.float64)
        return exact_TB
    norms_TB: Tensor = torch.linalg.vector_norm(values_TBH, dim=-1).double()
    if values_TBH.dtype != torch.float64:
        for unsafe_TB, lift in (
            (norms_TB <= SAFE, _LIFT),
            (~(norms_TB < 1 / SAFE), 1 / _LIFT),
        ):
            if unsafe_TB.any():
                lifted = values_TBH[unsafe_TB].float().mul_(lift)
                norms_TB[unsafe_TB] = torch.linalg.vector_norm(lifted, dim=-1).double() / lift
    return norms_TB


class Norms(NamedTuple):
    """Norms over units of gradients, in the order of reading: (T, B), or (T, V, B)."""

    hidden: Tensor
    cell: Tensor | None
    gate: Tensor

    @classmethod
    def of(cls, adjoint: Adjoint) -> "Norms":
        """Measure gradients."""
        cell = None if adjoint.cell is None else norms(adjoint.cell)
        return cls(norms(adjoint.hidden), cell, norms(adjoint.recurrent_side))

    @classmethod
    def joined(cls, parts: Sequence["Norms"]) -> "Norms":
        """Put blocks of timesteps one after the other."""
        columns = zip(*parts, strict=True)
        return cls(*(None if values[0] is None else torch.cat(values) for values in columns))  # type: ignore[arg-type]

    def apart(self) -> list["Norms"]:
        """Take scalars apart."""
        return [
            Norms(*(None if values is None else values[:, one] for values in self))  # type: ignore[arg-type]
            for one in range(self.hidden.shape[1])
        ]


def factors(scan: Scan, ordered: Order) -> tuple[Factor, ...]:
    """Put the factors of one direction in order; tensors that several share are put once."""
    seen: dict[int, Tensor] = {}

    def once(values: Tensor) -> Tensor:
        return seen.setdefault(id(values), ordered(values))

    return tuple(
        Factor(weight, once(left), None if right is None else once(right))
        for weight, left, right in scan.factors()
    )


def trajectory(past: Past, found: Replayed, scan: Scan, ordered: Order) -> Trajectory:
    """Collect every tensor of one direction; the replay must have kept everything."""
    adjoint = scan.adjoint
    assert found.activations is not None
    values = {
        "x": past.x,
        "before": past.before,
        "hidden": past.hidden,
        "gates": found.activations,
        "hidden_gradient": adjoint.hidden,
        "input_side_gradient": scan.input_side,
        "recurrent_side_gradient": adjoint.recurrent_side,
    }
    if past.c0 is not None and found.cell is not None and adjoint.cell is not None:
        values["cell_before"] = torch.cat([past.c0.unsqueeze(0), found.cell[:-1]])
        values["cell"] = found.cell
        values["cell_gradient"] = adjoint.cell
    return Trajectory(**{name: ordered(value) for name, value in values.items()})
