"""What a section of the report is made of; one module of ``reports.figures`` fills it per probe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Tile:
    """One number that matters, at the head of a section."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Plate:
    """A figure and its words.

    Parameters
    ----------
    name : str
        Of the file, unique in the report; ASCII.
    height : float
        Printed height [mm].
    draw : callable
        Draws on an empty figure.
    lead, body : str
        Caption: the conclusion as a sentence, then what is shown.
    alt : str
        What it looks like, with the trend and the extreme values, for those who do not see it.
    todo : str
        What the reader should do about it; empty where nothing.
    """

    name: str
    height: float
    draw: Callable[[Figure], None]
    lead: str
    body: str
    alt: str
    todo: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; ``align`` holds "name", "text" or "number" per column."""

    title: str
    columns: Sequence[str]
    align: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """What a probe shows: tiles, figures, tables, and its columns in the table of all layers."""

    tiles: Sequence[Tile] = ()
    plates: Sequence[Plate] = ()
    tables: Sequence[Table] = ()
    appendix: Sequence[Table] = ()
    layers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Column header -> layer name -> text."""
