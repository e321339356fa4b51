"""The same networks on the same machine give the same bytes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from whole_zoo import made

from analyzer import load_subject
from analyzer import record as records
from analyzer.demo import SPECS
from analyzer.pipeline import measure

FEW = ["gradient_flow", "timestep_gradient", "memory_horizon", "receptive_field", "gates"]

SAMPLES = 24


def saved(name: str, path: Path, probes: list[str] | None) -> bytes:
    """Measure a bundled network on a few heartbeats, and save what was measured."""
    from dataclasses import replace

    spec = replace(SPECS[name], max_samples=SAMPLES)
    loaded = load_subject(spec)
    records.save(measure(loaded.subject, probes, provenance=loaded.provenance), path)
    return path.read_bytes()


@pytest.mark.parametrize("name", SPECS)
def test_two_runs_of_a_bundled_network(name: str, tmp_path: Path) -> None:
    first = saved(name, tmp_path / "a.nc", FEW)
    torch.rand(5)
    assert saved(name, tmp_path / "b.nc", FEW) == first
    facts = records.load(tmp_path / "a.nc").attrs
    assert facts["determinism"] == "TF32 off, cuDNN deterministic, no autotuning"
    assert facts["samples"] == SAMPLES


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_determinism import saved
saved(sys.argv[2], Path(sys.argv[3]), None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_two_processes_and_every_probe(name: str, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        place = tmp_path / f"{seed}.nc"
        command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), name, str(place)]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True)
    assert (tmp_path / "1.nc").read_bytes() == (tmp_path / "2.nc").read_bytes()


@pytest.mark.parametrize("name", ["random recurrence", "random", "seeds torch"])
def test_networks_that_draw_random_numbers(name: str, tmp_path: Path) -> None:
    found = []
    for place in ("a.nc", "b.nc"):
        subject = made(name)
        torch.manual_seed(len(found))
        records.save(measure(subject, FEW), tmp_path / place)
        found.append((tmp_path / place).read_bytes())
    assert found[0] == found[1]
