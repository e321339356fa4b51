"""Conductance where it is known, and against captum where it is not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from captum.attr import LayerConductance as CaptumConductance
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from probes.base import Subject
from probes.decision.flow import carriers
from probes.errors import AnalyzerError, NotApplicable
from probes.layer_conductance import LayerConductance


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def measured(
    model: nn.Module, batches: Any, loss: Any = "cross_entropy", settings: Any = None, **rest: Any
) -> xr.Dataset:
    probe = LayerConductance(**{"steps": 60} | (settings or {}))
    return probe(Subject(model.double(), batches, loss, **rest))


def shares(trace: xr.Dataset) -> dict[str, np.ndarray]:
    ratio = trace["conductance"] / trace["difference"]
    return {str(name): ratio.sel(layer=name).to_numpy() for name in trace["layer"].to_numpy()}


def whole(trace: xr.Dataset, layers: Sequence[str], tolerance: float = 1e-3) -> None:
    """All of every decision flows through each of the layers."""
    found = shares(trace)
    assert list(found) == [*layers]
    for values in found.values():
        assert values == pytest.approx(np.ones(len(values)), abs=tolerance)


class Residual(nn.Module):
    """A branch of two convolutions, overwritten in place, and a skip connection around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.relu(self.stem(x))
        y = stem + torch.tanh(self.second(self.relu(self.norm(self.first(stem)))))
        logits: Tensor = self.head(self.relu(y).mean((2, 3)))
        return logits


@pytest.mark.parametrize("weights", [(3.0, 1.0), (1.0, -0.25), (0.0, 2.0)])
def test_two_linear_branches_share_the_decision_by_their_weights(
    weights: tuple[float, float],
) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(1, 1, bias=False)
            self.other = nn.Linear(1, 1, bias=False)
            self.one.weight.data.fill_(weights[0])
            self.other.weight.data.fill_(weights[1])

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.one(x) + self.other(x)
            return y

    trace = measured(Branches(), [double(6, 1)], None, {"steps": 2})
    found = shares(trace)
    assert found["one"] == pytest.approx(np.full(6, weights[0] / sum(weights)))
    assert found["other"] == pytest.approx(np.full(6, weights[1] / sum(weights)))
    assert trace["conductance"].to_numpy() == pytest.approx(trace["coarse"].to_numpy())


def test_all_of_the_decision_flows_through_a_chain() -> None:
    model = nn.Sequential(
        nn.Linear(5, 7), nn.Softplus(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)
    )
    trace = measured(model, [double(4, 5), double(3, 5)])
    whole(trace, ["0", "2", "4"], 1e-4)
    assert abs(trace["delta"] / trace["difference"]).max() < 1e-3
    assert trace["kind"].to_numpy().tolist() == ["Linear"] * 3
    assert trace["channels"].to_numpy().tolist() == [7, 6, 3]
    assert trace.attrs["decision"] == "log-odds of the model's own most probable class"


