"""The command that audits many checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyzer.cli.application import Quiet, app, subject_flags, taking, verdict_flags
from analyzer.cli.terminal import FAILED, FOUND, followed

if TYPE_CHECKING:
    from analyzer.jobs import Outcome

Paths = Annotated[
    list[str],
    typer.Argument(help="Checkpoints, audit.toml files, folders, or glob patterns in quotes."),
]
Workers = Annotated[int, typer.Option("--jobs", "-j", help="Audits side by side.", min=1)]
Seconds = Annotated[
    float | None, typer.Option("--time-limit", help="Stop a job after this time [s].", min=0)
]
Memory = Annotated[
    float | None, typer.Option("--memory-limit", help="Stop a job beyond this memory [GiB].", min=0)
]
Ray = Annotated[
    str, typer.Option("--ray", help="Run on Ray: 'local', 'auto' or an address; needs [ray].")
]
OUT = Path("audits")


@app.command()
@taking(subject_flags, verdict_flags)
def batch(
    context: typer.Context,
    paths: Paths,
    jobs: Workers = 1,
    time_limit: Seconds = None,
    memory_limit: Memory = None,
    ray: Ray = "",
    quiet: Quiet = False,
) -> None:
    """Audit many checkpoints; what is finished is not repeated, what fails stops nothing else."""
    from analyzer.index import save_index
    from analyzer.jobs import collect, finished

    flags = dict(context.params)
    out = flags.pop("out") or OUT
    asked = collect(paths, flags, out)
    kept = {job.name: outcome for job in asked if (outcome := finished(job)) is not None}
    left = [job for job in asked if job.name not in kept]
    if ray:
        from analyzer.ray_map import run as run_on_ray

        running = run_on_ray(left, ray)
    else:
        from analyzer.workers import Bounds, run

        running = run(left, jobs, Bounds(time_limit, memory_limit))
    outcomes = [*kept.values(), *followed(running, len(left), quiet)]
    for path in save_index(outcomes, out):
        if not quiet:
            print(f"wrote {path}")
    raise typer.Exit(_exit_code(outcomes))


def _exit_code(outcomes: "list[Outcome]") -> int:
    """Exit code of a batch: a failed job weighs more than a finding."""
    from analyzer.findings import Severity

    if any(outcome.verdict is Severity.ERROR for outcome in outcomes):
        return FAILED
    return FOUND if any(outcome.failed_on for outcome in outcomes) else 0
