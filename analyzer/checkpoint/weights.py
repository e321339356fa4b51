"""Tensors of a file put into a model: names fitted, every difference told, nothing guessed.

``state`` is the model's state dict, ``tensors`` the file's. A fit maps names in the file to names
in the model; names that it does not map stay as they are.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from analyzer.checkpoint.wording import listed
from analyzer.imports import told
from probes.errors import AnalyzerError

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names left by what wraps a model in training: DDP, compile, FSDP, checkpointing."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Differences:
    """What a file and a model do not agree on."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    unlike: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.unlike)

    def told(self, limit: int | None = None) -> str:
        """List the differences: all, or up to ``limit`` of each kind."""
        kinds = {
            "missing from the file": self.missing,
            "in the file but not in the model": self.unexpected,
            "unlike the model's": self.unlike,
        }
        return "; ".join(
            f"{len(names)} {kind}: {listed(names, limit or len(names))}"
            for kind, names in kinds.items()
            if names
        )


class Loading(NamedTuple):
    """What came of loading a file into a model."""

    notes: tuple[str, ...]
    """What was done beyond copying and what was left out, in sentences."""
    partial: bool
    """Whether anything was left out, in the file or in the model."""


def load(model: nn.Module, tensors: State, *, partial: bool) -> Loading:
    """Copy the tensors of a file into a model.

    Returns
    -------
    Loading
        What was done to make them fit and, with ``partial``, all that was left out.

    Raises
    ------
    AnalyzerError
        The model is not ready, or file and model differ in names, shapes or kind of number; with
        ``partial`` only if no parameter at all is in the file. The model's weights are then
        undefined.
    """
    state = _state(model)
    fit, notes = _fit(tensors, state)
    renamed = {fit.get(name, name): tensor for name, tensor in tensors.items()}
    unlike = dict(_unlike(renamed, state))
    alike = {name: tensor for name, tensor in renamed.items() if name not in unlike}
    with told("loading the weights into the model"):
        # Not by hand: modules translate the names of older torch versions themselves.
        outcome = model.load_state_dict(alike, strict=False)
    absent = set(outcome.missing_keys)
    tied = _tied(state, absent)
    left = Differences(
        tuple(name for name in state if name in absent - tied - set(unlike)),
        tuple(outcome.unexpected_keys),
        tuple(unlike.values()),
    )
    loaded = state.keys() - absent | tied
    if left and not (partial and _has_weights(model, loaded)):
        raise AnalyzerError(_refusal(left, _has_weights(model, loaded)))
    notes += [*_casts(alike, state), *_ties(tied)]
    if left:
        notes.append(f"{_share(state, loaded)}; {left.told()}")
    return Loading(tuple(notes), bool(left))


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's parameters and buffers by name, aliases included.

    Raises
    ------
    AnalyzerError
        Some of them have no memory yet.
    """
    entries = model.state_dict(keep_vars=True).items()
    state = {name: value for name, value in entries if isinstance(value, Tensor)}
    lazy = [name for name, value in state.items() if is_lazy(value)]
    if lazy:
        raise AnalyzerError(
            f"the model has lazy layers without a shape yet ({listed(lazy)}): let its factory run "
            "it once on an example before returning it"
        )
    meta = [name for name, value in state.items() if value.is_meta]
    if meta:
        raise AnalyzerError(
            f"the model is on the meta device, where weights have no values ({listed(meta)}): let "
            "its factory build it on the CPU"
        )
    return state


def _fit(tensors: State, state: State) -> tuple[dict[str, str], list[str]]:
    """Map names in the file to names in the model, and say how where they differ."""
    ours, theirs = _bare(tensors), _bare(state)
    if len(ours) < len(tensors) or len(theirs) < len(state):
        ours, theirs = {name: name for name in tensors}, {name: name for name in state}
    strip, stripped = _prefix(ours, theirs)
    add, added = _prefix(theirs, ours)
    if added > stripped:
        fit = {ours[name]: theirs[add + name] for name in ours if add + name in theirs}
        return fit, [f"put {add!r} before the names in the file"]
    fit = {ours[strip + name]: theirs[name] for name in theirs if strip + name in ours}
    if len(fit) < len(state) and _same_order(tensors, state):
        return dict(zip(tensors, state, strict=True)), [
            f"matched the {len(state)} tensors of the file, which have positions for names, to "
            "the model's by order, last name and shape"
        ]
    return fit, _left_out(fit, strip)


def _bare(names: State) -> dict[str, str]:
    """Map names without the parts that come from wrappers to the names in full."""
    return {".".join(part for part in n.split(".") if part not in WRAPPERS): n for n in names}


def _prefix(longer: Mapping[str, str], shorter: Mapping[str, str]) -> tuple[str, int]:
    """Find the prefix that makes most names of ``shorter`` names of ``longer``, and how many."""
    votes = Counter(prefix for name in longer for prefix, rest in _splits(name) if rest in shorter)
    best = max(votes, key=lambda prefix: (votes[prefix], -len(prefix)), default="")
    return best, votes[best]


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Cut a dotted name before each of its parts."""
    parts = name.split(".")
    for count in range(len(parts)):
        prefix = "".join(f"{part}." for part in parts[:count])
        yield prefix, name[len(prefix) :]


