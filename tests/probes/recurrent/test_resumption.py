"""Runs that resume where inputs have their beginning in common, against whole runs."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from probes.base import Subject, call
from probes.lag_profile import LagProfile
from probes.loss.rest import Unlike
from probes.memory_horizon import MemoryHorizon
from probes.recurrent.watching import resumption
from probes.recurrent.watching.resumption import Resumption

TIMESTEPS = 70


class Tagger(nn.Module):
    """A convolution over time, recurrent layers, and a decision at every timestep."""

    def __init__(self, rnn: nn.RNNBase, *, careless: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 3, padding=1)
        self.rnn = rnn
        self.careless = careless

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        x = x if self.rnn.batch_first else x.transpose(0, 1).contiguous()
        y: Tensor = self.rnn(x)[0]
        if self.careless:
            x.zero_()
            y.mul_(2)
        return y if self.rnn.batch_first else y.transpose(0, 1)


CASES = {
    "lstm": lambda: nn.LSTM(3, 5, batch_first=True),
    "deep lstm": lambda: nn.LSTM(3, 5, 3),
    "projected lstm": lambda: nn.LSTM(3, 5, 2, proj_size=2, bias=False, batch_first=True),
    "gru": lambda: nn.GRU(3, 5, 2, batch_first=True),
    "rnn": lambda: nn.RNN(3, 5, 2, nonlinearity="relu"),
}


def changed_from(x: Tensor, at: int) -> Tensor:
    return torch.cat([x[:, :at], torch.randn_like(x[:, at:])], 1)


@pytest.mark.parametrize("careless", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_what_begins_alike_goes_on_from_there(case: str, careless: bool, computed) -> None:
    model = Tagger(CASES[case](), careless=careless).double().eval()
    run, x = Resumption(model), torch.randn(4, TIMESTEPS, 3, dtype=torch.float64)
    layers = model.rnn.num_layers
    with torch.no_grad():
        assert torch.allclose(run(x, keep="first"), model(x), rtol=0, atol=1e-13)
        parts = computed[: len(computed) // layers]
        assert computed == parts * layers
        assert sum(parts) == TIMESTEPS
        # Parts of equal length, and shorter ones towards the end.
        assert parts == [2] * 27 + [1] * 16
        known = {sum(parts[:count]) for count in range(len(parts) + 1)}
        for at in (0, 1, 7, 33, 69, 70):
            other = changed_from(x, at)
            computed.clear()
            found = run(other, like="first")
            # The convolution reads one timestep ahead.
            last = TIMESTEPS if at == TIMESTEPS else max(at - 1, 0)
            left = TIMESTEPS - max(count for count in known if count <= last)
            assert computed == ([left] * layers if left else [])
            assert torch.allclose(found, model(other), rtol=0, atol=1e-13)


def test_the_end_of_whole_parts_is_known_too(computed) -> None:
    model = nn.GRU(3, 5, batch_first=True)
    run, x = Resumption(model), torch.randn(2, 64, 3)
    with torch.no_grad():
        y, h = run(x, keep="first")
        computed.clear()
        again, end = run(x, like="first")
    assert computed == []
    assert torch.equal(again, y)
    assert torch.equal(end, h)


def test_other_weights_states_and_shapes_are_run_whole(computed) -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 5)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            y: Tensor = self.rnn(x, (h, h))[0]
            return y

    model, x, h = Given(), torch.randn(40, 2, 3), torch.randn(1, 2, 5)
    run = Resumption(model)
    with torch.no_grad():
        run((x, h), keep="first")
        for inputs in ((x, h + 1), (x[:39], h), (x[:, :1], h[:, :1])):
            computed.clear()
            found = run(inputs, like="first")
            assert computed == [len(inputs[0])]
            assert torch.equal(found, model(*inputs))
        computed.clear()
        run((x, h), like="another")
        run((x, h))
        assert computed == [40, 40]
        model.rnn.weight_hh_l0 = nn.Parameter(model.rnn.weight_hh_l0 + 1)
        computed.clear()
        assert torch.equal(run((x, h), like="first"), model(x, h))
        assert computed == [40]


def test_a_state_that_is_overwritten_in_place_is_another() -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 5)
            self.register_buffer("state", torch.zeros(1, 2, 5))

        def forward(self, x: Tensor) -> Tensor:
            y, h = self.rnn(x, self.state)
            self.state.copy_(h)
            return y

    model, x = Stateful(), torch.randn(40, 2, 3)
    run = Resumption(model)
    with torch.no_grad():
        found = [run(x, keep="first"), run(x, like="first")]
        model.state.zero_()
        expected = [model(x), model(x)]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)


def test_what_cannot_be_cut_is_run_as_ever(computed) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.LSTM(3, 5, bidirectional=True, batch_first=True)
            self.cell = nn.GRUCell(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, torch.tensor([9, 5]), batch_first=True)
            y, _ = self.both(x)
            h = self.cell(y[:, -1])
            return torch.cat([self.both(packed)[0].data, y.flatten(0, 1)]).sum() + h.sum()

    model, x = Mixed(), torch.randn(2, 9, 3)
    run = Resumption(model)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(run(x, keep="first"), expected)
        assert torch.equal(run(x, like="first"), expected)
    assert computed == []


def test_dropout_between_layers_is_left_to_torch(computed) -> None:
    model = nn.GRU(3, 5, 2, dropout=0.5).train()
    run, x = Resumption(model), torch.randn(40, 2, 3)
    assert torch.equal(run(x, keep="first")[0], call(model, x)[0])
    assert not torch.equal(call(model.eval(), x)[0], call(model.train(), x)[0])
    assert computed == []


def test_memory_is_limited(computed, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.GRU(3, 5), torch.randn(64, 2, 3)
    # Input, output, and 40 states of 2 samples.
    bytes_ = 4 * 2 * (64 * 3 + 64 * 5 + 40 * 5)
    for room, again in ((bytes_ - 1, [64]), (bytes_, [])):
        monkeypatch.setattr(resumption, "BYTES", room)
        run = Resumption(model)
        with torch.no_grad():
            run(x, keep="first")
            computed.clear()
            run(x, like="first")
        assert computed == again
    with torch.no_grad():
        run(x + 1, keep="second")
        computed.clear()
        run(x + 1, like="second")
    assert computed == [64]


class Beside(nn.Module):
    """A recurrent layer that can be cut, and something beside it."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.rnn, self.other = nn.GRU(3, 5), other

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(x)[0].sum()
        z = self.other(x if isinstance(self.other, nn.RNNBase) else x[-1])[0]
        return y + z.sum()


