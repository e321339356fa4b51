"""Pickles that try to run something: a file that they would make shows that nothing ran."""

import builtins
import os
import pickle
import runpy
import subprocess
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from checkpoint_corpus import good, saved
from pickled import (
    archive,
    call,
    floats,
    legacy,
    listed,
    name,
    number,
    ordered,
    row,
    storage,
    table,
    tensor,
    text,
    weights,
)
from reading import outcome, refusal

PYTHON = "open({0!r}, 'w').close()"


class Call:
    """Pickled as a call, which unpickling it makes."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


class State:
    """Pickled with a function that is called with the object and its state."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __reduce__(self) -> Any:
        return str, (self.source,), {}, None, None, exec


PAYLOADS: dict[str, Callable[[str], Any]] = {
    "os.system": lambda path: Call(os.system, f"touch {path}"),
    "os.mkdir": lambda path: Call(os.mkdir, path),
    "subprocess": lambda path: Call(subprocess.call, ["touch", path]),
    "Popen": lambda path: Call(subprocess.Popen, ["touch", path]),
    "eval": lambda path: Call(builtins.eval, PYTHON.format(path)),
    "exec": lambda path: Call(builtins.exec, PYTHON.format(path)),
    "open": lambda path: Call(builtins.open, path, "w"),
    "runpy": lambda path: Call(runpy.run_path, path),
    "getattr": lambda path: Call(builtins.getattr, Call(builtins.__import__, "os"), "system"),
    "map": lambda path: Call(list, Call(builtins.map, os.mkdir, [path])),
    "partial": lambda path: Call(partial, os.mkdir, path),
    "state": lambda path: State(PYTHON.format(path)),
    "torch.load": lambda path: Call(torch.load, path),
    "torch.save": lambda path: Call(torch.save, {}, path),
    "storage": lambda path: Call(
        torch.storage._load_from_bytes, pickle.dumps(Call(os.mkdir, path))
    ),
    "jit": lambda path: Call(torch.jit.load, path),
}
"""What would run, given the path of the file that it would make."""


def wrapped(payload: Any, depth: int) -> Any:
    held: Any = {"model": {"weight": torch.ones(2)}, "extra": payload}
    for level in range(depth):
        held = {"state": [("entry", level, held)]}
    return held


FILES: dict[str, Callable[[Any, int], bytes]] = {
    "zip": lambda held, protocol: _saved(held, protocol, zipped=True),
    "legacy": lambda held, protocol: _saved(held, protocol, zipped=False),
    "pickle": pickle.dumps,
    "torchscript": lambda held, protocol: _scripted(pickle.dumps(held, protocol)),
}


def _saved(held: Any, protocol: int, *, zipped: bool) -> bytes:
    stream = BytesIO()
    torch.save(held, stream, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _scripted(data: bytes) -> bytes:
    stream = BytesIO()
    with ZipFile(BytesIO(good("torchscript"))) as old, ZipFile(stream, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, data if entry.endswith("/data.pkl") else old.read(entry))
    return stream.getvalue()


@pytest.mark.parametrize("depth", [0, 5])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_runs(payload: str, form: str, protocol: int, depth: int, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "net.pt"
    path.write_bytes(FILES[form](wrapped(PAYLOADS[payload](str(canary)), depth), protocol))
    assert outcome(path) == "refused"
    assert not canary.exists()


def test_the_payloads_are_live(tmp_path: Path) -> None:
    made = []
    for payload in ("os.system", "os.mkdir", "subprocess", "eval", "exec", "map", "state"):
        canary = tmp_path / payload
        pickle.loads(pickle.dumps(PAYLOADS[payload](str(canary))))
        made.append(canary.exists())
    assert all(made)
    canary = tmp_path / "trusted"
    (tmp_path / "net.pt").write_bytes(saved(wrapped(PAYLOADS["os.mkdir"](str(canary)), 1)))
    assert outcome(tmp_path / "net.pt", trust=True) == "misfit"
    assert canary.exists()


BYPASSES: dict[str, Callable[[str], bytes]] = {
    "function handed to a rebuilder": lambda path: call(
        "torch._tensor._rebuild_from_type_v2",
        name("posix.mkdir"), name("torch.Tensor"), row(text(path)), table(),
    ),
    "function in place of a layout": lambda path: call(
        "torch._utils._rebuild_sparse_tensor", name("posix.mkdir"), row(text(path)),
    ),
    "hook": lambda path: tensor(storage(4), hooks=ordered(number(0), name("posix.mkdir"))),
    "name of two lines": lambda path: b"cposix\\nsystem\\n" + row(text(path)) + b"R",
    "dotted name": lambda path: name("torch.storage.os.mkdir") + row(text(path)) + b"R",
    "dotted attribute": lambda path: b"ctorch\\nos.mkdir\\n" + row(text(path)) + b"R",
    "module of torch": lambda path: call("torch.hub.load", text(path), text("net")),
    "new object": lambda path: name("posix.mkdir") + row(text(path)) + b"\\x81",
    "instance": lambda path: b"(" + text(path) + b"iposix\\nmkdir\\n",
    "object": lambda path: b"(" + name("posix.mkdir") + text(path) + b"o",
    "extension": lambda path: b"\\x82\\x01" + row(text(path)) + b"R",
    "name from the stack": lambda path: (
        b"\\x8c\\x05posix\\x8c\\x05mkdir\\x93" + row(text(path)) + b"R"
    ),
    "second pickle": lambda path: number(1) + b"." + call("posix.mkdir", text(path)),
}  # fmt: skip
"""Ways around a list of allowed names."""


@pytest.mark.parametrize("bypass", BYPASSES)
def test_bypasses(bypass: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "net.pt"
    attack = BYPASSES[bypass](str(canary))
    keys, values = listed(text("0")), floats(1, 2, 3, 4)
    held = table(weight=weights(), attack=attack)
    for data in (archive(held), legacy(held, keys, values), legacy(attack, keys, values)):
        path.write_bytes(data)
        assert outcome(path) == "refused"
        assert not canary.exists()


def test_what_an_allowed_name_may_not_bring_along(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(archive(table(weight=weights(), attack=call("posix.mkdir", text("canary")))))
    refusal(path, allow_globals=["collections.OrderedDict"])
    refusal(path, allow_globals=["posix.mkdir"])
    assert not Path("canary").exists()
