"""Audit at the end of ``Trainer.train`` of transformers."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from analyzer.callbacks.after_training import AfterTraining
from analyzer.conduct import Audit


class AuditCallback(TrainerCallback):
    """Audit the model when training has ended, on one process, in the output folder of the run.

    Parameters
    ----------
    **request
        Fields of :class:`analyzer.callbacks.after_training.AfterTraining`; a classifier needs
        ``loss="cross_entropy", output="logits"``.

    Attributes
    ----------
    result : Audit or None
        What the audit found.
    """

    def __init__(self, **request: Any) -> None:
        self.request = AfterTraining(**request)
        self.result: Audit | None = None

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        eval_dataloader: Iterable[Any] | None = None,
        **_: Any,
    ) -> None:
        """Run the audit on the evaluation data of the training."""
        if state.is_world_process_zero:
            self.result = self.request.run(model, eval_dataloader, args.output_dir)
