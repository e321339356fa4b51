"""Batches on Ray: nothing lost and nothing twice, also when a worker is killed."""

import importlib.util
import os
import signal
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import psutil
import pytest

from analyzer import ray_map
from analyzer.jobs import Status, collect
from probes.errors import AnalyzerError

pytest.importorskip("ray", reason="pip install .[ray]")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def _fleet():
    path = Path(__file__).with_name("fleet.py")
    spec = importlib.util.spec_from_file_location("fleet", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fleet = _fleet()


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def kill_one(killed):
    """Kill the first worker that is at a job."""
    end = monotonic() + 60
    while monotonic() < end and not killed:
        for process in psutil.process_iter(["name", "cmdline"]):
            title = " ".join(process.info["cmdline"] or [])
            if title.startswith("ray::_perform"):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
                return
        sleep(0.05)


def test_a_killed_worker_costs_nothing(cluster, tmp_path):
    names = fleet.build(tmp_path, 10)
    jobs = collect([str(tmp_path / "runs")], fleet.flags(tmp_path), tmp_path / "out")
    killed: list[int] = []
    killer = Thread(target=kill_one, args=(killed,))
    killer.start()
    outcomes = [*ray_map.run(jobs, "local")]
    killer.join()
    assert len(killed) == 1
    assert sorted(outcome.name for outcome in outcomes) == sorted(names)
    failed = {outcome.name for outcome in outcomes if outcome.status is Status.FAILED}
    assert failed == {names[0], names[1], names[-1]}
    assert len([*tmp_path.glob("out/*/*/report.pdf")]) == 7


def test_no_cluster_is_said():
    import ray

    ray.shutdown()
    with pytest.raises(AnalyzerError, match="no Ray cluster at 'auto'"):
        next(ray_map.run([], "auto"))
