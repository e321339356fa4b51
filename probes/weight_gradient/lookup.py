"""Weights of embeddings.

Shapes: B sample, T position, E feature, V row of the table, N entry of a sample and row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probes.weight_gradient.contribution import Contribution


@dataclass(frozen=True, eq=False)
class Lookup(Contribution):
    """Gradient of a table (V, E): what arrived at every position, added to the row looked up.

    Parameters
    ----------
    gradient : Tensor, shape (B, T, E)
        What arrived at the outputs; zero where padding was looked up.
    index : Tensor, shape (B, T)
        Rows looked up.
    rows_of_table : int
        V.
    """

    index: Tensor
    rows_of_table: int

    @property
    def size(self) -> int:
        return self.rows_of_table * self.gradient.shape[2]

    def explicit(self) -> Tensor:
        table_BVE = self.gradient.new_zeros(
            len(self.index), self.rows_of_table, self.gradient.shape[2]
        )
        index_BTE = self.index.unsqueeze(2).expand_as(self.gradient)
        return table_BVE.scatter_add_(1, index_BTE, self.gradient)

    def total(self) -> Tensor:
        table_VE = self.gradient.new_zeros(self.rows_of_table, self.gradient.shape[2])
        return table_VE.index_add_(0, self.index.flatten(), self.gradient.flatten(0, 1))

    def squared_norms(self) -> Tensor:
        count = len(self.index)
        sample_B1 = torch.arange(count, device=self.index.device).unsqueeze(1)
        entry, place = torch.unique(
            sample_B1 * self.rows_of_table + self.index, return_inverse=True
        )
        sum_NE = self.gradient.new_zeros(len(entry), self.gradient.shape[2])
        sum_NE.index_add_(0, place.flatten(), self.gradient.flatten(0, 1))
        squares_B = self.gradient.new_zeros(count)
        return squares_B.index_add_(0, entry // self.rows_of_table, sum_NE.square().sum(1))
