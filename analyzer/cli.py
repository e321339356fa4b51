"""The command line: thin, and the only place that prints.

Everything heavy is imported inside the commands, so that ``--help`` answers at once.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probes.errors import AnalyzerError

if TYPE_CHECKING:
    from analyzer.findings import Finding
    from analyzer.pipeline import Watch
    from probes.base import Progress

FOUND, FAILED = 1, 2
"""Exit codes: findings at or above --fail-on; the audit could not run."""


class FailOn(StrEnum):
    """Severity from which on the exit code is 1."""

    FAIL = "fail"
    WARN = "warn"
    INCONCLUSIVE = "inconclusive"
    NEVER = "never"


app = typer.Typer(
    help="Gradient and memory diagnostics of trained PyTorch checkpoints.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)

Checkpoint = Annotated[
    Path | None, typer.Argument(help="The trained weights: .pt .pth .ckpt .bin .safetensors ...")
]
SpecFile = Annotated[Path | None, typer.Option("--spec", help="audit.toml; flags override it.")]
Model = Annotated[str, typer.Option(help="package.module:callable or file.py:callable.")]
ModelArg = Annotated[
    list[str] | None, typer.Option(help="key=value for the model's callable; repeatable.")
]
Data = Annotated[str, typer.Option(help=".npz/.pt/.safetensors file, or a callable of batches.")]
LossName = Annotated[str, typer.Option(help="Loss of torch.nn.functional, or a callable.")]
Output = Annotated[str, typer.Option(help="Part of the model's outputs that is the prediction.")]
BatchSize = Annotated[int | None, typer.Option(help="Samples that go through together.", min=1)]
MaxSamples = Annotated[int | None, typer.Option(help="Use at most this many samples.", min=1)]
BatchAxis = Annotated[int | None, typer.Option(help="Axis of the samples in the inputs.", min=0)]
TimeAxis = Annotated[int | None, typer.Option(help="Axis of time in the inputs.", min=0)]
SampleRate = Annotated[float | None, typer.Option(help="Timesteps per second [Hz].", min=0)]
Seed = Annotated[int | None, typer.Option(help="Of every random choice.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="float32 or float64.")]
AllowGlobal = Annotated[
    list[str] | None, typer.Option(help="Python name the checkpoint may import; repeatable.")
]
Trust = Annotated[bool, typer.Option(help="Execute whatever code the checkpoint holds.")]
Partial = Annotated[bool, typer.Option(help="Go on although keys are missing or left over.")]
StateKey = Annotated[str, typer.Option(help="Where in the file the weights are.")]
Probes = Annotated[list[str] | None, typer.Option("--probe", help="Run only this; repeatable.")]
Setting = Annotated[
    list[str] | None, typer.Option("--set", help="probe.setting=value; repeatable.")
]
LimitOption = Annotated[
    list[str] | None, typer.Option("--limit", help="group.name=number; repeatable.")
]
Out = Annotated[Path | None, typer.Option(help="Output folder; ./audit if unset.")]
FailOnOption = Annotated[FailOn, typer.Option(help="Exit with 1 from this severity on.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


@app.command()
def audit(
    context: typer.Context,
    checkpoint: Checkpoint = None,
    spec: SpecFile = None,
    model: Model = "",
    model_arg: ModelArg = None,
    data: Data = "",
    loss: LossName = "",
    output: Output = "",
    batch_size: BatchSize = None,
    max_samples: MaxSamples = None,
    batch_axis: BatchAxis = None,
    time_axis: TimeAxis = None,
    sample_rate: SampleRate = None,
    seed: Seed = None,
    device: Device = "",
    dtype: Dtype = "",
    allow_global: AllowGlobal = None,
    trust_checkpoint: Trust = False,
    allow_partial: Partial = False,
    state_key: StateKey = "",
    probe: Probes = None,
    setting: Setting = None,
    limit: LimitOption = None,
    out: Out = None,
    fail_on: FailOnOption = FailOn.FAIL,
    quiet: Quiet = False,
) -> None:
    """Measure, judge and render: traces.nc, findings.json and report.pdf."""
    from analyzer.audit import audit as run
    from analyzer.options import Options
    from analyzer.subject import load_subject

    options = Options.of(context.params)
    loaded = load_subject(options.spec)
    with _progress(quiet) as watch:
        result = run(
            loaded.subject,
            options.out,
            probes=options.probes,
            settings=options.settings,
            limits=options.limits,
            provenance=loaded.provenance | {"command": _command()},
            watch=watch,
        )
    _summarize(result.findings, result.folder, quiet)
    raise typer.Exit(exit_code(result.findings, fail_on))


@app.command()
def measure(
    context: typer.Context,
    checkpoint: Checkpoint = None,
    spec: SpecFile = None,
    model: Model = "",
    model_arg: ModelArg = None,
    data: Data = "",
    loss: LossName = "",
    output: Output = "",
    batch_size: BatchSize = None,
    max_samples: MaxSamples = None,
    batch_axis: BatchAxis = None,
    time_axis: TimeAxis = None,
    sample_rate: SampleRate = None,
    seed: Seed = None,
    device: Device = "",
    dtype: Dtype = "",
    allow_global: AllowGlobal = None,
    trust_checkpoint: Trust = False,
    allow_partial: Partial = False,
    state_key: StateKey = "",
    probe: Probes = None,
    setting: Setting = None,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Only measure: write traces.nc, to be judged and rendered later, elsewhere."""
    from analyzer import record as records
    from analyzer.audit import TRACES
    from analyzer.options import Options
    from analyzer.pipeline import measure as run
    from analyzer.subject import load_subject

    options = Options.of(context.params)
    loaded = load_subject(options.spec)
    with _progress(quiet) as watch:
        record = run(
            loaded.subject,
            options.probes,
            options.settings,
            loaded.provenance | {"command": _command()},
            watch,
        )
    records.save(record, options.out / TRACES)
    _say(f"wrote {options.out / TRACES}", quiet)


