"""The command line on bad checkpoints: exit code 2, one line on stderr that names the file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_corpus import FORMS, cuts, damaged, good
from pickled import archive, call, number, table, text, weights

from analyzer.cli import main

MODEL = """
import torch
from torch import nn


def net():
    return nn.Linear(3, 2)


def batches():
    return [torch.ones(4, 3)]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Run a command in this process; its exit code, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["analyzer", *args])
        with pytest.raises(SystemExit) as ended:
            main()
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


def bad(folder: Path) -> dict[str, bytes]:
    """Files that are refused, by their names."""
    payload = call("posix.mkdir", text(str(folder / "canary")))
    files = {
        "empty.pt": b"",
        "executing.pt": archive(table(weight=weights(), attack=payload)),
        "huge.pt": archive(table(weight=weights(10**12, (10**12,)))),
        "bytes.pt": archive(table(weight=call("builtins.bytearray", number(10**12)))),
        "page.pt": b"<html>not found</html>",
        "graph.onnx": b"\x08\x08\x12\x07pytorch\x1a\x052.3.1:" + bytes(20),
        "zeros.pt": bytes(100),
        "a\nb.pt": b"PK\x03\x04",
    }
    for form in FORMS:
        for index, data in enumerate(cuts(good(form), 0.25)):
            files[f"{form} cut {index}.pt"] = data
        for seed in range(4):
            files[f"{form} damaged {seed}.pt"] = damaged(good(form), seed)
    return files


def test_every_bad_file_is_one_line_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = []
    for name, data in bad(folder).items():
        (folder / name).write_bytes(data)
        code, out, err = run(capsys, "inspect", name)
        codes.append(code)
        if code:
            shown = name.replace("\n", "\\n")
            assert (code, out) == (2, "")
            assert err.startswith(f"analyzer: {shown}: ")
            assert err.endswith("\n")
            assert err.count("\n") == 1
    # Damaged weights of formats without checksums are read.
    assert codes.count(2) > 0.8 * len(codes)
    assert not (folder / "canary").exists()


@pytest.mark.parametrize("name", ["executing.pt", "huge.pt", "empty.pt", "zip cut 2.pt"])
def test_an_audit_of_a_bad_file_leaves_nothing(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).write_bytes(bad(folder)[name])
    flags = ("--model", "net.py:net", "--data", "net.py:batches", "--out", "out")
    code, out, err = run(capsys, "audit", name, *flags)
    assert (code, out) == (2, "")
    assert err.startswith(f"analyzer: {name}: ")
    assert err.count("\n") == 1
    assert not (folder / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_in_a_process_of_its_own(form: str, folder: Path) -> None:
    cases = [*cuts(good(form), 0.25), *(damaged(good(form), seed) for seed in range(4))]
    for data in cases:
        (folder / "net.pt").write_bytes(data)
        command = [sys.executable, "-m", "analyzer", "inspect", "net.pt"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
        assert done.returncode in (0, 2)
        if done.returncode:
            assert done.stderr.startswith("analyzer: net.pt: ")
            assert done.stderr.count("\n") == 1
            assert done.stdout == ""
