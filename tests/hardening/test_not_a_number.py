"""NaN and infinity, wherever they come from, fail by name and never pass."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from whole_zoo import judged, made

from analyzer.conduct import FILES, audit
from analyzer.findings import Finding, Severity
from analyzer.pipeline import measure
from probes.base import Batch, Subject


def health(subject: Subject) -> Finding:
    findings = judged(measure(subject, ["gradient_flow"]))
    (finding,) = (finding for finding in findings if finding.code == "numerical-health")
    return finding


BROKEN = {
    "nan in the weights": "the weights 0.weight hold NaN or infinity",
    "infinity in the weights": "the weights lstm.weight_ih_l0 hold NaN or infinity",
    "nan in the data": "NaN or infinity first appears at lstm.l0, in 17% of the samples",
    # The gates saturate, so that states and their gradients are numbers.
    "infinity in the data": "the gradient of lstm.weight_ih_l0 is NaN or infinite, of "
    "lstm.weight_ih_l0 in 17% of the samples",
    "loss that is nan": "the gradient of 0.weight, 0.bias, 2.weight, 2.bias is NaN or infinite, "
    "of 0.weight in 100% of the samples",
    "loss that is infinite": "NaN or infinity first appears at 2, in 100% of the samples",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_number_is_named(name: str) -> None:
    finding = health(made(name))
    assert (finding.severity, finding.message) == (Severity.FAIL, BROKEN[name])
    assert finding.where
    assert finding.action != "None."


def test_parameters_without_a_gradient_are_not_broken() -> None:
    finding = health(made("unused parts"))
    assert finding.severity is Severity.PASS


@pytest.mark.parametrize("name", ["nan in an LSTM", "nan in a convolution", "nan in the weights"])
def test_nothing_passes_where_every_sample_is_broken(name: str) -> None:
    passed = [f.code for f in judged(measure(made(name))) if f.severity is Severity.PASS]
    # Which layers see the whole input does not depend on numbers.
    assert set(passed) <= {"unproductive-layers"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(
            "loss that is infinite",
            "nan in an LSTM",
            "nan in a convolution",
            "infinity in the data",
        ),
        *("zero weights", "zero convolution", "no parameters", "functions only", "one timestep"),
    ],
)
def test_reports_are_written_of_what_is_broken(name: str, tmp_path: Path) -> None:
    found = audit(made(name), tmp_path, junit=True, summary=True)
    assert found.findings
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_a_sample_that_is_broken_is_left_out_of_the_others() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(20, 3)
    clean = measure(Subject(model, [Batch(x[1:])]), ["gradient_flow"])["gradient_flow"]
    x[0, 1] = float("nan")
    trace = measure(Subject(model, [Batch(x)]), ["gradient_flow"])["gradient_flow"]
    broken, rest = trace["activation_gradient"][0], trace["activation_gradient"][1:]
    assert broken.isnull().any()
    np.testing.assert_allclose(rest, clean["activation_gradient"], rtol=1e-5)
