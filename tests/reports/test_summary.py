"""The words on the first page."""

import io

import pytest
import xarray as xr
from pypdf import PdfReader

from analyzer.findings import Finding, Severity
from reports.document import compose
from reports.summary import diagnostic, headline


@pytest.mark.parametrize("severity", [Severity.PASS, Severity.FAIL])
def test_the_headline_is_set_like_every_other_text(severity: Severity) -> None:
    finding = Finding(
        code="gradient-over-depth",
        probe="gradient_flow",
        severity=severity,
        title="Gradient over depth",
        message="the gradient shrinks by a factor of 2.38e+03 in 95 % of samples",
        meaning="it is lost by a factor of 1e-09",
    )
    said = headline([finding])
    assert said["headline"] == (
        "the gradient shrinks by a factor of 2.38\u00b710\u00b3 in 95\u202f% of samples"
    )
    if severity is Severity.FAIL:
        assert said["sentence"] == "It is lost by a factor of 10\u207b\u2079."


def test_no_diagnostic_is_torn_apart_by_the_end_of_a_page() -> None:
    words = 4 * "the reader should not have to look for it on two pages at once, "
    said = [f"This is the evidence of number {index}: {words}" for index in range(60)]
    findings = [
        Finding("code", "probe", Severity.INFO, f"Title {index}", message)
        for index, message in enumerate(said)
    ]
    pdf = compose(xr.DataTree(), findings, limits={}, paper="a4")
    pages = ["".join(page.extract_text().split()) for page in PdfReader(io.BytesIO(pdf)).pages]
    for message in said:
        assert any("".join(message.split()) in page for page in pages), message


@pytest.mark.parametrize(
    ("source", "origin"),
    [
        ("torchmortem", "torchmortem"),
        ("ours, calibrated: healthy at most 0.3; 30 networks", "ours, calibrated"),
        ("CS231n; ours: a factor of 100", "CS231n"),
        (
            "set by the user (default 0.01: Khandelwal)",
            "set by the user (default 0.01: Khandelwal)",
        ),
    ],
)
def test_the_summary_says_whose_a_limit_is(source: str, origin: str) -> None:
    finding = Finding(
        code="code", probe="probe", severity=Severity.WARN, title="Title", message="it is",
        limit=0.5, relation="<=", limit_source=source,
    )  # fmt: skip
    written = diagnostic(finding)
    assert (written["source"], written["origin"]) == (source, origin)
