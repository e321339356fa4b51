from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from captum.attr import LayerGradientXActivation
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.gradient_flow import GradientFlow


def measured(model: nn.Module, batches: Any, loss: Any = None, **rest: Any) -> xr.Dataset:
    return GradientFlow()(Subject(model, batches, loss, **rest))


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


class Tangle(nn.Module):
    """In-place operations, a module used twice, tuples, dicts, a frozen layer, an unused one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)
        self.relu = nn.ReLU(inplace=True)
        self.shared = nn.Conv1d(4, 4, 1)
        self.split = Split()
        self.cut = nn.Linear(4, 3)
        self.head = nn.Linear(4, 3)
        self.drop = nn.Dropout(0.5)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.relu(self.norm(self.conv(x)))
        h = self.relu(self.shared(h))
        again = self.shared(h)
        again += h
        _, y = self.split(again)
        y = self.drop(y.mean(2))
        return {"aside": self.cut(y.detach()).sum(1), "logits": self.head(y)}


class Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = x.sin()
        return torch.ones(3), a * 2


def tangle() -> Tangle:
    model = Tangle().double()
    model.norm.running_mean = double(4)
    model.conv.weight.requires_grad_(False)
    return model


def reference(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Outputs and gradients of every module call for one sample, by clones that are kept."""
    model.eval()
    seen: dict[str, list[Tensor]] = {}
    values: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            parts = list(output) if isinstance(output, tuple) else [output]
            # An identity in between: its output may be overwritten, its input is kept.
            place = len(parts) - 1
            kept = parts[place].clone()
            kept.retain_grad()
            seen.setdefault(name, []).append(kept)
            values.setdefault(name, []).append(kept.detach().clone())
            parts[place] = kept.clone()
            return tuple(parts) if isinstance(output, tuple) else parts[0]

        return hook

    names = ("conv", "norm", "relu", "shared", "head", "drop")
    handles = [getattr(model, n).register_forward_hook(keep(n)) for n in names]
    x = x.clone().requires_grad_()
    functional.cross_entropy(model(x)["logits"], y).backward()
    for handle in handles:
        handle.remove()
    return {
        name: [(value, kept.grad) for value, kept in zip(values[name], seen[name], strict=True)]
        for name in names
    }


def test_every_layer_of_every_sample_agrees_with_a_loop_over_samples() -> None:
    model = tangle()
    x, y = double(5, 2, 6), torch.tensor([0, 2, 1, 1, 0])
    trace = measured(model, [(x[:2], y[:2]), (x[2:], y[2:])], "cross_entropy")
    assert [str(name) for name in trace["layer"].to_numpy()] == [
        "conv", "norm", "relu", "shared", "relu#2", "shared#2", "split", "drop", "cut", "head",
    ]  # fmt: skip
    for sample in range(5):
        expected = reference(tangle_like(model), x[sample : sample + 1], y[sample : sample + 1])
        for name, calls in expected.items():
            for index, (value, gradient) in enumerate(calls):
                label = f"{name}#{index + 1}" if index else name
                row = trace.sel(layer=label).isel(sample=sample)
                assert float(row["activation"]) == pytest.approx(rms(value), rel=1e-12)
                assert float(row["activation_gradient"]) == pytest.approx(rms(gradient), rel=1e-12)


def tangle_like(model: Tangle) -> Tangle:
    copy = Tangle().double()
    copy.load_state_dict(model.state_dict())
    return copy


def test_what_is_not_measured_is_named_and_nan() -> None:
    model = tangle()
    trace = measured(model, [(double(3, 2, 6), torch.tensor([0, 2, 1]))], "cross_entropy")
    assert trace.attrs["not_called"] == "unused"
    assert trace.attrs["without_gradient"] == "cut.weight, cut.bias, unused.weight, unused.bias"
    assert trace.attrs["objective"] == "cross_entropy, per sample"
    assert trace.attrs["aliases"] == ""
    cut, split = trace.sel(layer="cut"), trace.sel(layer="split")
    assert np.isnan(cut["activation_gradient"]).all()
    assert (cut["activation"] > 0).all()
    # The first tensor it returns is (3,): as long as the batch, but here no gradient reaches it.
    assert np.isnan(split["activation_gradient"]).all()
    silent = trace["parameter"].isin(["cut.weight", "cut.bias", "unused.weight", "unused.bias"])
    assert np.isnan(trace["parameter_gradient"]).to_numpy().tolist() == silent.to_numpy().tolist()
    assert list(trace["kind"].to_numpy()[:3]) == ["Conv1d", "BatchNorm1d", "ReLU"]
    assert list(trace["weighted"].to_numpy()[:3]) == [1, 1, 0]


