"""The tensors of a TorchScript archive, read without its code."""

import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor

from analyzer.checkpoint.formats import DATA, content
from analyzer.checkpoint.memory import Room
from analyzer.checkpoint.pickles import names_asked
from analyzer.checkpoint.rehearsal import rehearse_archive

_STATE = re.compile(r"[^/]+/(data\.pkl|data/.*|version|byteorder)")
"""What ``torch.save`` writes too; the rest is code."""

_CLASS = re.compile(
    r"^class (\w+)\(Module\):\s+__parameters__ = \[([^][]*)\]\s+__buffers__ = \[([^][]*)\]",
    re.MULTILINE,
)

_TYPES = tuple(
    f"torch.jit._pickle.{name}"
    for name in (
        *("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist"),
        "restore_type_tag",
    )
)
"""Functions that say of which type a value is."""

TENSORS = 100_000
"""Names of tensors in one archive; objects that share others can have more than fit anywhere."""


class _Object:
    """Stands in for an object of any scripted class and keeps its attributes."""

    state: Any = None
    saved: frozenset[str] | None = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def tensors(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive by their names.

    The archive is what ``torch.save`` writes plus code. Without the code torch reads it as
    weights only, so that nothing in it runs, not even TorchScript.

    Raises
    ------
    Exception
        Of any kind, where the archive is damaged.
    """
    rehearse_archive(path, _is_scripted)
    file = BytesIO()
    with ZipFile(path) as archive, ZipFile(file, "w") as plain:
        saved = dict(_saved(archive))
        for entry in archive.infolist():
            if _STATE.fullmatch(entry.filename):
                plain.writestr(entry.filename, content(archive, entry))
            if DATA.fullmatch(entry.filename):
                asked = names_asked(BytesIO(content(archive, entry)), Room(path))
    file.seek(0)
    with torch.serialization.safe_globals([*_stand_ins(asked, saved)]):
        root = torch.load(file, map_location="cpu", weights_only=True)
    named = dict(islice(_named(root, ""), TENSORS + 1))
    if len(named) > TENSORS:
        raise ValueError(f"more than {TENSORS} tensors")
    return named


def _is_scripted(name: str) -> bool:
    """Tell the names for which there are stand-ins."""
    return name.startswith("__torch__.") or name in _TYPES


def _saved(archive: ZipFile) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the names of parameters and buffers of each class in the archive's code."""
    for entry in archive.infolist():
        if entry.filename.endswith(".py"):
            path = entry.filename.partition("/code/")[2]
            module = path.removesuffix(".py").replace("/", ".")
            for found in _CLASS.finditer(content(archive, entry).decode()):
                members = re.findall(r'"([^"]+)"', found[2] + found[3])
                yield f"{module}.{found[1]}", frozenset(members)


def _stand_ins(
    asked: set[tuple[str, str]], saved: Mapping[str, frozenset[str]]
) -> Iterator[tuple[Any, str]]:
    """Yield what is used for each name that the archive asks for: nothing of its own."""
    for module, name in asked:
        full = f"{module}.{name}"
        if full in _TYPES:
            yield _same, full
        elif _is_scripted(full):
            yield type(name, (_Object,), {"saved": saved.get(full)}), full


def _same(value: Any, _: Any = None) -> Any:
    """Return a value without the TorchScript type that was written beside it."""
    return value


def _named(node: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors below an object with their dotted names."""
    for name, value in _children(node):
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Object):
            yield from _named(value, f"{prefix}{name}.")


def _children(node: _Object) -> Iterator[tuple[str, Any]]:
    """Yield an object's sub-modules, parameters and buffers, not its other attributes."""
    state = node.state if isinstance(node.state, Mapping) else {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or node.saved is None or name in node.saved:
            yield name, value
