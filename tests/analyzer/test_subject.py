"""From a specification to a subject; what does not fit is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from analyzer.spec import Spec
from analyzer.subject import load_subject
from probes.errors import AnalyzerError

NETWORK = """
from torch import nn

def net(width=3):
    return nn.Linear(2, width)

def number():
    return 7

def broken():
    raise ValueError("no width")

def batches():
    import torch
    yield torch.ones(4, 2), torch.zeros(4)

def squared(outputs, targets):
    return (outputs - targets).square().mean()
"""


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    (tmp_path / "net.py").write_text(NETWORK)
    np.savez(tmp_path / "data.npz", inputs=np.ones((5, 2), np.float32), targets=np.arange(5) % 3)
    torch.save({"model": nn.Linear(2, 3).state_dict()}, tmp_path / "best.pt")
    return Spec(
        checkpoint=tmp_path / "best.pt",
        model=f"{tmp_path}/net.py:net",
        data=f"{tmp_path}/data.npz",
        loss="cross_entropy",
        device="cpu",
    )


def refusal(spec: Spec) -> str:
    with pytest.raises(AnalyzerError) as raised:
        load_subject(spec)
    return str(raised.value)


def test_weights_and_data_are_those_of_the_files(spec):
    loaded = load_subject(replace(spec, batch_size=2))
    assert [batch.inputs.shape[0] for batch in loaded.subject] == [2, 2, 1]
    state = torch.load(spec.checkpoint, weights_only=True)["model"]
    assert torch.equal(loaded.subject.model.weight, state["weight"])
    assert loaded.provenance["checkpoint"] == "best.pt"
    assert len(loaded.provenance["checkpoint_sha256"]) == 64
    assert loaded.provenance["model"] == "net.py:net"
    assert loaded.provenance["data"] == "data.npz"


def test_the_other_side_of_a_split_comes_from_a_file_or_a_callable(spec):
    alone = load_subject(spec)
    assert alone.subject.sides() is None
    assert not {"held_out", "trained_on"} & set(alone.provenance)
    home = spec.model.rpartition(":")[0]
    data = Path(spec.data)
    np.savez(data.with_name("other.npz"), inputs=np.zeros((7, 2), np.float32))
    loaded = load_subject(
        replace(spec, batch_size=4, held_out=str(data.with_name("other.npz")), max_samples=6)
    )
    trained, held = loaded.subject.sides()
    assert [len(batch.inputs) for batch in trained] == [4, 1]
    assert [len(batch.inputs) for batch in held] == [4, 2]
    assert loaded.provenance["held_out"] == "other.npz"
    trained, held = load_subject(replace(spec, trained_on=f"{home}:batches")).subject.sides()
    assert [len(batch.inputs) for batch in trained] == [4]
    assert [len(batch.inputs) for batch in held] == [5]


def test_precision_and_arguments(spec):
    loaded = load_subject(replace(spec, checkpoint=None, dtype="float64", model_args={"width": 5}))
    assert loaded.subject.model.weight.shape == (5, 2)
    assert loaded.subject.dtype is torch.float64
    assert next(iter(loaded.subject)).inputs.dtype is torch.float64
    assert loaded.provenance["loader"] == "no checkpoint: the model is as the factory returns it"


def test_a_callable_of_batches_and_of_a_loss(spec):
    home = spec.model.rpartition(":")[0]
    loaded = load_subject(replace(spec, data=f"{home}:batches", loss=f"{home}:squared"))
    for _ in range(2):
        assert [batch.inputs.shape for batch in loaded.subject] == [(4, 2)]
    assert loaded.subject.loss(torch.ones(2), torch.zeros(2)) == 1


def test_what_is_missing_is_said(spec):
    assert refusal(replace(spec, model="")) == (
        "no model: say --model package.module:callable or file.py:callable"
    )
    assert refusal(replace(spec, data="")) == (
        "no data: say --data file.npz or --data package.module:callable"
    )


def test_what_is_no_data_is_said(spec):
    assert refusal(replace(spec, data="data.csv")) == (
        "data.csv: data come from a .npz, .pt or .safetensors file, or from package.module:callable"
    )


def test_a_factory_that_raises_or_returns_no_module(spec):
    home = spec.model.rpartition(":")[0]
    assert refusal(replace(spec, model=f"{home}:broken", model_args={})) == (
        f"{home}:broken() raised ValueError: no width"
    )
    assert refusal(replace(spec, model=f"{home}:number")) == (
        f"{home}:number returned a int, not a torch Module"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "gpu"}, "unknown device 'gpu': use auto, cpu, cuda or cuda:N"),
        ({"dtype": "int8"}, "unknown precision 'int8': use float32 or float64"),
    ],
)
def test_unknown_device_or_precision(spec, change, message):
    assert refusal(replace(spec, **change)) == message


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_gpu_is_said(spec):
    assert refusal(replace(spec, device="cuda:1")) == (
        "device cuda:1 asked for, but torch sees no CUDA device"
    )


def test_the_state_of_the_optimizer_comes_with_the_weights(spec):
    model = nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters(), 0.5)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optim": optimizer.state_dict()}, spec.checkpoint)
    found = load_subject(spec).subject.optimizer
    assert found["param_groups"][0]["lr"] == 0.5
    assert torch.equal(found["state"][1]["exp_avg"], optimizer.state_dict()["state"][1]["exp_avg"])


def test_without_a_state_of_the_optimizer_there_is_none(spec):
    assert load_subject(spec).subject.optimizer is None
    assert load_subject(replace(spec, checkpoint=None)).subject.optimizer is None
