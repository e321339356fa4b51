"""A pickle of weights followed on stand-ins, before torch makes anything of it.

Even read as weights only, a file chooses the arguments of the constructors it calls and the sizes
of its tensors: a few bytes can ask for all memory there is, or end the process. What ``torch.save``
never writes is told here, and then torch is not asked. What may be called with which arguments is
in :mod:`analyzer.checkpoint.calls`.
"""

import re
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

from analyzer.checkpoint.calls import (
    CALLS,
    Name,
    Storage,
    Table,
    Thing,
    Unusual,
    check_attributes,
    check_keys,
)
from analyzer.checkpoint.formats import content
from analyzer.checkpoint.memory import MARK, PAIR, Room

STATE = re.compile(r"[^/]*/data(\.pkl|/)", re.IGNORECASE)
"""Entries of an archive that hold the object and the values of its tensors."""

Allowed = Callable[[str], bool]
"""Whether the user lets a file use a name as it likes."""

LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
}
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
MADE: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": Table, "EMPTY_SET": Thing}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Unsupported(Exception):
    """An operation that torch does not know when it reads weights only."""


class Rehearsal:
    """Follows the pickles of one file.

    Parameters
    ----------
    allowed : callable
        Names that are the user's business.
    room : Room
        Memory that all objects together may take.
    held : mapping of int, optional
        Size of every storage in the file [byte]; where it is unset they are collected.
    """

    def __init__(self, allowed: Allowed, room: Room, held: Mapping[str, int] | None = None) -> None:
        self.allowed = allowed
        self.room = room
        self.held = held
        self.storages: dict[Any, Storage] = {}
        self.roots: dict[Any, int] = {}

    def follow(self, stream: IO[bytes]) -> Any:
        """Follow one pickle to its end, and return what stands for its object.

        Raises
        ------
        Unusual
            It does what no file of weights does.
        Unsupported
            It uses an operation that torch refuses.
        Exception
            Of any kind, where the bytes are not a pickle or end too early.
        """
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        for operation, argument, _ in self.room.operations(stream):
            name = operation.name
            if name in LITERALS:
                self.stack.append(argument)
            elif name in VALUES:
                self.stack.append(VALUES[name])
            elif name in MADE:
                self.stack.append(MADE[name]())
            elif name == "STOP":
                break
            elif name != "PROTO":
                self._act(name, argument)
        return self.stack.pop()

    def _act(self, name: str, argument: Any) -> None:
        """Follow an operation that works on the stack."""
        if name in TUPLES:
            count = TUPLES[name]
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ACTIONS:
            ACTIONS[name](self, argument)
        else:
            raise Unsupported(name)

    def _mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        """Take what was put on the stack since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        self.room.take(-MARK)
        return items

    def _tuple(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def _append(self, _: Any) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _appends(self, _: Any) -> None:
        items = self._since_mark()
        self._extend(items)

    def _extend(self, items: list[Any]) -> None:
        """Put items at the end of the list on the stack."""
        if not isinstance(self.stack[-1], Thing):
            self.stack[-1] += items

    def _set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def _set_items(self, _: Any) -> None:
        self._fill(self._since_mark())

    def _fill(self, items: list[Any]) -> None:
        """Put keys, each before its value, into the table on the stack."""
        check_keys(items[::2])
        self.room.take(PAIR * len(items) // 2)
        if not isinstance(self.stack[-1], Thing):
            self.stack[-1].keys += items[::2]

    def _name(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        # What Python 2, and the protocol that torch uses, call it.
        self.stack.append(Name(f"{'builtins' if module == '__builtin__' else module}.{name}"))

    def _new(self, _: Any) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        if kind != Name("torch.nn.parameter.Parameter") and not self.allowed(kind):
            raise Unusual(f"it makes a new {kind}")
        self.stack.append(self.call(kind, args))

    def _reduce(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, args))

    def call(self, function: Any, args: tuple[Any, ...]) -> Any:
        """Return what stands for the result of a call."""
        if not isinstance(function, Name):
            raise TypeError("it calls what has no name")
        if self.allowed(function):
            return Thing()
        if function not in CALLS:
            raise Unusual(f"it calls {function}")
        made = CALLS[function](self.call, *args)
        self.room.take_result(made, args)
        return made

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Table):
            check_attributes(state, target.kind)
        elif not isinstance(target, Thing) or target.tensor:
            raise Unusual("it sets the state of what has none")

    def _storage(self, _: Any) -> None:
        pid = self.stack.pop()
        if not isinstance(pid, tuple):
            raise TypeError("a storage without a description")
        kind, key, _, count, *view = pid[1:]
        asked = Storage.of(kind, count)
        if self.held is not None:
            held = self._within(asked, self.held[f"data/{key}"])
            self.stack.append(self.storages.setdefault(key, held))
        else:
            self.stack.append(self._collected(key, asked, view[0]))

    def _within(self, asked: Storage, held: int) -> Storage:
        """Pass a storage that the file has all of."""
        if asked.size > held:
            raise Unusual(f"a storage of {asked.size} bytes where the file has {held}")
        return asked

    def _collected(self, key: Any, asked: Storage, view: Any) -> Storage:
        """Note a storage that follows in the file, and return it or the view of it."""
        if self.roots.setdefault(key, asked.size) != asked.size:
            raise Unusual("one storage of two sizes")
        root = self.storages.setdefault(key, asked)
        if view is None:
            return root
        own, offset, count = view
        part = Storage.of(asked.kind, count)
        if offset < 0 or offset * root.itemsize + part.size > root.size:
            raise Unusual("a view beyond its storage")
        return self.storages.setdefault(own, part)


ACTIONS: dict[str, Callable[[Rehearsal, Any], None]] = {
    "MARK": Rehearsal._mark,
    "TUPLE": Rehearsal._tuple,
    "APPEND": Rehearsal._append,
    "APPENDS": Rehearsal._appends,
    "SETITEM": Rehearsal._set_item,
    "SETITEMS": Rehearsal._set_items,
    "GLOBAL": Rehearsal._name,
    "REDUCE": Rehearsal._reduce,
    "NEWOBJ": Rehearsal._new,
    "BUILD": Rehearsal._build,
    "BINPERSID": Rehearsal._storage,
}


def rehearse_archive(path: Path, allowed: Allowed) -> None:
    """Follow the pickle of a zip archive that torch wrote.

    Raises
    ------
    Exception
        As :meth:`Rehearsal.follow`.
    """
    with ZipFile(path) as archive:
        folder, held = _entries(archive)
        data = content(archive, archive.getinfo(f"{folder}/data.pkl"))
    Rehearsal(allowed, Room(path), held).follow(BytesIO(data))


def rehearse_legacy(path: Path, allowed: Allowed) -> None:
    """Follow the pickles of a legacy file, and count the storages behind them.

    Raises
    ------
    Exception
        As :meth:`Rehearsal.follow`.
    """
    with path.open("rb") as stream:
        rehearsal = Rehearsal(allowed, Room(path))
        for _ in ("magic number", "version", "system", "object"):
            rehearsal.follow(stream)
        keys, roots = rehearsal.follow(stream), rehearsal.roots
        if len(keys) != len(roots) or set(keys) != set(roots):
            raise Unusual("storages without values")
        # Before the values of each is their number.
        missing = sum(roots.values()) + 8 * len(roots) - (path.stat().st_size - stream.tell())
    if missing > 0:
        raise EOFError(f"unexpected EOF, expected {missing} more bytes.")


def _entries(archive: ZipFile) -> tuple[str, dict[str, int]]:
    """Return the folder of an archive and the sizes of its storages, of which torch sees the same.

    Of entries with one name, in whatever case, torch takes the first and Python the last.
    """
    folder = archive.namelist()[0].partition("/")[0]
    entries = [entry for entry in archive.infolist() if STATE.match(entry.filename)]
    distinct = {entry.filename.casefold() for entry in entries}
    if len(distinct) != len(entries) or not all(
        entry.filename.startswith(f"{folder}/data") for entry in entries
    ):
        raise Unusual("entries that stand for each other")
    return folder, {entry.filename[len(folder) + 1 :]: entry.file_size for entry in entries}
