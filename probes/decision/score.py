"""The decision on each sample as one number that can be differentiated.

Shapes: B sample, K output unit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probes.base import Subject
from probes.loss.objective import CLASSIFYING


def classifies(subject: Subject) -> bool:
    """Whether the loss says that the outputs are scores of classes."""
    return subject.loss in CLASSIFYING or isinstance(subject.loss, nn.CrossEntropyLoss | nn.NLLLoss)


def describe(subject: Subject) -> str:
    """Name the decision as reports print it."""
    if classifies(subject):
        return "log-odds of the model's own most probable class"
    return "the output, along its change from the baseline to the sample"


@dataclass(frozen=True)
class Decision:
    """What the model made of each sample, held fixed while its inputs change.

    Of a classifier it is the log-odds of the class that it finds most probable, against all others
    together. The output for that class alone would count what raises all classes alike, which
    decides nothing; the log-probability is flat wherever the model is sure. Of any other model it
    is the projection of the outputs on the line from those at the baseline to those at the
    sample: of a single output that output itself, or its negative.

    Parameters
    ----------
    choice : Tensor, shape (B,), optional
        Most probable class.
    direction : Tensor, shape (B, K), optional
        Unit vector; zero where baseline and sample have the same outputs.
    """

    choice: Tensor | None = None
    direction: Tensor | None = None

    @classmethod
    def of(cls, subject: Subject, output_BK: Tensor, baseline_BK: Tensor) -> "Decision":
        """Fix the decision, given the outputs at the samples and at their baselines."""
        if classifies(subject):
            return cls(choice=output_BK.argmax(1))
        change_BK = output_BK - baseline_BK
        length_B1 = torch.linalg.vector_norm(change_BK, dim=1, keepdim=True)
        return cls(direction=change_BK / length_B1.clamp_min(torch.finfo(change_BK.dtype).tiny))

    def score(self, output_BK: Tensor) -> Tensor:
        """Score of the decision in other outputs: (B,)."""
        if self.choice is not None:
            own_B1 = self.choice[:, None]
            others_B = output_BK.scatter(1, own_B1, -torch.inf).logsumexp(1)
            return output_BK.gather(1, own_B1)[:, 0] - others_B
        assert self.direction is not None
        return (output_BK * self.direction).sum(1)
