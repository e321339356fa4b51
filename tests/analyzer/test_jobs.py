"""Batches: what is asked, what is not repeated, what a broken job costs, what a kill leaves."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from analyzer import record as records
from analyzer.findings import Severity
from analyzer.index import save_index
from analyzer.jobs import RECEIPT, Status, collect, finished, key, perform
from analyzer.workers import Bounds, run
from probes.errors import AnalyzerError


def _fleet():
    path = Path(__file__).with_name("fleet.py")
    spec = importlib.util.spec_from_file_location("fleet", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fleet = _fleet()


@pytest.fixture
def home(tmp_path):
    fleet.build(tmp_path, 6)
    return tmp_path


def jobs(home, *paths, **more):
    return collect([str(home / path) for path in paths], fleet.flags(home, **more), home / "out")


def test_folders_patterns_and_files_are_jobs_named_by_what_differs(home):
    assert [job.name for job in jobs(home, "runs")] == [
        *("a/net00.pt", "a/net02.pt", "a/net04.pt"),
        *("b/net01.pt", "b/net03.pt", "b/net05.pt"),
    ]
    assert [job.name for job in jobs(home, "runs/a/*2.pt", "runs/a/net04.pt")] == [
        "net02.pt",
        "net04.pt",
    ]
    both = jobs(home, "runs/*/net0[23].pt", "runs/a")
    assert [job.name for job in both] == ["a/net02.pt", "b/net03.pt", "a/net00.pt", "a/net04.pt"]
    assert both[0].options.out == home / "out" / "a" / "net02.pt"


def test_a_specification_is_a_job_of_its_own(home):
    (home / "audit.toml").write_text(
        '[subject]\ncheckpoint = "runs/a/net02.pt"\nmodel = "net.py:net"\ndata = "data.npz"\n'
    )
    (job,) = collect([str(home / "audit.toml")], {}, home / "out")
    assert job.options.spec.checkpoint == home / "runs" / "a" / "net02.pt"
    assert job.options.out == home / "out" / "audit.toml"


def test_nothing_found_is_said(home):
    with pytest.raises(AnalyzerError, match=r"none\.pt: no such file"):
        jobs(home, "none.pt")
    (home / "empty").mkdir()
    with pytest.raises(AnalyzerError, match="empty: a folder without checkpoints"):
        jobs(home, "empty")


def test_what_was_asked_before_is_not_repeated_and_anything_else_is(home):
    (job,) = jobs(home, "runs/a/net02.pt")
    assert finished(job) is None
    done = perform(job)
    assert done.status is Status.DONE
    assert finished(job) == done
    (other,) = jobs(home, "runs/a/net02.pt", limit=["gradient_flow.warn_decades=1"])
    assert finished(other) is None
    keys = {key(job), key(other)}
    for name in ("net.py", "data.npz", "runs/a/net02.pt"):
        path = home / name
        path.write_bytes(path.read_bytes() + b"\n")
        keys.add(key(job))
    assert len(keys) == 5


def test_a_receipt_that_is_torn_counts_for_nothing(home):
    (job,) = jobs(home, "runs/a/net02.pt")
    perform(job)
    receipt = job.options.out / RECEIPT
    receipt.write_text(receipt.read_text()[:40])
    assert finished(job) is None


def test_a_failed_job_says_why_and_keeps_no_older_result(home):
    (job,) = jobs(home, "runs/a/net02.pt")
    perform(job)
    (home / "runs/a/net02.pt").write_bytes(b"")
    outcome = perform(job)
    assert outcome.status is Status.FAILED
    assert outcome.verdict is Severity.ERROR
    assert outcome.reason.endswith("empty: the copy or download did not finish")
    assert [path.name for path in job.options.out.iterdir()] == [RECEIPT]
    assert finished(job) is None


def test_jobs_measure_as_many_copies_as_asked_and_are_others_for_it(home):
    def copies(**more):
        (job,) = jobs(home, "runs/a/net02.pt", probe=["width"], **more)
        assert perform(job).status is Status.DONE
        trace = records.traces(records.load(job.options.out / "traces.nc"))["width"]
        return records.settings(trace)["null_seeds"], key(job)

    (default, first), (asked, second) = copies(), copies(null_seeds=1)
    assert (default, asked) == (2, 1)
    assert first != second


def test_what_a_killed_run_left_half_is_swept(home):
    (job,) = jobs(home, "runs/a/net02.pt")
    job.options.out.mkdir(parents=True)
    (job.options.out / ".traces-unfinished-x.nc").write_bytes(b"half")
    perform(job)
    assert sorted(path.name for path in job.options.out.iterdir()) == [
        *("findings.json", "job.json", "report.pdf", "traces.nc")
    ]


def test_broken_checkpoints_stop_nothing_and_the_index_tells_the_worst_first(home):
    outcomes = [*run(jobs(home, "runs"), 2, Bounds())]
    path, overview = save_index(outcomes, home / "out")
    index = pd.read_csv(path)
    assert overview.read_bytes().startswith(b"%PDF")
    assert [*index["name"][:3]] == ["a/net00.pt", "b/net01.pt", "b/net05.pt"]
    assert [*index["status"]] == ["failed"] * 3 + ["done"] * 3
    assert index["worst"][2].startswith(f"{home}/runs/b/net05.pt: does not fit the model")
    assert index["gradient-over-depth [decades]"].notna().tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("factory", "bounds", "reason"),
    [
        ("slow", Bounds(seconds=3), "stopped after 3 s, the time limit"),
        ("greedy", Bounds(memory=1.5), "stopped at 1.5 GiB, the memory limit"),
    ],
)
def test_a_job_beyond_its_bounds_is_stopped(home, factory, bounds, reason):
    asked = jobs(home, "runs/a/net02.pt", model=f"{home}/net.py:{factory}")
    started = time.monotonic()
    (outcome,) = run(asked, 1, bounds)
    assert outcome.reason == reason
    assert time.monotonic() - started < 50
    assert json.loads((asked[0].options.out / RECEIPT).read_text())["status"] == "failed"


def command(home, *more):
    return [
        *(sys.executable, "-m", "analyzer", "batch", "runs", "--model", "net.py:net"),
        *("--data", "data.npz", "--loss", "cross_entropy", "--probe", "gradient_flow"),
        *("--out", "out", "--jobs", "2", "--quiet", *more),
    ]


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_nothing_is_lost_or_half(tmp_path):
    fleet.build(tmp_path, 40)
    rng = random.Random(0)
    for _ in range(10):
        process = subprocess.Popen(command(tmp_path), cwd=tmp_path, start_new_session=True)
        time.sleep(rng.uniform(1, 8))
        # Only the one process, as the system does when memory runs out; its workers must follow.
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for receipt in tmp_path.glob("out/*/*/job.json"):
            assert json.loads(receipt.read_text())["status"] in ("done", "failed")
    assert subprocess.run(command(tmp_path), cwd=tmp_path, check=False).returncode == 2
    index = pd.read_csv(tmp_path / "out" / "index.csv")
    assert index["status"].value_counts().to_dict() == {"done": 37, "failed": 3}
    assert len([*tmp_path.glob("out/*/*/report.pdf")]) == 37
    assert not [*tmp_path.glob("out/*/*/.*")]
