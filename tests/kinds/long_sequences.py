"""What probes cost on long sequences: ``python tests/kinds/long_sequences.py [probe timesteps]``.

Prints a table, or the cost of one probe as JSON.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from analyzer.pipeline import measure
from probes import PROBES
from probes.base import Subject

UNITS, LAYERS, SAMPLES = 128, 2, 4

LENGTHS = (1250, 2500, 5000)

BARE = "bare"
"""What a plain forward and backward pass is called."""


@dataclass(frozen=True)
class Cost:
    """Outcome, processor time [s], and memory at the peak beyond that before [byte]."""

    outcome: str
    seconds: float
    bytes: int


class Long(nn.Module):
    """Stacked LSTM that classifies every timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, UNITS, LAYERS, batch_first=True)
        self.head = nn.Linear(UNITS, 5)

    def forward(self, x_BTC: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(x_BTC)[0])
        return logits


def subject(timesteps: int) -> Subject:
    """Few long sequences with a class for every timestep."""
    torch.manual_seed(0)
    x_BTC = torch.randn(SAMPLES, timesteps, 8)
    return Subject(Long(), [(x_BTC, torch.randint(5, (SAMPLES, timesteps)))], "cross_entropy")


def bare(asked: Subject) -> None:
    """Run forward and backward once."""
    for batch in asked:
        logits = asked.model(batch.inputs)
        functional.cross_entropy(logits.mT, batch.targets).backward()


def peak() -> int:
    """Most memory that this process has held so far [byte]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(name: str, asked: Subject) -> str:
    """Run a probe or a bare pass; return its outcome."""
    if name == BARE:
        bare(asked)
        return "measured"
    record = measure(asked, [name])
    facts = record[name].attrs
    return str(facts["outcome"]) + (f": {facts['reason']}" if "reason" in facts else "")


def measured(name: str, timesteps: int) -> Cost:
    """Run a probe, after a short sequence has loaded all code."""
    torch.set_num_threads(1)
    run(name, subject(20))
    asked = subject(timesteps)
    before, start = peak(), time.process_time()
    outcome = run(name, asked)
    return Cost(outcome, time.process_time() - start, peak() - before)


@cache
def alone(name: str, timesteps: int) -> Cost:
    """Run a probe in a process of its own, whose peak is its alone."""
    done = subprocess.run(
        [sys.executable, __file__, name, str(timesteps)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def table() -> Iterator[str]:
    """Write what every probe costs at every length, in seconds, memory and bare passes."""
    yield "| probe | timesteps | seconds | x bare | MiB | x bare | outcome |"
    yield "|---|---|---|---|---|---|---|"
    for name in (BARE, *PROBES):
        for timesteps in LENGTHS:
            bare, own = alone(BARE, timesteps), alone(name, timesteps)
            times, memory = own.seconds / bare.seconds, own.bytes / bare.bytes
            yield (
                f"| {name} | {timesteps} | {own.seconds:.2f} | {times:.1f} | "
                f"{own.bytes / 2**20:.0f} | {memory:.1f} | {own.outcome} |"
            )


def main() -> None:
    """Run what is asked for, or everything."""
    if len(sys.argv) == 3:
        print(json.dumps(asdict(measured(sys.argv[1], int(sys.argv[2])))))  # noqa: T201
    else:
        for line in table():
            print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
