"""Every small network, audited with every probe; what each probe comes to."""

import json
import warnings
from collections import defaultdict
from collections.abc import Callable

import torch
import xarray as xr
from zoo_behaviour import BEHAVIOUR
from zoo_outputs import OUTPUTS
from zoo_structures import STRUCTURES

from analyzer import record as records
from analyzer.findings import Finding, to_json
from analyzer.limits import Limits
from analyzer.pipeline import measure
from analyzer.rules import judge
from probes.base import Subject
from probes.errors import AnalyzerError

ZOO: dict[str, Callable[[], Subject]] = {**STRUCTURES, **BEHAVIOUR, **OUTPUTS}
"""Name of each network or case -> the subject of its audit."""

REFUSED = "refused"
"""Outcome of a network that cannot be audited at all."""


def made(name: str) -> Subject:
    """Make a network with the same weights every time."""
    torch.manual_seed(0)
    return ZOO[name]()


def audited(subject: Subject, *probes: str) -> dict[str, str]:
    """Return probe -> ``measured``, or ``not_applicable`` or ``error`` with the reason.

    Of a subject that cannot be audited, ``refused`` -> the reason.
    """
    with warnings.catch_warnings():
        # Torch has something to say of several of these networks.
        warnings.simplefilter("ignore", UserWarning)
        try:
            record = measure(subject, probes or None)
        except AnalyzerError as error:
            return {REFUSED: str(error)}
    judged(record)
    found = {name: trace.attrs for name, trace in records.traces(record).items()}
    return {
        name: ": ".join(filter(None, [facts["outcome"], facts.get("reason", "")]))
        for name, facts in found.items()
    }


def judged(record: xr.DataTree) -> list[Finding]:
    """Judge a record, which no measurement may keep from being written."""
    findings = judge(record, Limits())
    json.loads(to_json(findings, record.attrs, Limits().table()))
    assert {finding.probe for finding in findings} >= {*record.children}
    return findings


def shortened(outcomes: dict[str, str]) -> dict[str, str]:
    """Turn outcomes into outcome -> probes; why something does not apply is left out."""
    probes: dict[str, list[str]] = defaultdict(list)
    for name, outcome in outcomes.items():
        applies = not outcome.startswith(records.NOT_APPLICABLE)
        key = f"{REFUSED}: {outcome}" if name == REFUSED else outcome
        probes[key if applies else records.NOT_APPLICABLE].append(name)
    return {outcome: " ".join(names) for outcome, names in sorted(probes.items())}
