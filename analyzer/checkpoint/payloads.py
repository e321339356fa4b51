"""What a checkpoint file holds, read without executing anything unless that is asked for."""

import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import torch
from safetensors import safe_open
from torch.serialization import safe_globals

from analyzer.checkpoint import torchscript
from analyzer.checkpoint.calls import Unusual
from analyzer.checkpoint.formats import DATA, Format, content
from analyzer.checkpoint.memory import Room
from analyzer.checkpoint.pickles import imported, names_asked, unsafe
from analyzer.checkpoint.rehearsal import Unsupported, rehearse_archive, rehearse_legacy
from analyzer.checkpoint.wording import cause, damaged, listed, refused
from analyzer.imports import in_one_line
from probes.errors import AnalyzerError

NAMES_SHOWN = 40
"""Names a file asks for that one message lists: those of a pickled network of many layers."""

HEADER = 32
"""Memory that a byte of a safetensors header takes at most: that of tensors without values."""

METADATA = "__metadata__"
"""The entry under which safetensors keep their free text."""

_PICKLES = {Format.ZIP: 1, Format.LEGACY: 5, Format.PICKLE: 1}
"""How many pickles stand in a row: a legacy file has three before its object and one behind."""

_ALLOW = "save the state_dict() alone, allow each name with --allow-global NAME"
_DEFAULT = "save it again with the defaults of torch.save"
_EXECUTE = "execute whatever the file asks for with --trust-checkpoint"


def payload(path: Path, form: Format, allow_globals: Sequence[str], trust: bool) -> Any:
    """Read the object that a checkpoint file holds.

    Parameters
    ----------
    path, form
        A file and what :func:`analyzer.checkpoint.formats.recognise` says it is.
    allow_globals : sequence of str
        Python names that the file may import.
    trust : bool
        Let the file import and execute whatever it asks for.

    Raises
    ------
    AnalyzerError
        The file is damaged, or asks for names that are not allowed.
    """
    with _quiet():
        if form is Format.SAFETENSORS:
            return _safetensors(path)
        if form is Format.TORCHSCRIPT:
            return _to_the_end(path, form, lambda: torchscript.tensors(path))
        if trust:
            return _executed(path, form)
        return _weights_only(path, form, allow_globals)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's notes on old files, which users cannot act on, off the screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _to_the_end(path: Path, form: Format, reader: Callable[[], Any]) -> Any:
    """Call a reader, and say that the file is damaged whatever it stumbles over."""
    try:
        return reader()
    except AnalyzerError:
        raise
    except Unusual as error:
        text = f"damaged, or more than plain weights ({error}): save the state_dict() alone"
        raise refused(path, text) from error
    except Unsupported as error:
        reason = "it uses more of the pickle format, as a newer pickle_protocol does"
        raise refused(path, _not_plain(reason)) from error
    except Exception as error:
        raise damaged(path, f"{form} file", error) from error


def _not_plain(reason: str) -> str:
    """Say that torch gives up on a file that holds more than weights."""
    return f"torch cannot read it as plain weights ({reason}): {_DEFAULT}, or {_EXECUTE}"


def _weights_only(path: Path, form: Format, allow_globals: Sequence[str]) -> Any:
    """Read a pickle that imports nothing but what torch knows and the user allows."""
    asked = _to_the_end(path, form, lambda: _asked(path, form))
    missing = sorted(asked - set(allow_globals))
    wish = f"it asks to import {listed(missing, NAMES_SHOWN) or 'nothing'}"
    if form is Format.PICKLE:
        raise refused(path, f"a pickle that torch.save did not write; {wish}: {_EXECUTE}")
    if missing:
        raise refused(path, f"more than plain weights; {wish}: {_ALLOW}, or {_EXECUTE}")
    rehearse = rehearse_archive if form is Format.ZIP else rehearse_legacy
    _to_the_end(path, form, lambda: rehearse(path, {*allow_globals}.__contains__))
    with safe_globals(imported(allow_globals)), path.open("rb") as stream:
        return _to_the_end(path, form, lambda: _load(path, stream))


def _asked(path: Path, form: Format) -> set[str]:
    """Collect the names that a file would import beyond those that torch knows."""
    if form is not Format.ZIP:
        with path.open("rb") as stream:
            return unsafe(names_asked(stream, Room(path), _PICKLES[form]))
    with ZipFile(path) as archive:
        entry = next(entry for entry in archive.infolist() if DATA.fullmatch(entry.filename))
        return unsafe(names_asked(BytesIO(content(archive, entry)), Room(path)))


def _load(path: Path, stream: IO[bytes]) -> Any:
    """Let torch read weights only, from a stream because it would judge a path by its suffix."""
    try:
        return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise refused(path, _not_plain(cause(error))) from error


def _executed(path: Path, form: Format) -> Any:
    """Read a file that the user trusts, running whatever it asks for."""
    try:
        with path.open("rb") as stream:
            if form is Format.PICKLE:
                return pickle.load(stream)
            return torch.load(stream, map_location="cpu", weights_only=False)
    except Exception as error:
        text = f"executing it, as --trust-checkpoint asks, raised {in_one_line(error)}"
        raise refused(path, text) from error


def _safetensors(path: Path) -> Any:
    """Read a safetensors file whose header is as long as it says."""
    with path.open("rb") as stream:
        announced = int.from_bytes(stream.read(8), "little")
    held = path.stat().st_size - 8
    if announced > held:
        raise refused(
            path,
            f"cut off or damaged safetensors file (it announces a header of {announced} bytes "
            f"and holds {held}): copy or save it again",
        )
    return _to_the_end(path, Format.SAFETENSORS, lambda: _tensors(path, announced))


def _tensors(path: Path, header: int) -> dict[str, Any]:
    """Read the tensors and the free text of a safetensors file with a header of some length."""
    Room(path).take(HEADER * header)
    with safe_open(path, framework="pt", device="cpu") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    return tensors | ({METADATA: metadata} if metadata else {})
