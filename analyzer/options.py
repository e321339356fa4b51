"""What flags and ``audit.toml`` ask for together: flags win, unknown keys are errors."""

import ast
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from analyzer.findings import FailOn
from analyzer.limits import Limits
from analyzer.names import known
from analyzer.spec import NULLS, Spec
from probes.errors import AnalyzerError

TABLES = ("subject", "probes", "limits", "output", "budget")

OUT = Path("audit")
"""Output folder where neither flags nor TOML name one."""


@dataclass(frozen=True)
class Options:
    """A resolved request.

    Parameters
    ----------
    spec : Spec
        The subject.
    probes : list of str, optional
        Probes to run; all if unset.
    settings : mapping
        Settings by probe name.
    limits : Limits
    out : Path
        Output folder.
    fail_on : FailOn
        Severity from which on the exit code is 1.
    junit, summary : bool
        Whether ``junit.xml`` and ``summary.md`` are written too.
    time_budget : float, optional
        For all probes together [s].
    memory_budget : float, optional
        For each probe [GiB].
    null_seeds : int, optional
        Copies with new random weights, for every probe that compares with such copies.
    """

    spec: Spec
    probes: list[str] | None
    settings: Mapping[str, Mapping[str, Any]]
    limits: Limits
    out: Path
    fail_on: FailOn = FailOn.FAIL
    junit: bool = False
    summary: bool = False
    time_budget: float | None = None
    memory_budget: float | None = None
    null_seeds: int | None = None

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> "Options":
        """Merge the flags of a command with the TOML file among them.

        Raises
        ------
        AnalyzerError
            A key, probe or limit is unknown, or a value cannot be read.
        """
        path: Path | None = flags.get("spec")
        tables = read_toml(path)
        folder = path.parent if path else Path()
        probes = dict(tables.get("probes", {}))
        listed, copies = probes.pop("run", None), probes.pop(NULLS, None)
        copies = copies if flags.get(NULLS) is None else flags[NULLS]
        settings = {name: dict(values) for name, values in probes.items()}
        for name, key, value in pairs(flags.get("setting") or [], "--set probe.setting=value"):
            settings.setdefault(name, {})[key] = value
        output = tables.get("output", {})
        known(output, ["directory", "fail_on", "junit", "summary"], "key in [output]")
        known([output.get("fail_on", FailOn.FAIL)], list(FailOn), "fail_on in [output]")
        budget = {key: flags.get(f"{key}_budget") for key in ("time", "memory")}
        known(tables.get("budget", {}), [*budget], "key in [budget]")
        given = {key: value for key, value in budget.items() if value is not None}
        budget = budget | tables.get("budget", {}) | given
        out = folder / output["directory"] if "directory" in output else OUT
        return cls(
            spec=_spec(Spec.of(tables.get("subject", {}), folder), flags),
            probes=flags.get("probe") or listed,
            settings=settings,
            limits=limits_of(tables, flags.get("limit") or []),
            out=flags.get("out") or out,
            fail_on=FailOn(flags.get("fail_on") or output.get("fail_on", FailOn.FAIL)),
            junit=bool(flags.get("junit") or output.get("junit")),
            summary=bool(flags.get("summary") or output.get("summary")),
            time_budget=_positive(budget["time"], "the time budget is a number of seconds"),
            memory_budget=_positive(budget["memory"], "the memory budget is a number of GiB"),
            null_seeds=_count(copies),
        )

    def tables(self) -> dict[str, dict[str, Any]]:
        """Write the request as the tables of an ``audit.toml``, which gives the same request."""
        subject = {
            entry.name: getattr(self.spec, entry.name)
            for entry in fields(Spec)
            if getattr(self.spec, entry.name) not in (None, "", (), {})
        }
        subject = {key: str(v) if isinstance(v, Path) else v for key, v in subject.items()}
        asked = {"run": self.probes, NULLS: self.null_seeds}
        chosen = {key: value for key, value in asked.items() if value is not None}
        limits: dict[str, dict[str, Any]] = {}
        for name, row in self.limits.table().items():
            group, _, entry = name.partition(".")
            if row["overridden"]:
                limits.setdefault(group, {})[entry] = row["value"]
        output = {
            "directory": str(self.out),
            "fail_on": str(self.fail_on),
            "junit": self.junit,
            "summary": self.summary,
        }
        budget = {"time": self.time_budget, "memory": self.memory_budget}
        tables = {
            "subject": subject,
            "probes": chosen | dict(self.settings),
            "limits": limits,
            "output": output,
            "budget": {key: value for key, value in budget.items() if value is not None},
        }
        return {name: table for name, table in tables.items() if table}


def _count(value: Any) -> int | None:
    """Check the number of copies."""
    if value is None or (type(value) is int and value >= 0):
        return value
    raise AnalyzerError(f"{NULLS} in [probes] is a whole number from 0 on: it is {value!r}")


def _positive(value: Any, what: str) -> float | None:
    """Check a budget."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise AnalyzerError(f"{what} above 0: it is {value!r}")
    return float(value)


def limits_of(tables: Mapping[str, Any], flags: Iterable[str]) -> Limits:
    """Merge the ``[limits]`` tables with ``--limit group.name=number`` flags."""
    values = {group: dict(rows) for group, rows in tables.get("limits", {}).items()}
    for group, name, value in pairs(flags, "--limit group.name=number"):
        values.setdefault(group, {})[name] = value
    return Limits.of(values)


def read_toml(path: Path | None) -> dict[str, Any]:
    """Read an ``audit.toml``; no file is no tables.

    Raises
    ------
    AnalyzerError
        The file is missing or is not TOML, or a table is unknown.
    """
    if path is None:
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AnalyzerError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AnalyzerError(f"{path}: not TOML: {error}") from error
    known(tables, TABLES, f"table in {path}")
    return tables


def pairs(texts: Iterable[str], form: str) -> list[tuple[str, str, Any]]:
    """Read ``group.name=value`` texts."""
    found = []
    for text in texts:
        key, equals, value = text.partition("=")
        group, dot, name = key.partition(".")
        if not (equals and dot and group and name):
            raise AnalyzerError(f"{text!r} is not of the form {form}")
        found.append((group, name, literal(value)))
    return found


def literal(text: str) -> Any:
    """Read a number, a boolean, a tuple or list; anything else is text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _spec(spec: Spec, flags: Mapping[str, Any]) -> Spec:
    """Let the flags that were given override the specification."""
    asked = {name: value for name, value in flags.items() if value is not None and value != ""}
    given = {
        entry.name: asked[entry.name]
        for entry in fields(Spec)
        if asked.get(entry.name, False) is not False
    }
    if "output" in given:
        given["output"] = literal(given["output"])
    if "allow_global" in given:
        given["allow_global"] = tuple(given["allow_global"])
    arguments = dict(spec.model_args)
    for text in flags.get("model_arg") or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise AnalyzerError(f"{text!r} is not of the form --model-arg key=value")
        arguments[key] = literal(value)
    return replace(spec, **given, model_args=arguments)
