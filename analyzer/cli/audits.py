"""Commands that run a model: audit, measure, demo."""

from pathlib import Path
from typing import Annotated

import typer

from analyzer.cli.application import Baseline, Quiet, app, subject_flags, taking, verdict_flags
from analyzer.cli.terminal import (
    FAILED,
    command_line,
    exit_code,
    followed,
    progress,
    say,
    summarize,
)

Checkpoint = Annotated[
    Path | None, typer.Argument(help="The trained weights: .pt .pth .ckpt .bin .safetensors ...")
]
PrintSpec = Annotated[
    bool, typer.Option("--print-spec", help="Print the whole request as TOML; run nothing.")
]


@app.command()
@taking(subject_flags, verdict_flags)
def audit(
    context: typer.Context,
    checkpoint: Checkpoint = None,
    baseline: Baseline = None,
    print_spec: PrintSpec = False,
    quiet: Quiet = False,
) -> None:
    """Measure, judge and render: traces.nc, findings.json and report.pdf."""
    from analyzer.options import Options

    options = Options.of(context.params)
    if print_spec:
        import tomli_w

        print(tomli_w.dumps(options.tables()), end="")
        return
    from analyzer.conduct import audit as run
    from analyzer.subject import load_subject

    loaded = load_subject(options.spec)
    with progress(quiet) as watch:
        result = run(
            loaded.subject,
            options.out,
            probes=options.probes,
            settings=options.settings,
            limits=options.limits,
            provenance=loaded.provenance | {"command": command_line()},
            watch=watch,
            fail_on=options.fail_on,
            junit=options.junit,
            summary=options.summary,
            seconds=options.time_budget,
            memory=options.memory_budget,
            null_seeds=options.null_seeds,
        )
    summarize(result.findings, result.folder, quiet)
    raise typer.Exit(exit_code(result.findings, options, baseline))


@app.command()
@taking(subject_flags)
def measure(context: typer.Context, checkpoint: Checkpoint = None, quiet: Quiet = False) -> None:
    """Only measure: write traces.nc, to be judged and rendered later, elsewhere."""
    from analyzer import record as records
    from analyzer.conduct import TRACES, with_limits
    from analyzer.options import Options
    from analyzer.pipeline import measure as run
    from analyzer.subject import load_subject

    options = Options.of(context.params)
    loaded = load_subject(options.spec)
    with progress(quiet) as watch:
        record = run(
            loaded.subject,
            options.probes,
            with_limits(options.settings, options.limits),
            loaded.provenance | {"command": command_line()},
            watch,
            options.time_budget,
            options.memory_budget,
            options.null_seeds,
        )
    records.save(record, options.out / TRACES)
    say(f"wrote {options.out / TRACES}", quiet)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("audits"), quiet: Quiet = False
) -> None:
    """Audit and compare the two bundled networks, an LSTM and a CNN of the same heartbeats."""
    from analyzer.cli.records import Paper, compare
    from analyzer.conduct import REPORT, TRACES
    from analyzer.demo import SETTINGS, SPECS
    from analyzer.jobs import Job, Status
    from analyzer.limits import Limits
    from analyzer.options import Options
    from analyzer.workers import Bounds, run

    jobs = [
        Job(name, Options(spec, None, SETTINGS, Limits(), out / name))
        for name, spec in SPECS.items()
    ]
    outcomes = [*followed(run(jobs, len(jobs), Bounds()), len(jobs), quiet)]
    if any(outcome.status is Status.FAILED for outcome in outcomes):
        raise typer.Exit(FAILED)
    together = out / "comparison.pdf"
    compare([out / name / TRACES for name in SPECS], None, together, None, None, Paper.A4, True)
    for path in [*(out / name / REPORT for name in SPECS), together]:
        print(path.resolve())
