"""Jobs side by side on this machine, each in a process of its own.

A process that crashes, hangs or takes too much memory costs its own job only. Processes are forked
from one that has imported everything, so that they start at once; none of them outlives this one.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from threading import Thread

import psutil

from analyzer.jobs import Job, Outcome, failed, perform, receipt
from probes import PROBES

PRELOADED = [
    *("analyzer.conduct", "analyzer.subject", "reports.document"),
    *(f"probes.{name}" for name in PROBES),
]
"""Modules that take seconds to import."""

GIB = 2**30


@dataclass(frozen=True)
class Bounds:
    """What one job may take.

    Parameters
    ----------
    seconds : float, optional
        Wall-clock time [s].
    memory : float, optional
        Resident memory of its process [GiB].
    """

    seconds: float | None = None
    memory: float | None = None


@dataclass(frozen=True, eq=False)
class _Running:
    """A job that has its process."""

    job: Job
    process: BaseProcess
    slot: int
    started: float

    def overdrawn(self, bounds: Bounds) -> str:
        """Say which bound the job is beyond, empty if none."""
        if bounds.seconds is not None and time.monotonic() - self.started > bounds.seconds:
            return f"stopped after {bounds.seconds:g} s, the time limit"
        if bounds.memory is not None and _resident(self.process) > bounds.memory * GIB:
            return f"stopped at {bounds.memory:g} GiB, the memory limit"
        return ""


def run(jobs: Sequence[Job], workers: int, bounds: Bounds) -> Iterator[Outcome]:
    """Run jobs in up to ``workers`` processes at a time.

    Parameters
    ----------
    jobs : sequence of Job
        With folders of their own.
    workers : int
        Processes at a time; they share the processors, and the GPUs in turn.
    bounds : Bounds
        A job beyond them is stopped and has failed.

    Yields
    ------
    Outcome
        Of every job, as it ends.
    """
    context = _context()
    waiting, running = [*jobs][::-1], list[_Running]()
    threads = max(1, (os.cpu_count() or 1) // workers)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                slot = min({*range(workers)} - {other.slot for other in running})
                running.append(_started(context, waiting.pop(), slot, threads))
            wait([one.process.sentinel for one in running], timeout=0.2)
            ended = {one: _ended(one, bounds) for one in running}
            running = [one for one in running if ended[one] is None]
            yield from (outcome for outcome in ended.values() if outcome is not None)
    finally:
        for one in running:
            _stop(one.process)


def _context() -> "multiprocessing.context.BaseContext":
    """Return how processes are made: forked from a server that has everything imported."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _started(
    context: "multiprocessing.context.BaseContext", job: Job, slot: int, threads: int
) -> _Running:
    """Give a job its process."""
    target: Callable[..., None] = _work
    process = context.Process(target=target, args=(job, slot, threads), name=job.name)  # type: ignore[attr-defined]
    process.start()
    return _Running(job, process, slot, time.monotonic())


def _ended(one: _Running, bounds: Bounds) -> Outcome | None:
    """Return how a job ended, None while it runs within its bounds."""
    if one.process.exitcode is None:
        reason = one.overdrawn(bounds)
        if not reason:
            return None
        _stop(one.process)
        return failed(one.job, reason)
    if one.process.exitcode:
        return failed(one.job, f"its process was killed ({_signal(one.process.exitcode)})")
    return receipt(one.job)


def _signal(code: int) -> str:
    """Name what ended a process."""
    return f"signal {-code}; 9 is often lack of memory" if code < 0 else f"exit code {code}"


def _stop(process: BaseProcess) -> None:
    """End a process and whatever it started."""
    try:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    except psutil.NoSuchProcess:
        pass
    process.kill()
    process.join()


def _resident(process: BaseProcess) -> int:
    """Return the memory a process holds [byte]."""
    try:
        resident: int = psutil.Process(process.pid).memory_info().rss
    except psutil.NoSuchProcess:
        return 0
    return resident


def _work(job: Job, slot: int, threads: int) -> None:
    """Run one job; called in its own process."""
    import torch

    Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    count = torch.cuda.device_count()
    perform(job, f"cuda:{slot % count}" if count else "")


def _die_with_parent() -> None:
    """End this process when the one that waits for it has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
