"""What width and generalization together say."""

from dataclasses import replace

import pytest

from analyzer.findings import Finding, Severity
from analyzer.rules.spare_capacity import spare_capacity


def verdicts(gap: Severity, width: Severity) -> list[Finding]:
    one = Finding(
        "generalization-gap", "generalization", gap, "", "", "", "", value=0.5, low=0.4, high=0.6
    )
    other = replace(one, code="width-wasted", probe="width", severity=width, where=("conv1",))
    return [replace(one, samples=90), replace(other, samples=40)]


@pytest.mark.parametrize(
    ("gap", "width", "severity", "said", "where"),
    [
        ("FAIL", "WARN", "WARN", "over-fits, and most layers are wider", ("conv1",)),
        ("WARN", "PASS", "INFO", "over-fits although it uses its width", ()),
        ("WARN", "INFO", "INFO", "over-fits although it uses its width", ()),
        ("PASS", "WARN", "INFO", "wider than the loss needs, without over-fitting", ("conv1",)),
    ],
)
def test_both_verdicts_together(
    gap: str, width: str, severity: str, said: str, where: tuple[str, ...]
) -> None:
    (finding,) = spare_capacity(verdicts(Severity(gap), Severity(width)))
    assert finding.severity == severity
    assert said in finding.message
    assert "50% of what was learnt is lost" in finding.message
    assert (finding.where, finding.samples) == (where, 40)


@pytest.mark.parametrize(
    ("gap", "width"), [("PASS", "PASS"), ("INCONCLUSIVE", "WARN"), ("FAIL", "INCONCLUSIVE")]
)
def test_nothing_is_said_where_nothing_is_wrong_or_known(gap: str, width: str) -> None:
    assert [*spare_capacity(verdicts(Severity(gap), Severity(width)))] == []


def test_one_verdict_alone_says_nothing() -> None:
    assert [*spare_capacity(verdicts(Severity.FAIL, Severity.WARN)[:1])] == []
