"""Norms of every sample's parameter gradients against autograd on one sample at a time."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from probes.base import Subject
from probes.errors import AnalyzerError
from probes.gradient_flow import GradientFlow
from probes.weight_gradient.interception import ApartError, SampleGradients, differentiate
from probes.weight_gradient.ledger import Ledger


class Residual(nn.Module):
    """A block with in-place ReLU and in-place addition."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, 1, 1)
        self.norm2 = nn.BatchNorm2d(6)
        self.short = nn.Conv2d(channels, 6, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        h += self.short(x)
        y: Tensor = self.relu(h)
        return y


class Repeated(nn.Module):
    """A block that is used three times, and a head shared with it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 1)
        self.block = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for _ in range(3):
            h = h + self.relu(self.norm(self.block(h)))
        y: Tensor = self.head(self.head(h.mean((2, 3))).tanh())
        return y


class Tokens(nn.Module):
    """Embedding with padding, layer norm, positions, and an output tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4, padding_idx=2)
        self.norm = nn.LayerNorm(4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 9, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.norm(self.embed(tokens)).tanh()
        y: Tensor = self.out(h + self.mix(h)).mean(1)
        return y


class Tied(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.out.weight = self.embed.weight


class Recomputed(nn.Module):
    """Layers of one size, so that nothing but their values tells them apart."""

    def __init__(self, check: str = "default") -> None:
        super().__init__()
        self.check = check
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        def part(v: Tensor) -> Tensor:
            h = self.second(self.first(v).relu()).sigmoid().transpose(1, 2)
            y: Tensor = self.norm(self.conv(h)).tanh()
            return y

        h = checkpoint(part, x, use_reentrant=False, determinism_check=self.check)
        y: Tensor = self.head(h.mean(2))
        return y


class Recurrent(nn.Module):
    def __init__(self, make: Callable[..., nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.mix = nn.Linear(2, 3)
        self.rnn = make(3, 4, 2, batch_first=True, bidirectional=True, **options)
        self.head = nn.Linear(2 * options.get("proj_size", 4), 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(self.mix(x))[0][:, 2])
        return y


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 4)
        for step in x.unbind(1):
            h = self.cell(step, h)
        y: Tensor = self.head(h)
        return y


class Twice(nn.Module):
    """A recurrent layer that reads two sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        ends = [self.rnn(part)[1][0][-1] for part in (x, x[:, :3] * 2)]
        y: Tensor = self.head(torch.cat(ends, 1))
        return y


def flat(*layers: nn.Module, outputs: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(outputs))


def images(**_: Any) -> nn.Module:
    stem = nn.Conv2d(2, 4, 3, padding=1)
    return flat(stem, Residual(4), Residual(6, 2), nn.AdaptiveAvgPool2d(1), outputs=3)


def lateral() -> nn.Module:
    return flat(
        nn.Conv2d(2, 6, 3, groups=2, padding="same"),
        nn.Conv2d(6, 6, (3, 2), groups=6, padding="same", dilation=(2, 1)),
        nn.Conv2d(6, 6, (1, 2), padding="valid"),
        nn.SiLU(),
        nn.Conv2d(6, 4, 3, stride=2, dilation=2, padding=(1, 2), padding_mode="circular"),
        nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.ConvTranspose2d(4, 2, (2, 3), stride=(1, 3), dilation=(2, 1)),
        outputs=3,
    )


def signals() -> nn.Module:
    return flat(
        nn.Conv1d(2, 4, 3, padding=2, dilation=2), nn.GroupNorm(2, 4), nn.Tanh(),
        nn.ConvTranspose1d(4, 3, 4, stride=2), nn.InstanceNorm1d(3, affine=True),
        nn.Conv1d(3, 5, 1), nn.InstanceNorm1d(5, affine=True, track_running_stats=True),
        outputs=3,
    )  # fmt: skip


def volumes() -> nn.Module:
    return flat(
        nn.Conv3d(2, 3, 3, stride=(1, 2, 1)), nn.BatchNorm3d(3), nn.ReLU(),
        nn.Conv3d(3, 2, (1, 2, 2)), nn.ConvTranspose3d(2, 2, 2), outputs=3,
    )  # fmt: skip


def many_positions() -> nn.Module:
    return flat(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), outputs=3)


def no_positions() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (images, (2, 9, 8)),
    "repeated": (Repeated, (2, 5, 4)),
    "lateral": (lateral, (2, 9, 8)),
    "signals": (signals, (2, 11)),
    "volumes": (volumes, (2, 4, 6, 5)),
    "many positions": (many_positions, (9, 2)),
    "few positions": (lambda: flat(nn.Linear(20, 30), nn.Tanh(), outputs=3), (2, 20)),
    "no positions": (no_positions, (4,)),
    "one feature": (lambda: flat(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1), outputs=3), (4, 1)),
    "tokens": (Tokens, (7,)),
    "tied": (Tied, (7,)),
    "recomputed": (Recomputed, (5, 4)),
    "recomputed unchecked": (lambda: Recomputed("none"), (5, 4)),
    "lstm": (lambda: Recurrent(nn.LSTM), (6, 2)),
    "projected": (lambda: Recurrent(nn.LSTM, proj_size=3), (6, 2)),
    "gru": (lambda: Recurrent(nn.GRU), (6, 2)),
    "elman": (lambda: Recurrent(nn.RNN), (6, 2)),
    "cells": (Cells, (6, 2)),
    "twice": (Twice, (6, 2)),
}  # fmt: skip
SAMPLES = 5


def prepared(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in double precision whose statistics, samples and targets are unequal."""
    make, shape = ZOO[name]
    tokens = name in ("tokens", "tied")
    size = (SAMPLES, *shape)
    x = torch.randint(9, size) if tokens else torch.randn(size, dtype=torch.float64)
    model = make().double().eval()
    with torch.no_grad():
        model(x)
        for norm in model.modules():
            if getattr(norm, "running_mean", None) is not None:
                norm.running_mean.normal_(std=0.2)
                norm.running_var.uniform_(0.5, 2)
            if isinstance(norm, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
                norm.weight.normal_()
    if not tokens:
        x *= torch.arange(1, SAMPLES + 1).reshape(-1, *(1,) * len(shape)) / 3
    return model, x, torch.tensor([0, 2, 1, 1, 0])


def one_by_one(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    names, weights = zip(*model.named_parameters(), strict=True)
    norms = []
    for sample in range(len(x)):
        output = model(x[sample : sample + 1])
        loss = functional.cross_entropy(output, y[sample : sample + 1])
        gradients = torch.autograd.grad(loss, weights)
        norms.append([float(gradient.norm()) for gradient in gradients])
    return dict(zip(names, np.array(norms).T, strict=True))


def measured(
    model: nn.Module, batches: Any, loss: Any = "cross_entropy", **rest: Any
) -> xr.Dataset:
    return GradientFlow()(Subject(model, batches, loss, **rest))


def norms(trace: xr.Dataset, name: str) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = (
        trace["parameter_gradient_per_sample"].sel(parameter=name).to_numpy()
    )
    return values


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("name", ZOO)
def test_norms_are_those_of_one_sample_at_a_time(name: str) -> None:
    model, x, y = prepared(name)
    expected = one_by_one(model, x, y)
    trace = measured(model, [(x[:2], y[:2]), (x[2:], y[2:])])
    assert set(trace["not_per_sample"].to_numpy()) == {""}
    for parameter, values in expected.items():
        assert np.ptp(values) > 0
        assert norms(trace, parameter) == pytest.approx(values, rel=1e-12), parameter


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("name", ZOO)
def test_the_sums_over_samples_are_autograds(name: str) -> None:
    model, x, y = prepared(name)
    names, weights = zip(*model.named_parameters(), strict=True)
    loss = functional.cross_entropy(model(x), y)
    expected = [float(gradient.norm()) for gradient in torch.autograd.grad(loss, weights)]
    trace = measured(model, [(x[:3], y[:3]), (x[3:], y[3:])])
    assert list(trace["parameter"].to_numpy()) == list(names)
    assert trace["parameter_gradient"].to_numpy() == pytest.approx(expected, rel=1e-11)


def test_vmap_finds_the_same_norms() -> None:
    model, x, y = prepared("residual")
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = functional_call(model, weights, (x.unsqueeze(0),))
        return functional.cross_entropy(output, y.unsqueeze(0))

    # The model works in place, which vmap cannot map over unbatched values: it is told not to.
    model.apply(lambda part: setattr(part, "inplace", False))
    gradients = vmap(grad(loss), (None, 0, 0))(weights, x, y)
    trace = measured(model, [(x, y)])
    for name, values in gradients.items():
        expected = values.flatten(1).norm(dim=1).numpy()
        assert norms(trace, name) == pytest.approx(expected, rel=1e-12), name


def test_memory_layout_does_not_matter() -> None:
    model, x, y = prepared("residual")
    expected = one_by_one(model, x, y)
    model.to(memory_format=torch.channels_last)
    trace = measured(model, [(x.to(memory_format=torch.channels_last), y)])
    for name, values in expected.items():
        assert norms(trace, name) == pytest.approx(values, rel=1e-12), name


def test_frozen_parameters_are_measured_and_stay_frozen() -> None:
    model, x, y = prepared("residual")
    expected = one_by_one(model, x, y)
    model.requires_grad_(False)
    trace = measured(model, [(x, y)])
    for name, values in expected.items():
        assert norms(trace, name) == pytest.approx(values, rel=1e-12), name
    assert not any(weight.requires_grad for weight in model.parameters())


def test_time_first_models_are_taken_apart_along_their_batch_axis() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = torch.randn(7, SAMPLES, 4, dtype=torch.float64)
    first = measured(model, [x], None, batch_axis=1)
    second = measured(model, [x.transpose(0, 1)], None)
    for name in first["parameter"].to_numpy():
        assert norms(first, name) == pytest.approx(norms(second, name), rel=1e-12)
        assert np.ptp(norms(first, name)) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_squared_in_single(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(40, 2), nn.Flatten()).to(dtype)
    x = (torch.randn(SAMPLES, 40) * 1e-4).to(dtype)
    trace = measured(model, [x], lambda out, _: out.sum(1))
    # The gradient of each row of the weight is the input itself, which nothing rounds.
    expected = 2**0.5 * x.double().norm(dim=1).numpy()
    assert norms(trace, "0.weight") == pytest.approx(expected, rel=1e-6)
    assert norms(trace, "0.bias") == pytest.approx([2**0.5] * SAMPLES, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e18])
def test_norms_are_measured_beyond_the_range_of_their_squares(scale: float) -> None:
    layers = [nn.Conv1d(1, 2, 3, padding=1), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(12, 3)]
    model = nn.Sequential(*layers).eval()
    x = torch.randn(SAMPLES, 1, 6) * torch.arange(SAMPLES).reshape(-1, 1, 1)

    def loss(power: float) -> Any:
        # The sample whose input is zero has no gradient at the first weight.
        return lambda output, _: (output.square().mean(1)) * power

    small = measured(model, [x], loss(1))
    scaled = measured(model, [x], loss(scale))
    for name in small["parameter"].to_numpy():
        assert norms(scaled, name) / scale == pytest.approx(norms(small, name), rel=1e-5)
    assert norms(scaled, "0.weight")[0] == 0
    assert (norms(scaled, "0.weight")[1:] > 0).all()


def reasons(model: nn.Module, batches: Any, loss: Any = None) -> dict[str, str]:
    trace = measured(model, batches, loss)
    found = {
        str(name): str(reason)
        for name, reason in zip(
            trace["parameter"].to_numpy(), trace["not_per_sample"].to_numpy(), strict=True
        )
    }
    for name, reason in found.items():
        assert np.isnan(norms(trace, name)).all() == bool(reason)
    return {name: reason for name, reason in found.items() if reason}


ELSEWHERE = "reaches the loss through operations that are not taken apart by sample"


def test_parameters_of_unknown_operations_have_no_norms() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([2.0]))
            self.linear = nn.Linear(2, 2)
            self.both = nn.Linear(2, 2)
            self.cut = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.both(self.linear(x) * self.scale)
            self.cut(h)
            return h @ self.both.weight

    x = torch.randn(3, 2)
    assert reasons(Scaled(), [x]) == {
        "scale": ELSEWHERE,
        "both.weight": ELSEWHERE,
        "cut.weight": "no gradient reaches it",
        "cut.bias": "no gradient reaches it",
    }
    trace = measured(Scaled(), [x], None)
    assert (trace["parameter_gradient"].sel(parameter=["scale", "both.weight"]) > 0).all()


def test_a_computed_weight_has_no_norms_but_its_bias_has() -> None:
    model = nn.Sequential(weight_norm(nn.Conv1d(2, 3, 2)), nn.Tanh(), nn.Conv1d(3, 2, 2)).double()
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    weight = "0.parametrizations.weight.original"
    assert reasons(model, [x]) == {f"{weight}0": ELSEWHERE, f"{weight}1": ELSEWHERE}
    trace = measured(model, [x], lambda out, _: out.square().mean((1, 2)))
    names, weights = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(model(x).square().mean((1, 2)).mean(), weights)
    for name, gradient in zip(names, gradients, strict=True):
        row = trace.sel(parameter=name)
        assert float(row["parameter_gradient"]) == pytest.approx(float(gradient.norm()), rel=1e-12)


def test_inputs_without_an_axis_of_samples_are_named() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Embedding(4, 2)
            self.frame = nn.Conv2d(1, 2, 3)
            self.head = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.frame(x.flatten(0, 1)).mean((2, 3)).view(*x.shape[:2], 2)
            y: Tensor = self.head(h + self.place(torch.arange(x.shape[1]))).mean(1)
            return y

    shape = "which has no axis of 3 samples"
    assert reasons(Frames(), [torch.randn(3, 4, 1, 5, 5)]) == {
        "place.weight": f"it is applied to 4, {shape}",
        "frame.weight": f"it is applied to 12x1x5x5, {shape}",
        "frame.bias": f"it is applied to 12x1x5x5, {shape}",
    }


def test_samples_that_are_handled_alone_are_named() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(3, 2, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.conv(sample).sum() for sample in x])

    single = {"conv.weight": "it is applied to a sample without a batch axis"}
    assert reasons(Alone(), [torch.randn(3, 3, 4)]) == single


class Training(nn.BatchNorm1d):
    """Normalizes with statistics of the batch even when it is evaluated."""

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        return functional.batch_norm(x, mean, variance, self.weight, self.bias, training=True)


@pytest.mark.parametrize("norm", [Training(2), nn.BatchNorm1d(2, track_running_stats=False)])
def test_statistics_of_the_batch_are_named(norm: nn.Module) -> None:
    model = nn.Sequential(norm, nn.Linear(2, 1))
    batch = "it normalizes with statistics of the batch"
    assert reasons(model, [torch.randn(3, 2)]) == {"0.weight": batch, "0.bias": batch}


def test_gradients_scaled_by_frequency_are_named() -> None:
    model = nn.Embedding(5, 2, scale_grad_by_freq=True)
    scaled = "its gradient is divided by how often a row occurs in the batch"
    assert reasons(model, [torch.tensor([[1, 2], [2, 2]])]) == {"weight": scaled}


def test_wide_output_padding_is_named() -> None:
    model = nn.ConvTranspose1d(2, 2, 2, dilation=3, output_padding=2)
    wide = "its output padding is not smaller than its stride"
    assert reasons(model, [torch.randn(3, 2, 4)]) == {"weight": wide, "bias": wide}


def test_autocast_is_named() -> None:
    class Cast(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x).float()

    cast = {"weight": "it runs under autocast", "bias": "it runs under autocast"}
    assert reasons(Cast(2, 2), [torch.randn(3, 2)]) == cast


class Force(nn.Module):
    """Outputs the derivative of its own energy, as force fields do."""

    def __init__(self, graph: bool) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        (force,) = torch.autograd.grad(self.energy(x).sum(), [x], create_graph=self.graph)
        return force if self.graph else self.energy(x) + force.sum(1, keepdim=True)


@pytest.mark.parametrize("graph", [True, False])
def test_models_that_differentiate_while_they_run_are_named(graph: bool) -> None:
    model = Force(graph).double()
    x = torch.randn(3, 2, dtype=torch.float64)
    found = reasons(model, [x[:2], x[2:]])
    assert set(found.values()) <= {
        "the model or the loss differentiates by itself",
        "no gradient reaches it",
    }
    assert len(found) == 4
    trace = measured(model, [x[:2], x[2:]], lambda out, _: out.square().sum(1))
    loss = model(x.requires_grad_()).square().sum(1).mean()
    gradient = torch.autograd.grad(loss, model.energy[0].weight)[0]
    assert float(trace["parameter_gradient"][0]) == pytest.approx(float(gradient.norm()))


@pytest.mark.parametrize("graph", [True, False])
def test_losses_that_differentiate_are_named(graph: bool) -> None:
    class Bent(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    model = Bent(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(3, 2, dtype=torch.float64)

    def loss(outputs: tuple[Tensor, Tensor], _: object) -> Tensor:
        (slope,) = torch.autograd.grad(
            outputs[0].sum(), outputs[1], create_graph=graph, retain_graph=True
        )
        return outputs[0].square().sum(1) + slope.square().sum(1)

    assert reasons(model, [x], loss) == dict.fromkeys(
        ["0.weight", "0.bias", "2.weight", "2.bias"],
        "the model or the loss differentiates by itself",
    )
    trace = measured(model, [x], loss)
    mean = loss(model(x.requires_grad_()), None).mean()
    gradient = torch.autograd.grad(mean, model[0].weight)[0]
    assert float(trace["parameter_gradient"][0]) == pytest.approx(float(gradient.norm()))


@pytest.mark.parametrize("name", ["recomputed", "recomputed unchecked"])
def test_layers_recomputed_without_being_caught_are_refused(name: str) -> None:
    model, x, y = prepared(name)
    parameters = dict(model.named_parameters())
    ledger = Ledger(parameters, SAMPLES)
    with SampleGradients(ledger, 0):
        output = model(x)
    ledger.forward = False
    loss = functional.cross_entropy(output, y)
    with pytest.raises(ApartError) as caught:
        differentiate(loss, [*parameters.values(), ledger.anchor], nullcontext())
    assert str(caught.value) == (
        "the model recomputes its layers in the backward pass, in another way"
    )


def test_shared_parameters_beyond_the_limit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = prepared("repeated")
    monkeypatch.setattr("probes.weight_gradient.ledger.SHARED", 5 * 81 * 8 + 5 * 3 * 8)
    reason = "it is used 3 times, and its gradient for every sample would take 0 MiB"
    assert reasons(model, [(x, y)], "cross_entropy") == {"block.weight": reason}
    limited = measured(model, [(x, y)])["parameter_gradient"].to_numpy()
    monkeypatch.undo()
    whole = measured(model, [(x, y)])["parameter_gradient"].to_numpy()
    assert limited == pytest.approx(whole, rel=1e-12)


def test_what_is_recomputed_is_not_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = prepared("recomputed")
    monkeypatch.setattr("probes.weight_gradient.ledger.SHARED", 0)
    assert reasons(model, [(x, y)], "cross_entropy") == {}


def test_reentrant_checkpoints_are_refused() -> None:
    class Reentrant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(self.layer, x, use_reentrant=True)
            return y

    with pytest.raises(AnalyzerError) as caught:
        measured(Reentrant(), [torch.randn(3, 2)], None)
    assert str(caught.value) == (
        "the model checkpoints activations with use_reentrant=True, which computes no gradients "
        "of single tensors: use use_reentrant=False, or no checkpointing"
    )


def test_a_parameter_unused_in_one_batch_has_no_gradient_there() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.more = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.first(x)
            return self.more(y) if len(x) == 3 else y

    trace = measured(Sometimes(), [torch.randn(2, 2), torch.randn(3, 2)], None)
    assert (norms(trace, "more.weight") > 0).tolist() == [False, False, True, True, True]
    assert (norms(trace, "first.weight") > 0).all()


class Largest(TorchDispatchMode):
    """Watches the size of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        inputs = {leaf.untyped_storage().data_ptr() for leaf in leaves(args)}
        for leaf in leaves(made):
            if leaf.untyped_storage().data_ptr() not in inputs:
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return made


def leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


WIDE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "folded": (lambda: nn.Conv2d(96, 96, 3), lambda: torch.randn(48, 96, 12, 12)),
    "gram": (lambda: nn.Conv2d(256, 256, 3), lambda: torch.randn(24, 256, 5, 5)),
    "linear": (lambda: nn.Linear(512, 512), lambda: torch.randn(48, 64, 512)),
    "embedding": (lambda: nn.Embedding(5000, 64), lambda: torch.randint(5000, (48, 8))),
    "recurrent": (
        lambda: nn.Sequential(nn.LSTM(64, 128, batch_first=True), First(), nn.Linear(128, 1)),
        lambda: torch.randn(48, 20, 64),
    ),
}


class First(nn.Module):
    def forward(self, outputs: tuple[Tensor, ...]) -> Tensor:
        return outputs[0][:, -1]


@pytest.mark.parametrize("name", WIDE)
def test_the_gradients_of_all_samples_are_never_there_at_once(name: str) -> None:
    model, x = (make() for make in WIDE[name])
    with torch.no_grad():
        output = leaves(model(x))[0]
    weights = max(weight.nbytes for weight in model.parameters())
    # Gates of all timesteps are what a recurrent layer has anyway.
    own = max(x.nbytes, output.nbytes, 20 * 48 * 512 * 4 if name == "recurrent" else 0)
    with Largest() as largest:
        measured(model, [x], None)
    # A copy in double precision, of what is small, is allowed for.
    bound = max(2**21, 2 * weights, 2 * own)
    assert weights * len(x) > 2 * bound
    assert largest.bytes <= bound


def test_sparse_tables_are_measured() -> None:
    dense, sparse = nn.Embedding(5, 2), nn.Embedding(5, 2, sparse=True, max_norm=1.0)
    sparse.load_state_dict(dense.state_dict())
    dense.weight.data.renorm_(2, 0, 1.0)
    batch = torch.tensor([[1, 2, 2], [0, 0, 0]])
    expected = norms(measured(dense, [batch], None), "weight")
    assert norms(measured(sparse, [batch], None), "weight") == pytest.approx(expected, rel=1e-5)
    assert np.ptp(expected) > 0
