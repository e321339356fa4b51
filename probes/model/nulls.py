"""Re-initialised copies of a network: what a measurement would be without any training."""

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probes.errors import NotApplicable, first_line

METHODS = ("reset_parameters", "_reset_parameters")
"""What modules of torch call to initialise their own parameters; attention hides the name."""


@dataclass(frozen=True)
class Untrained:
    """A copy of a network whose weights were drawn again.

    Parameters
    ----------
    model : Module
        Modes, devices, precision and hooks are those of the original.
    kept : tuple of str
        Parameters that no module draws again: they still are as trained.
    kept_share : float
        Their share of all elements of parameters.
    """

    model: nn.Module
    kept: tuple[str, ...]
    kept_share: float


def untrained(model: nn.Module, seeds: Iterable[int]) -> Iterator[Untrained]:
    """Copy a network, and let every module initialise its parameters again, once per seed.

    Running statistics of normalization start anew as well. It is one copy, whose weights change
    from one seed to the next. The random states of torch and Python are put back each time.

    Parameters
    ----------
    model : Module
        Not changed.
    seeds : iterable of int
        The same seed draws the same weights.

    Raises
    ------
    NotApplicable
        The network cannot be copied, or a module refuses to be initialised.
    """
    try:
        twin = copy.deepcopy(model)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        raise NotApplicable(f"the model cannot be copied ({first_line(error)})") from error
    for seed in seeds:
        before = {name: (weight, weight._version) for name, weight in twin.named_parameters()}
        with _seeded(seed), torch.no_grad():
            for name, module in twin.named_modules():
                _initialise(name, module)
        after = dict(twin.named_parameters())
        kept = tuple(name for name, held in after.items() if not _written(held, before.get(name)))
        elements = sum(weight.numel() for weight in after.values())
        still = sum(after[name].numel() for name in kept)
        yield Untrained(twin, kept, still / elements if elements else 0.0)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch and Python, and put their states back."""
    python = random.getstate()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            random.seed(seed)
            yield
    finally:
        random.setstate(python)


def _initialise(name: str, module: nn.Module) -> None:
    """Let a module draw its own parameters, if it knows how to."""
    for method in METHODS:
        reset = getattr(module, method, None)
        if callable(reset):
            try:
                reset()
            except (RuntimeError, TypeError, ValueError, AttributeError) as error:
                where = f"{method} of {name or 'the model'}"
                raise NotApplicable(f"{where} fails ({first_line(error)})") from error
            return


def _written(weight: Tensor, before: tuple[Tensor, int] | None) -> bool:
    """Whether a parameter was replaced, or written to in place."""
    return before is None or weight is not before[0] or weight._version != before[1]
