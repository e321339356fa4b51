"""Weights of matrix products: linear layers over any number of positions, recurrent layers.

Shapes: B sample, T position, O output feature, I input feature.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probes.weight_gradient.contribution import WRITE, Contribution


@dataclass(frozen=True, eq=False)
class Product(Contribution):
    """Gradient of a weight (O, I), which is the sum over T of the outer products.

    Parameters
    ----------
    gradient : Tensor, shape (B, T, O)
        What arrived at the outputs.
    x : Tensor, shape (B, T, I)
        Inputs.

    References
    ----------
    .. [1] Goodfellow, Efficient Per-Example Gradient Computations (2015); over several positions
       as in Li et al., Large Language Models Can Be Strong Differentially Private Learners (2022).
    """

    x: Tensor

    @property
    def size(self) -> int:
        return self.gradient.shape[2] * self.x.shape[2]

    def explicit(self) -> Tensor:
        return torch.bmm(self.gradient.transpose(1, 2), self.x)

    def total(self) -> Tensor:
        return self.gradient.flatten(0, 1).t() @ self.x.flatten(0, 1)

    def squared_norms(self) -> Tensor | None:
        _, positions, outputs = self.gradient.shape
        inputs = self.x.shape[2]
        if positions**2 * (outputs + inputs) > WRITE * outputs * inputs:
            return None
        alike_BTT = torch.bmm(self.x, self.x.transpose(1, 2))
        alike_BTT *= torch.bmm(self.gradient, self.gradient.transpose(1, 2))
        return alike_BTT.sum((1, 2))
