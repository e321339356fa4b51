"""Checkpoint files: read safely, described, and loaded into a model.

Nothing in a file is executed unless the user asks for it. A file that cannot be used is an
:class:`AnalyzerError` of one line that names the file, what is wrong, and what to do.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from analyzer.checkpoint import weights
from analyzer.checkpoint.contents import (
    EVERYTHING,
    Contents,
    Place,
    best,
    children,
    dotted,
    joined,
    optimizer,
    places,
    search,
)
from analyzer.checkpoint.formats import recognise
from analyzer.checkpoint.payloads import payload
from analyzer.checkpoint.values import finite
from analyzer.checkpoint.weights import Loading
from analyzer.checkpoint.wording import listed, printable, refused, shortened
from analyzer.files import sha256
from analyzer.imports import in_one_line
from probes.errors import AnalyzerError

EXTRAS = 1000
"""Entries beside the weights that are described."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A file of trained weights.

    Parameters
    ----------
    path : Path
        Where it was read from.
    sha256 : str
        Hash of the whole file.
    size : int
        Length of the file [byte].
    format : str
        One of :class:`analyzer.checkpoint.formats.Format`.
    tensors : dict of Tensor
        The weights by the names they have in the file, on the CPU.
    wrapper : tuple of str
        Keys that lead to the weights within the file; empty if the file is nothing else.
    others : tuple of str
        State keys of other weights in the file, which were not taken.
    optimizer : dict, optional
        State of the optimizer, if the file has exactly one.
    extras : dict of str
        The other entries at the top of the file, each in a few words, the first 1000 of them.
    nonfinite : tuple of str
        Names of the tensors that hold a NaN or an infinity.
    """

    path: Path
    sha256: str
    size: int
    format: str
    tensors: dict[str, Tensor]
    wrapper: tuple[str, ...]
    others: tuple[str, ...]
    optimizer: dict[str, Any] | None
    extras: dict[str, str]
    nonfinite: tuple[str, ...]


def read(
    path: str | PathLike[str],
    *,
    allow_globals: Sequence[str] = (),
    trust: bool = False,
    state_key: str | None = None,
) -> Checkpoint:
    """Read a checkpoint of any known format, which is told by content.

    Parameters
    ----------
    path : path
        A file written by ``torch.save`` (any version since 0.1.10), ``torch.jit.save`` or
        safetensors. Of TorchScript only the weights are read, for use with the eager model.
    allow_globals : sequence of str
        Python names, such as ``mynet.Config``, that a pickle may import and call.
    trust : bool
        Let a pickle import and call whatever it asks for.
    state_key : str
        Dotted place of the weights in the file, where the usual names do not tell; a place that
        holds several state dicts joins them. The place of the file itself is ``.``.

    Raises
    ------
    AnalyzerError
        The file is missing, damaged or no checkpoint, asks for names that are not allowed, holds
        no weights, or holds several and no name or key tells which to take.
    """
    path = Path(path)
    form = recognise(path)
    held = payload(path, form, allow_globals, trust)
    contents = _searched(path, held)
    place, tensors = _weights(path, contents, state_key)
    _check_values(path, tensors)
    others = [dotted(other) for other in contents.weights if not _related(other, place)]
    return Checkpoint(
        path=path,
        sha256=sha256(path),
        size=path.stat().st_size,
        format=form.value,
        tensors=tensors,
        wrapper=place,
        others=tuple(others),
        optimizer=optimizer(contents.optimizers),
        extras=_extras(held, place, tensors),
        nonfinite=tuple(name for name, tensor in tensors.items() if not finite(tensor)),
    )


def load_into(model: nn.Module, checkpoint: Checkpoint, *, partial: bool = False) -> Loading:
    """Load the weights into a model, fitting their names to the model's.

    Parameters
    ----------
    model : Module
        An eager model of the same architecture. Numbers are converted to its types.
    checkpoint : Checkpoint
        As read.
    partial : bool
        Go on where file and model differ; needs at least one parameter from the file.

    Returns
    -------
    Loading
        What was done beyond copying, in sentences: none if every name was the same.

    Raises
    ------
    AnalyzerError
        File and model differ (all differences are listed), or the model is not ready. The
        model's weights are then undefined.
    """
    try:
        loading = weights.load(model, checkpoint.tensors, partial=partial)
    except AnalyzerError as error:
        raise refused(checkpoint.path, str(error)) from error
    origin = []
    if checkpoint.wrapper or checkpoint.others:
        origin.append(f"took the weights at {printable(dotted(checkpoint.wrapper))!r} in the file")
    if checkpoint.others:
        origin.append(f"left the weights at {listed(checkpoint.others)} (--state-key chooses)")
    return loading._replace(notes=(*origin, *loading.notes))


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Say what is in a checkpoint in plain data, which JSON can hold."""
    tensors = checkpoint.tensors
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "sha256": checkpoint.sha256,
        "size": checkpoint.size,
        "wrapper": list(checkpoint.wrapper),
        "others": list(checkpoint.others),
        "tensors": len(tensors),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "dtypes": dict(Counter(_dtype(tensor) for tensor in tensors.values())),
        "entries": [(name, list(t.shape), _dtype(t)) for name, t in tensors.items()],
        "nonfinite": list(checkpoint.nonfinite),
        "optimizer": _describe_optimizer(checkpoint.optimizer),
        "extras": dict(checkpoint.extras),
    }