def test_branch_and_skip_connection_share_the_decision_as_captum_says() -> None:
    model, x = Residual().double().eval(), double(3, 1, 6, 6)
    trace = measured(model, [x], settings={"steps": 200})
    choice = model(x).argmax(1)
    start = x.mean().expand_as(x).contiguous()

    def score(at: Tensor) -> Tensor:
        logits = model(at)
        odds = logits.softmax(1).gather(1, choice.repeat(len(at) // 3)[:, None])[:, 0]
        return (odds / (1 - odds)).log()

    scale = 5e-3 * float(abs(trace["difference"]).max())
    for name in ("stem", "first", "second", "head"):
        conductance = CaptumConductance(score, model.get_submodule(name))
        found = conductance.attribute(x, start, n_steps=800, method="riemann_left")
        expected = found.flatten(1).sum(1).detach().numpy()
        ours = trace["conductance"].sel(layer=name).to_numpy()
        assert ours == pytest.approx(expected, abs=scale), name
    found_shares = shares(trace)
    assert found_shares["first"] == pytest.approx(found_shares["second"], abs=5e-3)
    assert abs(found_shares["first"] - 1).min() > 0.05
    assert found_shares["head"] == pytest.approx(np.ones(3), abs=1e-3)


def test_the_error_falls_with_the_square_of_the_steps() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    x = 2 * double(4, 5)
    missed = []
    for steps in (8, 16, 32):
        trace = measured(model, [x], settings={"steps": steps})
        error = (trace["conductance"] - trace["difference"]).sel(layer="0")
        missed.append(float(abs(error).sum()))
        coarse = (trace["coarse"] - trace["difference"]).sel(layer="0")
        missed.append(float(abs(coarse).sum()))
    assert missed[0] == pytest.approx(missed[3])
    assert missed[2] == pytest.approx(missed[5])
    assert missed[0] / missed[2] == pytest.approx(4, rel=0.25)
    assert missed[2] / missed[4] == pytest.approx(4, rel=0.25)


class Recurrent(nn.Module):
    """Reads both the outputs and the last states of a recurrent module, in any layout."""

    def __init__(self, kind: type[nn.RNNBase], batch_first: bool) -> None:
        super().__init__()
        self.rnn = kind(2, 3, num_layers=2, batch_first=batch_first, bidirectional=True)  # type: ignore[call-arg]
        self.head = nn.Linear(6, 3)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.rnn(x if self.batch_first else x.transpose(0, 1))
        hidden = last[0] if isinstance(last, tuple) else last
        cell = last[1] if isinstance(last, tuple) else last
        mean = states.mean(1 if self.batch_first else 0)
        logits: Tensor = self.head(mean + torch.cat([hidden[-1], cell[0]], 1))
        return logits


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [True, False])
def test_everything_that_a_recurrent_layer_returns_counts(
    kind: type[nn.RNNBase], batch_first: bool
) -> None:
    # As many samples as timesteps: sizes alone do not tell which is which.
    trace = measured(Recurrent(kind, batch_first), [double(6, 6, 2)], time_axis=1)
    found = shares(trace)
    assert list(found) == ["rnn.l0", "rnn.l1", "head"]
    for name in ("rnn.l0", "head"):
        assert found[name] == pytest.approx(np.ones(6), abs=1e-3)
    # A final state of the lower layer goes around the upper one.
    assert abs(found["rnn.l1"] - 1).max() > 0.05


class Stacked(nn.Module):
    """Recurrent layers in one module, or with the same weights in a module each."""

    def __init__(self, kind: type[nn.RNNBase], joined: bool, packing: bool, layers: int) -> None:
        super().__init__()
        self.rnn = kind(2, 3, layers, batch_first=True, bidirectional=True)  # type: ignore[call-arg]
        self.each = nn.ModuleList(
            kind(6 if layer else 2, 3, batch_first=True, bidirectional=True)  # type: ignore[call-arg]
            for layer in range(layers)
        )
        self.head = nn.Linear(6, 3)
        self.joined, self.packing = joined, packing

    def alike(self) -> None:
        """Copy the weights of the one module."""
        for layer, own in enumerate(self.each):
            for name, weight in own.named_parameters():
                weight.data.copy_(getattr(self.rnn, name.replace("l0", f"l{layer}")))

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([4, 7, 5])
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, lasts = packed if self.packing else x, []
        for module in [self.rnn] if self.joined else self.each:
            y, last = module(y)
            lasts.append(last[0] if isinstance(last, tuple) else last)
        hidden = torch.cat(lasts)
        padded = pad_packed_sequence(y, batch_first=True)[0] if self.packing else y
        # All outputs of the last layer, and the final states of the lowest.
        logits: Tensor = self.head(padded.sum(1) + hidden[:2].transpose(0, 1).flatten(1))
        return logits


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_layers_of_one_module_are_as_layers_in_modules_of_their_own(
    kind: type[nn.RNNBase], packing: bool
) -> None:
    model, x = Stacked(kind, True, packing, 3), double(3, 7, 2)
    model.alike()
    ours = measured(model, [x], settings={"steps": 10}, time_axis=1)
    model.joined = False
    apart = measured(model, [x], settings={"steps": 10}, time_axis=1)
    rows = ["rnn.l0", "rnn.l1", "rnn.l2", "head"]
    others = ["each.0", "each.1", "each.2", "head"]
    for name in ("conductance", "coarse", "carriers"):
        found = ours[name].sel(layer=rows).to_numpy()
        expected = apart[name].sel(layer=others).to_numpy()
        assert found == pytest.approx(expected, rel=1e-9), name
    assert ours["channels"].sel(layer=rows).to_numpy().tolist()[1:] == [6, 6, 3]
    assert ours["kind"].sel(layer=rows[0]).item() == kind.__name__
    found = shares(ours)
    assert abs(found["rnn.l1"] - 1).max() > 0.01
    assert abs(found["rnn.l1"] - found["rnn.l2"]).max() < 0.02


def test_stacked_layers_flow_as_captum_says_of_modules_of_their_own() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 3, 2, batch_first=True)
            self.lower = nn.GRU(2, 3, batch_first=True)
            self.upper = nn.GRU(3, 3, batch_first=True)
            self.after_lower = nn.Identity()
            self.after_upper = nn.Identity()
            self.skip = nn.Linear(2, 3)
            self.head = nn.Linear(3, 3)
            self.unrolled = False

        def forward(self, x: Tensor) -> Tensor:
            if self.unrolled:
                y = self.after_upper(self.upper(self.after_lower(self.lower(x)[0]))[0])
            else:
                y = self.rnn(x)[0]
            logits: Tensor = self.head((y + self.skip(x)).mean(1))
            return logits

    model, x = Chain().double().eval(), double(3, 6, 2)
    for own, layer in ((model.lower, 0), (model.upper, 1)):
        for name, weight in own.named_parameters():
            weight.data.copy_(getattr(model.rnn, name.replace("l0", f"l{layer}")))
    trace = measured(model, [x], settings={"steps": 100}, time_axis=1)
    model.unrolled = True
    choice, start = model(x).argmax(1), x.mean((0, 1)).expand_as(x).contiguous()

    def score(at: Tensor) -> Tensor:
        logits = model(at)
        odds = logits.softmax(1).gather(1, choice.repeat(len(at) // 3)[:, None])[:, 0]
        return (odds / (1 - odds)).log()

    scale = 5e-3 * float(abs(trace["difference"]).max())
    for label, module in (("rnn.l0", model.after_lower), ("rnn.l1", model.after_upper)):
        conductance = CaptumConductance(score, module)
        found = conductance.attribute(x, start, n_steps=800, method="riemann_left")
        expected = found.flatten(1).sum(1).detach().numpy()
        assert trace["conductance"].sel(layer=label).to_numpy() == pytest.approx(
            expected, abs=scale
        )
    found_shares = shares(trace)
    # What goes through the lower layer goes through the upper one, and neither is all.
    assert found_shares["rnn.l0"] == pytest.approx(found_shares["rnn.l1"], abs=1e-3)
    assert abs(found_shares["rnn.l0"] - 1).min() > 0.01


def test_a_stacked_module_that_is_called_twice_or_is_the_whole_model() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 3, 2, batch_first=True)
            self.head = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.rnn(self.rnn(x)[0])[0][:, -1])
            return logits

    trace = measured(Twice(), [double(4, 5, 3)], time_axis=1)
    whole(trace, ["rnn.l0", "rnn.l1", "rnn#2.l0", "rnn#2.l1", "head"])
    often = measured(Twice(), [double(4, 5, 3)], settings={"max_calls": 1}, time_axis=1)
    assert often["layer"].to_numpy().tolist() == ["head", "rnn"]
    assert often["reason"].to_numpy().tolist()[1] == (
        "called 2 times in one pass, more than max_calls"
    )
    alone = measured(nn.GRU(3, 3, 2, batch_first=True), [double(4, 5, 3)], None, output=0)
    whole(alone, ["l0", "l1"])


