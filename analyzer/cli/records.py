"""Commands that read what was measured, without torch: judge, render, export."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from analyzer.cli.application import (
    Baseline,
    Limit,
    Quiet,
    SpecFile,
    Traces,
    app,
    taking,
    verdict_flags,
)
from analyzer.cli.terminal import exit_code, say, summarize
from probes.errors import AnalyzerError


class Paper(StrEnum):
    """Size of the report's pages."""

    A4 = "a4"
    LETTER = "us-letter"


class TableFormat(StrEnum):
    """File format of exported tables."""

    CSV = "csv"
    PARQUET = "parquet"


@app.command()
@taking(verdict_flags)
def judge(
    context: typer.Context,
    traces: Traces,
    spec: SpecFile = None,
    baseline: Baseline = None,
    quiet: Quiet = False,
) -> None:
    """Judge traces, perhaps with other limits: write findings.json beside them."""
    from analyzer import record as records
    from analyzer.conduct import write_verdicts
    from analyzer.options import Options
    from analyzer.rules import judge as run

    options, record = Options.of(context.params), records.load(traces)
    findings = run(record, options.limits)
    write_verdicts(
        record,
        findings,
        traces.parent,
        limits=options.limits,
        fail_on=options.fail_on,
        junit=options.junit,
        summary=options.summary,
    )
    summarize(findings, traces.parent, quiet)
    raise typer.Exit(exit_code(findings, options, baseline))


@app.command()
def render(
    traces: Traces,
    findings: Annotated[
        Path | None, typer.Option(help="findings.json; beside the traces if unset.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The PDF; report.pdf beside the traces if unset.")
    ] = None,
    paper: Annotated[Paper, typer.Option(help="Size of the pages.")] = Paper.A4,
    quiet: Quiet = False,
) -> None:
    """Render the report from traces and findings; needs no torch."""
    from analyzer import record as records
    from analyzer.findings import from_json
    from reports import render as run

    source = findings or traces.parent / "findings.json"
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise AnalyzerError(f"{source}: {error.strerror}: run analyzer judge first") from error
    path = out or traces.parent / "report.pdf"
    record, found = records.load(traces), from_json(text)
    run(record, found, path, limits=json.loads(text)["limits"], paper=paper)
    say(f"wrote {path}", quiet)


@app.command()
def compare(
    traces: Annotated[list[Path], typer.Argument(help="Two or more traces.nc; the first leads.")],
    name: Annotated[
        list[str] | None, typer.Option(help="Name of each, in their order; its folder if unset.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The PDF.")] = Path("comparison.pdf"),
    spec: SpecFile = None,
    limit: Limit = None,
    paper: Annotated[Paper, typer.Option(help="Size of the pages.")] = Paper.A4,
    quiet: Quiet = False,
) -> None:
    """Set two or more audits side by side: what differs beyond noise, on shared axes."""
    from analyzer import record as records
    from analyzer.options import limits_of, read_toml
    from analyzer.rules import judge as run
    from reports import render_comparison

    names = name or [path.resolve().parent.name for path in traces]
    if len(names) != len(traces) or len({*names}) != len(names):
        raise AnalyzerError(
            f"{len(traces)} records are named {', '.join(names)}: give each a --name of its own"
        )
    limits = limits_of(read_toml(spec), limit or [])
    audits = {label: records.load(path) for label, path in zip(names, traces, strict=True)}
    findings = {label: run(record, limits) for label, record in audits.items()}
    render_comparison(audits, findings, out, paper=paper)
    say(f"wrote {out}", quiet)


@app.command()
def export(
    traces: Traces,
    out: Annotated[
        Path | None, typer.Option(help="Folder; tables beside the traces if unset.")
    ] = None,
    form: Annotated[
        TableFormat, typer.Option("--format", help="Parquet needs pip install pyarrow.")
    ] = TableFormat.CSV,
    quiet: Quiet = False,
) -> None:
    """Write every trace as flat tables, one for each probe and set of axes."""
    from analyzer import record as records
    from analyzer.tables import export as run

    folder = out or traces.parent / "tables"
    for path in run(records.load(traces), folder, form):
        say(f"wrote {path}", quiet)
