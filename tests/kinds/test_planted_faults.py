"""Faults planted into trained networks are told, and healthy networks are not accused."""

import re
from pathlib import Path

import pytest
import torch

from analyzer import record as records
from analyzer.findings import Finding, Severity
from analyzer.limits import Limits
from analyzer.pipeline import measure
from analyzer.rules import judge
from benchmarks.calibration import alarmed
from benchmarks.margins import HELD, limit, numbers
from benchmarks.planted import FAULTS, HEALTHY, Planted
from benchmarks.tasks import audited, beats, on_beats, perceptron

ALARM = (Severity.WARN, Severity.FAIL)
BAD = (Severity.FAIL, Severity.ERROR)

NEVER_ALARM = {
    "layers-or-time",
    "field-unknown",
    "not-applicable",
    "probe-error",
    "probe-stopped",
}
"""Findings that the README does not mark as INFO, and that nothing can be planted for."""


def findings(kind: Planted) -> list[Finding]:
    return judge(measure(kind.make(1), kind.probes or None), Limits.of(kind.limits))


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.name)
def test_a_planted_fault_is_found_beyond_its_limits(kind: Planted) -> None:
    record, limits = measure(kind.make(1), kind.probes), Limits.of(kind.limits)
    found = judge(record, limits)
    told = {finding.code: alarmed(finding) for finding in reversed(found)}
    assert told[kind.code] in ALARM
    held = numbers(records.measured(record), found, limits)
    for name in kind.beyond:
        value = limit(name, limits)
        assert held[name] > value if HELD[name].relation == "<=" else held[name] < value


@pytest.mark.parametrize("kind", HEALTHY, ids=lambda kind: kind.name)
def test_a_healthy_network_has_no_failure(kind: Planted) -> None:
    found = findings(kind)
    told = {finding.code: finding.message for finding in found if finding.severity in BAD}
    assert told == {}
    if kind.code:
        assert {alarmed(one) for one in found if one.code == kind.code}.isdisjoint(ALARM)


def test_a_fault_is_planted_for_every_finding_that_can_alarm() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    _, _, table = readme.partition("| code | judged |")
    rows = re.findall(r"^\| (`.*) \| (.*) \|$", table.partition("\n\n")[0], re.MULTILINE)
    told = {
        code for codes, text in rows if "(INFO" not in text for code in re.findall("`(.*?)`", codes)
    }
    assert told - NEVER_ALARM == {kind.code for kind in FAULTS}


def test_a_fault_is_planted_beyond_every_limit_that_turns_a_verdict() -> None:
    assert {name for kind in FAULTS for name in kind.beyond} == {*HELD}


def test_a_wide_and_a_deep_network_of_one_size_are_told_apart() -> None:
    told = {}
    for name, shape in (("wide", (64, 1)), ("deep", (24, 6))):
        torch.manual_seed(1)
        model = on_beats(perceptron(*shape))
        weights = sum(weight.numel() for weight in model.parameters())
        assert weights == pytest.approx(4850, abs=25)
        whole = tuple(torch.cat(parts) for parts in zip(*beats(), strict=True))
        record = measure(audited(model, whole), ["width", "depth_contribution"])
        told[name] = {finding.code: finding for finding in judge(record)}
    # One layer has no depth to speak of; of the six each is needed.
    assert told["wide"]["idle-blocks"].severity is Severity.NOT_APPLICABLE
    assert told["deep"]["idle-blocks"].severity is Severity.PASS
    # Their width is not: a few directions go through them.
    assert told["deep"]["width-use"].value < 0.2
    assert told["wide"]["width-use"].value > 1.5 * told["deep"]["width-use"].value
    assert told["deep"]["width-wasted"].severity in ALARM