def test_a_stacked_module_whose_layers_are_out_of_sight_is_one_layer() -> None:
    class Own(nn.GRU):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            y = torch.tanh(x @ self.weight_ih_l0[:3].T + x.cumsum(1) @ self.weight_ih_l1[:3].T)
            return y, y[:, -1]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = Own(3, 3, 2, batch_first=True)
            self.head = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.rnn(x)[0].mean(1))
            return logits

    whole(measured(Net(), [double(4, 5, 3)], time_axis=1), ["rnn", "head"])


def test_packed_outputs_count_by_sample() -> None:
    class Packing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lower = nn.GRU(2, 3, batch_first=True)
            self.upper = nn.GRU(3, 4, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, packed: PackedSequence) -> Tensor:
            states = pad_packed_sequence(self.upper(self.lower(packed)[0])[0], batch_first=True)
            logits: Tensor = self.head(states[0].sum(1))
            return logits

    packed = pack_padded_sequence(
        double(4, 7, 2), torch.tensor([3, 7, 1, 5]), batch_first=True, enforce_sorted=False
    )
    whole(measured(Packing(), [packed]), ["lower", "upper", "head"])


def test_every_call_of_a_module_is_a_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            first = torch.sigmoid_(self.inner(x))
            logits: Tensor = self.head(first + torch.tanh(self.inner(first)))
            return logits

    model, x = Twice().double(), double(5, 4)
    trace = measured(model, [x])
    found = shares(trace)
    assert list(found) == ["inner", "inner#2", "head"]
    assert found["inner"] == pytest.approx(np.ones(5), abs=2e-3)
    assert found["head"] == pytest.approx(np.ones(5), abs=1e-3)
    assert abs(found["inner#2"] - 1).max() > 0.05


