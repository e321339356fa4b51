"""JSON schemas of the documents that other programs read and write.

They are derived from the dataclasses that the documents are read into, so that they cannot drift.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from analyzer.findings import SCHEMA, FailOn, Finding, Severity
from analyzer.limits import Limits
from analyzer.spec import NULLS, Spec
from probes import PROBES, probe_class

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_SIMPLE = {str: "string", Path: "string", int: "integer", float: "number", bool: "boolean"}


def findings() -> dict[str, Any]:
    """Return the schema of ``findings.json``."""
    number = {"type": ["number", "null"], "description": "null where undefined"}
    finding = _object(Finding, required=True)
    finding["properties"] |= dict.fromkeys(("value", "low", "high", "limit"), number)
    limit = {
        "type": "object",
        "properties": {
            "value": number,
            "source": {"type": "string"},
            "overridden": {"type": "boolean"},
        },
        "required": ["value", "source", "overridden"],
    }
    properties = {
        "schema": {"type": "integer", "maximum": SCHEMA},
        "verdict": {"enum": [*Severity], "description": "the worst severity"},
        "findings": {"type": "array", "items": finding},
        "limits": {"type": "object", "additionalProperties": limit},
        "provenance": {"type": "object"},
    }
    return {
        "$schema": DIALECT,
        "title": "findings.json of gradient-memory-analyzer",
        "type": "object",
        "properties": properties,
        "required": [*properties],
    }


def spec() -> dict[str, Any]:
    """Return the schema of ``audit.toml``, read as JSON; it imports the probes, and so torch."""
    groups = {entry.name: _object(type(getattr(Limits(), entry.name))) for entry in fields(Limits)}
    chosen = {
        "run": {"type": "array", "items": {"enum": [*PROBES]}},
        NULLS: {"type": "integer", "minimum": 0},
    }
    switches = {name: {"type": "boolean"} for name in ("junit", "summary")}
    output = {"directory": {"type": "string"}, "fail_on": {"enum": [*FailOn]}} | switches
    tables = {
        "subject": _object(Spec),
        "probes": _closed(chosen | {name: _object(probe_class(name)) for name in PROBES}),
        "limits": _closed(groups),
        "output": _closed(output),
        "budget": _closed(
            {name: {"type": "number", "exclusiveMinimum": 0} for name in ("time", "memory")}
        ),
    }
    return {"$schema": DIALECT, "title": "audit.toml of gradient-memory-analyzer"} | _closed(tables)


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Describe an object that has these properties only."""
    return {"type": "object", "properties": {**properties}, "additionalProperties": False}


def _object(kind: type, *, required: bool = False) -> dict[str, Any]:
    """Describe a dataclass."""
    hints = get_type_hints(kind)
    entries = fields(kind)
    described = _closed({entry.name: _entry(entry, hints[entry.name]) for entry in entries})
    return described | {"required": [entry.name for entry in entries]} if required else described


def _entry(entry: "Field[Any]", hint: Any) -> dict[str, Any]:
    """Describe a field, with its source if it is a limit."""
    described = _type(hint)
    if "source" in entry.metadata:
        described["description"] = entry.metadata["source"]
    if entry.default is not MISSING and isinstance(entry.default, str | bool | int):
        described["default"] = entry.default
    return described


def _type(hint: Any) -> dict[str, Any]:
    """Describe an annotation."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kinds = [_type(argument) for argument in arguments if argument is not NoneType]
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if origin is Literal:
        return {"enum": [*arguments]}
    if origin in (tuple, list):
        return {"type": "array", "items": _type(arguments[0])}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object"}
    if hint is Severity:
        return {"enum": [*Severity]}
    return {"type": _SIMPLE[hint]}
