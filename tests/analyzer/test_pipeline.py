"""Measuring as a whole: what is refused, what is kept when a probe fails, what is recorded."""

import re
import sys
import types
from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
import torch
import xarray as xr
from torch import nn

import probes
from analyzer import pipeline
from analyzer import record as records
from analyzer.data import data_sha256
from analyzer.findings import Severity
from analyzer.pipeline import measure
from analyzer.rules import judge
from probes.base import Subject
from probes.errors import AnalyzerError, NotApplicable


@dataclass(frozen=True)
class Raises:
    name: ClassVar[str] = "raises"
    passes: ClassVar[float] = 1
    kind: str = "bug"

    def __call__(self, subject, progress):
        if self.kind == "bug":
            raise ZeroDivisionError("division by zero\nand more")
        if self.kind == "none":
            raise NotApplicable("there is nothing to see")
        raise AnalyzerError("conv1 of shape (3,) is too small")


@pytest.fixture(autouse=True)
def extra_probe(monkeypatch):
    module = types.ModuleType("probes.raises")
    module.Raises = Raises
    monkeypatch.setitem(sys.modules, "probes.raises", module)
    monkeypatch.setitem(probes.PROBES, "raises", "Raises")


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def subject(model: nn.Module | None = None, **changes) -> Subject:
    batches = [(torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])), torch.randn(2, 3)]
    values = {"batches": batches[:1], "loss": "cross_entropy", **changes}
    return Subject(model or chain(), **values)


def refusal(asked: Subject, **options) -> str:
    with pytest.raises(AnalyzerError) as raised:
        measure(asked, **options)
    return str(raised.value)


@pytest.mark.parametrize(
    ("kind", "outcome", "reason", "code", "severity"),
    [
        (
            "bug",
            "error",
            f"ZeroDivisionError: division by zero (in {__name__}.Raises.__call__, line 33)",
            "probe-error",
            Severity.ERROR,
        ),
        ("ours", "error", "conv1 of shape (3,) is too small", "probe-error", Severity.ERROR),
        (
            "none",
            "not_applicable",
            "there is nothing to see",
            "not-applicable",
            Severity.NOT_APPLICABLE,
        ),
    ],
)
def test_a_probe_that_fails_costs_only_itself(kind, outcome, reason, code, severity):
    record = measure(
        subject(), probes=["raises", "gradient_flow"], settings={"raises": {"kind": kind}}
    )
    attributes = records.traces(record)["raises"].attrs
    assert (attributes["outcome"], attributes["reason"]) == (outcome, reason)
    assert list(records.measured(record)) == ["gradient_flow"]
    (finding,) = (f for f in judge(record) if f.probe == "raises")
    assert (finding.code, finding.severity, finding.message) == (code, severity, reason)


def test_a_failure_in_the_code_of_the_model_says_where():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.calls = [0]  # plain numbers are put back with the model

        def forward(self, x):
            self.calls[0] += 1
            return x @ self.weight[: 3 if self.calls[0] <= 2 else 2]

    record = measure(subject(Broken(), loss=None), ["gradient_flow"])
    reason = records.traces(record)["gradient_flow"].attrs["reason"]
    assert reason.startswith("RuntimeError: size mismatch")
    assert "(in probes." in reason
    assert re.search(r", called from .*Broken\.forward, line \d+\)$", reason)


def test_the_record_says_what_was_measured():
    record = measure(subject(), ["gradient_flow"], provenance={"checkpoint": "best.pt"})
    facts = record.attrs
    assert facts["samples"] == 5
    assert facts["parameters"] == 3 * 4 + 4 + 4 * 2 + 2
    assert facts["model"] == "Sequential"
    assert facts["objective"] == "cross_entropy, per sample"
    assert facts["checkpoint"] == "best.pt"
    assert facts["dtype"] == "float32"
    assert records.settings(records.traces(record)["gradient_flow"])


def test_the_progress_of_each_probe_is_followed():
    seen = []
    measure(
        subject(),
        ["gradient_flow"],
        watch=lambda name: lambda done, total: seen.append((name, done, total)),
    )
    assert seen[-1] == ("gradient_flow", 1, 1)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_are_unwrapped(wrap):
    model = chain()
    plain, wrapped = (
        records.traces(measure(subject(one, batches=[torch.ones(3, 3)]), ["gradient_flow"]))
        for one in (model, wrap(model))
    )
    xr.testing.assert_identical(plain["gradient_flow"], wrapped["gradient_flow"])


def test_half_precision_is_measured_in_single_on_a_copy():
    model = chain().half()
    record = measure(subject(model), ["gradient_flow"])
    assert record.attrs["dtype"] == "float32"
    assert model[0].weight.dtype is torch.float16


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_torchscript_is_refused():
    scripted = torch.jit.trace(chain(), torch.ones(1, 3))
    assert refusal(subject(scripted)) == (
        "the model is TorchScript, whose layers cannot be observed: pass the eager model and load "
        "the weights into it"
    )
    part = nn.Sequential(chain(), torch.jit.script(nn.Linear(1, 2)))
    assert refusal(subject(part)).startswith("1 is TorchScript, whose layers cannot be observed: ")


def test_empty_data_are_refused():
    assert refusal(subject(batches=[])) == "the audit data are empty: no batch with samples"


def test_a_model_that_does_not_run_is_refused():
    assert refusal(subject(batches=[torch.ones(2, 7)])) == (
        "the model, on the first batch of the audit data, raised RuntimeError: mat1 and mat2 "
        "shapes cannot be multiplied (2x7 and 3x4)"
    )


def test_unknown_probes_and_settings_are_refused():
    assert refusal(subject(), probes=["gradient_flew"]) == (
        "unknown probe 'gradient_flew': did you mean gradient_flow?"
    )
    assert refusal(subject(), probes=["raises"], settings={"raises": {"knd": 1}}) == (
        "unknown setting of probe raises 'knd': did you mean kind?"
    )


def test_nan_weights_fail_and_name_the_layer():
    model = chain()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    findings = judge(measure(subject(model), ["gradient_flow"]))
    (finding,) = (f for f in findings if f.code == "numerical-health")
    assert finding.severity is Severity.FAIL
    assert "2" in finding.where


def test_the_version_is_a_string():
    assert pipeline.tool_version()


def test_copies_are_asked_of_every_probe_that_has_them_and_of_no_other():
    seeded = [
        name
        for name in probes.PROBES
        if "null_seeds" in {entry.name for entry in fields(probes.probe_class(name))}
    ]
    assert set(seeded) >= {"effective_field", "width"}
    many = subject(batches=[torch.randn(60, 3)])
    record = measure(many, [*seeded, "gradient_flow"], null_seeds=1)
    traces = records.traces(record)
    assert {name: records.settings(traces[name])["null_seeds"] for name in seeded} == (
        dict.fromkeys(seeded, 1)
    )
    assert traces["width"].sizes["copy"] == 1
    assert "null_seeds" not in records.settings(traces["gradient_flow"])
    own = measure(subject(), ["width"], {"width": {"null_seeds": 3}}, null_seeds=1)
    assert records.settings(records.traces(own)["width"])["null_seeds"] == 3
    assert refusal(subject(), probes=["width"], null_seeds=-1) == "width.null_seeds is negative"


def test_the_record_says_which_data_were_held_out():
    held = [(torch.ones(3, 3), torch.tensor([0, 1, 0]))]
    record = measure(subject(held_out=held), ["gradient_flow"])
    assert record.attrs["held_out_sha256"] == data_sha256(held)
    assert record.attrs["data_sha256"] != record.attrs["held_out_sha256"]
    assert "trained_on_sha256" not in record.attrs