def test_integer_inputs_flow_from_the_embedding_on() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 4)
            self.lstm = nn.LSTM(4, 3, batch_first=True)
            self.head = nn.Linear(3, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.head(self.lstm(self.embed(tokens))[0])
            return logits

    trace = measured(Tagger(), [torch.randint(9, (6, 5))])
    whole(trace, ["lstm", "head"])


def test_what_is_not_measured_says_why() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(2, 2)
            self.cell = nn.GRUCell(2, 3)
            self.codes = nn.Linear(3, 3)
            self.blind = nn.Linear(2, 2)
            self.head = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            state = x.new_zeros(len(x), 3)
            for step in x.unbind(1):
                state = self.cell(step, state)
            self.blind(x[:, 0])
            scale = self.codes(x.new_ones(7, 3)).mean()
            logits: Tensor = self.head(state * scale)
            return logits

    trace = measured(Odd(), [double(5, 4, 2)], settings={"max_calls": 3}, time_axis=1)
    reasons = {
        str(name): str(trace["reason"].sel(layer=name).item()) for name in trace["layer"].to_numpy()
    }
    assert reasons == {
        "blind": "",
        "head": "",
        "idle": "not called with these data",
        "cell": "called 4 times in one pass, more than max_calls",
        "codes": "what it returns does not keep the samples apart",
    }
    assert trace["conductance"].sel(layer=["idle", "cell", "codes"]).isnull().all()
    # It runs, but the decision does not depend on it.
    assert (trace["conductance"].sel(layer="blind") == 0).all()
    assert trace["carriers"].sel(layer="blind").isnull().all()


def test_layers_are_chosen_evenly_with_the_first_and_the_last() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(11)))
    trace = measured(model, [double(4, 3)], settings={"max_layers": 3, "steps": 2})
    assert trace["layer"].to_numpy().tolist() == ["0", "5", "10"]
    assert trace.attrs["layers_total"] == 11


def test_samples_are_those_of_the_audit_set_whatever_the_pieces() -> None:
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), double(30, 5)
    first = measured(model, [x[:20], x[20:]], settings={"samples": 9})
    other = measured(model, [x[:3], x[3:]], settings={"samples": 9, "chunk": 2})
    assert len({*first["sample"].to_numpy().tolist()}) == 9
    xr.testing.assert_allclose(first, other)


def test_carriers_are_the_fewest_channels_that_hold_nine_tenths() -> None:
    channels = torch.tensor([[9.1, -0.5, 0.4, 0.0], [-1.0, 1.0, 1.0, -1.0], [0.0] * 4]).double()
    found = carriers(channels)
    assert found[:2].tolist() == [0.25, 1.0]
    assert found[2].isnan()


def test_carriers_of_a_layer_are_its_channels() -> None:
    model = nn.Sequential(
        nn.Conv1d(1, 4, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 1)
    )
    model[0].weight.data = torch.ones(4, 1, 1)
    model[3].weight.data = torch.tensor([[1.0, -20.0, 0.0, 1.0]])
    trace = measured(model, [double(3, 1, 6)], None, {"steps": 2})
    assert trace["carriers"].sel(layer="0").to_numpy().tolist() == [0.25] * 3
    assert trace["channels"].to_numpy().tolist() == [4, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 3}, "layer_conductance needs an even number of steps: it is 3"),
        (
            {"samples": 0},
            "layer_conductance needs samples, chunk, max_layers and max_calls >= 1",
        ),
        ({"baseline": "x"}, "layer_conductance has no baseline 'x': use mean or zero"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AnalyzerError) as raised:
        measured(nn.Linear(2, 2), [double(3, 2)], settings=settings)
    assert str(raised.value) == message


def test_a_model_without_layers_is_refused() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = nn.ModuleList([nn.Linear(2, 2)])

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.held[0].weight

    with pytest.raises(NotApplicable) as raised:
        measured(Bare(), [double(3, 2)])
    assert str(raised.value) == (
        "no layer with weights is a module that runs and keeps the samples apart"
    )