Traces = Annotated[Path, typer.Argument(help="traces.nc, written by measure or audit.")]
FindingsFile = Annotated[
    Path | None, typer.Option(help="findings.json; beside the traces if unset.")
]


@app.command()
def judge(
    traces: Traces,
    spec: SpecFile = None,
    limit: LimitOption = None,
    fail_on: FailOnOption = FailOn.FAIL,
    quiet: Quiet = False,
) -> None:
    """Judge traces, perhaps with other limits: write findings.json beside them."""
    from analyzer import record as records
    from analyzer.findings import save
    from analyzer.options import limits_of, read_toml
    from analyzer.rules import judge as run

    record, limits = records.load(traces), limits_of(read_toml(spec), limit or [])
    findings = run(record, limits)
    save(findings, record.attrs, limits.table(), traces.parent / "findings.json")
    _summarize(findings, traces.parent, quiet)
    raise typer.Exit(exit_code(findings, fail_on))


@app.command()
def render(traces: Traces, findings: FindingsFile = None, quiet: Quiet = False) -> None:
    """Render report.pdf from traces and findings; needs no torch."""
    from analyzer import record as records
    from analyzer.findings import from_json
    from reports import render as run

    source = findings or traces.parent / "findings.json"
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise AnalyzerError(f"{source}: {error.strerror}: run analyzer judge first") from error
    path = traces.parent / "report.pdf"
    run(records.load(traces), from_json(text), path, limits=json.loads(text)["limits"])
    _say(f"wrote {path}", quiet)


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="Any checkpoint file.")],
    allow_global: AllowGlobal = None,
    trust_checkpoint: Trust = False,
    state_key: StateKey = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is in a checkpoint file, without model code; nothing is executed."""
    from analyzer.checkpoint import describe, read

    found = read(
        checkpoint,
        allow_globals=allow_global or (),
        trust=trust_checkpoint,
        state_key=state_key or None,
    )
    facts = describe(found)
    if as_json:
        print(json.dumps(facts, indent=1, default=str))
        return
    for key, value in facts.items():
        if key != "entries" and value:
            print(f"{key:12} {value}")
    for name, shape, dtype in facts["entries"]:
        print(f"  {name:48} {' x '.join(map(str, shape)) or 'scalar':20} {dtype}")


@app.command()
def probes() -> None:
    """List the probes: what each measures, and its settings with their defaults."""
    from dataclasses import fields

    from probes import PROBES, probe_class

    for name in PROBES:
        probe = probe_class(name)
        print(f"{name}\n    {(probe.__doc__ or '').splitlines()[0]}")
        for setting in fields(probe):
            print(f"    --set {name}.{setting.name}={setting.default}")


@app.command()
def limits(spec: SpecFile = None, limit: LimitOption = None) -> None:
    """List the limits in force, with their sources."""
    from analyzer.options import limits_of, read_toml

    for name, row in limits_of(read_toml(spec), limit or []).table().items():
        mark = " (set by you)" if row["overridden"] else ""
        print(f"{name} = {row['value']:g}{mark}\n    {row['source']}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("audits"), quiet: Quiet = False
) -> None:
    """Audit the two bundled networks, an LSTM and a CNN that read the same heartbeats."""
    from analyzer.audit import REPORT
    from analyzer.audit import audit as run
    from analyzer.demo import SPECS
    from analyzer.findings import verdict
    from analyzer.subject import load_subject

    for name, spec in SPECS.items():
        loaded = load_subject(spec)
        with _progress(quiet) as watch:
            result = run(
                loaded.subject,
                out / name,
                provenance=loaded.provenance | {"command": _command()},
                watch=watch,
            )
        print(f"{verdict(result.findings):12} {(result.folder / REPORT).resolve()}")


def main() -> None:
    """Run the command line; every expected failure is one line and exit code 2."""
    try:
        app()
    except AnalyzerError as error:
        print(f"analyzer: {error}", file=sys.stderr)
        raise SystemExit(FAILED) from None
    except KeyboardInterrupt:
        print("analyzer: interrupted; finished files are kept", file=sys.stderr)
        raise SystemExit(130) from None


def exit_code(findings: "list[Finding]", fail_on: FailOn) -> int:
    """Exit code of a judged audit."""
    from analyzer.findings import Severity

    severities = {finding.severity for finding in findings}
    if Severity.ERROR in severities:
        return FAILED
    if fail_on is FailOn.NEVER:
        return 0
    threshold = Severity[fail_on.upper()].rank
    return FOUND if any(severity.rank <= threshold for severity in severities) else 0


def _command() -> str:
    """Return the command as it can be typed again."""
    return shlex.join(["analyzer", *sys.argv[1:]])


def _say(text: str, quiet: bool) -> None:
    """Print unless told not to."""
    if not quiet:
        print(text)


@contextmanager
def _progress(quiet: bool) -> "Iterator[Watch | None]":
    """Draw a bar for each probe, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True)) as bars:

        def watch(name: str) -> "Progress":
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield watch


def _summarize(findings: "list[Finding]", folder: Path, quiet: bool) -> None:
    """Print the findings as a table, the verdict last."""
    if quiet:
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from analyzer.findings import verdict

    table = Table(box=None, pad_edge=False)
    for heading in ("", "diagnostic", "what was seen"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(finding.severity, finding.title, escape(finding.message))
    console = Console()
    console.print(table)
    console.print(f"\n{verdict(findings)}: see {folder}/report.pdf", highlight=False, markup=False)
