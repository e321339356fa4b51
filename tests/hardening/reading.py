"""What is promised of every file: it is read, or refused in one line that names it."""

import json
from pathlib import Path
from typing import Any

from checkpoint_corpus import Net

from analyzer.checkpoint import describe, load_into, read
from probes.errors import AnalyzerError

LONGEST = 8000
"""Characters of a message, names of many tensors included."""


def outcome(path: Path, **options: Any) -> str:
    """Read a file, describe it and load it into a model: ``read``, ``misfit`` or ``refused``."""
    try:
        found = read(path, **options)
        json.dumps(describe(found))
    except AnalyzerError as error:
        told(path, error)
        return "refused"
    try:
        load_into(Net(), found, partial=True)
    except AnalyzerError as error:
        told(path, error)
        return "misfit"
    return "read"


def refusal(path: Path, **options: Any) -> str:
    """Why a file is refused, without its name."""
    try:
        read(path, **options)
    except AnalyzerError as error:
        return told(path, error)
    raise AssertionError("not refused")


def told(path: Path, error: AnalyzerError) -> str:
    """The message without the name of the file, which it begins with; it is one line."""
    message = str(error)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < LONGEST
    return message.removeprefix(f"{path}: ")
