"""Memory that reading a file takes at most, as a multiple of the file."""

import json
import sys
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import pytest
import torch
from checkpoint_corpus import saved
from pickled import (
    FALSE,
    NO_HOOKS,
    NONE,
    archive,
    floats,
    legacy,
    legacy_storage,
    listed,
    name,
    number,
    numbers,
    real,
    row,
    storage,
    table,
    tensor,
    text,
    weights,
)
from reading import outcome, refusal
from safetensors.torch import save

from analyzer.checkpoint import memory, read
from analyzer.checkpoint.memory import Room
from analyzer.checkpoint.rehearsal import Rehearsal

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
    for key, value in state.items():
        holder.register_buffer(key, value)
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


def calls(function: str, count: int, *args: bytes) -> bytes:
    """One function called over and over with the same arguments."""
    made = name(function) + b"q\x00" + row(*args) + b"q\x01" + b"h\x00h\x01R" * count
    return b"](" + made + b"e"


def pairs(count: int) -> bytes:
    return b"".join(number(index) + b"N" for index in range(count))


REBUILD = "torch._utils._rebuild_tensor_v2"
PARTS = (storage(4), number(0), numbers(4), numbers(1), FALSE, NO_HOOKS)
STATE = table(note=NONE)

MANY: dict[str, Callable[[], bytes]] = {
    "lists": lambda: b"](" + b"]" * LONG + b"e",
    "mappings": lambda: b"](" + b"}" * LONG + b"e",
    "sets": lambda: b"](" + b"\x8f" * LONG + b"e",
    "marks": lambda: b"(" * LONG + b"t" * LONG,
    "tuples": lambda: b"](" + b"N\x85" * LONG + b"e",
    "nested tuples": lambda: b")" + b"\x85" * LONG,
    "lists with an entry": lambda: b"](" + b"]Na" * LONG + b"e",
    "mappings with an entry": lambda: b"](" + b"}K\x01Ns" * LONG + b"e",
    "numbers": lambda: b"](" + real(0.1) * LONG + b"e",
    "numbered": lambda: b"}(" + pairs(LONG) + b"u",
    "texts": lambda: b"](" + text("\u00e9") * LONG + b"e",
    "a wide text": lambda: text("a" * 10 * LONG + "\U0001f600"),
    "memos": lambda: b"N" + b"".join(b"r%b" % i.to_bytes(4, "little") for i in range(LONG // 5)),
    "ordered": lambda: calls("collections.OrderedDict", LONG, b"](" + row(NONE, NONE) + b"e"),
    "made sets": lambda: calls("builtins.set", LONG, listed(NONE)),
    "copied": lambda: calls("collections.Counter", LONG // 100, b"}(" + pairs(1000) + b"u"),
    "tensors": lambda: calls(REBUILD, LONG, *PARTS),
    "parameters": lambda: calls("torch._utils._rebuild_parameter", LONG, weights(), FALSE),
    "with attributes": lambda: calls(
        "torch._tensor._rebuild_from_type_v2",
        LONG,
        name(REBUILD),
        name("torch.nn.parameter.Parameter"),
        row(*PARTS),
        STATE,
    ),
}
"""Objects that a few bytes each ask for."""


def script_of(code: bytes) -> bytes:
    stream = BytesIO(archive(code))
    with ZipFile(stream, "a") as file:
        file.writestr("net/constants.pkl", b"\x80\x02).")
    return stream.getvalue()


def header(count: int) -> bytes:
    """A safetensors file that is all header."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    data = json.dumps({str(index): empty for index in range(count)}, separators=(",", ":")).encode()
    return len(data).to_bytes(8, "little") + data


CROWDED: dict[str, Callable[[], bytes]] = {
    **{what: partial(lambda code: archive(table(more=code())), MANY[what]) for what in MANY},
    "legacy": lambda: legacy(table(more=MANY["sets"]()), listed(), b""),
    "TorchScript": lambda: script_of(MANY["mappings"]()),
    "safetensors": lambda: header(LONG),
}
"""Files of almost nothing but objects."""


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> list[Room]:
    """Collect the estimates made while a file is read."""
    seen: list[Room] = []
    make = Room.__init__

    def noted(room: Room, path: Path) -> None:
        make(room, path)
        seen.append(room)

    monkeypatch.setattr(Room, "__init__", noted)
    return seen


@pytest.mark.parametrize("what", CROWDED)
def test_objects_take_what_was_estimated_or_less(
    what: str, tmp_path: Path, rooms: list[Room]
) -> None:
    path = tmp_path / "net"
    path.write_bytes(CROWDED[what]())
    needed, _ = peak(path)
    assert needed < max(room.whole - room.left for room in rooms) + SLACK


@pytest.mark.parametrize("what", CROWDED)
def test_a_file_of_too_many_objects_is_refused_before_they_are_made(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = 2**20
    monkeypatch.setattr(memory, "LEAST", least)
    monkeypatch.setattr(memory, "RATIO", 0)
    path = tmp_path / "net"
    path.write_bytes(CROWDED[what]())
    reason = refusal(path)
    assert f"its objects would take more than {least} bytes of memory" in reason
    needed, _ = peak(path)
    assert needed < least + 2 * path.stat().st_size + SLACK


def test_names_alone_do_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "LEAST", 2**20)
    monkeypatch.setattr(memory, "RATIO", 0)
    path = tmp_path / "net"
    path.write_bytes(b"\x80\x04" + b"\x8c\x02ab" + b"\x94" * LONG + b".")
    assert "its objects would take more" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_an_optimizer_of_many_small_tensors_is_read(zipped: bool, tmp_path: Path) -> None:
    weights = {f"layer{index}": torch.zeros(2) for index in range(LONG // 20)}
    state = {
        index: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
        for index in range(LONG // 20)
    }
    groups = [{"lr": 0.1, "params": list(state)}]
    history = [{"loss": 0.1 + index, "step": index} for index in range(LONG)]
    held = {"model": weights, "optimizer": {"state": state, "param_groups": groups}, "log": history}
    path = tmp_path / "net"
    path.write_bytes(saved(held, zipped=zipped))
    found = read(path)
    assert found.optimizer is not None
    assert len(found.optimizer["state"]) == LONG // 20


def test_two_hundred_thousand_tensors_leave_room() -> None:
    """What one tensor takes is the same for all; those of an AdamW of 100,000 are three times."""
    one, two = (taken({str(i): torch.zeros(2) for i in range(count)}) for count in (1000, 2000))
    assert 300_000 * (two - one) / 1000 < memory.LEAST


def taken(state: dict[str, torch.Tensor]) -> int:
    """Memory that a file is thought to take [byte]."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net"
        path.write_bytes(saved(state))
        room = Room(path)
        with ZipFile(path) as file:
            data = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
            held = {entry.filename.partition("/")[2]: entry.file_size for entry in file.infolist()}
        Rehearsal({*()}.__contains__, room, held).follow(BytesIO(data))
        return room.whole - room.left


HOSTILE: dict[str, Callable[[], bytes]] = {
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
"""Small files that ask for much otherwise."""


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files(what: str, tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_bytes(HOSTILE[what]())
    needed, _ = peak(path)
    assert needed < 8 * path.stat().st_size + SLACK