def test_parameters_have_the_gradient_of_the_mean_loss_frozen_ones_too() -> None:
    model = tangle()
    x, y = double(5, 2, 6), torch.tensor([0, 2, 1, 1, 0])
    trace = measured(model, [(x[:2], y[:2]), (x[2:], y[2:])], "cross_entropy")
    again = tangle_like(model).eval()
    functional.cross_entropy(again(x)["logits"], y).backward()
    for name, weight in again.named_parameters():
        row = trace.sel(parameter=name)
        assert float(row["parameter_norm"]) == pytest.approx(float(weight.detach().norm()))
        if weight.grad is not None:
            assert float(row["parameter_gradient"]) == pytest.approx(float(weight.grad.norm()))
    assert not model.conv.weight.requires_grad


def test_captum_finds_the_same_gradients() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)).double()
    x, y = double(4, 1, 6, 6), torch.tensor([3, 0, 1, 1])
    trace = measured(model, [(x, y)], lambda out, t: out.gather(1, t[:, None])[:, 0])
    captum = LayerGradientXActivation(model, model[0], multiply_by_inputs=False)
    gradient = captum.attribute(x, target=y).flatten(1)
    expected = gradient.square().mean(1).sqrt().detach().numpy()
    assert trace["activation_gradient"].sel(layer="0").to_numpy() == pytest.approx(expected)


def test_in_a_linear_chain_gradients_are_products_of_weights() -> None:
    weights = [2.0, 0.5, -3.0, 0.1]
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in weights)).double()
    for layer, weight in zip(model, weights, strict=True):
        nn.init.constant_(layer.weight, weight)
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    trace = measured(model, [x], lambda out, _: out[:, 0])
    products = [0.5 * 3 * 0.1, 3 * 0.1, 0.1, 1]
    for sample in range(2):
        found = trace["activation_gradient"].isel(sample=sample).to_numpy()
        assert found == pytest.approx(products, rel=1e-12)
    assert trace["activation"].sel(layer="2").to_numpy() == pytest.approx([3, 9])
    total = 2 * 0.5 * 3 * 0.1
    assert trace["parameter_gradient"].to_numpy() == pytest.approx(
        [2 * total / abs(weight) for weight in weights]
    )


def test_vanishing_float32_gradients_are_measured_below_the_range_of_their_squares() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(8)))
    for layer in model:
        nn.init.constant_(layer.weight, 1e-4)
    trace = measured(model, [torch.full((2, 3), 1e30)], lambda out, _: out.sum(1))
    found = trace["activation_gradient"].isel(sample=1).to_numpy()
    assert found == pytest.approx([3e-4**k for k in range(7, -1, -1)], rel=1e-5, abs=0)
    assert found[0] < 1e-24


def test_infinite_and_undefined_values_are_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double()
    x = torch.tensor([[1.0, 2.0], [torch.inf, 0.0], [torch.nan, 1.0]], dtype=torch.float64)
    trace = measured(model, [x])
    finite = np.isfinite(trace["activation_gradient"]).all("layer").to_numpy()
    assert finite.tolist() == [True, False, False]
    assert np.isnan(trace["parameter_gradient"]).all()


def test_shared_parameters_are_named_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.out = nn.Linear(3, 5, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(self.embed(x))
            return y

    trace = measured(Tied().double(), [torch.randint(5, (3, 4))], "cross_entropy")
    assert list(trace["parameter"].to_numpy()) == ["embed.weight"]
    assert trace.attrs["aliases"] == "out.weight = embed.weight"
    assert list(trace["layer"].to_numpy()) == ["embed", "out"]
    assert trace.sizes["sample"] == 3


def test_layers_called_very_often_have_one_row() -> None:
    class Loop(nn.Module):
        def __init__(self, steps: int) -> None:
            super().__init__()
            self.step = nn.Linear(2, 2)
            self.steps = steps

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.steps):
                x = self.step(x)
            return x

    x = double(3, 2)
    torch.manual_seed(1)
    model = Loop(5).double()
    every = measured(model, [x])
    assert list(every["layer"].to_numpy()) == ["step", "step#2", "step#3", "step#4", "step#5"]
    together = GradientFlow(calls=4)(Subject(model, [x]))
    assert list(together["layer"].to_numpy()) == ["step"]
    for name in ("activation", "activation_gradient"):
        expected = np.sqrt((every[name] ** 2).mean("layer"))
        assert together[name].isel(layer=0).to_numpy() == pytest.approx(expected.to_numpy())


