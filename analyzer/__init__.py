"""Judge and conduct: gradient and memory diagnostics of trained PyTorch checkpoints.

>>> record = analyzer.measure(analyzer.Subject(model, batches, loss="cross_entropy"))
>>> findings = analyzer.judge(record)
>>> analyzer.render(record, findings, "report.pdf")

Names are imported when first used, so that rendering and judging need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyzer.conduct import Audit, audit
    from analyzer.findings import Finding, Severity
    from analyzer.limits import Limits
    from analyzer.pipeline import measure
    from analyzer.record import load, save
    from analyzer.rules import judge
    from analyzer.spec import Spec
    from analyzer.subject import load_subject
    from probes.base import Batch, Subject
    from probes.errors import AnalyzerError, NotApplicable
    from reports import render

_HOMES = {
    "Audit": "analyzer.conduct",
    "AnalyzerError": "probes.errors",
    "Batch": "probes.base",
    "Finding": "analyzer.findings",
    "Limits": "analyzer.limits",
    "NotApplicable": "probes.errors",
    "Severity": "analyzer.findings",
    "Spec": "analyzer.spec",
    "Subject": "probes.base",
    "audit": "analyzer.conduct",
    "judge": "analyzer.rules",
    "load": "analyzer.record",
    "load_subject": "analyzer.subject",
    "measure": "analyzer.pipeline",
    "render": "reports",
    "save": "analyzer.record",
}

__all__ = [
    "AnalyzerError",
    "Audit",
    "Batch",
    "Finding",
    "Limits",
    "NotApplicable",
    "Severity",
    "Spec",
    "Subject",
    "audit",
    "judge",
    "load",
    "load_subject",
    "measure",
    "render",
    "save",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module 'analyzer' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
