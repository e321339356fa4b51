"""From a specification to a model with its weights, ready to be probed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analyzer.checkpoint import Checkpoint, load_into, read
from analyzer.checkpoint.weights import Loading
from analyzer.data import file_batches
from analyzer.imports import import_callable, told
from analyzer.spec import DATA_FILES, Spec
from probes.base import Subject
from probes.errors import AnalyzerError


@dataclass(frozen=True)
class Loaded:
    """A subject and where it comes from, as the record keeps it."""

    subject: Subject
    provenance: dict[str, Any]


def load_subject(spec: Spec) -> Loaded:
    """Build the model, load its weights, find its data.

    Raises
    ------
    AnalyzerError
        Anything that cannot be found, read or matched, in one line.
    """
    if not spec.model:
        raise AnalyzerError("no model: say --model package.module:callable or file.py:callable")
    if not spec.data:
        raise AnalyzerError("no data: say --data file.npz or --data package.module:callable")
    model = _model(spec)
    # Without folders, as the checkpoint: where a file lies is nobody's business but the user's.
    provenance: dict[str, Any] = {"model": Path(spec.model).name, "data": Path(spec.data).name}
    for name in ("held_out", "trained_on"):
        if getattr(spec, name):
            provenance[name] = Path(getattr(spec, name)).name
    loading = Loading(("no checkpoint: the model is as the factory returns it",), partial=False)
    optimizer = None
    if spec.checkpoint is not None:
        found = read(
            spec.checkpoint,
            allow_globals=spec.allow_global,
            trust=spec.trust_checkpoint,
            state_key=spec.state_key,
        )
        loading = load_into(model, found, partial=spec.allow_partial)
        provenance |= _origin(found)
        optimizer = found.optimizer
    device, dtype = _device(spec.device), _dtype(spec.dtype)
    subject = Subject(
        _converted(model, dtype).to(device),
        _batches(spec.data, spec),
        loss=_loss(spec.loss),
        output=spec.output,
        held_out=_batches(spec.held_out, spec) if spec.held_out else None,
        trained_on=_batches(spec.trained_on, spec) if spec.trained_on else None,
        batch_axis=spec.batch_axis,
        time_axis=spec.time_axis,
        sample_rate=spec.sample_rate,
        seed=spec.seed,
        optimizer=optimizer,
    )
    provenance["loader"] = "; ".join(loading.notes) or "all keys matched"
    provenance["partial"] = int(loading.partial)
    return Loaded(subject, provenance)


def _model(spec: Spec) -> nn.Module:
    """Call the model's factory."""
    factory = import_callable(spec.model)
    arguments = ", ".join(f"{key}={value!r}" for key, value in spec.model_args.items())
    with told(f"{spec.model}({arguments})"):
        model = factory(**spec.model_args)
    if not isinstance(model, nn.Module):
        raise AnalyzerError(f"{spec.model} returned a {type(model).__name__}, not a torch Module")
    return model


def _loss(name: str) -> Any:
    """Resolve a loss: a name in torch.nn.functional stays a name, a reference is imported."""
    if not name or ":" not in name:
        return name or None
    found = import_callable(name)
    return found() if isinstance(found, type) and issubclass(found, nn.Module) else found


def _converted(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the real numbers of a model; ``to(dtype)`` would cut complex ones down to real."""
    return model.double() if dtype is torch.float64 else model.float()


def _batches(source: str, spec: Spec) -> Any:
    """Find the data: batches of a file, or what the user's callable returns."""
    if Path(source).suffix in DATA_FILES:
        return file_batches(Path(source), spec.batch_size, spec.max_samples, spec.batch_axis)
    if ":" not in source:
        raise AnalyzerError(
            f"{source}: data come from a {', '.join(DATA_FILES[:-1])} or {DATA_FILES[-1]} file, or "
            "from package.module:callable"
        )
    function = import_callable(source)
    with told(f"{source}()"):
        batches = function()
        return batches if hasattr(batches, "__len__") else tuple(batches)


def _device(name: str) -> torch.device:
    """Resolve ``auto`` to the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise AnalyzerError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise AnalyzerError(f"device {name} asked for, but torch sees no CUDA device")
    return device


def _dtype(name: str) -> torch.dtype:
    """Resolve the precision of the audit."""
    if name not in ("float32", "float64"):
        raise AnalyzerError(f"unknown precision {name!r}: use float32 or float64")
    found: torch.dtype = getattr(torch, name)
    return found


def _origin(found: Checkpoint) -> dict[str, Any]:
    """Say which file the weights come from."""
    return {"checkpoint": Path(found.path).name, "checkpoint_sha256": found.sha256}
