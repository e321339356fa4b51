"""The update that an optimizer made last, from what it kept of it."""

import math
from typing import Any

import torch
from torch import Tensor

from probes.errors import NotApplicable
from probes.optimizer.state import Kept

ADAM, MOMENTUM, RMSPROP = "Adam", "gradient descent with momentum", "RMSprop"


def kind_of(kept: Kept) -> str:
    """Tell the optimizer by what it keeps.

    Raises
    ------
    NotApplicable
        It is none whose update can be told.
    """
    moments = {*kept.moments()}
    if {"exp_avg", "exp_avg_sq"} <= moments <= _ADAM and "amsgrad" in kept.settings:
        return ADAM
    if moments == {"momentum_buffer"} and "dampening" in kept.settings:
        return MOMENTUM
    if "square_avg" in moments and moments <= _RMSPROP and "alpha" in kept.settings:
        return RMSPROP
    raise NotApplicable(
        f"the optimizer keeps {', '.join(sorted(moments))}: its updates can be told of Adam, "
        "AdamW, gradient descent with momentum and RMSprop as torch writes them"
    )


_ADAM = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
_RMSPROP = {"square_avg", "momentum_buffer", "grad_avg"}


def update(kept: Kept) -> Tensor:
    """Work out what the last step took from a parameter, in float64 on the CPU.

    Raises
    ------
    NotApplicable
        As :func:`kind_of`.
    """
    kind, rate = kind_of(kept), setting(kept, "lr")
    moments = {name: value.detach().cpu().double() for name, value in kept.moments().items()}
    if kind == ADAM:
        return rate * _adam(kept, moments)
    if "momentum_buffer" in moments:
        return rate * moments["momentum_buffer"]
    centre = moments.get("grad_avg", torch.zeros(()))
    square = moments["square_avg"]
    spread = (square - centre.square()).clamp_min(0).sqrt() + setting(kept, "eps")
    return rate * square.sqrt() / spread


def _adam(kept: Kept, moments: dict[str, Tensor]) -> Tensor:
    """Step of Adam at a rate of 1."""
    first, second = _betas(kept)
    steps = steps_of(kept)
    square = moments.get("max_exp_avg_sq", moments["exp_avg_sq"]) / (1 - second**steps)
    mean = moments["exp_avg"] / (1 - first**steps)
    step: Tensor = mean / (square.sqrt() + setting(kept, "eps"))
    return step


def _betas(kept: Kept) -> tuple[float, float]:
    """Read how long Adam averages."""
    betas = kept.settings.get("betas", ())
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise NotApplicable("the optimizer's settings have no two betas")
    return number(betas[0]), number(betas[1])


def steps_of(kept: Kept) -> float:
    """Count the updates; nan where they were not counted."""
    return number(kept.state.get("step"))


def setting(kept: Kept, name: str) -> float:
    """Read a setting; nan where it is missing."""
    return number(kept.settings.get(name))


def number(value: Any) -> float:
    """Read a number, also from a tensor of one; nan from anything else."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else math.nan
    return float(value) if isinstance(value, int | float) else math.nan
