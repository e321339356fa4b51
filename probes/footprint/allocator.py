"""What the allocator of the CPU hands out and takes back, by torch's profiler."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd import profiler

from probes.base import Inputs, call
from probes.model.labels import WHOLE

QUIET = "6"
"""Level from which on torch's profiler writes no lines of its own."""

_MEMORY, _ENTER, _LEAVE = "[memory]", "module enters: ", "module leaves"


@dataclass
class Record:
    """What happened, in its order, once the block is left."""

    events: list[tuple[str, int]] = field(default_factory=list)
    """Names, and what was allocated or, below zero, freed [byte]."""

    def changes(self) -> list[int]:
        """List what was allocated, and below zero what was freed [byte]."""
        return [size for name, size in self.events if name == _MEMORY]


def available(device: torch.device) -> bool:
    """Whether allocations can be recorded: on a CPU, where no profiler of the caller runs."""
    return device.type == "cpu" and not torch._C._autograd._profiler_enabled()


@contextmanager
def recorded() -> Iterator[Record]:
    """Record while the block runs."""
    record = Record()
    with _quiet(), profiler.profile(use_kineto=True, profile_memory=True) as profile:
        yield record
    found: Any = profile.kineto_results
    for event in sorted(found.events(), key=lambda event: event.start_ns()):
        name = event.name()
        if name == _MEMORY or name.startswith((_ENTER, _LEAVE)):
            record.events.append((name, event.nbytes() if name == _MEMORY else 0))


@contextmanager
def _quiet() -> Iterator[None]:
    """Have torch's profiler write no lines of its own, unless the user asked for them."""
    name = "KINETO_LOG_LEVEL"
    known = name in os.environ
    os.environ.setdefault(name, QUIET)
    try:
        yield
    finally:
        if not known:
            del os.environ[name]


def peaks(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Find the most that is allocated while each module runs, its parts apart [byte]."""

    def mark(name: str) -> Any:
        def hook(*_: Any) -> None:
            with profiler.record_function(name):
                pass

        return hook

    with ExitStack() as stack, recorded() as record:
        for name, module in model.named_modules():
            enter, leave = mark(_ENTER + (name or WHOLE)), mark(_LEAVE)
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        call(model, inputs)
    return _by_module(record)


def _by_module(record: Record) -> dict[str, int]:
    """Follow what is allocated, and which module runs."""
    found: dict[str, int] = {}
    running: list[str] = []
    total = 0
    for name, size in record.events:
        if name.startswith(_ENTER):
            running.append(name.removeprefix(_ENTER))
        elif name == _LEAVE:
            running.pop()
        total += size
        if running and name == _MEMORY:
            found[running[-1]] = max(found.get(running[-1], 0), total)
    return found
