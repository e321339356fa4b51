"""Memory that reading a file takes at most, as a multiple of the file."""

import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from checkpoint_corpus import saved
from pickled import archive, floats, legacy, legacy_storage, listed, storage, table, tensor, text
from reading import outcome
from safetensors.torch import save

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SLACK = 8 * 2**20
"""What the interpreter and torch may take besides, once [byte]."""


def resident(key: str) -> int:
    """Read VmRSS, what is in memory, or VmHWM, the most that was [byte]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def peak(path: Path) -> tuple[int, str]:
    """Memory above that before while a file is read [byte], and how that ends."""
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    ended = outcome(path)
    return resident("VmHWM") - before, ended


MILLION = 10**6


def large() -> dict[str, torch.Tensor]:
    return {f"weight{index}": torch.randn(MILLION) for index in range(8)}


def script(state: dict[str, torch.Tensor]) -> bytes:
    stream = BytesIO()
    holder = torch.nn.Module()
    for name, value in state.items():
        holder.register_buffer(name, value)
    torch.jit.save(torch.jit.script(holder), stream)
    return stream.getvalue()


GOOD: dict[str, tuple[Callable[[], bytes], float]] = {
    "torch.save": (lambda: saved(large()), 1.5),
    "torch.save before 1.6": (lambda: saved(large(), zipped=False), 1.5),
    "safetensors": (lambda: save(large()), 2.5),
}
"""A file of 32 MB, and how many times its size may be needed to read it."""


@pytest.mark.parametrize("form", GOOD)
def test_good_files(form: str, tmp_path: Path) -> None:
    write, most = GOOD[form]
    path = tmp_path / "net"
    path.write_bytes(write())
    needed, ended = peak(path)
    assert ended == "misfit"
    assert needed < most * path.stat().st_size + SLACK


@pytest.mark.filterwarnings("ignore")
def test_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_bytes(script(large()))
    needed, ended = peak(path)
    assert ended == "misfit"
    assert needed < 3.5 * path.stat().st_size + SLACK


def entries(count: int) -> bytes:
    stream = BytesIO()
    with ZipFile(stream, "w") as file:
        for index in range(count):
            file.writestr(str(index), b"")
    return stream.getvalue()


LONG = MILLION // 10
OVERLAP = 1000

HOSTILE: dict[str, Callable[[], bytes]] = {
    "lists": lambda: archive(b"](" + b"]" * LONG + b"e"),
    "mappings": lambda: archive(b"](" + b"}" * LONG + b"e"),
    "marks": lambda: archive(b"(" * LONG + b"t" * LONG),
    "nested tuples": lambda: archive(table(weight=b")" + b"\x85" * LONG)),
    "memos": lambda: archive(
        b"N" + b"".join(b"r%b" % i.to_bytes(4, "little") for i in range(LONG // 5))
    ),
    "entries of an archive": lambda: entries(20_000),
    "expanded": lambda: archive(table(weight=tensor(storage(4), (10**12,), (0,)))),
    "overlapping": lambda: archive(
        table(weight=tensor(storage(2 * OVERLAP), (OVERLAP,) * 2, (1, 1))), bytes(8 * OVERLAP)
    ),
    "legacy, overlapping": lambda: legacy(
        table(weight=tensor(legacy_storage(2 * OVERLAP), (OVERLAP,) * 2, (1, 1))),
        listed(text("0")),
        floats(*range(2 * OVERLAP)),
    ),
}
"""Small files that ask for much."""

MOST = 160
"""Times the size of a file that is all lists of lists, each of which Python keeps apart."""


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files(what: str, tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_bytes(HOSTILE[what]())
    needed, _ = peak(path)
    assert needed < MOST * path.stat().st_size + SLACK
