"""What the effective field is held against: untrained copies, other axes, the theoretical field."""

import numpy as np
import pytest
import torch
import xarray as xr
import zoo
from torch import Tensor, nn

from probes.base import Subject
from probes.effective_field import EffectiveField
from probes.receptive_field import ReceptiveField

QUICK = EffectiveField(resamples=20)


def last(trace: xr.Dataset) -> xr.Dataset:
    return trace.isel(layer=-1)


def test_untrained_copies_of_a_random_network_are_like_it():
    torch.manual_seed(4)
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)))
    trace = QUICK(Subject(model, [torch.randn(8, 8, 25, 25)]))
    copies = trace["null_diameter"].transpose("null", "layer").to_numpy()
    assert copies.shape == (3, 6)
    np.testing.assert_allclose(copies.mean(0), trace["diameter"], rtol=0.1)
    assert len({*copies[:, -1]}) == 3


def test_untrained_copies_do_not_inherit_training():
    """A network whose kernels only pass the centre on, but whose copies are random."""
    model = nn.Sequential(*(nn.Conv2d(4, 4, 5, padding=2, bias=False) for _ in range(3)))
    with torch.no_grad():
        for layer in model:
            layer.weight.zero_()[:, :, 2, 2] = torch.rand(4, 4)
    deep = last(QUICK(Subject(model, [torch.randn(4, 4, 21, 21)])))
    assert float(deep["diameter"]) == 0
    assert (deep["null_diameter"] > 9).all()


def test_copies_are_measured_at_some_layers():
    model = nn.Sequential(*(nn.Conv1d(1, 1, 3) for _ in range(5)))
    subject = Subject(model, [torch.randn(4, 1, 30)])
    done = []
    trace = EffectiveField(null_layers=3, resamples=5)(subject, lambda *step: done.append(step))
    measured = trace["null_diameter"].notnull().to_numpy()
    assert measured.tolist() == [[True, False, True, False, True]] * 3
    assert done[-1] == (5 + 3 * 3, 5 + 3 * 3)


class Scale(nn.Module):
    """A factor that no module can draw again."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(size, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_copies_say_what_they_keep():
    model = nn.Sequential(nn.Conv1d(1, 3, 9), Scale(3), nn.Conv1d(3, 1, 9))
    trace = QUICK(Subject(model, [torch.randn(4, 1, 30)]))
    assert trace.attrs["null_kept"] == "1.factor"
    assert trace.attrs["null_absent"] == ""
    assert "null_diameter" in trace


def test_copies_that_keep_most_are_no_null():
    model = nn.Sequential(nn.Conv1d(1, 3, 3), Scale(3), nn.Conv1d(3, 1, 3))
    trace = QUICK(Subject(model, [torch.randn(4, 1, 30)]))
    assert trace.attrs["null_absent"] == "no module initialises 1.factor"
    assert "null_diameter" not in trace


def test_copies_can_be_left_out():
    model = nn.Conv1d(1, 3, 3)
    trace = EffectiveField(null_seeds=0, resamples=5)(Subject(model, [torch.randn(4, 1, 30)]))
    assert "null_diameter" not in trace
    assert trace.attrs["null_absent"] == ""


def test_elongation_of_uneven_kernels():
    """Uniform kernels of 3 by 7: the deviations are as the roots of 8 and 48."""
    layers = [nn.Conv2d(1, 1, (3, 7), padding=(1, 3), bias=False).double() for _ in range(3)]
    for layer in layers:
        nn.init.ones_(layer.weight)
    deep = last(QUICK(Subject(nn.Sequential(*layers), [torch.zeros(2, 1, 21, 31).double()])))
    assert float(deep["anisotropy"]) == pytest.approx(np.sqrt(6))
    assert float(deep["anisotropy_low"]) == pytest.approx(np.sqrt(6))


def test_resampled_deviations_belong_together():
    """Their quantiles are the intervals, and the same samples are drawn for every layer."""
    convolutions = (nn.Conv2d(3, 6, 5, 2), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 1, 3))
    model = nn.Sequential(*(part for layer in convolutions for part in (layer, nn.ReLU())))
    x = torch.randn(12, 3, 33, 37)
    trace = EffectiveField(resamples=50)(Subject(model, [x]))
    drawn = trace["resampled_sigma"].transpose("resample", "layer", "axis").to_numpy()
    np.testing.assert_allclose(np.quantile(drawn, 0.025, axis=0), trace["sigma_low"])
    np.testing.assert_allclose(np.quantile(drawn, 0.975, axis=0), trace["sigma_high"])
    relation = np.corrcoef(drawn[:, 1, 0], drawn[:, 2, 0])[0, 1]
    assert abs(relation) > 0.5  # of 50 independent pairs it would hardly ever be


RATED = {
    "signal": (nn.Conv1d(1, 1, 3), (2, 1, 12), {"sample_rate": 250.0}),
    "image": (nn.Conv2d(1, 1, 3), (2, 1, 12, 12), {}),
}


@pytest.mark.parametrize("kind", RATED)
def test_a_rate_is_kept_where_the_axis_is_time(kind):
    model, shape, expected = RATED[kind]
    subject = Subject(model, [torch.zeros(shape)], sample_rate=250.0)
    for trace in (QUICK(subject), ReceptiveField()(subject)):
        assert {key: trace.attrs[key] for key in ("sample_rate",) if key in trace.attrs} == expected


SUPPORTED = {
    "strided and dilated": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 5, 2, 2), nn.ReLU(), nn.Conv2d(3, 3, 3, 1, 2, 2), nn.MaxPool2d(2),
        nn.Conv2d(3, 2, 3, padding=1), nn.ConvTranspose2d(2, 2, 4, 2, 1), nn.Conv2d(2, 1, 3),
    ),
    "squeeze-excitation": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), zoo.SqueezeExcite(4), nn.Conv2d(4, 2, 3)
    ),
    "residual": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), zoo.basic(4, 4, 1), zoo.basic(4, 6, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", SUPPORTED)
def test_no_gradient_leaves_the_theoretical_field(name):
    torch.manual_seed(2)
    trace = QUICK(Subject(SUPPORTED[name](), [torch.randn(3, 1, 48, 40)]))
    assert (trace["outside"] == 0).all()


def test_statistics_of_the_whole_map_reach_further():
    """By convention they are constants; the gradient knows better, and the trace tells why."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.Conv1d(4, 2, 3))
    trace = QUICK(Subject(model, [torch.randn(3, 1, 60)]))
    assert trace["outside"].to_numpy()[0] == 0
    assert trace["outside"].to_numpy()[1] > 1e-4
    assert trace.attrs["global_statistics"] == "1"


@pytest.mark.parametrize("seed", range(3))
def test_the_energy_of_random_networks_grows_with_the_root_of_depth(seed):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(20)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=1 / 12)
    trace = QUICK(Subject(nn.Sequential(*layers), [torch.zeros(4, 16, 41, 41)]))
    size = trace["sigma_energy"].mean("axis").to_numpy()
    slope = np.polyfit(np.log(np.arange(1, 21)), np.log(size), 1)[0]
    assert slope == pytest.approx(0.5, abs=0.04)
