"""Measure: run the probes on a subject and keep their traces with where they come from."""

import copy
import json
import platform
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import xarray as xr
from torch import nn

from analyzer import record as records
from analyzer.budget import Budget, OutOfTimeError, halved
from analyzer.data import data_hashes
from analyzer.imports import in_one_line, told
from analyzer.names import known
from analyzer.trial import tried
from probes import PROBES, probe_class
from probes.base import Batch, Probe, Progress, Subject, silent
from probes.errors import AnalyzerError, NotApplicable
from probes.loss.objective import describe

DISTRIBUTION = "gradient-memory-analyzer"

LIBRARIES = ("analyzer", "captum", "numpy", "torch", "xarray")
"""Packages whose functions do not say whose exception it is."""

DIFFERENTIATION = ("torch.autograd", "torch.utils.checkpoint")
"""Modules that an exception of a backward pass comes from."""

Watch = Callable[[str], Progress]
"""Given a probe's name, returns the callback that follows its progress."""


def measure(
    subject: Subject,
    probes: Iterable[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
    seconds: float | None = None,
    memory: float | None = None,
    null_seeds: int | None = None,
) -> xr.DataTree:
    """Run the probes on a subject and keep their traces.

    Parameters
    ----------
    subject : Subject
        The model is left as it was found.
    probes : iterable of str, optional
        Names out of ``probes.PROBES``; all of them if unset.
    settings : mapping, optional
        Settings by probe name.
    provenance : mapping, optional
        Root attributes that say where the subject comes from.
    watch : callable, optional
        Follows the progress.
    seconds : float, optional
        Time for all probes together [s]: samples are left out so that they fit into it, and a
        probe that it does not suffice for is stopped.
    memory : float, optional
        That a probe may take [GiB]: batches are divided so that they fit into it.
    null_seeds : int, optional
        Copies with new random weights that every probe which compares with such copies measures;
        what ``settings`` say of a single probe comes first.

    Returns
    -------
    DataTree
        One group per probe; one that does not apply, raises or is stopped leaves its reason.

    Raises
    ------
    AnalyzerError
        A probe or setting is unknown, there are no data, or the model does not run on them.
    """
    budget = Budget(seconds, memory)
    nulls = {} if null_seeds is None else {"null_seeds": null_seeds}
    chosen = {
        name: _probe(name, (settings or {}).get(name, {}), nulls) for name in probes or PROBES
    }
    subject = replace(subject, model=_eager(subject.model))
    with tried(subject):
        facts = _facts(subject) | dict(provenance or {})
        subject = budget.divided(subject)
        budget.time(subject)
        waiting, traces = [*chosen.values()], {}
        for name, probe in chosen.items():
            progress = watch(name) if watch else silent
            traces[name] = _trace(waiting, subject, facts["samples"], progress, budget)
            waiting.remove(probe)
    if seconds is not None:
        facts["time_budget"] = f"{seconds:g} s"
    if memory is not None:
        size = max(subject.batch_size(Batch.of(item)) for item in subject.batches)
        facts["memory_budget"] = f"{memory:g} GiB, batches of {size} at most"
    return records.assemble(traces, facts)


def _probe(name: str, settings: Mapping[str, Any], shared: Mapping[str, Any]) -> Probe:
    """Make the probe called ``name`` with the settings given, and those shared that it has."""
    known([name], PROBES, "probe")
    kind = probe_class(name)
    own = [entry.name for entry in fields(kind)]
    known(settings, own, f"setting of probe {name}")
    probe: Probe = kind(**{key: shared[key] for key in own if key in shared} | dict(settings))
    return probe


def _eager(model: nn.Module) -> nn.Module:
    """Unwrap compiled and parallel models; probe half precision in single, on a copy."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    model = getattr(model, "_orig_mod", model)
    for name, module in model.named_modules():
        # What was traced within an eager model can be observed from outside.
        scripted = torch.jit.RecursiveScriptModule if name else torch.jit.ScriptModule  # type: ignore[attr-defined]
        if isinstance(module, scripted):
            raise AnalyzerError(
                f"{name or 'the model'} is TorchScript, whose layers cannot be observed: pass the "
                "eager model and load the weights into it"
            )
    if any(weight.dtype in (torch.float16, torch.bfloat16) for weight in model.parameters()):
        model = _single(model)
    return model


def _single(model: nn.Module) -> nn.Module:
    """Copy a model into single precision.

    Raises
    ------
    AnalyzerError
        It cannot be copied.
    """
    # Pruning and the old weight norm keep weights that they computed, which torch does not copy.
    computed = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    ]
    memo = {id(value): value.detach().clone() for value in computed}
    with told("copying the model, whose precision is half, to probe it in single precision,"):
        copied = copy.deepcopy(model, memo).float()
    if not all(weight.is_leaf for weight in copied.parameters()):
        raise AnalyzerError(
            "the model, whose precision is half, cannot be converted to single precision: pass it "
            "as float32"
        )
    return copied


def _trace(
    waiting: Sequence[Probe], subject: Subject, samples: int, progress: Progress, budget: Budget
) -> xr.Dataset:
    """Run the first probe; say why where it does not apply or raises, so that the others go on."""
    probe = waiting[0]
    try:
        fitted = budget.fitted(subject, samples, waiting)
        trace = _roomy(probe, fitted, budget.guard(progress))
        if fitted is not subject:
            trace.attrs["time_budget"] = f"{_count(fitted)} of {samples} samples fit into it"
    except NotApplicable as reason:
        trace = records.absent(records.NOT_APPLICABLE, str(reason))
    except OutOfTimeError as reason:
        trace = records.absent(records.STOPPED, str(reason))
    except AnalyzerError as error:
        trace = records.absent(records.ERROR, str(error))
    except Exception as error:  # noqa: BLE001 - one broken probe must not cost the other results
        trace = records.absent(records.ERROR, _told(error))
    else:
        trace = trace.assign_attrs(outcome=records.MEASURED)
    return trace.assign_attrs(settings=json.dumps(asdict(probe), sort_keys=True))  # type: ignore[call-overload]


def _roomy(probe: Probe, subject: Subject, progress: Progress) -> xr.Dataset:
    """Run one probe, with batches of half the size for as long as the memory does not suffice."""
    splits = 0
    room: Subject | None = subject
    while room is not None:
        try:
            return probe(room, progress).assign_attrs({"batch_halvings": splits} if splits else {})
        except torch.OutOfMemoryError as error:
            told_by_torch = in_one_line(error)
        # Outside of the handler, whose traceback holds on to the tensors of the attempt.
        torch.cuda.empty_cache()
        room, splits = halved(room), splits + 1
    raise AnalyzerError(
        f"out of memory with one sample at a time: {told_by_torch}; lower the probe's settings "
        "(--set), or run it on the CPU (--device cpu)"
    )


def _told(error: BaseException) -> str:
    """Say what went wrong and where; what torch's differentiation raises is about the model."""
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    if str(frame.f_globals["__name__"]).startswith(DIFFERENTIATION):
        return f"torch cannot differentiate the model: {str(error).splitlines()[0]}"
    return f"{in_one_line(error)} ({_place(error)})"


def _place(error: BaseException) -> str:
    """Say which function of ours, and which of the model's code, an exception went through last."""
    places: dict[bool, str] = {}
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals["__name__"])
        root = module.partition(".")[0]
        if root not in LIBRARIES:
            places[root != "probes"] = f"{module}.{frame.f_code.co_qualname}, line {line}"
    return "in " + ", called from ".join(places[theirs] for theirs in sorted(places))


def _facts(subject: Subject) -> dict[str, Any]:
    """Count and hash what is measured."""
    weights = [*subject.model.parameters()]
    return {
        "tool": DISTRIBUTION,
        "tool_version": tool_version(),
        "model": type(subject.model).__name__,
        "parameters": sum(weight.numel() for weight in weights),
        **data_hashes(subject),
        "samples": _count(subject),
        "objective": describe(subject),
        "mode": "eval",
        "device": _device_name(subject.device),
        "dtype": str(subject.dtype).removeprefix("torch."),
        "seed": subject.seed,
        "determinism": "TF32 off, cuDNN deterministic, no autotuning",
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _count(subject: Subject) -> int:
    """Count the samples of the audit data."""
    return sum(subject.batch_size(Batch.of(item)) for item in subject.batches)


def _device_name(device: torch.device) -> str:
    """Name the device as a person would."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def tool_version() -> str:
    """Version of the installed package."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "not installed"