@pytest.mark.parametrize(
    "other",
    [nn.GRU(3, 5, bidirectional=True), nn.GRU(3, 5, 2, dropout=0.5), nn.LSTMCell(3, 5)],
    ids=["both directions", "dropout", "cell"],
)
def test_a_rest_is_not_run_where_not_all_states_are_known(other: nn.Module) -> None:
    model, x = Beside(other), torch.randn(40, 2, 3)
    run = Resumption(model)
    with torch.no_grad():
        run(x, keep="first")
        assert run.starts("first")
        with pytest.raises(Unlike):
            run.rest(x[20:], like="first", start=20)


def test_a_rest_is_of_the_length_that_is_left() -> None:
    model, x = nn.RNN(3, 5), torch.randn(40, 2, 3)
    run = Resumption(model)
    with torch.no_grad():
        y, h = run(x, keep="first")
        rest, end = run.rest(x[20:], like="first", start=20)
        assert torch.allclose(rest, y[20:], rtol=0, atol=1e-6)
        assert torch.allclose(end, h, rtol=0, atol=1e-6)
        for wrong in (x, x[21:]):
            with pytest.raises(Unlike):
                run.rest(wrong, like="first", start=20)


@pytest.mark.parametrize("probe", [MemoryHorizon, LagProfile])
def test_horizons_are_the_same_without(probe, computed, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tagger(nn.LSTM(3, 5, 2, batch_first=True)).double()
    data = [torch.randn(6, TIMESTEPS, 3, dtype=torch.float64) for _ in range(2)]
    subject = Subject(model, data, time_axis=1)
    found = probe(donors=2)(subject)
    fewer = sum(computed)
    monkeypatch.setattr(resumption, "BYTES", 0)
    computed.clear()
    plain = probe(donors=2)(subject)
    assert fewer < 0.7 * sum(computed)
    assert found["excess_loss"].shape == plain["excess_loss"].shape
    difference = abs(found["excess_loss"] - plain["excess_loss"]).max()
    assert float(difference) < 1e-13 * float(abs(plain["excess_loss"]).max()) + 1e-15
