"""Audit data from a file: read without executing anything, cut into batches, hashed."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._pytree import tree_leaves

from analyzer.checkpoint.formats import recognise
from analyzer.checkpoint.payloads import payload
from analyzer.imports import told
from probes.base import Batch, Subject
from probes.errors import AnalyzerError


def file_batches(path: Path, size: int, limit: int | None = None, axis: int = 0) -> list[Batch]:
    """Cut the arrays ``inputs``, ``targets`` and ``lengths`` of a file into batches.

    Parameters
    ----------
    path : Path
        A ``.npz``, ``.pt`` or ``.safetensors`` file.
    size, limit : int
        Samples in one batch, and in all.
    axis : int
        Batch axis of the inputs.

    Raises
    ------
    AnalyzerError
        The file cannot be read, has no ``inputs``, or its arrays differ in their sample count.
    """
    arrays = _arrays(path)
    if "inputs" not in arrays:
        raise AnalyzerError(f"{path}: no array 'inputs'; it has: {', '.join(arrays) or 'nothing'}")
    inputs = arrays["inputs"]
    if inputs.dim() <= axis or not inputs.numel():
        raise AnalyzerError(f"{path}: 'inputs' of shape {tuple(inputs.shape)} holds no samples")
    count = inputs.shape[axis]
    rest = {name: arrays[name] for name in ("targets", "lengths") if name in arrays}
    for name, other in rest.items():
        if count not in other.shape[: axis + 1]:
            raise AnalyzerError(
                f"{path}: 'inputs' {tuple(inputs.shape)} has {count} samples, '{name}' is "
                f"{tuple(other.shape)}"
            )
    used = min(count, limit or count)
    batches = []
    for start in range(0, used, size):
        length = min(size, used - start)
        cut = {name: _cut(other, count, axis, start, length) for name, other in rest.items()}
        batches.append(Batch(inputs.narrow(axis, start, length), **cut))
    return batches


def data_hashes(subject: Subject) -> dict[str, str]:
    """Hash the audit data, and those held out or trained on where they are given."""
    sides = {
        "data": subject.batches,
        "held_out": subject.held_out,
        "trained_on": subject.trained_on,
    }
    return {
        f"{name}_sha256": data_sha256(batches)
        for name, batches in sides.items()
        if batches is not None
    }


def data_sha256(batches: Iterable[Any]) -> str:
    """Hash batches: type, shape and bytes of every tensor, in order."""
    digest = hashlib.sha256()
    for item in batches:
        batch = Batch.of(item)
        for leaf in tree_leaves((batch.inputs, batch.targets, batch.lengths)):
            if isinstance(leaf, Tensor):
                array = leaf.detach().cpu().contiguous()
                digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
                digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _cut(values: Tensor, count: int, axis: int, start: int, length: int) -> Tensor:
    """Cut the same samples out of targets, whose batch axis may be the first."""
    at = axis if values.dim() > axis and values.shape[axis] == count else 0
    return values.narrow(at, start, length)


def _arrays(path: Path) -> dict[str, Tensor]:
    """Read the named arrays of a data file."""
    if not path.is_file():
        raise AnalyzerError(f"{path}: no such data file")
    # A broken file makes the unpickler of torch raise almost anything.
    with told(f"{path}: not a readable data file: reading it"):
        return _READERS[path.suffix](path)


def _npz(path: Path) -> dict[str, Tensor]:
    """Read numpy arrays; half precision, which is for storage, becomes single."""
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {
        name: torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array)
        for name, array in arrays.items()
    }


def _pt(path: Path) -> dict[str, Tensor]:
    """Read a tensor (the inputs) or a mapping of tensors."""
    try:
        found = payload(path, recognise(path), (), trust=False)
    except AnalyzerError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise AnalyzerError(f"{path}: not a readable data file: {reason}") from error
    if isinstance(found, Tensor):
        return {"inputs": found}
    if not isinstance(found, Mapping):
        raise ValueError(f"a {type(found).__name__}, where a mapping with 'inputs' is needed")
    return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}


_READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".npz": _npz,
    ".pt": _pt,
    ".safetensors": load_file,
}
