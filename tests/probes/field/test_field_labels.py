"""How the effective fields of all layers are labelled."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from probes.base import Subject
from probes.effective_field import EffectiveField


def measured(model: nn.Module, x: torch.Tensor, **settings) -> xr.Dataset:
    probe = EffectiveField(resamples=5, null_seeds=0, **settings)
    return probe(Subject(model.double(), [x.double()], sample_rate=250.0))


def ones(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    return layer


def test_layers_are_numbered_among_all_from_one():
    model = nn.Sequential(nn.ReLU(), ones(nn.Conv1d(1, 1, 3)), nn.ReLU(), ones(nn.Conv1d(1, 1, 3)))
    trace = measured(model, torch.rand(2, 1, 9))
    assert trace["layer"].to_numpy().tolist() == ["1", "3"]
    assert trace["number"].to_numpy().tolist() == [1, 2]
    assert (trace.attrs["layers_total"], trace.attrs["layers_measured"]) == (2, 2)
    assert trace["kind"].to_numpy().tolist() == ["Conv1d", "Conv1d"]


@pytest.mark.parametrize(
    ("samples", "words"),
    [(3, "by the energy of the sample"), (4, "equal"), (5, "equal")],
)
def test_the_weights_of_samples_are_told(samples, words):
    trace = measured(ones(nn.Conv1d(1, 1, 3)), torch.rand(samples, 1, 9))
    assert (trace.attrs["samples"], trace.attrs["sample_weights"]) == (samples, words)


@pytest.mark.parametrize(
    ("kind", "names"),
    [(nn.Conv1d, ["timestep"]), (nn.Conv2d, ["y", "x"]), (nn.Conv3d, ["z", "y", "x"])],
)
def test_maps_have_the_axes_of_the_input(kind, names):
    sizes = (7, 8, 9)[: len(names)]
    trace = measured(ones(kind(1, 1, 3)), torch.rand(2, 1, *sizes))
    assert ("sample_rate" in trace.attrs) == (names == ["timestep"])
    if len(names) < 3:
        assert trace["energy"].dims == ("layer", *names)
        assert trace["energy"].shape == (1, *sizes)
        assert float(trace["energy"].sum()) == pytest.approx(1)
        return
    for name, size in zip(names, sizes, strict=True):
        assert trace[f"energy_{name}"].dims == ("layer", name)
        row = trace[f"energy_{name}"].to_numpy()[0]
        start = (size - 2) // 2
        expected = [1 / 3 * (start <= place < start + 3) for place in range(size)]
        np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_numbers_have_the_units_of_what_they_are():
    trace = measured(ones(nn.Conv2d(1, 1, 3)), torch.rand(2, 1, 9, 9))
    units = {name: trace[name].attrs["units"] for name in ("sigma", "gaussian_angle", "outside")}
    assert units == {"sigma": "input position", "gaussian_angle": "degree", "outside": "1"}
    np.testing.assert_allclose(trace["outside"], [0], atol=1e-12)
    np.testing.assert_allclose(trace["sigma"], [[np.sqrt(2 / 3)] * 2])
    np.testing.assert_allclose(trace["anisotropy"], [1])
    assert trace["resampled_sigma"].dims == ("layer", "resample", "axis")
