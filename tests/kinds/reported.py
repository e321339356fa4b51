"""A whole audit as its user gets it, and what every report promises whatever the network.

The promises hold for every probe in ``probes.PROBES``, so that a new one is held to them unasked.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, isnan
from pathlib import Path
from typing import Any

import xarray as xr
from pypdf import PdfReader
from torch import nn

import analyzer
from analyzer import record as records
from analyzer.conduct import FINDINGS, REPORT, TRACES, audit
from analyzer.findings import Finding, Severity, from_json, to_json
from analyzer.rules import judge
from probes import PROBES
from reports.text import tied

PAGES = 40
"""More pages than this nobody reads; the appendix is to look things up in."""

README = Path(__file__).parents[2] / "README.md"

JUDGED = (Severity.WARN, Severity.FAIL)


@dataclass(frozen=True)
class Reported:
    """What an audit leaves in its folder, read back from there.

    Parameters
    ----------
    record : DataTree
        Of ``traces.nc``.
    findings : list of Finding
        Of ``findings.json``.
    said : list of Finding
        Those that the audit itself returned.
    pdf : Pages
        Of ``report.pdf``.
    changes : list of str
        What the audit changed in the model.
    """

    record: xr.DataTree
    findings: list[Finding]
    said: list[Finding]
    pdf: "Pages"
    changes: list[str]

    def of(self, code: str) -> list[Finding]:
        """Return all findings of one code."""
        return [finding for finding in self.findings if finding.code == code]

    def one(self, code: str) -> Finding:
        """Return the only finding of one code."""
        (finding,) = self.of(code)
        return finding

    def severity(self, code: str) -> Severity:
        """Return the severity of the only finding of one code."""
        return self.one(code).severity

    def outcome(self, probe: str) -> str:
        """Return ``measured``, or the reason why not."""
        facts = records.traces(self.record)[probe].attrs
        if facts["outcome"] == records.MEASURED:
            return records.MEASURED
        return f"{facts['outcome']}: {facts['reason']}"

    def outcomes(self) -> dict[str, str]:
        """Return the outcome of every probe."""
        return {probe: self.outcome(probe) for probe in records.traces(self.record)}

    def trace(self, probe: str) -> xr.Dataset:
        """Return what one probe measured."""
        return records.measured(self.record)[probe]


class Pages:
    """Text of a PDF, read page by page as far as it is asked for: that takes its time."""

    def __init__(self, path: Path) -> None:
        reader = PdfReader(path)
        self._pages = reader.pages
        self._read, self._text = 0, ""
        (methods,) = (entry for entry in reader.outline if entry.title == "A Methods")
        self.body = (reader.get_destination_page_number(methods) or 0) + 1

    def __len__(self) -> int:
        return len(self._pages)

    def say(self, text: str) -> bool:
        """Whether a text is there, whatever its white space and its capitals."""
        while bare(text) not in self._text and self._read < len(self):
            self._text += bare(self._pages[self._read].extract_text())
            self._read += 1
        return bare(text) in self._text


def reported(subject: Any, folder: Path, **options: Any) -> Reported:
    """Audit a subject with every probe, and read back what is written."""
    before = state(subject.model)
    done = audit(subject, folder, **options)
    after = state(subject.model)
    return Reported(
        analyzer.load(folder / TRACES),
        from_json((folder / FINDINGS).read_text()),
        done.findings,
        Pages(folder / REPORT),
        [name for name in before if before[name] != after[name]],
    )


def state(model: nn.Module) -> dict[str, Any]:
    """Take down all of a model that an audit must leave as it was."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "values": {n: hashlib.sha256(t.detach().numpy().tobytes()).digest() for n, t in tensors},
        "identity": {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors},
        "gradients": {name: id(weight.grad) for name, weight in model.named_parameters()},
        "flags": {name: weight.requires_grad for name, weight in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "attributes": {name: list(vars(module)) for name, module in model.named_modules()},
        "hooks": [
            len(table)
            for module in model.modules()
            for key, table in vars(module).items()
            if key.endswith("_hooks")
        ],
    }