def test_what_runs_in_some_batches_only_is_nan_in_the_others() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.more = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.first(x)
            return self.more(y) if len(x) == 3 else y

    trace = measured(Sometimes().double(), [double(2, 2), double(3, 2)])
    assert np.isnan(trace["activation"].sel(layer="more")).to_numpy().tolist() == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert np.isfinite(trace["activation_gradient"].sel(layer="first")).all()
    assert trace.attrs["not_called"] == ""


def test_outputs_without_one_entry_per_sample_are_marked() -> None:
    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frame, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.frame(x.flatten(0, 1)).view(x.shape).mean(1))
            return y

    trace = measured(Merged().double(), [double(3, 5, 2)])
    assert trace["per_sample"].to_numpy().tolist() == [0, 1]
    assert np.isnan(trace["activation"].sel(layer="frame")).all()
    assert np.isfinite(trace["activation"].sel(layer="head")).all()


def test_time_first_models_are_measured_by_sample() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4)).double()
    x = double(5, 3, 2)
    first = measured(model, [x.transpose(0, 1)])
    second = measured(model, [x], batch_axis=1)
    assert np.array_equal(first["activation_gradient"], second["activation_gradient"]) or (
        first["activation_gradient"].to_numpy()
        == pytest.approx(second["activation_gradient"].to_numpy())
    )
    assert second.sizes["sample"] == 3


def test_recomputed_layers_are_counted_once() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(
                lambda v: self.second(self.first(v).relu()), x, use_reentrant=False
            )
            return y

    model = Checkpointed().double()
    x = double(3, 2)
    trace = measured(model, [x])
    assert list(trace["layer"].to_numpy()) == ["first", "second"]
    plain = nn.Sequential(model.first, nn.ReLU(), model.second)
    expected = measured(plain, [x])["activation_gradient"].sel(layer=["0", "2"])
    assert trace["activation_gradient"].to_numpy() == pytest.approx(expected.to_numpy())


def test_parametrized_layers_and_attention_are_layers() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = weight_norm(nn.Conv1d(2, 4, 1, bias=False))
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x).transpose(1, 2)
            y: Tensor = self.attention(h, h, h)[0]
            return y

    trace = measured(Model().double(), [double(3, 2, 5)])
    assert list(trace["layer"].to_numpy()) == ["conv", "attention"]
    assert list(trace["kind"].to_numpy()) == ["Conv1d", "MultiheadAttention"]
    assert trace["weighted"].to_numpy().tolist() == [1, 1]
    assert trace.attrs["not_called"] == ""
    assert np.isfinite(trace["activation_gradient"]).all()


def test_layers_before_the_first_weight_are_measured() -> None:
    model = nn.Sequential(nn.Tanh(), nn.Linear(2, 1)).double()
    trace = measured(model, [double(3, 2)], lambda out, _: out[:, 0])
    expected = float(model[1].weight.detach().square().mean().sqrt())
    assert trace["activation_gradient"].sel(layer="0").to_numpy() == pytest.approx([expected] * 3)


def test_a_single_layer_is_a_model() -> None:
    trace = measured(nn.Linear(2, 1).double(), [double(3, 2)])
    assert list(trace["layer"].to_numpy()) == ["(model)"]


