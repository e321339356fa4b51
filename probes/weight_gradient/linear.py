"""Linear layers and embeddings.

Shapes: B sample, T position, O output feature, I input feature, V row of a table, E feature.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from probes.samples.layout import batch_dim
from probes.weight_gradient.contribution import Formed
from probes.weight_gradient.lookup import Lookup
from probes.weight_gradient.operation import Arrived, Operation, Parts, Use, Wanted
from probes.weight_gradient.product import Product


@dataclass(frozen=True, eq=False)
class _Linear(Operation):
    """Of any number of positions."""

    def batch_dim(self, x: Tensor, samples: int, axis: int) -> int | None:
        return batch_dim(x[..., 0], samples, axis)

    def backward(self, arrived: Arrived, wanted: Wanted) -> Parts:
        assert arrived.weight is not None
        x = arrived.gradient @ arrived.weight if wanted.x else None
        gradient_BTO = _positions(arrived.first(arrived.gradient))
        weight = Product(gradient_BTO, _positions(arrived.first(arrived.x)))
        return Parts(x, weight, Formed(gradient_BTO.sum(1)) if wanted.bias else None)


@dataclass(frozen=True, eq=False)
class _Embedding(Operation):
    """Integers in, no gradient for them."""

    rows: int
    padding: int | None

    def batch_dim(self, x: Tensor, samples: int, axis: int) -> int | None:
        return batch_dim(x, samples, axis)

    def backward(self, arrived: Arrived, wanted: Wanted) -> Parts:
        index = arrived.first(arrived.x)
        index_BT = index.reshape(len(index), -1)
        gradient_BTE = _positions(arrived.first(arrived.gradient))
        if self.padding is not None:
            gradient_BTE = gradient_BTE * (index_BT != self.padding).unsqueeze(2)
        return Parts(None, Lookup(gradient_BTE, index_BT, self.rows))


def _positions(values: Tensor) -> Tensor:
    """Put all positions on one axis: (B, T, ...)."""
    return values.unsqueeze(1) if values.dim() == 2 else values.flatten(1, -2)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Use:
    """Read a call of ``functional.linear``."""
    operation = _Linear(lambda x, w, b: (functional.linear(x, w, b),))  # type: ignore[arg-type]
    return Use(operation, input, weight, bias)


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Use:
    """Read a call of ``functional.embedding``."""

    def run(x: Tensor, w: Tensor | None, _b: Tensor | None) -> tuple[Tensor, ...]:
        return (functional.embedding(x, w, padding_idx, max_norm, norm_type),)  # type: ignore[arg-type]

    rows = weight.shape[0]
    padding = padding_idx + rows if padding_idx is not None and padding_idx < 0 else padding_idx
    scaled = "its gradient is divided by how often a row occurs in the batch"
    return Use(
        _Embedding(run, rows, padding), input, weight, None, scaled if scale_grad_by_freq else ""
    )
