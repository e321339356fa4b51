"""Audit at the end of ``Trainer.fit`` of Lightning."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from analyzer.callbacks.after_training import AfterTraining
from analyzer.conduct import Audit


class AuditCallback(Callback):
    """Audit the module when fitting has ended, on one process, in the folder of the run.

    Parameters
    ----------
    **request
        Fields of :class:`analyzer.callbacks.after_training.AfterTraining`.

    Attributes
    ----------
    result : Audit or None
        What the audit found.
    """

    def __init__(self, **request: Any) -> None:
        self.request = AfterTraining(**request)
        self.result: Audit | None = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the audit on the validation data of the fit."""
        if trainer.is_global_zero:
            home = trainer.log_dir or trainer.default_root_dir
            self.result = self.request.run(pl_module, trainer.val_dataloaders, home)
