"""The PDF that lists a batch."""

import pikepdf
from pypdf import PdfReader

import reports

FINDING = {"title": "Title", "unit": "decades", "limit": 2.0, "relation": "<="}


def row(name, verdict="PASS", reason="", findings=()):
    return {"name": name, "verdict": verdict, "reason": reason, "findings": findings}


def finding(severity, value, low=None, high=None, code="c", message="too much was seen"):
    values = {"value": value, "low": low, "high": high, "code": code, "message": message}
    return FINDING | values | {"severity": severity}


ROWS = [
    row("a/broken [x]*.pt", "ERROR", "a/broken.pt: empty"),
    row(
        "a/bad.pt",
        "FAIL",
        findings=[finding("FAIL", 4.0, 3.5, 4.5), finding("WARN", 3.0, code="d")],
    ),
    row("b/good.pt", findings=[finding("PASS", 1.0, 0.5, 1.5), finding("PASS", None, code="d")]),
]


def test_one_row_for_each_with_a_link_to_its_report(tmp_path):
    path = tmp_path / "index.pdf"
    reports.render_index(ROWS, path)
    text = " ".join(" ".join(page.extract_text() for page in PdfReader(path).pages).split())
    for words in (
        "Audit of 3 checkpoints",
        "1 FAIL 1 ERROR 1 PASS",
        "a/broken [x]*.pt",
        "a/broken.pt: empty",
        "Too much was seen. and 1 more",
        "Every judged value of every checkpoint",
    ):
        assert words in text
    with pikepdf.open(path) as pdf:
        links = [str(note.A.URI) for page in pdf.pages for note in page.get("/Annots", [])]
    assert links == ["a/bad.pt/report.pdf", "b/good.pt/report.pdf"]


def test_nothing_judged_is_no_figure(tmp_path):
    reports.render_index([ROWS[0]], tmp_path / "index.pdf")
    assert "Every judged value" not in PdfReader(tmp_path / "index.pdf").pages[0].extract_text()


def test_the_same_bytes_every_time(tmp_path):
    for name in ("a.pdf", "b.pdf"):
        reports.render_index(ROWS, tmp_path / name)
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
