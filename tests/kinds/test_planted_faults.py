"""Faults planted into trained networks are told, and healthy networks are not accused."""

import pytest
import torch

from analyzer.findings import Finding, Severity
from analyzer.limits import Limits
from analyzer.pipeline import measure
from analyzer.rules import judge
from benchmarks.planted import FAULTS, HEALTHY, Planted
from benchmarks.tasks import audited, beats, on_beats, perceptron

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
