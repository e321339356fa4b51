"""What the loss and the decisions of a model change by when a part of it is removed.

Shapes: B sample, T position.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from probes.base import Batch, Subject
from probes.loss import objective
from probes.samples.layout import Layout


@dataclass(frozen=True, eq=False)
class Intact:
    """Some samples and what the intact model makes of them.

    Parameters
    ----------
    subject : Subject
        Whose objective it is.
    batch : Batch
        With the model's own choice as targets, where a classifying loss lacks them.
    outputs : Any
        What the model returned.
    loss : Tensor, shape (B,)
        Loss of each sample; without a loss half the mean square of its output.
    choice : Tensor or None
        Classes that the model chose, of every position; None where it chooses none.
    """

    subject: Subject
    batch: Batch
    outputs: Any
    loss: Tensor
    choice: Tensor | None

    @classmethod
    def of(cls, subject: Subject, outputs: Any, batch: Batch) -> "Intact":
        """Keep what the intact model returned for ``batch``."""
        fixed = objective.with_own_targets(subject, outputs, batch)
        loss_B = objective.sample_losses(subject, outputs, fixed)
        return cls(subject, fixed, outputs, loss_B.detach(), _choice(subject, outputs, batch))

    def change(self, outputs: Any) -> Tensor:
        """Loss of each sample with other outputs, less the intact one: (B,).

        Without a loss it is half the mean square distance of the outputs.
        """
        if self.subject.loss is not None:
            return objective.sample_losses(self.subject, outputs, self.batch) - self.loss
        now, before = (
            objective.prediction(self.subject, value) for value in (outputs, self.outputs)
        )
        plain = replace(self.subject, output=None)
        return objective.sample_losses(plain, now - before.detach(), self.batch)

    def decisions(self, outputs: Any) -> Tensor:
        """Share of each sample's positions where another class is chosen: (B,); nan if none is."""
        now = _choice(self.subject, outputs, self.batch)
        if self.choice is None or now is None:
            return torch.full_like(self.loss, torch.nan)
        return (now != self.choice).to(self.loss).flatten(1).mean(1)

    def sensitive(self, outputs: Any, generator: torch.Generator) -> Tensor:
        """Something per sample to differentiate: (B,).

        The loss; without one the outputs with random signs, so that half the squared derivative
        is, on average over signs, what :meth:`change` is to second order.
        """
        if self.subject.loss is not None:
            return objective.sample_losses(self.subject, outputs, self.batch)
        output = objective.prediction(self.subject, outputs)
        signs = torch.randint(2, output.shape, generator=generator).to(output) * 2 - 1
        signed = Layout.of(self.subject, self.batch).batch_first(output * signs)
        signed = signed.reshape(len(signed), -1)
        scaled_B: Tensor = signed.sum(1) / signed.shape[1] ** 0.5
        return scaled_B


def _choice(subject: Subject, outputs: Any, batch: Batch) -> Tensor | None:
    """Classes that the model chooses, samples first; None if the loss knows no classes."""
    chosen = objective.with_own_targets(subject, outputs, replace(batch, targets=None)).targets
    if not isinstance(chosen, Tensor):
        return None
    axis = subject.batch_axis if chosen.dim() > subject.batch_axis else 0
    return chosen.movedim(axis, 0).reshape(chosen.shape[axis], -1)
