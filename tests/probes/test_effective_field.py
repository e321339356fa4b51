"""The effective field: theory of linear nets, captum, intervals, honest refusals."""

from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from captum.attr import NeuronGradient
from torch import Tensor, nn
from torch.nn import functional

from probes.base import Batch, Subject
from probes.effective_field import EffectiveField, evenly
from probes.errors import AnalyzerError, NotApplicable

QUICK = EffectiveField(resamples=20)


def uniform(count: int, kernel: int, strides=None, dilations=None) -> nn.Sequential:
    """Convolutions with equal weights, padded, in double precision."""
    layers = []
    for index in range(count):
        dilation = dilations[index] if dilations else 1
        stride = strides[index] if strides else 1
        padding = kernel // 2 * dilation
        layers.append(nn.Conv2d(1, 1, kernel, stride, padding, dilation, bias=False).double())
        nn.init.constant_(layers[-1].weight, 1 / kernel)
    return nn.Sequential(*layers)


def last(trace: xr.Dataset) -> xr.Dataset:
    return trace.isel(layer=-1)


STACKS = {
    "3x3, 5": (uniform(5, 3), 1.825742, 9, 11),
    "3x3, 10": (uniform(10, 3), 2.581989, 13, 21),
    "3x3, 20": (uniform(20, 3), 3.651484, 19, 41),
    "3x3, 40": (uniform(40, 3), 5.163978, 25, 81),
    "5x5, 10": (uniform(10, 5), 4.472136, 23, 41),
    "7x7, 10": (uniform(10, 7), 6.324555, 31, 61),
    "dilations 1, 2, 4, 8": (uniform(4, 3, None, (1, 2, 4, 8)), 7.527727, None, 31),
    "strides 2, 1, 2, 1": (uniform(4, 3, (2, 1, 2, 1)), 4.082483, None, 19),
}