def _searched(path: Path, held: Any) -> Contents:
    """Find the weights; objects that a trusted file made may raise anything on the way."""
    try:
        return search(held)
    except Exception as error:
        raise refused(path, f"looking for weights in it raised {in_one_line(error)}") from error


def _weights(
    path: Path, contents: Contents, state_key: str | None
) -> tuple[Place, dict[str, Tensor]]:
    """Choose the weights: by the user's key, else by their name."""
    if state_key is not None:
        return _weights_at(path, contents, state_key)
    chosen = best(contents.weights)
    if not chosen:
        raise refused(path, _without_weights(contents))
    if len(chosen) > 1:
        names = listed(_counted(contents, chosen))
        raise refused(
            path,
            f"weights in {len(chosen)} places: {names}: choose with --state-key NAME, or join all "
            f"of them with --state-key {EVERYTHING}",
        )
    return chosen[0], contents.weights[chosen[0]]


def _weights_at(path: Path, contents: Contents, key: str) -> tuple[Place, dict[str, Tensor]]:
    """Take the weights at a dotted place, joined if it holds several."""
    for place, node in places(contents, key):
        tensors = contents.weights.get(place) or joined(node)
        if tensors:
            return place, tensors
    known = listed(_counted(contents, contents.weights)) or "nowhere"
    raise refused(path, f"no weights at --state-key {key}; there are weights at: {known}")


def _counted(contents: Contents, places: Sequence[Place] | Mapping[Place, object]) -> Iterator[str]:
    """Write places with how many tensors they hold."""
    for place in places:
        count = len(contents.weights[place])
        yield f"{dotted(place)} ({count} tensor{'s' * (count > 1)})"


def _without_weights(contents: Contents) -> str:
    """Say what a file without a state dict holds instead."""
    if () in contents.optimizers:
        return "the state of an optimizer, without weights: give the checkpoint of the model"
    entries = listed(f"{name} ({_in_words(value)})" for name, value in children(contents.root))
    held = f"entries {entries}" if entries else _in_words(contents.root)
    advice = "save model.state_dict() with torch.save"
    return f"no weights by name in it, only {held}: {advice}"


def _check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that were saved without their values."""
    empty = [name for name, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise refused(
            path, f"{listed(empty)} saved from the meta device, without values: save it again"
        )


def _related(place: Place, chosen: Place) -> bool:
    """Tell whether a place is the chosen one or lies below it."""
    return place[: len(chosen)] == chosen


def _extras(held: Any, place: Place, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Describe the entries at the top of the file that are not the weights."""
    taken = set(place[:1]) or set(tensors)
    extras = ((name, value) for name, value in children(held) if name not in taken)
    return {printable(shortened(name)): _in_words(value) for name, value in islice(extras, EXTRAS)}


def _in_words(value: Any) -> str:
    """Describe an entry by its kind and size, a number or text by itself."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, str):
        return printable(shortened(repr(value)))
    # Python refuses to write integers of thousands of digits.
    if isinstance(value, float | None) or (isinstance(value, int) and abs(value) < 2**64):
        return str(value)
    kind = type(value).__name__
    return f"{kind} of {len(value)}" if isinstance(value, Mapping | list | tuple) else kind


def _dtype(tensor: Tensor) -> str:
    """Name a data type as numpy would."""
    return str(tensor.dtype).removeprefix("torch.")


def _describe_optimizer(state: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Say what an optimizer kept: which moments, for how many parameters, at which rate."""
    if state is None:
        return None
    kept = [entry for entry in state["state"].values() if isinstance(entry, Mapping)]
    groups = [group for group in state["param_groups"] if isinstance(group, Mapping)]
    rates = [group.get("lr") for group in groups]
    return {
        "moments": sorted({str(name) for entry in kept for name in entry}),
        "parameters": len(kept),
        "groups": len(groups),
        "rates": [float(rate) for rate in rates if isinstance(rate, int | float | Tensor)],
    }
