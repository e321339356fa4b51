"""How much memory the objects of a pickle take, told from its operations before any is made.

One byte of a pickle can ask for an empty set of over two hundred, while numbers and texts take a
few times the bytes they are written with. The estimates below are at or above what was measured of
each kind of object in Python 3.11, with its place in what holds it and what the search for weights
notes of it.
"""

import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from analyzer.checkpoint.calls import Table, Thing, Unusual

RATIO = 8
"""Times its size that the objects of a file may take."""

LEAST = 2**30
"""What those of any file may take [byte]: 400,000 tensors or a million dictionaries."""

PLACE = 16
"""A place on the stack, then in what holds the object [byte]."""

MARK = 96
"""A stack that is put aside [byte]."""

OBJECT = {
    "MARK": MARK,
    **dict.fromkeys(("BININT", "BININT2", "LONG1", "BINFLOAT"), 56),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), 64),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINSTRING"), 80),
    **dict.fromkeys(("APPEND", "APPENDS"), 128),
    "EMPTY_LIST": 96,
    "EMPTY_DICT": 144,
    "EMPTY_SET": 272,
    **dict.fromkeys(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), 160),
    **dict.fromkeys(("SETITEM", "SETITEMS", "GLOBAL"), 256),
    **dict.fromkeys(("BUILD", "BINPERSID"), 320),
}
"""What an operation adds, where that is more than a place [byte]."""

CHARACTER = 4
"""A character of a text that has one of the widest [byte]."""

CALL = 320
"""What a call makes: at most a set or a table [byte]."""

TENSOR = 800
"""What a call makes where that is a tensor [byte]."""

PAIR = 64
"""What a table takes for an entry, besides its key and its value [byte]."""

COPIED = 128
"""An entry that a table or a set takes over from what it is made of [byte]."""


class Room:
    """Memory that the objects of one file may still take.

    Parameters
    ----------
    path : Path
        The file, whose size counts.
    """

    def __init__(self, path: Path) -> None:
        self.whole = max(LEAST, RATIO * path.stat().st_size)
        self.left = self.whole

    def operations(self, stream: IO[bytes]) -> Iterator[tuple[Any, Any, int | None]]:
        """Yield the operations of one pickle as long as there is room for what they make.

        Raises
        ------
        Unusual
            There is no more.
        Exception
            Of any kind, where the bytes are not a pickle or end too early.
        """
        for operation, argument, position in pickletools.genops(stream):
            self.take(OBJECT.get(operation.name, PLACE))
            if isinstance(argument, str):
                self.take_text(argument)
            yield operation, argument, position

    def take_text(self, text: str) -> None:
        """Take what a text does."""
        self.take(CHARACTER * len(text))

    def take_result(self, made: Any, args: tuple[Any, ...]) -> None:
        """Take what a call makes, and what it would take if it copied its arguments."""
        self.take(TENSOR if isinstance(made, Thing) and made.tensor else CALL)
        for value in args:
            if isinstance(value, list | Table):
                self.take(COPIED * len(value))
            elif isinstance(value, tuple | str | bytes):
                self.take(CHARACTER * len(value))

    def take(self, count: int) -> None:
        """Take some bytes, or refuse the file."""
        self.left -= count
        if self.left < 0:
            raise Unusual(f"its objects would take more than {self.whole} bytes of memory")
