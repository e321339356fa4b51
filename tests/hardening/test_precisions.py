"""Models and checkpoints in other precisions than single come to the same."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import xarray as xr
from surroundings import changes, surroundings
from torch import nn
from whole_zoo import REFUSED, audited, made, shortened
from zoo_outcomes import OUTCOMES

from analyzer import Spec, load_subject
from analyzer.pipeline import measure
from probes.base import Subject
from probes.gradient_flow import GradientFlow
from probes.timestep_gradient import TimestepGradient

EXPECTED = json.loads(OUTCOMES.read_text(encoding="utf-8"))

FEW = ("residual in place", "pruned", "packs")

MEASURED = [name for name, row in EXPECTED.items() if not any(REFUSED in key for key in row)]

ITS_OWN = {
    # They make tensors of single precision themselves.
    "float64": {"complex output and loss", "bytes in", "integers without embedding"},
    "float16": {"scripted part"},
    "bfloat16": {"scripted part"},
}
"""Networks that do not run in a precision, or cannot be converted."""


def converted(name: str, dtype: str) -> Subject:
    subject = made(name)
    convert = {"float64": "double", "float16": "half", "bfloat16": "bfloat16"}[dtype]
    return replace(subject, model=getattr(subject.model, convert)())


def expected(name: str, dtype: str) -> dict[str, str]:
    row = dict(EXPECTED[name])
    if dtype == "float64":
        return {key.replace("torch.FloatTensor", "torch.DoubleTensor"): row[key] for key in row}
    return row


def check(name: str, dtype: str) -> None:
    subject = converted(name, dtype)
    before = surroundings(subject)
    found = audited(subject)
    assert changes(before, surroundings(subject)) == []
    assert shortened(found) == expected(name, dtype)


@pytest.mark.parametrize("dtype", ITS_OWN)
@pytest.mark.parametrize("name", FEW)
def test_a_few_networks_in_another_precision(name: str, dtype: str) -> None:
    check(name, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ITS_OWN)
@pytest.mark.parametrize("name", sorted(set(MEASURED) - set(FEW)))
def test_every_network_in_another_precision(name: str, dtype: str) -> None:
    if name in ITS_OWN[dtype]:
        assert [*audited(converted(name, dtype))] == [REFUSED]
    else:
        check(name, dtype)


@pytest.mark.parametrize("probe", [GradientFlow(), TimestepGradient()])
@pytest.mark.parametrize("name", ["dictionaries", "packs", "time first"])
def test_double_precision_gives_the_same_numbers(name: str, probe) -> None:
    single, double = probe(made(name)), probe(converted(name, "float64"))
    for trace in (single, double):
        trace.attrs.pop("replay_residual", None)
    xr.testing.assert_allclose(single, double, rtol=1e-3, atol=1e-6)


NETWORK = """
from torch import nn, randn, Generator


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def batches():
    return [randn(16, 12, 2, generator=Generator().manual_seed(0))]
"""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_checkpoints_in_another_precision(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK)
    weights = nn.LSTM(2, 6).state_dict()
    state = {f"lstm.{key}": value for key, value in weights.items()}
    state |= {f"head.{key}": value for key, value in nn.Linear(6, 3).state_dict().items()}
    rounded = {key: value.to(getattr(torch, dtype)) for key, value in state.items()}
    records = []
    for held in (rounded, {key: value.float() for key, value in rounded.items()}):
        torch.save(held, "net.pt")
        spec = Spec(checkpoint=Path("net.pt"), model="net.py:Net", data="net.py:batches")
        loaded = load_subject(spec)
        records.append(measure(loaded.subject, ["gradient_flow"], provenance=loaded.provenance))
    first, second = records
    assert first.attrs["loader"] == f"converted 6 tensors from {dtype} to float32"
    assert second.attrs["loader"] == "all keys matched"
    assert first.attrs["dtype"] == second.attrs["dtype"] == "float32"
    xr.testing.assert_identical(first["gradient_flow"].dataset, second["gradient_flow"].dataset)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_complex_weights_keep_their_imaginary_part(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("turning.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Turning(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.turn = nn.Parameter(torch.full((2, 2), 1 + 2j))\n"
        "        self.scale = nn.Parameter(torch.ones(2))\n\n"
        "    def forward(self, x):\n        return (x @ self.turn.real) * self.scale\n\n\n"
        "def batches():\n    return [torch.ones(3, 2)]\n"
    )
    spec = Spec(model="turning.py:Turning", data="turning.py:batches", dtype=dtype)
    model = load_subject(spec).subject.model
    assert model.turn.tolist() == [[1 + 2j] * 2] * 2
    assert model.scale.dtype is getattr(torch, dtype)


def test_a_model_in_half_precision_is_measured_in_single() -> None:
    subject = converted("dictionaries", "float16")
    record = measure(subject, ["gradient_flow"])
    assert record.attrs["dtype"] == "float32"
    assert {weight.dtype for weight in subject.model.parameters()} == {torch.float16}
    single = replace(subject, model=converted("dictionaries", "float16").model.float())
    again = measure(single, ["gradient_flow"])
    xr.testing.assert_identical(record["gradient_flow"].dataset, again["gradient_flow"].dataset)
