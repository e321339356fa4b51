"""What the optimizer takes beside the gradients: kept between steps, and made in a step."""

from typing import NamedTuple

import torch
from torch import nn

from probes.base import Subject
from probes.errors import NotApplicable
from probes.footprint.passes import nbytes
from probes.optimizer.state import kept_by

ASSUMED = {0: "plain gradient descent", 1: "momentum", 2: "Adam"}
"""Values kept for each parameter -> an optimizer that keeps as many."""


class Moments(NamedTuple):
    """What an optimizer takes."""

    sizes: dict[str, int]
    """Kept for each parameter between steps [byte]."""
    step: int
    """Made and freed in a step of torch's implementation [byte]."""
    origin: str
    """Where that is from, in words."""


def moments_of(subject: Subject, trained: list[str], assumed: int) -> Moments:
    """Take what the checkpoint holds, or assume ``assumed`` values for each trained parameter."""
    weights = dict(subject.model.named_parameters())
    try:
        kept = kept_by(subject.optimizer, subject.model)
    except NotApplicable as why:
        each = f"{assumed} value{'' if assumed == 1 else 's'} for each parameter"
        known = f", as {ASSUMED[assumed]} keeps" if assumed in ASSUMED else ""
        sizes = {name: assumed * nbytes(weights[name]) for name in trained}
        step = _step(weights, trained, subject.device) if assumed > 1 else 0
        return Moments(sizes, step, f"assumed {each}{known} ({why})")
    names = sorted({name for entry in kept for name in entry.moments()})
    sizes = {entry.name: entry.size() for entry in kept}
    adaptive = any("sq" in name for name in names)
    step = _step(weights, trained, subject.device) if adaptive else 0
    return Moments(sizes, step, f"in the checkpoint: {' and '.join(names) or 'no moments'}")


def _step(weights: dict[str, nn.Parameter], trained: list[str], device: torch.device) -> int:
    """Size of the roots of squared gradients: of all parameters on a GPU, else of one by one.

    On a GPU torch updates all parameters together. Elsewhere it makes the root of one parameter's,
    and its quotient, before it goes on to the next one.
    """
    sizes = [nbytes(weights[name]) for name in trained]
    return sum(sizes) if device.type == "cuda" else 2 * max(sizes)
