"""What is said of a file that cannot be used: one line, whatever its names contain."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from probes.errors import AnalyzerError

WIDTH = 200
"""Characters of somebody else's text that are repeated in a message."""


def refused(path: Path, reason: str) -> AnalyzerError:
    """Name the file and what is wrong with it, in one printable line."""
    return AnalyzerError(printable(f"{path}: {reason}"))


def damaged(path: Path, kind: str, error: BaseException) -> AnalyzerError:
    """Name a file that began as a ``kind`` and cannot be read to its end."""
    reason = f"cut off or damaged {kind} ({cause(error)}): copy or save it again"
    return refused(path, reason)


def cause(error: BaseException) -> str:
    """Say in a few words why a reader gave up; torch buries the reason in advice."""
    text = str(error)
    if text.startswith("Weights only load failed"):
        text = text.partition("\n\nCheck the documentation")[0]
        text = text.partition("trusted source.")[2].strip() or text
        text = text.rpartition("WeightsUnpickler error: ")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return shortened(lines[0]) if lines else type(error).__name__


def printable(text: str) -> str:
    """Escape line breaks, terminal codes and anything else that cannot be printed."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shortened(text: str) -> str:
    """Cut a text that a file could have made as long as it liked."""
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def listed(names: Iterable[str], limit: int = 8) -> str:
    """Join the first names, and say how many more there are."""
    every = iter(names)
    first = [shortened(printable(name)) for name in islice(every, limit)]
    more = sum(1 for _ in every)
    return ", ".join(first) + (f" and {more} more" if more else "")