@pytest.mark.parametrize("name", STACKS)
def test_uniform_linear_stacks_have_the_variance_of_theory(name):
    """Sum of squared jump times dilation times (kernel^2 - 1) / 12; widths as Luo counts them."""
    model, sigma, width, theoretical = STACKS[name]
    side = theoretical + 4
    trace = QUICK(Subject(model, [torch.randn(2, 1, side, side, dtype=torch.float64)]))
    deep = last(trace)
    assert deep["sigma"].to_numpy() == pytest.approx([sigma, sigma], rel=1e-6)
    assert deep["theoretical"].to_numpy().tolist() == [theoretical, theoretical]
    assert float(deep["diameter"]) == pytest.approx(4 * sigma, rel=1e-6)
    # All samples of a linear net agree.
    assert float(deep["diameter_low"]) == pytest.approx(float(deep["diameter_high"]))
    assert deep["half_sample_sigma"].to_numpy() == pytest.approx([sigma, sigma], rel=1e-6)
    if width is not None:
        row = np.sqrt(deep["energy"].to_numpy()[side // 2])
        assert np.count_nonzero(row > 0.0455 * row.max()) == width


@pytest.mark.parametrize("depth", [5, 20])
def test_luo_area_of_gaussian_fields(depth):
    model, sigma, _, theoretical = STACKS[f"3x3, {depth}"]
    side = theoretical + 4
    deep = last(QUICK(Subject(model, [torch.zeros(1, 1, side, side, dtype=torch.float64)])))
    expected = np.sqrt(np.pi) * sigma * np.sqrt(2 * np.log(1 / 0.0455))
    assert float(deep["luo_size"]) == pytest.approx(expected, rel=0.04)
    assert float(deep["gaussian_r2"]) > 0.999
    assert float(deep["gaussian_major"]) == pytest.approx(sigma, rel=0.05)


class Skips(nn.Module):
    """Linear residual blocks, each halved so that both paths count the same."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(uniform(count, 3))
        for layer in self.layers:
            nn.init.constant_(layer.weight, 1 / 9)
        self.end = nn.Conv2d(1, 1, 1, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = (x + layer(x)) / 2
        return self.end(x)


def test_residual_linear_nets_have_half_the_variance():
    deep = last(QUICK(Subject(Skips(20), [torch.zeros(1, 1, 45, 45, dtype=torch.float64)])))
    assert deep["sigma"].to_numpy() ** 2 == pytest.approx([20 / 2 * 8 / 12] * 2, rel=1e-6)
    assert deep["theoretical"].to_numpy().tolist() == [41, 41]


def test_three_axes_have_marginals():
    layers = [nn.Conv3d(1, 1, 3, padding=1, bias=False).double() for _ in range(6)]
    for layer in layers:
        nn.init.ones_(layer.weight)
    trace = QUICK(Subject(nn.Sequential(*layers), [torch.zeros(2, 1, 15, 14, 13).double()]))
    assert last(trace)["sigma"].to_numpy() ** 2 == pytest.approx([4, 4, 4], rel=1e-6)
    assert trace["axis"].to_numpy().tolist() == ["z", "y", "x"]
    assert "energy" not in trace
    assert trace["energy_z"].dims == ("layer", "z")
    assert trace["energy_x"].sum("x").to_numpy() == pytest.approx(np.ones(6), rel=1e-5)


def test_a_causal_stack_reads_backwards_from_its_centre():
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Conv1d(1, 1, 2, dilation=2**level, bias=False).double() for level in range(4)
            )
            for layer in self.layers:
                nn.init.ones_(layer.weight)

        def forward(self, x: Tensor) -> Tensor:
            for level, layer in enumerate(self.layers):
                x = layer(functional.pad(x, (2**level, 0)))
            return x

    deep = last(QUICK(Subject(Causal(), [torch.zeros(3, 1, 40, dtype=torch.float64)])))
    assert deep["energy"].dims == ("timestep",)
    expected = np.zeros(40)
    expected[20 - 15 : 21] = 1 / 16
    np.testing.assert_allclose(deep["energy"], expected, rtol=1e-6)
    assert float(deep["sigma"][0] ** 2) == pytest.approx((16**2 - 1) / 12)


def test_energy_of_random_nets_is_smaller_by_the_root_of_two():
    """Of random kernels the energy, and not the amplitude, has the variance of uniform ones."""
    energy, amplitude = [], []
    for seed in range(12):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(10)]
        deep = last(QUICK(Subject(nn.Sequential(*layers), [torch.zeros(2, 8, 25, 25)])))
        energy.append(deep["sigma_energy"].to_numpy() ** 2)
        amplitude.append(deep["sigma"].to_numpy() ** 2)
    assert np.mean(energy) == pytest.approx(10 * 8 / 12, rel=0.1)
    assert np.mean(amplitude) / np.mean(energy) == pytest.approx(2, rel=0.15)


def trained_like(inplace: bool = True) -> nn.Sequential:
    """Small net with unequal statistics, ending in one channel, so that signs do not matter."""
    torch.manual_seed(5)
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.uniform_(norm.running_var, 0.3, 2)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5, 2, 2), norm, nn.ReLU(inplace), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace)),
        *(nn.Conv2d(6, 1, 3, padding=1), nn.ReLU(inplace)),
    ).double()


def test_captum_gives_the_same_map():
    model, x = trained_like(inplace=False).eval(), torch.randn(3, 3, 33, 37, dtype=torch.float64)
    attribute = NeuronGradient(model, model[6]).attribute
    maps = attribute(x.clone().requires_grad_(), (0, 4, 4)).detach().square().sum(1).numpy()
    deep = last(QUICK(Subject(model, [x])))
    np.testing.assert_allclose(deep["energy"], maps.sum(0) / maps.sum(), rtol=1e-5, atol=1e-12)
    assert float(deep["total_energy"]) == pytest.approx(maps.sum((1, 2)).mean())


def test_from_four_samples_on_each_counts_the_same():
    model, x = trained_like(inplace=False).eval(), torch.randn(5, 3, 33, 37, dtype=torch.float64)
    attribute = NeuronGradient(model, model[6]).attribute
    maps = attribute(x.clone().requires_grad_(), (0, 4, 4)).detach().square().sum(1).numpy()
    maps /= maps.sum((1, 2), keepdims=True)
    trace = QUICK(Subject(model, [x[:1], x[1:]]))
    np.testing.assert_allclose(last(trace)["energy"], maps.mean(0), rtol=1e-5, atol=1e-12)
    assert trace.attrs == {
        "samples": 5,
        "layers_total": 3,
        "layers_measured": 3,
        "sample_weights": "equal",
        "null_samples": 2,
        "null_kept": "",
        "null_absent": "",
        "recurrent": "",
        "global_statistics": "",
    }


def test_operations_in_place_after_the_convolution_do_not_matter():
    x = torch.randn(4, 3, 33, 37, dtype=torch.float64)
    plain, inplace = (QUICK(Subject(trained_like(each), [x])) for each in (False, True))
    xr.testing.assert_identical(plain, inplace)


def test_random_signs_measure_all_channels():
    """The expectation over signs is the squared norm of the Jacobian: exact for one tap."""
    model = nn.Conv1d(2, 5, 1, bias=False).double()
    expected = float(model.weight.detach().square().sum())
    x = torch.zeros(16, 2, 3, dtype=torch.float64)
    totals = [
        float(last(QUICK(Subject(model, [x], seed=seed)))["total_energy"]) for seed in range(40)
    ]
    assert np.mean(totals) == pytest.approx(expected, rel=0.05)


def test_the_field_lies_within_the_theoretical_one_and_on_its_centre():
    model = nn.Sequential(nn.Conv2d(2, 4, 5, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).double()
    trace = QUICK(Subject(model, [torch.randn(6, 2, 40, 43, dtype=torch.float64)]))
    rows, columns = np.nonzero(last(trace)["energy"].to_numpy())
    # Maps of 10 x 11, then of 12 x 13: the centre reads from 5 x 3 on, 11 rows and columns.
    assert (rows.min(), rows.max()) == (15, 25)
    assert (columns.min(), columns.max()) == (15, 25)
    assert last(trace)["theoretical"].to_numpy().tolist() == [11, 11]
    assert float(last(trace)["side50"]) <= 11


def test_a_larger_canvas_moves_the_field_and_leaves_its_size():
    model = uniform(6, 3)
    fields = [
        last(QUICK(Subject(model, [torch.zeros(1, 1, side, side).double()]))) for side in (21, 31)
    ]
    small, large = (field["energy"].to_numpy() for field in fields)
    np.testing.assert_allclose(small, large[5:-5, 5:-5], rtol=1e-6)
    assert float(fields[0]["side50"]) == float(fields[1]["side50"])


def test_intervals_shrink_with_the_samples():
    model = trained_like()
    x = torch.randn(64, 3, 33, 37, dtype=torch.float64)
    widths = []
    for count in (4, 16, 64):
        deep = last(EffectiveField(samples=count)(Subject(model, [x])))
        assert float(deep["diameter_low"]) < float(deep["diameter"]) < float(deep["diameter_high"])
        widths.append(float(deep["diameter_high"] - deep["diameter_low"]))
    assert widths[0] > 1.4 * widths[1] > 1.4 * 1.4 * widths[2]


def test_gradients_below_single_precision_are_measured():
    model = nn.Sequential(*(nn.Conv1d(1, 1, 3, padding=1, bias=False) for _ in range(4)))
    for layer in model:
        nn.init.constant_(layer.weight, 1e-8)
    deep = last(QUICK(Subject(model, [torch.zeros(2, 1, 15)])))
    assert float(deep["sigma"][0]) == pytest.approx(np.sqrt(4 * 8 / 12), rel=1e-5)
    assert float(deep["total_energy"]) == pytest.approx(1e-64 * 1107, rel=1e-5, abs=0)


def test_dead_units_have_no_field():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Conv1d(2, 1, 3))
    nn.init.constant_(model[0].bias, -100.0)
    trace = QUICK(Subject(model, [torch.rand(3, 1, 12)]))
    assert trace["live_samples"].to_numpy().tolist() == [3, 0]
    for name in ("diameter", "diameter_low", "side50", "luo_size", "total_energy"):
        assert np.isnan(trace[name].to_numpy()[1]), name
    assert np.isnan(last(trace)["sigma"].to_numpy()).all()
    assert trace.attrs["samples"] == 3


def test_integer_inputs_are_measured_at_the_embedding():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.conv = nn.Embedding(9, 3), nn.Conv1d(3, 2, 3, padding=1, bias=False)

        def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
            return self.conv(self.embed(tokens).transpose(1, 2)) * mask[:, None]

    model = Tokens()
    nn.init.ones_(model.conv.weight)
    batch = Batch((torch.randint(9, (4, 20)), torch.ones(4, 20)))
    deep = last(QUICK(Subject(model, [batch])))
    expected = np.zeros(20)
    expected[9:12] = 1 / 3
    np.testing.assert_allclose(deep["energy"], expected, rtol=1e-6)


def test_hybrids_are_measured_through_the_convolutions():
    class Hybrid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lstm = nn.Conv1d(1, 3, 5, bias=False), nn.LSTM(3, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(self.conv(x.transpose(1, 2)).transpose(1, 2))[0][:, -1]

    model = Hybrid()
    nn.init.ones_(model.conv.weight)
    trace = QUICK(Subject(model, [torch.rand(2, 21, 1)]))
    assert trace["layer"].to_numpy().tolist() == ["conv"]
    assert float(last(trace)["sigma"][0]) == pytest.approx(np.sqrt(2))
    assert trace.attrs["recurrent"] == "lstm"


def test_frames_folded_into_the_batch_are_measured_one_sample_at_a_time():
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
            nn.init.ones_(self.conv.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.transpose(0, 1).flatten(0, 1)[:, None])

    trace = QUICK(Subject(Frames(), [torch.rand(3, 5, 9, 8)]))
    assert trace["axis"].to_numpy().tolist() == ["y", "x"]
    assert last(trace)["sigma"].to_numpy() == pytest.approx([np.sqrt(8 / 12)] * 2)
    assert trace.attrs["samples"] == 3


class Shared(nn.Module):
    """One convolution, three times; another one on a pooled vector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv1d(1, 1, 3, padding=1, bias=False), nn.Conv1d(1, 1, 1)
        nn.init.ones_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.conv(x)
        return x * self.gate(x.mean(2, keepdim=True))


def test_every_call_of_a_shared_convolution_is_a_layer():
    trace = QUICK(Subject(Shared(), [torch.rand(2, 1, 15)]))
    assert trace["layer"].to_numpy().tolist() == ["conv", "conv#2", "conv#3"]
    assert trace["sigma"].to_numpy()[:, 0] ** 2 == pytest.approx([8 / 12, 16 / 12, 24 / 12])


def test_layers_of_deep_networks_are_chosen_evenly():
    subject = Subject(uniform(10, 3), [torch.zeros(1, 1, 9, 9, dtype=torch.float64)])
    trace = EffectiveField(max_layers=9, deep_layers=4, resamples=5)(subject)
    assert trace["layer"].to_numpy().tolist() == ["0", "3", "6", "9"]
    assert trace["number"].to_numpy().tolist() == [1, 4, 7, 10]
    assert (trace.attrs["layers_measured"], trace.attrs["layers_total"]) == (4, 10)
    assert EffectiveField(max_layers=10, deep_layers=4)(subject).sizes["layer"] == 10
    assert evenly([*"abc"], 1) == ["c"]
    assert evenly([*"abc"], 2) == ["a", "c"]
    assert evenly([*"abc"], 9) == ["a", "b", "c"]


def test_rounds_and_chunks_do_not_matter(monkeypatch):
    model = uniform(5, 3)
    measure = partial(EffectiveField, resamples=5, samples=6)
    subject = Subject(
        model, [torch.zeros(4, 1, 15, 15).double(), torch.zeros(4, 1, 15, 15).double()]
    )
    whole = measure()(subject)
    monkeypatch.setattr("probes.effective_field.BUDGET", 2 * 6 * 15 * 15)
    done = []
    parts = measure(chunk=1)(subject, lambda *progress: done.append(progress))
    xr.testing.assert_allclose(whole, parts, rtol=1e-6)
    assert done == [(count, 20) for count in range(1, 21)]
    assert whole.attrs["samples"] == 6


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"samples": 0}, "effective_field.samples is less than 1"),
        ({"deep_layers": 0}, "effective_field.deep_layers is less than 1"),
        ({"null_seeds": -1}, "effective_field.null_seeds is negative"),
    ],
)
def test_settings_out_of_bounds_are_errors(setting, message):
    with pytest.raises(AnalyzerError) as raised:
        EffectiveField(**setting)
    assert str(raised.value) == message


def test_samples_of_another_shape_are_left_out():
    batches = [torch.zeros(2, 1, 15), torch.zeros(3, 1, 14), torch.zeros(2, 1, 15)]
    trace = QUICK(Subject(nn.Conv1d(1, 1, 3), batches))
    assert trace.attrs["samples"] == 4


def test_functional_convolutions_are_not_applicable():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(1, 1, 3))

        def forward(self, x: Tensor) -> Tensor:
            return functional.conv1d(x, self.weight)

    with pytest.raises(NotApplicable) as raised:
        QUICK(Subject(Functional(), [torch.zeros(2, 1, 15)]))
    reason = "the model calls its convolutions as functions, not as modules"
    assert str(raised.value) == reason


def test_one_hot_integers_are_not_applicable():
    class Letters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.side, self.conv = nn.Embedding(3, 1), nn.Conv1d(4, 1, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            shift = self.side(torch.zeros(1, dtype=torch.long))
            return self.conv(functional.one_hot(tokens, 4).mT.float()) + shift

    with pytest.raises(NotApplicable) as raised:
        QUICK(Subject(Letters(), [torch.randint(4, (2, 15))]))
    reason = "the inputs are integers that reach the convolutions without an embedding"
    assert str(raised.value) == reason
