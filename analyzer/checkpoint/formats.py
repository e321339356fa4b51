"""What kind of file a checkpoint is, told by its content; the suffix never matters.

References
----------
The legacy magic number is ``torch.serialization.MAGIC_NUMBER``; safetensors begin with the length
of a JSON header: https://github.com/huggingface/safetensors#format.
"""

import re
from enum import StrEnum
from pathlib import Path
from zipfile import ZipFile, ZipInfo

from analyzer.checkpoint.wording import damaged, refused
from probes.errors import AnalyzerError

HEAD = 1024
"""Bytes read from the start of a file to tell what it is."""

UNPACKED_RATIO = 4
"""torch stores without compressing: an archive that unpacks to more than this is refused."""

UNPACKED_SLACK = 2**20
"""Bytes that compressed source code in a small TorchScript archive may add to that."""


NO_SUM = 0
"""The checksum of entries written under ``torch.serialization.set_crc32_options(False)``."""

DATA = re.compile(r"[^/]+/data\.pkl")
"""The entry of a torch archive that holds everything but the tensors' values."""


class Format(StrEnum):
    """The kinds of file that are read."""

    ZIP = "torch.save"
    LEGACY = "torch.save before 1.6"
    TORCHSCRIPT = "TorchScript"
    SAFETENSORS = "safetensors"
    PICKLE = "pickle"


_LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"

