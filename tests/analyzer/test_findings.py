"""Findings survive their document, and the worst one makes the verdict."""

import json
from dataclasses import replace
from math import nan

import numpy as np
import pytest

from analyzer.findings import SCHEMA, Finding, Severity, from_json, save, to_json, verdict
from probes.errors import AnalyzerError

FOUND = Finding(
    code="memory-horizon",
    probe="memory_horizon",
    severity=Severity.WARN,
    title="Memory horizon",
    message="the last 12 inputs decide",
    value=12.0,
    low=9.0,
    high=15.5,
    samples=64,
    where=("lstm", "$x_$"),
)


@pytest.mark.parametrize(
    ("severities", "expected"),
    [
        (["PASS", "WARN", "FAIL"], "FAIL"),
        (["WARN", "ERROR"], "ERROR"),
        (["PASS", "INCONCLUSIVE"], "INCONCLUSIVE"),
        (["PASS", "INFO", "NOT_APPLICABLE"], "PASS"),
        (["INFO", "NOT_APPLICABLE"], "INFO"),
        (["NOT_APPLICABLE"], "NOT_APPLICABLE"),
        ([], "NOT_APPLICABLE"),
    ],
)
def test_verdict_is_the_worst_judgement(severities, expected):
    assert verdict(replace(FOUND, severity=Severity[name]) for name in severities) == expected


def test_findings_survive_their_document(tmp_path):
    path = tmp_path / "findings.json"
    save([FOUND], {"schema": 1, "samples": np.int64(3)}, {"a.b": {"value": nan}}, path)
    (back,) = from_json(path.read_text())
    assert repr(back) == repr(FOUND)
    document = json.loads(path.read_text())
    assert document["verdict"] == "WARN"
    assert document["findings"][0]["limit"] is None
    assert document["provenance"] == {"schema": 1, "samples": 3}
    assert document["limits"] == {"a.b": {"value": None}}


def test_infinity_becomes_null():
    text = to_json([replace(FOUND, value=float("inf"))], {}, {})
    assert json.loads(text)["findings"][0]["value"] is None


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense"])
def test_other_documents_are_refused(text):
    with pytest.raises(AnalyzerError) as raised:
        from_json(text)
    assert str(raised.value) == "not a findings document of this tool"


def test_a_newer_document_is_refused():
    text = json.dumps({"schema": SCHEMA + 1, "findings": []})
    with pytest.raises(AnalyzerError) as raised:
        from_json(text)
    assert str(raised.value) == (
        f"findings schema {SCHEMA + 1} is newer than this version reads ({SCHEMA})"
    )