def complaints(found: Reported, rejudged: bool = True) -> list[str]:
    """List every promise that a report breaks; empty is as it should be."""
    return [
        *(f"the audit changed the model: {name}" for name in found.changes),
        *_in_outcomes(found),
        *(f"{_where(f)}: {fault}" for f in found.findings for fault in _in_finding(f)),
        *(_in_files(found) if rejudged else ()),
        *_in_pdf(found),
    ]


def _in_outcomes(found: Reported) -> Iterator[str]:
    """Every probe measures or says why not; none breaks."""
    outcomes = found.outcomes()
    if set(outcomes) != set(PROBES):
        yield f"probes in the record: {sorted(set(outcomes) ^ set(PROBES))}"
    judged = {finding.probe for finding in found.findings}
    for probe, outcome in outcomes.items():
        if outcome.startswith(records.ERROR):
            yield f"{probe} broke: {outcome}"
        if probe not in judged:
            yield f"{probe}: nothing is said of it"
        if outcome.startswith(records.NOT_APPLICABLE) and not _is_reason(outcome.split(": ", 1)[1]):
            yield f"{probe}: no reason in words: {outcome}"


def _is_reason(text: str) -> bool:
    """Whether a text reads as a reason: some words, not the name of an exception."""
    return len(text.split()) >= 4 and not re.match(r"\w+(Error|Exception)\b", text)


def _in_finding(finding: Finding) -> Iterator[str]:
    """A finding can be read, and a verdict has what it rests on."""
    if not re.fullmatch(r"[a-z]+(-[a-z]+)*", finding.code):
        yield "its code is not in kebab-case"
    if f"`{finding.code}`" not in README.read_text(encoding="utf-8"):
        yield "its code is not in the README"
    if re.search(r"\b(nan|inf|None)\b", f"{finding.message} {finding.meaning}"):
        yield f"it says a number that is none: {finding.message} {finding.meaning}"
    if finding.severity is Severity.ERROR:
        yield f"an error: {finding.message}"
    if finding.severity is Severity.INCONCLUSIVE and not finding.meaning:
        yield "inconclusive, without a word on why"
    if not isnan(finding.low) and not finding.low <= finding.value <= finding.high:
        yield f"the value {finding.value} is outside of [{finding.low}, {finding.high}]"
    yield from _in_limit(finding)


def _in_limit(finding: Finding) -> Iterator[str]:
    """A verdict holds a value against a limit with a source."""
    if isfinite(finding.limit) and not (finding.relation and finding.limit_source):
        yield "a limit without a relation or a source"
    if finding.severity in (*JUDGED, Severity.PASS):
        if not isfinite(finding.value):
            yield f"{finding.severity} without a value"
        if not isfinite(finding.limit):
            yield f"{finding.severity} without a limit"
    if finding.severity in JUDGED:
        yield from _in_judgement(finding)


def _in_judgement(finding: Finding) -> Iterator[str]:
    """WARN and FAIL: the whole interval is beyond the limit, and there is something to do."""
    if not finding.meaning or finding.action == "None.":
        yield f"{finding.severity} without a meaning or an action"
    near = finding.low if finding.relation == "<=" else finding.high
    near = finding.value if isnan(near) else near
    beyond = near > finding.limit if finding.relation == "<=" else near < finding.limit
    if not beyond:
        yield f"{finding.severity}, although {near} is not beyond {finding.limit}"


def _in_files(found: Reported) -> Iterator[str]:
    """The files hold what was found, and the traces can be judged again."""
    said = to_json(found.said, {}, {})
    if to_json(found.findings, {}, {}) != said:
        yield "findings.json is not what the audit returned"
    if to_json(judge(found.record), {}, {}) != said:
        yield "the saved traces are not judged as the audit judged them"


def _in_pdf(found: Reported) -> Iterator[str]:
    """The report says every message, meaning and action, and is not too long to read."""
    if found.pdf.body > PAGES:
        yield f"the report has {found.pdf.body} pages before the appendix"
    for finding in found.findings:
        for text in (finding.title, tied(finding.message)):
            if not found.pdf.say(text):
                yield f"{_where(finding)}: not in the report: {text}"


def bare(text: str) -> str:
    """Leave the white space out of a text, which a PDF sets anew, and its special spaces."""
    return re.sub(r"[\s\u00ad]", "", text).casefold()


def _where(finding: Finding) -> str:
    """Name a finding."""
    return f"{finding.code} ({finding.probe})"
