"""Every probe measures on another device what it measures on the CPU, and rarely waits for it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy

import numpy as np
import pytest
import torch
import xarray as xr
from simulated import moved, simulated_device
from torch import Tensor, nn
from torch.nn import functional
from whole_zoo import ZOO, made

from analyzer import record as records
from analyzer.pipeline import measure
from probes import probe_class
from probes.base import Subject
from probes.errors import AnalyzerError

Switch = Callable[[], AbstractContextManager[object]]

QUICK = ["projected both ways", "cells", "packs", "residual in place", "integers in", "branches"]
"""What the fast tests try; the others are slow."""

LAZY = ["lazy", "lazy normalisation"]
"""Nothing of theirs can be moved yet."""

OF_THE_DEVICE = {"memory_footprint": None, "attribution": ["delta"], "layer_conductance": ["delta"]}
"""Variables that are of the device or of rounding alone; None: all."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in ZOO
        if name not in LAZY
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_probe_measures_the_same_there(name: str) -> None:
    agree(outcomes(name), outcomes(name, simulated_device, moved))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_probe_measures_the_same_on_a_gpu(name: str) -> None:
    agree(outcomes(name), outcomes(name, nullcontext, nn.Module.cuda))


def agree(here: dict[str, xr.Dataset], there: dict[str, xr.Dataset]) -> None:
    """Compare the traces of all probes."""
    assert here.keys() == there.keys()
    for probe, trace in here.items():
        assert reason(there[probe]) == reason(trace)
        left_out = OF_THE_DEVICE.get(probe, ())
        if left_out is not None:
            same(there[probe].drop_vars(left_out, errors="ignore"), trace)


def outcomes(
    name: str, switched_on: Switch = nullcontext, move: Callable[[nn.Module], object] = id
) -> dict[str, xr.Dataset]:
    """Audit a network of the zoo; what cannot be audited gives its refusal."""
    subject = made(name)
    try:
        with switched_on():
            move(subject.model)
            return records.traces(measure(subject))
    except AnalyzerError as refusal:
        return {"refused": xr.Dataset(attrs={"outcome": "refused", "reason": str(refusal)})}


def reason(trace: xr.Dataset) -> tuple[str, str]:
    """Say what a probe came to; torch names the kinds of its tensors."""
    why = str(trace.attrs.get("reason", ""))
    return trace.attrs["outcome"], why.partition("[Meta")[0].partition("[torch.")[0]


def same(found: xr.Dataset, expected: xr.Dataset) -> None:
    """Compare two traces up to the rounding of another implementation of the same layers."""
    for name, variable in found.variables.items():
        values, wanted = variable.to_numpy(), expected[name].to_numpy()
        if values.dtype.kind != "f":
            assert (values == wanted).all(), name
            continue
        scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
        # A change of the loss is a difference of losses, each of them rounded.
        atol = max(1e-4 * scale, 1e-6 if name == "loss_change" else 0)
        # What shrinks to nothing within a step is mostly rounding.
        rtol = 0.05 if name == "exponents" else 0.01
        np.testing.assert_allclose(values, wanted, rtol=rtol, atol=atol, err_msg=name)


def test_tensors_on_two_devices_are_refused() -> None:
    with simulated_device():
        there = torch.ones(3).to("meta")
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="indices of the device"):
            torch.ones(3)[there.long()]
        with pytest.raises(RuntimeError, match="generator of the CPU"):
            torch.rand(3, device="meta", generator=torch.Generator())
        assert (there + torch.tensor(1.0)).sum().item() == 6


def test_what_waits_is_counted() -> None:
    with simulated_device() as device:
        there = torch.ones(3).to("meta")
        assert bool(there.sum() > 2)
        there[there > 0].cpu()
    assert sum(device.waits.values()) == 4


def waits(probe: str, model: nn.Module, x: Tensor, batches: int = 1) -> int:
    """Count how often a probe makes the CPU wait for the device."""
    data = list(zip(x.chunk(batches), torch.arange(len(x)).fmod(2).chunk(batches), strict=True))
    with simulated_device() as device:
        probe_class(probe)()(Subject(moved(model.eval()), data, "cross_entropy"))
    return sum(device.waits.values())


@pytest.mark.parametrize("layers", [1, 6])
def test_the_gradients_of_a_batch_are_measured_without_a_wait_for_each_layer(layers: int) -> None:
    def model() -> nn.Module:
        body = [nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU())] * layers
        return nn.Sequential(*body, nn.Flatten(), nn.LazyLinear(2))

    x = torch.randn(6, 3, 16, 16)
    one, other = model(), model()
    one(x), other(x)
    # Its inputs and its targets come from the CPU.
    assert waits("gradient_flow", one, x, 3) - waits("gradient_flow", other, x, 1) == 2 * 2


@pytest.mark.parametrize("probe", ["timestep_gradient", "timestep_contribution", "gates"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_measured_without_a_wait_for_each_timestep(probe, kind) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(3, 2, 2, batch_first=True)

        def forward(self, x_BTC: Tensor) -> Tensor:
            return self.rnn(x_BTC)[0][:, -1]

    model = Last()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)  # Gradients that vanish are measured once more, in float64.
    short, long = (waits(probe, deepcopy(model), torch.randn(6, steps, 3)) for steps in (8, 32))
    assert short == long


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_gradients_that_vanish_or_explode_are_measured_there_too(size: float) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none") * size

    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(48, 2)
    )
    data = [(torch.randn(6, 2, 8, 8), torch.arange(6) % 2)]
    here = probe_class("gradient_flow")()(Subject(deepcopy(model), data, loss))
    with simulated_device():
        there = probe_class("gradient_flow")()(Subject(moved(model), data, loss))
    assert (here["parameter_gradient_per_sample"] > 0).all()
    for name in ("parameter_gradient_per_sample", "parameter_gradient", "activation_gradient"):
        np.testing.assert_allclose(there[name], here[name], rtol=1e-4)
