"""What every probe promises, on networks that differ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from probes import PROBES, probe_class
from probes.base import Subject
from probes.errors import AnalyzerError, NotApplicable

Changes = Callable[[nn.Module], Callable[[], list[str]]]


class Trip(nn.Module):
    """Lets everything pass until it is told to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[float] = [float("inf")]

    def forward(self, x: Tensor) -> Tensor:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise ZeroDivisionError("tripped")
        return x


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, 2, batch_first=True, dropout=0.3)
        self.trip = Trip()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.trip(self.lstm(x)[0][:, -1]))
        return y


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.gru = nn.GRU(4, 3, bidirectional=True, batch_first=True)
        self.trip = Trip()
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.trip(self.gru(self.embed(tokens))[0]))
        return y


class Hybrid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.MaxPool1d(2)
        )
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.trip = Trip()
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).transpose(1, 2)
        y: Tensor = self.head(self.trip(self.lstm(h)[1][0][-1]))
        return y


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(4, 4, 3, stride=2),
        Trip(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def signals() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 4, 3, dilation=2),
        Trip(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def features() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.2), nn.Tanh(), Trip(), nn.Linear(4, 3))


ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "images": (images, (6, 1, 8, 8)),
    "signals": (signals, (6, 2, 12)),
    "lstm": (Lstm, (6, 7, 3)),
    "tagger": (Tagger, (6, 5)),
    "hybrid": (Hybrid, (6, 2, 12)),
    "features": (features, (6, 5)),
}


def subject(kind: str) -> Subject:
    """Two unequal batches, with targets, for a model in the middle of training."""
    torch.manual_seed(3)
    make, shape = ZOO[kind]
    model = make().train()
    modules = [*model.modules()]
    modules[-1].eval()
    x = torch.randint(9, shape) if kind == "tagger" else torch.randn(shape)
    y = torch.randint(3, shape if kind == "tagger" else shape[:1])
    outputs = model(x)
    targets = outputs if outputs.dim() == 2 else outputs.flatten(0, 1)
    functional.cross_entropy(targets, y.flatten()).backward()
    next(model.parameters()).requires_grad_(False)
    modules[1].register_forward_hook(lambda *_: None)
    halves = [(x[:4], y[:4]), (x[4:], y[4:])]
    return Subject(model, halves, "cross_entropy", held_out=[(x[2:5], y[2:5])])


def trip(model: nn.Module, calls: float) -> None:
    (found,) = (module for module in model.modules() if isinstance(module, Trip))
    found.left[0] = calls


def run(name: str, probed: Subject) -> xr.Dataset | None:
    probe: Any = probe_class(name)()
    try:
        trace: xr.Dataset = probe(probed)
    except NotApplicable:
        return None
    return trace


MEASURED = {
    "gradient_flow": {*ZOO},
    "timestep_gradient": {"lstm", "tagger", "hybrid"},
    "memory_horizon": {"signals", "lstm", "tagger", "hybrid"},
    "receptive_field": {"images", "signals", "hybrid"},
    "effective_field": {"images", "signals", "hybrid"},
    "lag_profile": {"signals", "lstm", "tagger", "hybrid"},
    "sequence_length": {"signals", "lstm", "tagger", "hybrid"},
    "state_reach": {"lstm", "tagger", "hybrid"},
    "attribution": {"images", "signals", "lstm", "tagger", "hybrid"},
    "layer_conductance": {*ZOO},
    "gates": {"lstm", "tagger", "hybrid"},
    "lyapunov": {"lstm", "tagger", "hybrid"},
    "memory_capacity": {"lstm", "tagger", "hybrid"},
    "depth_contribution": {"images", "signals", "hybrid", "features"},
    "stacked_layers": {"lstm"},
    "timestep_contribution": {"lstm", "tagger", "hybrid"},
    "truncation": {"lstm", "tagger", "hybrid"},
    "generalization": {*ZOO},
    "width": {*ZOO},
    "memory_footprint": {*ZOO},
    "update_ratio": set(),
}
"""Which networks each probe measures; a new probe is added here."""


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("name", PROBES)
def test_the_model_is_left_as_it_was(name: str, kind: str, changes: Changes) -> None:
    probed = subject(kind)
    changed = changes(probed.model)
    trace = run(name, probed)
    assert changed() == []
    assert (trace is not None) == (kind in MEASURED[name])


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("calls", [0, 1])
def test_the_model_is_left_as_it_was_when_it_raises(
    calls: int, name: str, kind: str, changes: Changes
) -> None:
    probed = subject(kind)
    trip(probed.model, calls)
    changed = changes(probed.model)
    try:
        run(name, probed)
    except (ZeroDivisionError, AnalyzerError):
        raised = True
    else:
        raised = False
    assert changed() == []
    assert raised or kind not in MEASURED[name] or calls


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("name", PROBES)
def test_two_runs_give_the_same(name: str, kind: str) -> None:
    first = run(name, subject(kind))
    torch.rand(7)
    second = run(name, subject(kind))
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        xr.testing.assert_identical(first, second)


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("name", PROBES)
def test_traces_are_labelled_and_survive_a_file(name: str, kind: str, tmp_path: Path) -> None:
    trace = run(name, subject(kind))
    if trace is None:
        return
    for variable in trace.data_vars.values():
        assert variable.attrs["long_name"]
        assert variable.attrs["units"]
    path = tmp_path / "trace.nc"
    trace.to_netcdf(path, engine="h5netcdf")
    again = xr.load_dataset(path, engine="h5netcdf")
    xr.testing.assert_equal(again, trace)
    assert {**again.attrs} == trace.attrs
    for key, variable in trace.data_vars.items():
        assert {**again[key].attrs} == variable.attrs