def _same_order(tensors: State, state: State) -> bool:
    """Tell whether a list of layers lists the model's tensors one by one, in its order."""
    positions = all(name.split(".")[0].isdigit() for name in tensors)
    return positions and [*map(_last, tensors.items())] == [*map(_last, state.items())]


def _last(item: tuple[str, Tensor]) -> tuple[str, tuple[int, ...]]:
    """Return the last part of a name, and the shape."""
    return item[0].rpartition(".")[2], tuple(item[1].shape)


def _left_out(fit: Mapping[str, str], strip: str) -> list[str]:
    """Say what was left out of the names in the file."""
    dropped = {
        part
        for ours, theirs in fit.items()
        for part in WRAPPERS.intersection(ours.split(".")).difference(theirs.split("."))
    }
    parts = [f"'{part}.'" for part in sorted(dropped)] + [repr(strip)] * bool(strip)
    return [f"left {' and '.join(parts)} out of the names in the file"] if parts else []


def _unlike(renamed: State, state: State) -> Iterator[tuple[str, str]]:
    """Yield the names that both have but whose tensors differ in shape or kind of number."""
    for name, ours in renamed.items():
        if name not in state:
            continue
        theirs = state[name]
        # torch before 0.4 wrote scalars as one-element vectors, and still reads them.
        if ours.shape != theirs.shape and (ours.shape, theirs.shape) != ((1,), ()):
            yield name, f"{name} {_sizes(ours)} in the file, {_sizes(theirs)} in the model"
        elif ours.layout is not theirs.layout:
            yield name, f"{name} {_layout(ours)} in the file, {_layout(theirs)} in the model"
        elif _lossy(ours, theirs):
            yield name, f"{name} {_kind(ours)} in the file, {_kind(theirs)} in the model"


def _sizes(tensor: Tensor) -> str:
    """Write a shape."""
    return str(tuple(tensor.shape))


def _kind(tensor: Tensor) -> str:
    """Write a data type."""
    return str(tensor.dtype).removeprefix("torch.")


def _layout(tensor: Tensor) -> str:
    """Write how values are laid out in memory."""
    return "dense" if tensor.layout is torch.strided else str(tensor.layout).removeprefix("torch.")


def _lossy(ours: Tensor, theirs: Tensor) -> bool:
    """Tell integers in place of real numbers, which mean quantised, and complex ones."""
    if theirs.is_complex():
        return not (ours.is_floating_point() or ours.is_complex())
    return ours.is_complex() or (theirs.is_floating_point() and not ours.is_floating_point())


def _tied(state: State, absent: Set[str]) -> set[str]:
    """Find the absent names that share their tensor with one that is there."""
    present = {id(tensor) for name, tensor in state.items() if name not in absent}
    return {name for name in absent & state.keys() if id(state[name]) in present}


def _has_weights(model: nn.Module, loaded: Set[str]) -> bool:
    """Tell whether any parameter is loaded: counters alone make no trained network."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return bool(loaded & names if names else loaded)


def _refusal(left: Differences, fits_in_part: bool) -> str:
    """Say that the file does not fit, and what to do."""
    if not fits_in_part:
        return f"none of the model's parameters is in it ({left.told(8)}): check --model"
    return (
        f"does not fit the model ({left.told(8)}): check --model and its arguments, or load what "
        "fits with --allow-partial"
    )


def _casts(alike: State, state: State) -> Iterator[str]:
    """Say which types of number were converted."""
    pairs = Counter(
        (_kind(tensor), _kind(state[name]))
        for name, tensor in alike.items()
        if name in state and tensor.dtype != state[name].dtype
    )
    for (ours, theirs), count in pairs.items():
        yield f"converted {count} tensor{'s' * (count > 1)} from {ours} to {theirs}"


def _ties(tied: Set[str]) -> list[str]:
    """Say which names were filled through another name."""
    return [f"filled {', '.join(sorted(tied))} by sharing"] if tied else []


def _share(state: State, loaded: Set[str]) -> str:
    """Say how much of the model comes from the file."""
    values = sum(state[name].numel() for name in loaded)
    total = sum(tensor.numel() for tensor in state.values())
    return (
        f"loaded in part: {len(loaded)} of the model's {len(state)} tensors, {values} of {total} "
        "values, the rest being as the factory made it"
    )
