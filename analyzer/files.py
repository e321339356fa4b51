"""Files that are either the old ones or the new ones, never half."""

import glob
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from probes.errors import AnalyzerError

_MARK = "-unfinished-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it takes its place, else it is removed.

    What processes that were killed left of earlier attempts is removed too.

    Raises
    ------
    AnalyzerError
        The folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
        handle = NamedTemporaryFile(  # noqa: SIM115 - it must outlive the block to be renamed
            dir=path.parent,
            prefix=f".{path.stem}{_MARK}{os.getpid()}-",
            suffix=path.suffix,
            delete=False,
        )
    except OSError as error:
        raise AnalyzerError(f"cannot write {path}: {error.strerror or error}") from error
    handle.close()
    temporary = Path(handle.name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)  # noqa: PTH105 - the one call that is atomic on every system
    except OSError as error:
        raise AnalyzerError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder."""
    for left in folder.glob(f".*{_MARK}*"):
        left.unlink(missing_ok=True)


def _clear(path: Path) -> None:
    """Remove what is left of earlier attempts to write a file, by processes that are gone."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}{_MARK}*"):
        if not _is_written(left):
            left.unlink(missing_ok=True)


def _is_written(temporary: Path) -> bool:
    """Tell whether another process is writing a temporary file."""
    import psutil

    writer = temporary.name.rpartition(_MARK)[2].partition("-")[0]
    # A container may have given this process the number of the one that was killed.
    return writer.isdigit() and int(writer) != os.getpid() and psutil.pid_exists(int(writer))


def _umask() -> int:
    """Read the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
