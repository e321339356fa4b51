"""Many checkpoints: a shell loop over single audits, the batch, and Ray."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from analyzer.demo import SPECS
from benchmarks.timing import Row

CHECKPOINTS = 8
SPEC = SPECS["ecg_cnn"]
FLAGS = (
    *("--model", SPEC.model, "--data", SPEC.data, "--loss", str(SPEC.loss), "--time-axis", "1"),
    *("--probe", "gradient_flow", "--probe", "effective_field", "--quiet"),
)
LOOP = "shell loop over analyzer audit"


def _timed(commands: Sequence[Sequence[str]]) -> float:
    """Wall-clock time of commands one after the other [s]."""
    start = time.perf_counter()
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "analyzer", *command],
            capture_output=True,
            check=False,
            text=True,
        )
        if done.returncode > 1:
            raise RuntimeError(done.stderr)
    return time.perf_counter() - start


def rows(rounds: int, large: bool) -> list[Row]:
    """Time every way of auditing the same checkpoints; ratios are of wall-clock time."""
    del rounds, large
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        files = [home / "runs" / f"net{index}.pt" for index in range(CHECKPOINTS)]
        files[0].parent.mkdir()
        for file in files:
            shutil.copy(str(SPEC.checkpoint), file)
        loop = [["audit", str(file), *FLAGS, "--out", str(home / file.stem)] for file in files]
        batch = ["batch", str(home / "runs"), *FLAGS, "--out"]
        ways = {
            LOOP: loop,
            "analyzer batch": [[*batch, str(home / "one")]],
            "analyzer batch --jobs 2": [[*batch, str(home / "two"), "--jobs", "2"]],
            "the same again (resumed)": [[*batch, str(home / "two"), "--jobs", "2"]],
        }
        if find_spec("ray"):
            ways["analyzer batch --ray local"] = [[*batch, str(home / "ray"), "--ray", "local"]]
        spent = {way: _timed(commands) for way, commands in ways.items()}
    case = f"{CHECKPOINTS} checkpoints, two probes"
    return [
        Row(case, way, wall=seconds / spent[LOOP], note=f"{seconds / CHECKPOINTS:.1f} s each")
        for way, seconds in spent.items()
    ]
