"""How often a model that classifies is right, by the samples and positions that its loss counts."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from probes.base import Batch, Loss, Subject
from probes.loss.objective import CLASSIFYING, IGNORED, sample_losses

_BINARY = {"binary_cross_entropy_with_logits": 0.0, "binary_cross_entropy": 0.5}
"""Losses of yes or no -> output above which the answer is yes."""


class _WrongClass(nn.CrossEntropyLoss):
    """1 where the most probable class is another than the target, else 0."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compare; targets may be probabilities."""
        if target.is_floating_point():
            target = target.argmax(1)
        return (input.argmax(1) != target).to(input)


class _WrongAnswer(nn.Module):
    """1 where the answer is another than the target, else 0."""

    reduction = "mean"

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compare."""
        return ((input > self.threshold) != (target > 0.5)).to(input)


def errors_of(loss: Loss | str | None) -> nn.Module | None:
    """Return the loss that counts wrong answers; None unless ``loss`` is one of classification."""
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        return _WrongClass(ignore_index=loss.ignore_index)
    if isinstance(loss, nn.BCEWithLogitsLoss | nn.BCELoss):
        return _WrongAnswer(0.0 if isinstance(loss, nn.BCEWithLogitsLoss) else 0.5)
    if isinstance(loss, str) and loss in CLASSIFYING:
        return _WrongClass(ignore_index=IGNORED)
    return _WrongAnswer(_BINARY[loss]) if isinstance(loss, str) and loss in _BINARY else None


def sample_scores(subject: Subject, outputs: Any, batch: Batch) -> Tensor | None:
    """Share of each sample's counted positions that is right: (B,); None without classes."""
    errors = errors_of(subject.loss)
    if errors is None:
        return None
    with torch.no_grad():
        return 1 - sample_losses(replace(subject, loss=errors), outputs, batch)