_FOREIGN = (
    (rb"\xff\xd8\xff", "a JPEG image"),
    (rb"\x89PNG\r\n\x1a\n", "a PNG image"),
    (rb"GIF8[79]a", "a GIF image"),
    (rb"%PDF-", "a PDF document"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, netCDF-4)"),
    (rb"CDF[\x01\x02\x05]", "a netCDF file"),
    (rb"\x93NUMPY", "a numpy array (.npy)"),
    (rb"GGUF|lmgg|tjgg|fmgg|algg", "a GGUF or GGML file of llama.cpp"),
    (rb".{4}TFL3", "a TensorFlow Lite model"),
    (rb"\x08\x01\x12", "a TensorFlow SavedModel"),
    (rb"\x08[\x02-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]", "an ONNX model"),
    (rb".{257}ustar", "a tar archive, as torch wrote before 0.1.10: save it again with torch.save"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ\x00|\x28\xb5\x2f\xfd", "a compressed file: decompress it first"),
    (rb"\x7fELF|MZ", "a program or library"),
    (rb"RIFF", "a sound, video or WebP file"),
    (rb"version https://git-lfs", "a Git LFS pointer to the checkpoint: run git lfs pull"),
    (rb"\x00{16}", "a file that begins with zeros: the copy or download did not finish"),
)
"""Files met in the place of checkpoints, by how they begin."""

_TENSORFLOW_INDEX = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
"""The last bytes of the ``.index`` file of a TensorFlow checkpoint (a LevelDB table)."""

_ADVICE = "give a torch.save, safetensors or TorchScript file"


def recognise(path: Path) -> Format:
    """Tell what kind of checkpoint a file is.

    Raises
    ------
    AnalyzerError
        There is no such file, it cannot be read, or it is something else, which is named.
    """
    head, tail = _ends(path)
    if re.match(rb"PK(\x03\x04|\x05\x06|\x03?$)", head):
        return _zip_format(path)
    if re.match(rb"\x80[\x02-\x05]", head):
        return Format.LEGACY if _LEGACY_MAGIC in head[:64] else Format.PICKLE
    # Before all others, as the length it begins with may be any bytes.
    if re.match(rb'.{8}\{([\s"}]|$)', head, re.DOTALL) and not _text(head):
        return Format.SAFETENSORS
    what = _foreign(head, tail)
    if what is None:
        raise refused(path, f"in no known format: {_ADVICE}")
    raise _not_one(path, what)


def content(archive: ZipFile, entry: ZipInfo) -> bytes:
    """Read one entry of a zip archive, also where torch wrote no checksum."""
    if entry.CRC == NO_SUM:
        del entry.CRC
    return archive.read(entry)


def _ends(path: Path) -> tuple[bytes, bytes]:
    """Read how a file begins and ends."""
    try:
        if path.is_dir():
            raise refused(path, f"a folder: give the file inside it{_folder_advice(path)}")
        if not path.exists():
            link = path.is_symlink()
            raise refused(path, "a link that leads to no file" if link else "no such file")
        if not path.is_file():
            raise refused(path, "not a regular file")
        with path.open("rb") as stream:
            head = stream.read(HEAD)
            stream.seek(max(0, path.stat().st_size - 8))
            tail = stream.read(8)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise refused(path, f"cannot be read: {reason}") from error
    if not head:
        raise refused(path, "empty: the copy or download did not finish")
    return head, tail


def _folder_advice(path: Path) -> str:
    """Say how a distributed checkpoint, which is a folder, becomes a file."""
    if not (path / ".metadata").exists():
        return ""
    return (
        "; a distributed checkpoint becomes one with "
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
    )


def _foreign(head: bytes, tail: bytes) -> str | None:
    """Name a file that is no checkpoint."""
    for pattern, what in _FOREIGN:
        if re.match(pattern, head, re.DOTALL):
            return what
    if tail == _TENSORFLOW_INDEX:
        return "the index of a TensorFlow checkpoint"
    return _text(head)


def _text(head: bytes) -> str | None:
    """Name a text file; ``None`` if the bytes are not text."""
    if re.search(rb"[\x00-\x08\x0e-\x1a]", head):
        return None
    try:
        # The last characters may be cut in two.
        start = head[:-3].decode() if len(head) == HEAD else head.decode()
    except UnicodeDecodeError:
        return None
    start = start.lstrip("\ufeff \t\r\n").lower()
    if start.startswith(("<!doctype html", "<html")):
        return "a web page: the download failed"
    return "JSON text" if start.startswith(("{", "[")) else "text"


def _zip_format(path: Path) -> Format:
    """Tell the zip archives that torch writes from each other and from all others."""
    try:
        with ZipFile(path) as archive:
            _check_sizes(path, archive)
            _check_sums(archive)
            names = archive.namelist()
    except AnalyzerError:
        raise
    except Exception as error:
        raise damaged(path, "zip archive", error) from error
    pickles = [name for name in names if DATA.fullmatch(name)]
    if not pickles:
        raise _not_one(path, _foreign_zip(names))
    folder = pickles[0].removesuffix("data.pkl")
    return Format.TORCHSCRIPT if f"{folder}constants.pkl" in names else Format.ZIP


def _check_sizes(path: Path, archive: ZipFile) -> None:
    """Refuse an archive made to fill the memory, before anything in it is read."""
    size = path.stat().st_size
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > UNPACKED_RATIO * size + UNPACKED_SLACK:
        raise refused(
            path,
            f"a zip archive of {size} bytes that unpacks to {unpacked}, which torch never writes: "
            "not read",
        )


def _check_sums(archive: ZipFile) -> None:
    """Read an archive to its end against its checksums, which torch itself does not compare."""
    for entry in archive.infolist():
        if entry.CRC != NO_SUM:
            with archive.open(entry) as stream:
                while stream.read(2**20):
                    pass


def _foreign_zip(names: list[str]) -> str:
    """Name a zip archive that is no checkpoint."""
    last = [name.rpartition("/")[2] for name in names]
    if names and all(name.endswith(".npy") for name in names):
        return "numpy arrays (.npz)"
    if "model.weights.h5" in last:
        return "a Keras archive"
    if "archive_format" in last or "serialized_exported_program.json" in last:
        return "a torch.export program: save the state_dict() of the eager model"
    return "a zip archive that torch.save did not write"


def _not_one(path: Path, what: str) -> AnalyzerError:
    """Say what a file is in the place of a checkpoint, and what to do where that does not."""
    advice = "" if ": " in what else f": {_ADVICE}"
    return refused(path, f"not a checkpoint but {what}{advice}")
