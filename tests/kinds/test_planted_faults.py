"""Faults planted into trained networks are told, and healthy networks are not accused."""

import pytest

from analyzer.findings import Finding, Severity
from analyzer.limits import Limits
from analyzer.pipeline import measure
from analyzer.rules import judge
from benchmarks.planted import FAULTS, HEALTHY, Planted

ALARM = (Severity.WARN, Severity.FAIL)


def findings(kind: Planted) -> list[Finding]:
    return judge(measure(kind.make(1), kind.probes or None), Limits.of(kind.limits))


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.name)
def test_a_planted_fault_is_found(kind: Planted) -> None:
    told = {finding.code: finding.severity for finding in reversed(findings(kind))}
    assert told[kind.code] in ALARM


@pytest.mark.parametrize("kind", HEALTHY, ids=lambda kind: kind.name)
def test_a_healthy_network_has_no_failure(kind: Planted) -> None:
    told = {finding.code: finding.message for finding in findings(kind) if finding.severity in BAD}
    assert told == {}


BAD = (Severity.FAIL, Severity.ERROR)
