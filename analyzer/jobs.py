"""Many audits: what is to be done, what is done already, and one of them at a time.

Every job has a folder of its own. The last file written there, ``job.json``, says how it ended and
what it was asked; a job that was asked the same before is not repeated.
"""

import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from hashlib import sha256 as hasher
from os.path import commonpath
from pathlib import Path
from typing import Any

from analyzer.files import replacing, sha256, sweep
from analyzer.findings import Severity
from analyzer.options import Options
from analyzer.spec import DATA_FILES, Spec
from probes.errors import AnalyzerError

RECEIPT = "job.json"
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
"""What counts as a checkpoint in a folder."""

_TOLD = (
    *("code", "severity", "title", "message"),
    *("value", "low", "high", "unit", "limit", "relation"),
)


class Status(StrEnum):
    """How a job ended."""

    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Job:
    """One audit of a batch.

    Parameters
    ----------
    name : str
        Path of the checkpoint or specification below what all jobs have in common.
    options : Options
        The whole request; its output folder is the job's own.
    """

    name: str
    options: Options


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Parameters
    ----------
    name : str
    status : Status
    key : str
        Hash of all that was asked, files included.
    verdict : Severity
        The worst one; ERROR of a failed job.
    reason : str
        Why it failed, empty if it did not.
    failed_on : bool
        Whether any finding is at or above ``fail_on``.
    findings : sequence of mapping
        Code, severity, message, value and interval of each finding, worst first.
    """

    name: str
    status: Status
    key: str
    verdict: Severity
    reason: str = ""
    failed_on: bool = False
    findings: Sequence[Mapping[str, Any]] = ()


def collect(paths: Iterable[str], flags: Mapping[str, Any], out: Path) -> list[Job]:
    """List the jobs that paths ask for.

    Parameters
    ----------
    paths : iterable of str
        Checkpoints, ``audit.toml`` files, folders of checkpoints, and glob patterns of all these.
    flags : mapping
        As :meth:`analyzer.options.Options.of` takes them; they hold for every job.
    out : path
        Folder of the jobs' folders.

    Raises
    ------
    AnalyzerError
        A path or pattern finds nothing, or a request cannot be read.
    """
    files = [*dict.fromkeys(file for path in paths for file in _files(path))]
    places = [file.resolve() for file in files]
    home = Path(commonpath([place.parent for place in places])) if places else Path()
    jobs = []
    for file, place in zip(files, places, strict=True):
        name = place.relative_to(home).as_posix()
        own = {"spec": file} if file.suffix == ".toml" else {"checkpoint": file}
        jobs.append(Job(name, replace(Options.of({**flags, **own}), out=out / name)))
    return jobs


def _files(path: str) -> list[Path]:
    """Find the files that one path or pattern means."""
    found = [Path(match) for match in sorted(glob.glob(path, recursive=True))] or [Path(path)]  # noqa: PTH207 - absolute ones too
    files = []
    for place in found:
        inside = sorted(place.rglob("*")) if place.is_dir() else []
        files += [file for file in inside if file.suffix in SUFFIXES] or [place]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        kind = "a folder without checkpoints" if missing.is_dir() else "no such file"
        raise AnalyzerError(f"{missing}: {kind}")
    return files


def finished(job: Job) -> Outcome | None:
    """Return how the job ended if it was done before with the same request."""
    try:
        outcome = _read(job)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return outcome if outcome.status is Status.DONE and outcome.key == key(job) else None


def perform(job: Job, device: str = "") -> Outcome:
    """Run a job in this process and leave its receipt; whatever it raises is a failed outcome.

    Parameters
    ----------
    job : Job
    device : str
        Where it runs if the request leaves that open.
    """
    from analyzer.imports import in_one_line

    sweep(job.options.out)
    (job.options.out / RECEIPT).unlink(missing_ok=True)
    try:
        return _audited(job, device)
    except AnalyzerError as error:
        return failed(job, str(error))
    except Exception as error:  # noqa: BLE001 - one bad checkpoint must not stop the others
        return failed(job, in_one_line(error))


def failed(job: Job, reason: str) -> Outcome:
    """Leave the receipt of a job that failed; results of an earlier run go, to mislead nobody."""
    from analyzer.conduct import FILES

    for name in FILES:
        (job.options.out / name).unlink(missing_ok=True)
    return _leave(job, Outcome(job.name, Status.FAILED, "", Severity.ERROR, reason, True))


def _audited(job: Job, device: str) -> Outcome:
    """Audit, and leave the receipt."""
    from analyzer.conduct import audit
    from analyzer.findings import verdict
    from analyzer.subject import load_subject

    options, asked = job.options, key(job)
    spec = options.spec
    loaded = load_subject(replace(spec, device=device) if device and _open(spec) else spec)
    findings = audit(
        loaded.subject,
        options.out,
        probes=options.probes,
        settings=options.settings,
        limits=options.limits,
        provenance=loaded.provenance,
        fail_on=options.fail_on,
        junit=options.junit,
        summary=options.summary,
        seconds=options.time_budget,
        memory=options.memory_budget,
        null_seeds=options.null_seeds,
    ).findings
    told = [{name: _plain(getattr(finding, name)) for name in _TOLD} for finding in findings]
    stopped = any(options.fail_on.met_by(finding.severity) for finding in findings)
    return _leave(
        job,
        Outcome(job.name, Status.DONE, asked, verdict(findings), "", stopped, told),
    )


def _open(spec: Spec) -> bool:
    """Whether the request leaves the device open."""
    return spec.device == "auto"


def _plain(value: Any) -> Any:
    """Write an undefined number as null."""
    return None if isinstance(value, float) and value != value else value


def key(job: Job) -> str:
    """Hash what a job asks: settings, limits, version, and every file that is named."""
    from analyzer.pipeline import tool_version

    spec, tables = job.options.spec, job.options.tables()
    tables.pop("output")
    references = (spec.model, spec.data, spec.held_out, spec.trained_on, spec.loss)
    files = [spec.checkpoint, *(_file(reference) for reference in references)]
    hashes = [sha256(file) for file in files if file is not None and file.is_file()]
    outputs = [job.options.junit, job.options.summary, job.options.fail_on]
    asked = json.dumps([tables, hashes, outputs, tool_version()], sort_keys=True, default=str)
    return hasher(asked.encode()).hexdigest()


def _file(reference: str) -> Path | None:
    """Return the file that a reference names, if it names one."""
    home, colon, _ = reference.rpartition(":")
    path = Path(home if colon else reference)
    return path if path.suffix in (".py", *DATA_FILES) else None


def _leave(job: Job, outcome: Outcome) -> Outcome:
    """Write the receipt, the last file of a job."""
    with replacing(job.options.out / RECEIPT) as temporary:
        temporary.write_text(json.dumps(asdict(outcome), indent=1) + "\n", encoding="utf-8")
    return outcome


def _read(job: Job) -> Outcome:
    """Read the receipt."""
    values = json.loads((job.options.out / RECEIPT).read_text(encoding="utf-8"))
    values |= {"status": Status(values["status"]), "verdict": Severity(values["verdict"])}
    return Outcome(**values)


def receipt(job: Job) -> Outcome:
    """Return how a job that has just run ended; one that left no receipt was killed."""
    try:
        return _read(job)
    except (OSError, ValueError, KeyError, TypeError):
        return failed(job, "its process ended without a result")


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Sort outcomes, the worst first: failed ones, then by verdict, then by name."""
    return sorted(outcomes, key=lambda o: (o.status is Status.DONE, o.verdict.rank, o.name))
