"""The PDF that sets audits side by side."""

from pathlib import Path

import pikepdf
import pytest
from pypdf import PdfReader

import reports
from probes.errors import AnalyzerError


@pytest.fixture
def sides(make_lstm, make_cnn, judge):
    audits = {"LSTM": make_lstm(), "CNN <b>*$": make_cnn()}
    return audits, {name: judge(record) for name, record in audits.items()}


def text(path: Path) -> str:
    return " ".join(" ".join(page.extract_text() for page in PdfReader(path).pages).split())


def test_two_audits_are_compared_on_shared_axes(sides, tmp_path):
    path = tmp_path / "c.pdf"
    reports.render_comparison(*sides, path)
    said = text(path)
    assert "CNN <b>*$ differs from LSTM in " in said
    assert "shared diagnostics beyond what the samples can explain." in said
    assert "Half of the excess loss is left with this many inputs kept: LSTM at" in said
    with pikepdf.open(path) as pdf:
        assert pdf.Root.MarkInfo.Marked
        assert pdf.docinfo.Title == "Comparison: LSTM against CNN <b>*$"


def test_the_same_audits_differ_in_nothing(make_lstm, judge, tmp_path):
    audits = {"before": make_lstm(), "after": make_lstm()}
    findings = {name: judge(record) for name, record in audits.items()}
    reports.render_comparison(audits, findings, tmp_path / "c.pdf")
    assert "after differs from before in 0 of" in text(tmp_path / "c.pdf")


def test_the_same_bytes_every_time(sides, tmp_path):
    for name in ("a.pdf", "b.pdf"):
        reports.render_comparison(*sides, tmp_path / name)
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_three_audits_are_compared_with_the_first(sides, make_cnn, judge, tmp_path):
    audits, findings = sides
    audits["deeper"] = make_cnn(depth=20)
    findings["deeper"] = judge(audits["deeper"])
    reports.render_comparison(audits, findings, tmp_path / "c.pdf")
    assert "deeper against LSTM" in text(tmp_path / "c.pdf")


def test_one_audit_is_no_comparison(make_lstm, tmp_path):
    with pytest.raises(AnalyzerError, match=r"^a comparison needs two records or more$"):
        reports.render_comparison({"one": make_lstm()}, {"one": []}, tmp_path / "c.pdf")
    assert [*tmp_path.iterdir()] == []
