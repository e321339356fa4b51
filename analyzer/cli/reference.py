"""Commands that only tell: inspect, probes, limits, schema."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from analyzer.cli.application import AllowGlobal, Limit, SpecFile, StateKey, Trust, app


class Document(StrEnum):
    """Documents that have a JSON schema."""

    FINDINGS = "findings"
    SPEC = "spec"


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
def limits(spec: SpecFile = None, limit: Limit = None) -> None:
    """List the limits in force, with their sources."""
    from analyzer.options import limits_of, read_toml

    for name, row in limits_of(read_toml(spec), limit or []).table().items():
        mark = " (set by you)" if row["overridden"] else ""
        print(f"{name} = {row['value']:g}{mark}\n    {row['source']}")


@app.command()
def schema(
    document: Annotated[Document, typer.Argument(help="findings.json or audit.toml.")],
) -> None:
    """Print the JSON schema of findings.json or audit.toml."""
    from analyzer import schemas

    run = {Document.FINDINGS: schemas.findings, Document.SPEC: schemas.spec}[document]
    print(json.dumps(run(), indent=1))