def unrolled(model: nn.LSTM, x: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Hidden states of every layer and timestep, computed with cells."""
    states: list[list[Tensor]] = []
    inputs = list(x.unbind(1))
    for layer in range(model.num_layers):
        cell = nn.LSTMCell(inputs[0].shape[1], model.hidden_size).double()
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, kind).data = getattr(model, f"{kind}_l{layer}").data
        h = c = x.new_zeros(len(x), model.hidden_size)
        states.append([])
        for step in inputs:
            h, c = cell(step, (h, c))
            h.retain_grad()
            states[-1].append(h)
        inputs = states[-1]
    return inputs, states


def test_recurrent_layers_are_measured_at_their_states() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 3)
            self.lstm = nn.LSTM(3, 4, 2, batch_first=True)
            self.head = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.lstm(self.inner(x))[0][:, -1])
            return y

    model = Tagger().double()
    x = double(5, 7, 2)
    trace = measured(model, [x[:2], x[2:]], lambda out, _: out[:, 0].sin())
    assert list(trace["layer"].to_numpy()) == ["inner", "lstm.l0", "lstm.l1", "head"]
    assert list(trace["kind"].to_numpy()) == ["Linear", "LSTM", "LSTM", "Linear"]
    assert trace["weighted"].to_numpy().tolist() == [1, 1, 1, 1]
    last, states = unrolled(model.lstm, model.inner(x))
    loss = model.head(last[-1])[:, 0].sin()
    parameters = list(model.named_parameters())
    loss.sum().backward(retain_graph=True)
    for layer, steps in enumerate(states):
        row = trace.sel(layer=f"lstm.l{layer}")
        for name, values in (
            ("activation", steps),
            ("activation_gradient", [step.grad for step in steps]),
        ):
            stacked = torch.stack(values, 1).flatten(1).detach()
            expected = stacked.square().mean(1).sqrt().numpy()
            assert row[name].to_numpy() == pytest.approx(expected, rel=1e-10), name
    mean = model(x)[:, 0].sin().mean()
    gradients = torch.autograd.grad(mean, [weight for _, weight in parameters])
    expected = [float(gradient.norm()) for gradient in gradients]
    assert trace["parameter_gradient"].to_numpy() == pytest.approx(expected, rel=1e-10)


def test_packed_bidirectional_layers_are_averaged_over_their_own_timesteps() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(2, 3, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, False)
            y: Tensor = self.gru(packed)[1].transpose(0, 1).flatten(1)
            return y

    model = Packed().double()
    x, lengths = double(3, 6, 2), torch.tensor([2, 6, 4])
    together = measured(model, [Batch((x, lengths))])
    assert list(together["layer"].to_numpy()) == ["gru.l0", "gru.l0.reverse"]
    for sample, length in enumerate(lengths.tolist()):
        alone = measured(
            model, [Batch((x[sample : sample + 1, :length], lengths[sample : sample + 1]))]
        )
        for name in ("activation", "activation_gradient"):
            assert together[name].isel(sample=sample).to_numpy() == pytest.approx(
                alone[name].isel(sample=0).to_numpy()
            )


def test_cells_in_a_loop_are_one_recurrent_layer() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRUCell(2, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), 3)
            for step in x.unbind(1):
                h = self.cell(step, h)
            y: Tensor = self.head(h)
            return y

    trace = measured(Loop().double(), [double(3, 20, 2)])
    assert list(trace["layer"].to_numpy()) == ["cell.l0", "head"]
    assert (trace["activation_gradient"] > 0).all()
    assert (trace["activation"] > 0).all()


def test_unreached_recurrent_layers_are_nan() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.lstm(x)
            y: Tensor = self.head(x[:, -1])
            return y

    trace = measured(Cut().double(), [double(3, 5, 2)])
    assert np.isnan(trace["activation_gradient"].sel(layer="lstm.l0")).all()
    assert (trace["activation"].sel(layer="lstm.l0") > 0).all()
    assert trace.attrs["without_gradient"].startswith("lstm.weight_ih_l0, ")


def test_recurrent_layers_that_are_not_called_are_listed() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(x[:, -1])
            return y

    trace = measured(Idle().double(), [double(3, 5, 2)])
    assert trace["layer"].to_numpy().tolist() == ["head"]
    assert trace.attrs["not_called"] == "lstm"
    assert trace.attrs["without_gradient"].startswith("lstm.weight_ih_l0, ")


def test_a_loss_without_gradient_is_an_error() -> None:
    class Silent(nn.Linear):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    with pytest.raises(AnalyzerError) as caught:
        measured(Silent(2, 1), [torch.ones(1, 2)])
    assert str(caught.value) == (
        "the loss has no gradient: the model runs under torch.no_grad, or it or the loss detaches "
        "its result"
    )


def test_a_model_without_parameters_has_no_gradient_flow() -> None:
    with pytest.raises(NotApplicable) as caught:
        measured(nn.ReLU(), [torch.ones(1, 2)])
    assert str(caught.value) == "the model has no trainable parameters"


def test_sparse_gradients_are_measured() -> None:
    dense, sparse = nn.Embedding(5, 2), nn.Embedding(5, 2, sparse=True)
    sparse.load_state_dict(dense.state_dict())
    batches = [torch.tensor([[1, 2, 2]]), torch.tensor([[0, 4, 2]])]
    first, second = (measured(model, batches) for model in (dense, sparse))
    assert first["parameter_gradient"].to_numpy() == pytest.approx(
        second["parameter_gradient"].to_numpy()
    )
    assert first["parameter_gradient"] > 0


def test_progress_is_reported() -> None:
    seen: list[tuple[int, int]] = []
    subject = Subject(nn.Linear(2, 1), [torch.ones(1, 2)] * 3)
    GradientFlow()(subject, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


class Chain(nn.Module):
    """Convolutions and an in-place activation, in ways that a subclass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 3, stride=2)
        )
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x).mean((2, 3)))
        return y


def compiled_part(model: Chain) -> None:
    model.body = torch.compile(model.body, backend="aot_eager")


def compiled_in_place(model: Chain) -> None:
    model.body.compile(backend="aot_eager")


