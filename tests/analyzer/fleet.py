"""A user's folder with many checkpoints, some of them broken, shared by the tests of batches."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

MODEL = """
import time
from torch import nn

def net(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))

class Slow(nn.Sequential):
    def forward(self, x):
        time.sleep(60)

def slow():
    return Slow(*net())

def greedy():
    kept = [bytearray(2**28) for _ in range(8)]
    time.sleep(60)
"""


def network(width: int = 8) -> nn.Module:
    """What the user's ``net`` returns."""
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def build(home: Path, count: int) -> list[str]:
    """Write ``count`` checkpoints in two folders, every broken kind once, and return the names."""
    (home / "net.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(32, 4)).astype(np.float32)
    np.savez(home / "data.npz", inputs=inputs, targets=rng.integers(0, 3, 32))
    names = [f"{'ab'[index % 2]}/net{index:02d}.pt" for index in range(count)]
    for index, name in enumerate(names):
        torch.manual_seed(index)
        path = home / "runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network(9 if index == count - 1 else 8).state_dict(), path)
    (home / "runs" / names[0]).write_bytes(b"")
    cut = home / "runs" / names[1]
    cut.write_bytes(cut.read_bytes()[:500])
    return names


def flags(home: Path, **more: object) -> dict[str, object]:
    """Return the flags that all jobs of this folder share."""
    shared = {
        "model": f"{home}/net.py:net",
        "data": str(home / "data.npz"),
        "loss": "cross_entropy",
        "probe": ["gradient_flow"],
    }
    return shared | more
