"""Findings as JUnit XML and as Markdown."""

from math import nan
from xml.etree import ElementTree as ET

import pytest

from analyzer.findings import FailOn, Finding, Severity
from reports.junit import junit
from reports.markdown import markdown

FACTS = {"checkpoint": "best.pt", "model": "net.py:Net", "samples": 7, "tool": "tool"}


def finding(severity, code="code", message="seen", value=nan, **more):
    return Finding(code, "probe", severity, "Title", message, "Meaning.", "Act.", value, **more)


EVERY = [finding(severity, severity.lower()) for severity in Severity]


@pytest.mark.parametrize(
    ("fail_on", "failures", "skipped"),
    [
        (FailOn.FAIL, ["fail"], ["inconclusive", "not_applicable"]),
        (FailOn.WARN, ["fail", "warn"], ["inconclusive", "not_applicable"]),
        (FailOn.INCONCLUSIVE, ["fail", "warn", "inconclusive"], ["not_applicable"]),
        (FailOn.NEVER, [], ["inconclusive", "not_applicable"]),
    ],
)
def test_every_severity_has_its_outcome(fail_on, failures, skipped):
    suite = ET.fromstring(junit(EVERY, FACTS, fail_on))
    outcomes = {case.get("name"): [child.tag for child in case] for case in suite}
    assert [name for name, tags in outcomes.items() if tags == ["failure"]] == failures
    assert [name for name, tags in outcomes.items() if tags == ["skipped"]] == skipped
    assert outcomes["error"] == ["error"]
    assert outcomes["pass"] == outcomes["info"] == ["system-out"]
    counts = {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {
        "tests": "7",
        "failures": str(len(failures)),
        "errors": "1",
        "skipped": str(len(skipped)),
    }
    assert suite.get("name") == "best.pt"


def test_any_text_makes_valid_xml():
    hostile = 'a<b>&"\x00\x07\ud800]]>'
    suite = ET.fromstring(
        junit([finding(Severity.FAIL, message=hostile, where=(hostile,))], FACTS, FailOn.FAIL)
    )
    (failure,) = suite[0]
    assert failure.get("message") == 'FAIL: a<b>&"\\x00\\x07\\ud800]]>'
    assert failure.text == 'Meaning.\nAction: Act.\nLayers: a<b>&"\\x00\\x07\\ud800]]>'


def test_markdown_tells_what_needs_a_reader_first():
    found = [
        finding(
            Severity.WARN, value=2.5, low=2.0, high=3.0, unit="decades", relation="<=", limit=2
        ),
        finding(Severity.PASS),
        finding(Severity.NOT_APPLICABLE),
    ]
    assert markdown(found, FACTS).splitlines() == [
        "## **WARN**: net.py:Net, best.pt",
        "",
        "| | diagnostic | value | what was seen | what to do |",
        "|---|---|---|---|---|",
        "| **WARN** | Title | 2.5\u202fdecades \\[2, 3\\] \\(\\<= 2\\) | seen | Act. |",
        "",
        "**PASS**: Title.",
        "",
        "**NOT APPLICABLE**: Title.",
        "",
        "7 samples; tool",
    ]


def test_no_name_is_markup_or_a_mention():
    hostile = "a|b\n# c <img src=x> @team `x` ![y](z)"
    (row,) = [
        line
        for line in markdown([finding(Severity.FAIL, message=hostile)], {}).splitlines()
        if line.startswith("| **FAIL**")
    ]
    assert "a\\|b\\\\n\\# c \\<img src=x\\> \\@team \\`x\\` \\!\\[y\\]\\(z\\)" in row