def parallel_part(model: Chain) -> None:
    model.body = nn.DataParallel(model.body)


def channels_last(model: Chain) -> None:
    model.to(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("change", [compiled_part, compiled_in_place, parallel_part, channels_last])
def test_however_a_part_of_a_model_is_run_its_layers_are_measured(change: Any) -> None:
    model = Chain().double()
    x, y = double(5, 2, 6, 7), torch.tensor([0, 3, 2, 1, 1])
    expected = measured(model, [(x, y)], "cross_entropy")
    change(model)
    if change is channels_last:
        x = x.to(memory_format=torch.channels_last)
    # Compiled before it is measured: what is compiled by then sees no hook set later.
    functional.cross_entropy(model(x), y).backward()
    found = measured(model, [(x, y)], "cross_entropy")
    assert found.attrs["not_called"] == ""
    assert found.sizes == expected.sizes
    for name, values in expected.data_vars.items():
        np.testing.assert_allclose(found[name].to_numpy(), values.to_numpy(), rtol=1e-12)


class Functional(Chain):
    """Uses the weights of a layer without calling it."""

    def forward(self, x: Tensor) -> Tensor:
        first, relu, last = self.body
        h = last(relu(functional.conv2d(x, first.weight, first.bias, padding=1)))
        return functional.linear(h.mean((2, 3)), self.head.weight, self.head.bias)


def test_layers_whose_weights_are_used_without_calling_them_are_not_idle() -> None:
    model = Chain().double()
    x, y = double(5, 2, 6, 7), torch.tensor([0, 3, 2, 1, 1])
    expected = measured(model, [(x, y)], "cross_entropy")
    model.__class__ = Functional
    found = measured(model, [(x, y)], "cross_entropy")
    assert found["layer"].to_numpy().tolist() == ["body.1", "body.2"]
    assert found.attrs["not_called"] == ""
    assert found.attrs["not_observed"] == "body.0, head"
    for name in ("parameter_gradient", "parameter_gradient_per_sample"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)
    for name in ("activation_gradient", "gain"):
        same = expected[name].sel(layer=found["layer"])
        np.testing.assert_allclose(found[name], same, rtol=1e-12)


def test_the_gain_is_that_of_the_layer_alone() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 2, 3, padding=1)
            self.same = nn.Linear(6, 6)
            self.table = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            h = h + self.same(h).sin() * self.table
            y: Tensor = self.same(h)
            return y.tanh().sum((1, 2))

    model = Skip().double()
    x = double(4, 2, 6)
    trace = measured(model, [x], lambda out, _: out)
    for sample in range(4):
        leaves = []

        def keep(_module: nn.Module, args: Any, seen: list[Tensor] = leaves) -> Any:
            # A copy of the input, which only this layer reads.
            seen.append(args[0].clone())
            seen[-1].retain_grad()
            return seen[-1]

        def kept(_module: nn.Module, _args: Any, out: Tensor, seen: list[Tensor] = leaves) -> None:
            seen.append(out)
            out.retain_grad()

        handles = [part.register_forward_pre_hook(keep) for part in (model.conv, model.same)]
        handles += [part.register_forward_hook(kept) for part in (model.conv, model.same)]
        model(x[sample : sample + 1].clone().requires_grad_()).sum().backward()
        for handle in handles:
            handle.remove()
        before, after = ([float(v.grad.norm()) for v in leaves[i::2]] for i in (0, 1))
        row = trace["gain"].isel(sample=sample)
        expected = [a / b for a, b in zip(before, after, strict=True)]
        assert row.to_numpy() == pytest.approx(expected, rel=1e-12)
    assert trace["layer"].to_numpy().tolist() == ["conv", "same", "same#2"]


def test_layers_without_weights_have_no_gain() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    gain = measured(model, [double(3, 2)])["gain"]
    assert np.isnan(gain.sel(layer="1")).all()
    assert np.isfinite(gain.sel(layer=["0", "2"])).all()


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e20])
def test_values_beyond_the_range_of_their_squares_are_measured(scale: float) -> None:
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    x = torch.tensor([[1.0, -3.0], [0.0, 0.0], [0.5, 2.0]])
    trace = measured(model, [x * scale], lambda out, _: out.sum(1) * scale)
    expected = x.double().square().mean(1).sqrt().numpy()
    assert trace["activation"].sel(layer="0").to_numpy() / scale == pytest.approx(expected)
    gradient = float(model[1].weight.detach().double().sum(0).square().mean().sqrt())
    assert trace["activation_gradient"].sel(layer="0").to_numpy() / scale == pytest.approx(
        [gradient] * 3
    )
