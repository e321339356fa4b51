"""How large the optimizer's updates are beside the weights they change."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import xarray as xr
from torch import Tensor

from probes.base import Progress, Subject, silent, variable
from probes.errors import NotApplicable
from probes.model.labels import WHOLE
from probes.optimizer.state import Kept, kept_by
from probes.optimizer.updates import kind_of, number, setting, steps_of, update


@dataclass(frozen=True)
class UpdateRatio:
    """Norm of the last update of every parameter, from the optimizer's moments, and of the weight.

    The update is what the moments, the number of steps and the settings in the checkpoint say:
    of Adam and AdamW, of gradient descent with momentum, and of RMSprop. Decoupled weight decay
    and the look-ahead of Nesterov are left out; RMSprop without momentum keeps no gradient, so
    that the root of its mean square stands in for it.

    Costs no pass of the model.

    References
    ----------
    .. [1] Kingma & Ba, Adam: A Method for Stochastic Optimization (2015).
    """

    name: ClassVar[str] = "update_ratio"
    passes: ClassVar[float] = 0

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        kept = [entry for entry in kept_by(subject.optimizer, subject.model) if entry.moments()]
        if not kept:
            raise NotApplicable("the optimizer keeps no moments, which would tell its updates")
        weights = dict(subject.model.named_parameters())
        columns = {
            "update": ([_norm(update(entry)) for entry in kept], "norm of the last update"),
            "weight": (
                [_norm(weights[entry.name].detach().cpu()) for entry in kept],
                "norm of the parameter",
            ),
            "rate": ([setting(entry, "lr") for entry in kept], "learning rate of the last update"),
            "initial_rate": ([_initial(entry) for entry in kept], "learning rate at the start"),
            "steps": ([steps_of(entry) for entry in kept], "number of updates"),
        }
        progress(1, 1)
        return xr.Dataset(
            {
                name: variable(
                    torch.tensor(values, dtype=torch.float64), ("parameter",), words, "1"
                )
                for name, (values, words) in columns.items()
            },
            {
                "parameter": [entry.name for entry in kept],
                "layer": ("parameter", [_owner(entry.name) for entry in kept]),
            },
            {"optimizer": ", ".join(sorted({kind_of(entry) for entry in kept}))},
        )


def _norm(values: Tensor) -> float:
    """Euclidean norm, in float64."""
    return float(torch.linalg.vector_norm(values.double()))


def _initial(kept: Kept) -> float:
    """Learning rate that the schedule started from; the last one where none is known."""
    return number(kept.settings.get("initial_lr", kept.settings.get("lr")))


def _owner(parameter: str) -> str:
    """Name the module that holds a parameter."""
    return parameter.rpartition(".")[0] or WHOLE
