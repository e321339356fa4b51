"""What all callbacks do once training has ended."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from analyzer.conduct import REPORT, Audit, audit
from analyzer.limits import Limits
from probes.base import Subject
from probes.errors import AnalyzerError


@dataclass(frozen=True)
class AfterTraining:
    """How a trained model is audited.

    Parameters
    ----------
    loss : str or callable
        As in :class:`probes.base.Subject`.
    output : int or str, optional
        Part of the model's outputs that is the prediction.
    out : path, optional
        Output folder; ``audit`` in the folder of the run if unset.
    batches : iterable, optional
        Audit data; the validation data of the training if unset.
    max_batches : int
        How many of them are used.
    probes, settings, limits
        As in :func:`analyzer.conduct.audit`.
    attach : callable, optional
        Called with the path of the report, to hand it to an experiment tracker.
    """

    loss: Any = None
    output: int | str | None = None
    out: str | Path | None = None
    batches: Iterable[Any] | None = None
    max_batches: int = 8
    probes: Iterable[str] | None = None
    settings: Mapping[str, Mapping[str, Any]] | None = None
    limits: Limits | None = None
    attach: Callable[[Path], object] | None = None

    def run(
        self, model: nn.Module, batches: Iterable[Any] | None, home: str | Path
    ) -> Audit | None:
        """Audit a model; what goes wrong is a warning, for the training has succeeded.

        Parameters
        ----------
        model : Module
        batches : iterable, optional
            Validation data of the training.
        home : path
            Folder of the run.
        """
        chosen = self.batches if self.batches is not None else batches
        if chosen is None:
            warnings.warn(
                "no audit: the training has not validated; let it, or give batches", stacklevel=2
            )
            return None
        subject = Subject(
            model, [*islice(chosen, self.max_batches)], loss=self.loss, output=self.output
        )
        out = Path(home) / "audit" if self.out is None else Path(self.out)
        try:
            result = audit(
                subject, out, probes=self.probes, settings=self.settings, limits=self.limits
            )
        except AnalyzerError as error:
            warnings.warn(f"no audit: {error}", stacklevel=2)
            return None
        if self.attach is not None:
            self.attach(result.folder / REPORT)
        return result
