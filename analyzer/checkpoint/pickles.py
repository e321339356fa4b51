"""Which Python names a pickle would import, found without executing it."""

import pickletools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import IO, Any
from zipfile import ZipFile

import numpy as np
from torch.serialization import get_unsafe_globals_in_checkpoint

from analyzer.checkpoint.memory import OBJECT, Room
from analyzer.imports import import_callable

Allowed = Callable[..., Any] | tuple[Callable[..., Any], str]
"""What ``torch.serialization.safe_globals`` takes."""

_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}


def names_asked(stream: IO[bytes], room: Room, count: int = 1) -> set[tuple[str, str]]:
    """Collect the (module, name) pairs that ``count`` pickles in a row would import.

    Raises
    ------
    Unusual
        The names take more memory than there is room for.
    Exception
        Of any kind, where the bytes are not a pickle or end too early.
    """
    return {pair for _ in range(count) for pair in _imports(stream, room)}


def _imports(stream: IO[bytes], room: Room) -> Iterator[tuple[str, str]]:
    """Follow the strings on the stack, as from protocol 4 on they name what is imported."""
    strings = deque(["?", "?"], maxlen=2)
    memo: dict[int, str] = {}
    top = "?"
    for operation, argument, _ in pickletools.genops(stream):
        name = operation.name
        if name in ("GLOBAL", "INST"):
            module, _, attribute = str(argument).partition(" ")
            room.take(OBJECT["GLOBAL"])
            yield module, attribute
        elif name == "STACK_GLOBAL":
            yield strings[-2], strings[-1]
        elif name in _PUTS:
            room.take(OBJECT["BINPUT"])
            room.take_text(top)
            memo[len(memo) if argument is None else int(argument)] = top
            continue
        top = _string(name, argument, memo)
        if top != "?":
            strings.append(top)


def _string(name: str, argument: Any, memo: dict[int, str]) -> str:
    """Return the string that an operation puts on the stack, ``?`` if it puts none there."""
    if name in _STRINGS:
        return str(argument)
    return memo.get(int(argument), "?") if name in _GETS else "?"


def unsafe(pairs: set[tuple[str, str]]) -> set[str]:
    """Keep the names that torch does not import by itself when it reads weights only.

    torch tells this of a file, so the names are put into one that does nothing else.
    """
    names = {pair for pair in pairs if "".join(pair).isprintable()}
    imports = b"".join(f"c{module}\n{name}\n".encode() for module, name in names)
    file = BytesIO()
    with ZipFile(file, "w") as archive:
        archive.writestr("names/data.pkl", b"\x80\x02" + imports + b".")
        archive.writestr("names/version", b"3\n")
    file.seek(0)
    odd = {".".join(pair) for pair in pairs - names}
    return odd | set(get_unsafe_globals_in_checkpoint(file))


def imported(names: Sequence[str]) -> list[Allowed]:
    """Import the names that a user allows a file to use.

    Raises
    ------
    AnalyzerError
        A name cannot be imported.
    """
    found: list[Allowed] = [
        (import_callable(":".join(name.rsplit(".", 1))), name) for name in names
    ]
    if "numpy.dtype" in names:
        # Calling it makes one of these classes, which a pickle never names.
        kinds = {type(np.dtype(code)) for code in np.typecodes["All"]}
        found += [(kind, f"{kind.__module__}.{kind.__qualname__}") for kind in kinds]
    return found
