"""Runs that are killed or run out of disk: files are the old or the new ones, never half."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cut_short import FILES, ages, finished, held, started

import analyzer.conduct
from analyzer.cli import main
from analyzer.files import replacing
from probes.errors import AnalyzerError

WRITER = """
import sys
from pathlib import Path
from analyzer.files import replacing

path, size = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
while True:
    for letter in b"ab":
        with replacing(path) as temporary, temporary.open("wb") as stream:
            for _ in range(64):
                stream.write(bytes([letter]) * (size // 64))
"""

SIZE = 2**20

KILLS, MOST_KILLS = 8, 80
"""Writers that are killed, and at most where none of them was at its file: a machine is busy."""


def test_a_file_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    command = [sys.executable, "-c", WRITER, str(path), str(SIZE)]
    chance = random.Random(0)
    left = 0
    for kills in range(MOST_KILLS):
        if left and kills >= KILLS:
            break
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 + 0.05 * chance.random())
        process.kill()
        process.communicate()
        data = path.read_bytes()
        assert data in (b"a" * SIZE, b"b" * SIZE)
        left += len([*tmp_path.iterdir()]) - 1
    assert left > 0
    with replacing(path) as temporary:
        temporary.write_bytes(b"whole")
    assert [*tmp_path.iterdir()] == [path]


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    writer = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    theirs = tmp_path / f".out-unfinished-{writer.pid}-abc.bin"
    theirs.touch()
    others = [tmp_path / ".other-unfinished-0-abc.bin", tmp_path / "out-unfinished-0.bin"]
    for other in others:
        other.touch()
    with replacing(path) as temporary:
        temporary.touch()
    assert theirs.exists()
    writer.communicate(b"\n")
    with replacing(path) as temporary:
        temporary.touch()
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped")],
)
def test_a_signal_is_one_line(
    number: int,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "net.py:net", "--data", "net.py:data", "--out", "out"]
    (tmp_path / "net.py").write_text(
        "from torch import nn, ones\n\n\ndef net():\n    return nn.Linear(2, 2)\n\n\n"
        "def data():\n    return [ones(3, 2)]\n"
    )
    monkeypatch.setattr(sys, "argv", ["analyzer", "audit", *flags])

    def signalled(*_: object, **__: object) -> None:
        with replacing(tmp_path / "out" / "traces.nc"):
            os.kill(os.getpid(), number)
            time.sleep(10)

    monkeypatch.setattr(analyzer.conduct, "audit", signalled)
    handler = signal.getsignal(signal.SIGTERM)
    # Workers that run tests side by side ignore interrupts.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert ended.value.code == code
    assert capsys.readouterr() == ("", f"analyzer: {said}; finished files are kept\n")
    assert [*(tmp_path / "out").iterdir()] == []
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Files of two whole audits."""
    found = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("whole")
        assert finished(folder, seed) == (0, "")
        found.append(held(folder))
    old, new = found
    assert sorted(old) == sorted(new) == sorted(FILES)
    assert all(old[name] != new[name] for name in FILES)
    return old, new


def laid(folder: Path, files: dict[str, bytes]) -> None:
    (folder / "out").mkdir()
    for name, data in files.items():
        (folder / "out" / name).write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_audit_that_is_ended_at_any_moment(number: int, runs, tmp_path: Path) -> None:
    old, new = runs
    start = time.perf_counter()
    laid(tmp_path, old)
    assert finished(tmp_path, 2) == (0, "")
    whole = time.perf_counter() - start
    chance = random.Random(int(number))
    seen = set()
    # Most of the time goes by before the first file.
    for share in (0.2, *(1 - 0.6 * chance.random() ** 2 for _ in range(13))):
        shutil.rmtree(tmp_path / "out")
        laid(tmp_path, old)
        process = started(tmp_path, 2)
        time.sleep(whole * share)
        process.send_signal(number)
        _, said = process.communicate()
        found = held(tmp_path)
        seen.add(ages(found, old, new))
        if number != signal.SIGKILL and process.returncode in (130, 143):
            assert said.startswith("analyzer: ")
            assert said.count("\n") == 1
            assert sorted(found) == sorted(FILES)
    # The files are written in their order.
    assert seen <= {"old old old", "new old old", "new new old", "new new new"}
    assert "old old old" in seen
    assert finished(tmp_path, 2) == (0, "")
    assert held(tmp_path) == new


def mounted(folder: Path, size: str) -> bool:
    """Mount a small disk of its own, if that is permitted."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "16k", "28k", "48k", "100k"])
def test_a_disk_that_is_full(size: str, runs, tmp_path: Path) -> None:
    _, new = runs
    out = tmp_path / "out"
    if sys.platform != "linux" or not mounted(out, size):
        pytest.skip("a small disk cannot be mounted here")
    try:
        code, said = finished(tmp_path, 2)
        found = held(tmp_path)
    finally:
        subprocess.run(["umount", out], check=True)
    assert code == 2
    missing = FILES[len(found)]
    assert said == f"analyzer: cannot write out/{missing}: No space left on device\n"
    assert found == {name: new[name] for name in FILES[: len(found)]}


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
def test_a_file_that_gets_too_large(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(AnalyzerError) as caught, replacing(path) as temporary:
            temporary.write_bytes(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(caught.value) == f"cannot write {path}: File too large"
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
def test_a_record_that_gets_too_large_does_not_end_the_process(tmp_path: Path) -> None:
    """HDF5 does, where it writes to the disk itself."""
    script = tmp_path / "save.py"
    script.write_text(
        "import resource, sys\nimport numpy as np\nimport xarray as xr\n"
        "from analyzer import record\nfrom probes.errors import AnalyzerError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))\n"
        "tree = record.assemble({'flow': xr.Dataset({'x': ('t', np.arange(9e3))})}, {})\n"
        "try:\n    record.save(tree, sys.argv[1])\n"
        "except AnalyzerError as error:\n    print(error)\n"
    )
    command = [sys.executable, str(script), "traces.nc"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "cannot write traces.nc: File too large\n"
    assert [path.name for path in tmp_path.iterdir()] == ["save.py"]
