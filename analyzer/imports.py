"""Code of the user: found by name, imported and called, its exceptions told in one line."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from probes.errors import AnalyzerError


@contextmanager
def told(doing: str) -> Iterator[None]:
    """Turn whatever the user's code raises in the block into one line that says what it did."""
    try:
        yield
    except AnalyzerError:
        raise
    except Exception as error:
        raise AnalyzerError(f"{doing} raised {in_one_line(error)}") from error


def in_one_line(error: BaseException) -> str:
    """Say an exception in one line: its type and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def import_callable(reference: str) -> Any:
    """Import ``package.module:name`` or ``path/to/file.py:name``.

    Raises
    ------
    AnalyzerError
        The module or name does not exist, or importing it fails.
    """
    home, _, name = reference.rpartition(":")
    if not home or not name:
        raise AnalyzerError(
            f"{reference!r} is not package.module:callable or path/to/file.py:callable"
        )
    module = _import_file(Path(home)) if home.endswith(".py") else _import_module(home)
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        hint = get_close_matches(name, public, 1) or public[:8]
        raise AnalyzerError(f"{home} has no callable {name!r}; it has: {', '.join(hint) or 'none'}")
    return found


def _import_file(path: Path) -> Any:
    """Import a Python file by its path; its siblings can be imported from it."""
    if not path.is_file():
        raise AnalyzerError(f"{path}: no such Python file")
    path = path.resolve()
    name = f"_audited_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AnalyzerError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickled classes look their module up by name.
    sys.modules[name] = module
    _make_importable(path.parent)
    with told(f"{path}: importing it"):
        spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> Any:
    """Import an installed module, or one in the working folder."""
    _make_importable(Path.cwd())
    with told(f"importing {name}"):
        return importlib.import_module(name)


def _make_importable(folder: Path) -> None:
    """Let modules in ``folder`` be imported, after all installed ones."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
