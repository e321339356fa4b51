"""Memory of training and serving: the estimate beside the peak of a process of its own."""

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from analyzer.rules.memory_growth import Growth
from benchmarks.networks import ResNet18
from benchmarks.timing import Row
from probes.base import Subject
from probes.memory_footprint import MemoryFootprint

MIB = 2.0**20
ROOT = Path(__file__).parent.parent


class Lstm(nn.Module):
    """Two layers of an LSTM, and the class from the last output."""

    def __init__(self, units: int = 256) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, units, 2, batch_first=True, dropout=0.2)
        self.head = nn.Linear(units, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(x)[0][:, -1])
        return y


class Hybrid(nn.Module):
    """Convolutions over time, and a bidirectional GRU over what they return."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(32, width, 5, padding=2), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Conv1d(width, width, 5, padding=2), nn.BatchNorm1d(width), nn.ReLU(),
            nn.MaxPool1d(2),
        )  # fmt: skip
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x.transpose(1, 2)).transpose(1, 2)
        y: Tensor = self.head(self.gru(h)[0].mean(1))
        return y


def mlp() -> nn.Module:
    """Build a network of wide linear layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(),
        nn.Linear(2048, 10),
    )  # fmt: skip


class Case(NamedTuple):
    """A network, and the batch it is trained with."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


CASES = (
    Case("CNN: ResNet-18, 64 x 32x32", ResNet18, (64, 3, 32, 32)),
    Case("LSTM, 64 x 250 timesteps", Lstm, (64, 250, 32)),
    Case("LSTM, 64 x 500 timesteps", Lstm, (64, 500, 32)),
    Case("CNN + GRU, 64 x 400 timesteps", Hybrid, (64, 400, 32)),
    Case("MLP, 512 x 784", mlp, (512, 784)),
)


def data(case: Case) -> tuple[Tensor, Tensor]:
    """Make inputs and targets."""
    return torch.randn(case.shape), torch.randint(10, case.shape[:1])


def train(case: Case, steps: int = 3) -> None:
    """Build the network and train it with Adam: all that training holds is made here."""
    model, (x, y) = case.make().train(), data(case)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def serve(case: Case) -> None:
    """Build the network and call it without gradients."""
    model, (x, _) = case.make().eval(), data(case)
    with torch.no_grad():
        model(x)


def estimate(case: Case) -> Growth:
    """Measure small batches, from which the growth is known."""
    return Growth(MemoryFootprint()(Subject(case.make(), [data(case)], "cross_entropy")))


def alone(case: Case, kind: str) -> float:
    """Peak of a process that only trains or serves, beyond that of a small batch before [MiB].

    Every tensor that is not small has memory of its own there, so that what is freed is given
    back: otherwise the allocator, which keeps some of it, is measured too.
    """
    program = [sys.executable, "-m", "benchmarks.footprint", case.name, kind]
    settings = {"MALLOC_MMAP_THRESHOLD_": "16384", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        program, env=os.environ | settings, capture_output=True, check=True, text=True, cwd=ROOT
    )
    return float(done.stdout)


def main(name: str, kind: str) -> None:
    """Measure in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (case,) = (case for case in CASES if case.name == name)
    run = {"training": train, "serving": serve}[kind]
    # What is loaded and kept with the first call, such as kernels, is no part of the network.
    run(case._replace(shape=(2, *case.shape[1:])))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run(case)
    print((memory("VmHWM") - before) / 2**10)


def memory(kind: str) -> int:
    """Memory of this process [KiB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def compared(case: Case) -> list[Row]:
    """Set estimates beside the peaks of processes, and beside a pass of the whole batch."""
    growth, count = estimate(case), case.shape[0]
    found: list[Row] = []
    budgets = {"training": growth.training(count), "serving": growth.serving(count)}.items()
    for kind, parts in budgets:
        measured = alone(case, kind)
        ratio = parts.total / MIB / measured
        found.append(Row(case.name, f"{kind}: process", 1.0, peak=measured))
        note = f"from batches of 4 to 16; {parts.activations / MIB:.0f} MiB of activations"
        found.append(Row(case.name, f"{kind}: estimate", ratio, peak=parts.total / MIB, note=note))
    return found


def rows(rounds: int, large: bool) -> list[Row]:
    """Compare on every network; the sizes do not vary, so that one round is enough."""
    return [row for case in CASES for row in compared(case)]


if __name__ == "__main__":
    main(*sys.argv[1:])
