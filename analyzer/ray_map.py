"""Jobs on a Ray cluster: the only module that imports Ray.

Nodes read checkpoints, data and code, and write results, by the same paths: a shared folder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from analyzer.imports import in_one_line
from analyzer.jobs import Job, Outcome, failed, perform
from analyzer.spec import from_folder
from probes.errors import AnalyzerError

RETRIES = 3
"""How often a job whose worker was lost is given to another one."""


def run(jobs: Sequence[Job], address: str) -> Iterator[Outcome]:
    """Run every job as one task.

    Parameters
    ----------
    jobs : sequence of Job
        With absolute paths or paths that hold on every node.
    address : str
        ``local`` starts Ray on this machine, ``auto`` finds a running cluster, anything else is
        the address of one.

    Yields
    ------
    Outcome
        Of every job, as it ends.

    Raises
    ------
    AnalyzerError
        Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise AnalyzerError(
            "--ray needs Ray: pip install 'gradient-memory-analyzer[ray]'"
        ) from error
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(None if address == "local" else address, log_to_driver=False)
        except ConnectionError as error:
            raise AnalyzerError(
                f"no Ray cluster at {address!r}: start one, or use 'local'"
            ) from error
    try:
        yield from _outcomes(jobs, ray)
    finally:
        if started:
            ray.shutdown()


def _outcomes(jobs: Sequence[Job], ray: Any) -> Iterator[Outcome]:
    """Hand out the jobs and collect what comes back."""
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_perform)
    pending = {task.remote(_anywhere(job)): job for job in jobs}
    while pending:
        (ready,), _ = ray.wait([*pending], num_returns=1)
        job = pending.pop(ready)
        try:
            yield ray.get(ready)
        except ray.exceptions.RayError as error:
            yield failed(job, f"lost on Ray, {RETRIES} retries included: {in_one_line(error)}")


def _perform(job: Job) -> Outcome:
    """Run one job on the processors that Ray gives it."""
    torch.set_num_threads(1)
    return perform(job)


def _anywhere(job: Job) -> Job:
    """Write relative paths in full: workers start in other folders."""
    here, spec = Path.cwd(), job.options.spec
    references: dict[str, Any] = {
        name: from_folder(getattr(spec, name), here)
        for name in ("model", "data", "held_out", "trained_on", "loss")
    }
    checkpoint = None if spec.checkpoint is None else here / spec.checkpoint
    options = replace(
        job.options,
        spec=replace(spec, checkpoint=checkpoint, **references),
        out=here / job.options.out,
    )
    return replace(job, options=options)
