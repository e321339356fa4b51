"""A small audit in a process of its own, for runs that are cut short."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from analyzer.conduct import FINDINGS, REPORT, TRACES

FILES = (TRACES, FINDINGS, REPORT)
"""In the order in which they are written."""

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(2, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def batches():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 12, 2, generator=generator), torch.arange(16) % 3)]
"""

FLAGS = ("--model", "net.py:Net", "--data", "net.py:batches", "--loss", "cross_entropy")


def command(seed: int) -> list[str]:
    """The command of an audit, whose files are others for another seed."""
    limited = ("--probe", "gradient_flow", "--seed", str(seed), "--out", "out", "--quiet")
    return [sys.executable, "-m", "analyzer", "audit", *FLAGS, *limited]


def started(folder: Path, seed: int) -> subprocess.Popen[str]:
    """Start an audit in a folder that has the network."""
    (folder / "net.py").write_text(NETWORK)
    # What runs in the background ignores interrupts, and hands that down.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command(seed),
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, interrupt)


def finished(folder: Path, seed: int) -> tuple[int, str]:
    """Run an audit to its end: its exit code, and what it said on stderr."""
    process = started(folder, seed)
    _, said = process.communicate()
    return process.returncode, said


def held(folder: Path) -> dict[str, bytes]:
    """Content of every file in the output folder, hidden ones included."""
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


def ages(found: Mapping[str, bytes], old: Mapping[str, bytes], new: Mapping[str, bytes]) -> str:
    """Say of each file whether it is the old or the new one: such as ``new new old``."""
    known = {name: {old[name]: "old", new[name]: "new"} for name in FILES}
    return " ".join(known[name].get(found.get(name, b""), "half") for name in FILES)
