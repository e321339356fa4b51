"""The command line as a user meets it: files written, exit codes, one clear line on bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from analyzer import record as records

NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden=6):
        super().__init__()
        self.lstm = nn.LSTM(2, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])

class Raises(Net):
    def forward(self, x):
        raise RuntimeError("no luck")
"""

SUBJECT = ["--model", "net.py:Net", "--data", "data.npz", "--loss", "cross_entropy"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder: their model file, a checkpoint of it, and data."""
    home = tmp_path_factory.mktemp("user")
    (home / "net.py").write_text(NETWORK)
    sys.path.insert(0, str(home))
    try:
        from net import Net
    finally:
        sys.path.remove(str(home))
    torch.manual_seed(0)
    torch.save({"state_dict": Net().state_dict()}, home / "best.ckpt")
    torch.save({"state_dict": nn.Linear(2, 2).state_dict()}, home / "other.ckpt")
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(70, 12, 2)).astype(np.float32)
    np.savez(home / "data.npz", inputs=inputs, targets=rng.integers(0, 3, 70))
    np.savez(home / "wide.npz", inputs=np.ones((4, 12, 5), np.float32), targets=np.arange(4) % 3)
    return home


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the user's folder, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "analyzer", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def audited(folder) -> subprocess.CompletedProcess[str]:
    return run(folder, "audit", "best.ckpt", *SUBJECT, "--out", "audit")


def test_an_audit_writes_its_three_files(folder, audited):
    assert audited.returncode in (0, 1), audited.stderr
    names = sorted(path.name for path in (folder / "audit").iterdir())
    assert names == ["findings.json", "report.pdf", "traces.nc"]
    document = json.loads((folder / "audit" / "findings.json").read_text())
    assert {finding["probe"] for finding in document["findings"]} >= {
        "gradient_flow",
        "timestep_gradient",
        "memory_horizon",
        "receptive_field",
        "effective_field",
        "summary",
    }
    assert "Gradient over depth" in audited.stdout
    assert (folder / "audit" / "report.pdf").read_bytes().startswith(b"%PDF")


def test_the_record_says_where_it_comes_from(folder, audited):
    facts = json.loads((folder / "audit" / "findings.json").read_text())["provenance"]
    assert facts["checkpoint"] == "best.ckpt"
    assert facts["samples"] == 70
    assert facts["objective"] == "cross_entropy, per sample"
    assert facts["command"].startswith("analyzer audit best.ckpt --model net.py:Net")


def test_the_same_audit_gives_the_same_bytes(folder, audited):
    before = {path.name: path.read_bytes() for path in (folder / "audit").iterdir()}
    again = run(folder, "audit", "best.ckpt", *SUBJECT, "--out", "audit")
    assert again.returncode == audited.returncode
    assert {path.name: path.read_bytes() for path in (folder / "audit").iterdir()} == before


def test_judging_again_with_another_limit(folder, audited):
    again = run(
        folder, "judge", "audit/traces.nc", "--limit", "memory_horizon.required=1", "--quiet"
    )
    assert (again.returncode, again.stdout) == (audited.returncode, "")
    rows = json.loads((folder / "audit" / "findings.json").read_text())["limits"]
    assert rows["memory_horizon.required"]["value"] == 1


def test_judging_and_rendering_need_no_torch(folder, audited):
    blocked = folder / "without"
    blocked.mkdir(exist_ok=True)
    (blocked / "torch.py").write_text("raise ImportError('torch is blocked')\n")
    environment = {**os.environ, "PYTHONPATH": str(blocked)}
    for step in ("judge", "render"):
        done = subprocess.run(
            [sys.executable, "-m", "analyzer", step, "audit/traces.nc"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 1), done.stderr


def test_quiet_prints_nothing(folder):
    done = run(
        folder, "audit", "best.ckpt", *SUBJECT, "--out", "q", "--probe", "gradient_flow", "--quiet"
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_a_spec_file_does_the_same(folder, audited):
    (folder / "audit.toml").write_text(
        '[subject]\ncheckpoint = "best.ckpt"\nmodel = "net.py:Net"\ndata = "data.npz"\n'
        'loss = "cross_entropy"\n[probes]\nrun = ["gradient_flow"]\n[output]\ndirectory = "t"\n'
    )
    done = run(folder, "audit", "--spec", "audit.toml", "--quiet")
    assert done.returncode == 0, done.stderr
    document = json.loads((folder / "t" / "findings.json").read_text())
    assert (
        document["provenance"]["data_sha256"]
        == (
            json.loads((folder / "audit" / "findings.json").read_text())["provenance"][
                "data_sha256"
            ]
        )
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "no.pt", *SUBJECT], "no.pt"),
        (["audit", "net.py", *SUBJECT], "net.py"),
        (["audit", "other.ckpt", *SUBJECT], "other.ckpt"),
        (["audit", "best.ckpt", *SUBJECT, "--model", "net.py:Nut"], "no callable 'Nut'"),
        (["audit", "best.ckpt", *SUBJECT, "--model-arg", "hidden=9"], "lstm.weight_ih_l0"),
        (["audit", "best.ckpt", *SUBJECT, "--data", "no.npz"], "no.npz: no such data file"),
        (["audit", "best.ckpt", *SUBJECT, "--data", "wide.npz"], "first batch of the audit data"),
        (["audit", "best.ckpt", *SUBJECT, "--loss", "cross_entrpy"], "no loss called"),
        (
            ["audit", "best.ckpt", *SUBJECT, "--loss", "mse_loss"],
            "needs outputs and targets of one shape",
        ),
        (["audit", "best.ckpt", *SUBJECT, "--probe", "gradientflow"], "did you mean gradient_flow"),
        (
            ["audit", "best.ckpt", *SUBJECT, "--set", "memory_horizon.pints=3"],
            "unknown setting of probe memory_horizon 'pints'",
        ),
        (["audit", "best.ckpt", *SUBJECT, "--limit", "a.b=1"], "unknown limit group 'a'"),
        (["audit", "best.ckpt", *SUBJECT, "--model", "net.py:Raises"], "RuntimeError: no luck"),
        (["audit", "best.ckpt", "--model", "net.py:Net"], "no data: say --data"),
        (["judge", "net.py"], "net.py: not a record of this tool"),
        (["render", "no/traces.nc"], "run analyzer judge first"),
        (["inspect", "net.py"], "net.py"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(folder, arguments, message):
    extra = ["--out", "bad"] if arguments[0] == "audit" else []
    done = run(folder, *arguments, *extra)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("analyzer: ")
    assert message in line
    assert not (folder / "bad").exists()


def test_an_unknown_option_is_refused(folder):
    done = run(folder, "audit", "best.ckpt", "--modle", "net.py:Net")
    assert done.returncode == 2
    assert "No such option" in done.stderr


def test_inspecting_lists_the_tensors(folder):
    done = run(folder, "inspect", "best.ckpt")
    assert done.returncode == 0
    assert "lstm.weight_hh_l1" in done.stdout
    facts = json.loads(run(folder, "inspect", "best.ckpt", "--json").stdout)
    assert facts["wrapper"] == ["state_dict"] or facts["wrapper"] == "state_dict"


def test_lists(folder):
    listed = run(folder, "probes").stdout
    assert listed.startswith("gradient_flow\n    Size of the gradient in every layer")
    assert "    --set memory_horizon.points=24\n" in listed
    assert "gradient_flow.warn_decades = 2" in run(folder, "limits").stdout


def test_help_does_not_import_torch(folder):
    code = "import sys, analyzer.cli; sys.exit('torch' in sys.modules or 'xarray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, check=False)
    assert done.returncode == 0


def test_the_request_is_printed_and_nothing_runs(folder, tmp_path):
    done = run(folder, "audit", "best.ckpt", *SUBJECT, "--out", str(tmp_path / "o"), "--print-spec")
    assert done.returncode == 0, done.stderr
    assert 'model = "net.py:Net"\n' in done.stdout
    assert not (tmp_path / "o").exists()


def test_only_what_got_worse_since_the_baseline_fails(folder, audited):
    strict = ["--fail-on", "inconclusive", "--quiet"]
    traces = str(folder / "audit" / "traces.nc")
    before = run(folder, "judge", traces, *strict)
    since = run(folder, "judge", traces, *strict, "--baseline", traces)
    assert (before.returncode, since.returncode) == (1, 0), since.stderr


def test_verdicts_for_machines_and_pull_requests(folder, audited):
    traces = folder / "audit" / "traces.nc"
    done = run(folder, "judge", str(traces), "--junit", "--summary", "--quiet")
    assert done.returncode in (0, 1), done.stderr
    assert (folder / "audit" / "junit.xml").read_text().startswith("<?xml")
    assert (folder / "audit" / "summary.md").read_text().startswith("## **")
    for name in ("junit.xml", "summary.md"):
        (folder / "audit" / name).unlink()


def test_traces_are_exported_as_tables(folder, audited, tmp_path):
    done = run(folder, "export", str(folder / "audit" / "traces.nc"), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "memory_horizon.sample-kept.csv").is_file()
    assert done.stdout.count("wrote ") == len([*tmp_path.iterdir()])


def test_schemas_are_printed(folder):
    for name in ("findings", "spec"):
        assert json.loads(run(folder, "schema", name).stdout)["title"].endswith("memory-analyzer")


def test_copies_are_a_flag_of_every_command_that_measures(folder):
    for command in ("audit", "measure", "batch"):
        assert "--null-seeds" in run(folder, command, "--help").stdout
    flags = [*SUBJECT, "--probe", "width", "--null-seeds", "1", "--out", "seeded", "--quiet"]
    assert run(folder, "measure", "best.ckpt", *flags).returncode == 0
    trace = records.traces(records.load(folder / "seeded" / "traces.nc"))["width"]
    assert records.settings(trace)["null_seeds"] == 1
    assert (
        "--null-seeds" in run(folder, "measure", "best.ckpt", *flags, "--null-seeds", "-1").stderr
    )
