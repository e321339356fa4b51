import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from analyzer.rules.stacked_layers import half_reach
from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.recurrent.states.features import Draw, Features
from probes.recurrent.watching.bypass import Reading
from probes.stacked_layers import StackedLayers

torch.manual_seed(0)


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def measured(
    model: nn.Module, batches: Any, loss: Any = "cross_entropy", time: int | None = 1, **rest: Any
) -> xr.Dataset:
    return StackedLayers(**rest)(Subject(model, batches, loss, time_axis=time))


class Net(nn.Module):
    """Stack of two layers, the last state of which is classified."""

    def __init__(self, layers: int = 2, both: bool = False, units: int = 4) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, units, layers, batch_first=True, bidirectional=both)
        self.head = nn.Linear(units * (1 + both), 3)

    def forward(self, x: Any) -> Tensor:
        states, (ends, _) = self.rnn(x)
        y: Tensor = self.head(states[:, -1] if isinstance(states, Tensor) else ends[-1])
        return y


def single(module: nn.LSTM, layer: int) -> nn.LSTM:
    """Layer of a module as a module."""
    count = 2 if module.bidirectional else 1
    reads = module.input_size if layer == 0 else module.hidden_size * count
    one = nn.LSTM(reads, module.hidden_size, batch_first=True, bidirectional=module.bidirectional)
    sides = module.all_weights[layer * count : (layer + 1) * count]
    for mine, theirs in zip(one.parameters(), [w for side in sides for w in side], strict=True):
        mine.data = theirs.data
    return one


@pytest.mark.parametrize("both", [False, True])
def test_leaving_out_is_exact_against_layers_taken_apart(both: bool) -> None:
    model, x, y = Net(2, both).double(), double(30, 6, 3), torch.randint(3, (30,))
    trace = measured(model, [(x[:11], y[:11]), (x[11:], y[11:])], together=4)
    assert trace["sample"].to_numpy().tolist() == [*range(30)]
    low, high = single(model.rnn, 0), single(model.rnn, 1)
    with torch.no_grad():
        h = low(x)[0]
        states = [(x, h), (h, high(h)[0])]
        intact = functional.cross_entropy(model(x), y, reduction="none")
        for layer, (reads, returns) in enumerate(states):
            mapped = torch.empty_like(returns)
            for half in (0, 1):
                fit, use = slice(1 - half, None, 2), slice(half, None, 2)
                rows = functional.pad(reads[fit].flatten(0, 1), (0, 1), value=1.0)
                weight = torch.linalg.lstsq(rows, returns[fit].flatten(0, 1)).solution
                mapped[use] = functional.pad(reads[use], (0, 1), value=1.0) @ weight
            top = mapped if layer == 1 else high(mapped)[0]
            out = model.head(top[:, -1])
            expected = functional.cross_entropy(out, y, reduction="none") - intact
            np.testing.assert_allclose(trace["loss_change"][:, layer], expected, atol=1e-9)
            flips = out.argmax(1) != model(x).argmax(1)
            assert trace["decision_change"][:, layer].to_numpy().tolist() == flips.tolist()
            missed = (mapped - returns).flatten(0, 1)
            share = 1 - missed.square().mean() / returns.flatten(0, 1).var(0, correction=0).mean()
            assert float(trace["explained"][layer]) == pytest.approx(float(share), abs=0.02)
        skipped = functional.cross_entropy(model.head(h[:, -1]), y, reduction="none") - intact
    np.testing.assert_allclose(trace["intact_loss"], intact, rtol=1e-12)
    assert trace["skip_change"][:, 0].isnull().all()
    np.testing.assert_allclose(trace["skip_change"][:, 1], skipped, atol=1e-12)


def test_the_share_of_the_gradient_is_that_of_autograd() -> None:
    model, x, y = Net(2).double(), double(20, 6, 3), torch.randint(3, (20,))
    trace = measured(model, [(x, y)], together=7)
    functional.cross_entropy(model(x), y).backward()
    squares = [
        sum(float(w.grad.square().sum()) for w in weights if w.grad is not None)
        for weights in model.rnn.all_weights
    ]
    expected = np.array(squares) / sum(squares)
    np.testing.assert_allclose(trace["gradient_share"], expected, rtol=1e-9)


def linearized(module: nn.LSTM, layer: int) -> None:
    """Make a layer forget everything and stay within the linear part of tanh."""
    units = module.hidden_size
    for weight in module.all_weights[layer]:
        nn.init.zeros_(weight)
    w_ih, _, b_ih, _ = module.all_weights[layer]
    w_ih.data[2 * units : 3 * units] = 1e-4 * torch.randn(units, units)
    b_ih.data[units : 2 * units] = -40.0


def test_a_layer_that_is_a_linear_map_changes_nothing() -> None:
    model = Net(3).double()
    linearized(model.rnn, 1)
    model.rnn.weight_ih_l2.data.mul_(1e5)
    x, y = double(80, 6, 3), torch.randint(3, (80,))
    trace = measured(model, [(x, y)])
    assert abs(trace["loss_change"].sel(layer="rnn.l1")).max() < 1e-6
    assert float(trace["explained"].sel(layer="rnn.l1")) == pytest.approx(1, abs=1e-5)
    others = trace["loss_change"].sel(layer=["rnn.l0", "rnn.l2"])
    assert (abs(others).mean("sample") > 1e-4).all()


class Leaky(nn.Module):
    """Two linear recurrences, h_t = decay h_(t-1) + x_t, on positive inputs."""

    def __init__(self, decays: tuple[float, float]) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, 1, 2, nonlinearity="relu", bias=False, batch_first=True)
        self.head = nn.Linear(1, 2)
        for layer, decay in enumerate(decays):
            getattr(self.rnn, f"weight_hh_l{layer}").data.fill_(decay)
            getattr(self.rnn, f"weight_ih_l{layer}").data.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0][:, -1])
        return y


def test_half_reach_is_that_of_known_decays() -> None:
    decay = 0.9
    model = Leaky((decay, 0.0)).double()
    x = torch.rand(200, 60, 1, dtype=torch.float64)
    trace = measured(model, [x], loss=None, points=61)
    assert trace["kept"].to_numpy().tolist() == [*range(61)]
    change = trace["state_change"].sel(layer="rnn.l0").mean("sample")
    share = (change / change[0]).to_numpy()
    # All inputs vary alike: what the older ones move is decay^2 for each input kept.
    np.testing.assert_allclose(share[:15], decay ** (2 * np.arange(15)), atol=0.12)
    reach = half_reach(trace)
    expected = math.log(0.5) / (2 * math.log(decay))
    assert reach["rnn.l0"].value == pytest.approx(expected, abs=1.5)
    assert reach["rnn.l0"].low <= expected <= reach["rnn.l0"].high + 1
    assert reach["rnn.l1"].value == reach["rnn.l0"].value
    assert (trace["state_change"].sel(kept=60) == 0).all()


def test_a_layer_above_that_remembers_reaches_further() -> None:
    x = torch.rand(150, 40, 1, dtype=torch.float64)
    trace = measured(Leaky((0.3, 0.95)).double(), [x], loss=None, points=41)
    reach = half_reach(trace)
    assert reach["rnn.l0"].value < 2
    assert reach["rnn.l1"].value > 4


def test_the_rank_needs_ten_independent_positions_for_every_unit() -> None:
    model, x = Net(2, units=6).double(), double(40, 20, 3)
    trace = measured(model, [x], loss=None)
    assert (trace["independent"] < 40 * 20).all()
    assert (trace["independent"] >= 60).all()
    ranks = trace["effective_rank"]
    assert ((ranks > 1) & (ranks < 6)).all()
    few = measured(model, [x[:2]], loss=None)
    assert (few["independent"] < 60).all()
    assert few["effective_rank"].isnull().all()
    states = single(model.rnn, 0)(x)[0].detach().flatten(0, 1)
    shares = torch.linalg.eigvalsh(torch.cov(states.T))
    shares = shares / shares.sum()
    expected = float(torch.exp(-(shares * shares.log()).sum()))
    assert float(ranks[0]) == pytest.approx(expected, rel=1e-6)


def test_independent_positions_of_a_first_order_process() -> None:
    decay, steps, count = 0.8, 400, 50
    model = Leaky((decay, 0.0)).double()
    x = torch.rand(count, steps, 1, dtype=torch.float64)
    trace = measured(model, [x], loss=None, points=0)
    expected = count * steps * (1 - decay) / (1 + decay)
    assert float(trace["independent"][0]) == pytest.approx(expected, rel=0.1)
    assert trace.attrs["reach"] == "it was left out, or the audit set is one sample"
    assert trace.sizes["kept"] == 0


def test_padding_is_left_out() -> None:
    model, y = Net(2).double(), torch.randint(3, (24,))
    lengths = torch.arange(24) % 5 + 2
    x = double(24, 9, 3)
    junk = x.clone()
    for row, length in enumerate(lengths):
        junk[row, length:] = 1e3
    traces = [measured(model, [Batch(values, y, lengths)], points=0) for values in (x, junk)]
    for name in ("independent", "explained", "similarity"):
        np.testing.assert_allclose(traces[0][name], traces[1][name], rtol=1e-9)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    again = measured(model, [Batch(packed, y)], points=0)
    for name in ("independent", "explained", "similarity"):
        np.testing.assert_allclose(traces[0][name], again[name], rtol=1e-9)


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.GRUCell(3, 4), nn.LSTMCell(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, state = x.new_zeros(len(x), 4), None
        for t in range(x.shape[1]):
            h = self.below(x[:, t], h)
            state = self.above(h, state)
        assert state is not None
        y: Tensor = self.head(state[0])
        return y


def test_cells_and_modules_one_after_the_other_are_a_stack() -> None:
    x, y = double(40, 7, 3), torch.randint(3, (40,))
    trace = measured(Cells().double(), [(x, y)])
    assert trace["layer"].to_numpy().tolist() == ["below.l0", "above.l0"]
    assert trace["kind"].to_numpy().tolist() == ["GRU", "LSTM"]
    assert trace["units"].to_numpy().tolist() == [4, 4]
    assert trace["reads"].to_numpy().tolist() == [3, 4]
    for name in ("loss_change", "state_change"):
        assert trace[name].notnull().all(), name
    assert trace["gradient_share"].sum() == pytest.approx(1)


def test_halves_never_mix_and_fewer_samples_are_left_out_than_seen() -> None:
    model, x, y = Net(2).double(), double(40, 6, 3), torch.randint(3, (40,))
    trace = measured(model, [(x, y)], samples=10)
    assert trace["sample"].to_numpy().tolist() == sorted([0, 8, 16, 24, 32, 1, 9, 17, 25, 33])
    whole = measured(model, [(x, y)])
    for name in ("loss_change", "intact_loss"):
        np.testing.assert_allclose(trace[name], whole[name].sel(sample=trace["sample"]), atol=1e-12)
    xr.testing.assert_equal(trace["explained"], whole["explained"])


def test_only_some_of_many_layers_are_left_out() -> None:
    x, y = double(20, 4, 3), torch.randint(3, (20,))
    trace = measured(Net(4).double(), [(x, y)], ablations=2)
    tried = trace["loss_change"].notnull().all("sample").to_numpy()
    assert tried.tolist() == [True, False, True, False]


def test_where_time_is_unknown_the_reach_is_left_out() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.GRU(2, 3), nn.GRU(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x.flatten(1)[None].reshape(4, -1, 2))[0])[0][-1]
            return y

    trace = measured(Both().double(), [double(3, 8)], loss=None, time=None, points=5)
    assert trace.sizes["kept"] == 0
    assert trace.attrs["reach"].startswith("no axis of the inputs (2, 8) is as long as")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Linear(3, 2),
            "the model runs no recurrent layer of torch (LSTM, GRU, RNN or their cells)",
        ),
        (Net(1), "the model runs one recurrent layer (rnn.l0): nothing is stacked on it"),
    ],
)
def test_one_layer_is_no_stack(model: nn.Module, message: str) -> None:
    with pytest.raises(NotApplicable) as caught:
        measured(model, [torch.randn(5, 4, 3)], loss=None)
    assert str(caught.value) == message


def test_settings_have_bounds() -> None:
    with pytest.raises(AnalyzerError) as caught:
        measured(Net(), [torch.randn(5, 4, 3)], samples=0)
    assert str(caught.value) == (
        "stacked_layers needs samples, seen, positions and together >= 1, and ablations >= 0: they "
        "are 0, 512, 64, 64 and 30"
    )
    with pytest.raises(AnalyzerError) as caught:
        measured(Net(), [torch.randn(5, 4, 3)], points=2)
    assert str(caught.value) == "stacked_layers needs points >= 3, or 0: it is 2"


@pytest.mark.parametrize("count", [3, 64, 65, 1000])
def test_timesteps_are_drawn_once_from_every_stretch(count: int) -> None:
    steps = Draw.of(5, 64, torch.Generator().manual_seed(1)).places(count, 5)
    assert steps.shape == (5, min(count, 64))
    assert (steps.diff() >= 0).all()
    edges = torch.arange(steps.shape[1] + 1) * count / steps.shape[1]
    assert (steps >= edges[:-1].floor()).all()
    assert (steps < edges[1:].ceil()).all()
    assert len(steps.unique(dim=0)) == (5 if count > 64 else 1)


def test_rows_that_are_no_samples_take_the_samples_turns() -> None:
    drawn = Draw.of(3, 4, torch.Generator().manual_seed(1))
    steps = drawn.places(50, 6)
    assert torch.equal(steps[:3], drawn.places(50, 3))
    assert torch.equal(steps[3:], steps[:3])


def test_every_sample_shows_timesteps_of_its_own_the_same_ones_in_all_layers() -> None:
    samples, timesteps, most = 6, 40, 4
    lengths = torch.tensor([40, 25, 40, 3, 40, 11])
    # What a layer reads says which timestep of which sample it is.
    x = torch.arange(timesteps)[:, None] + 100 * torch.arange(samples)
    chosen = []
    for sign in (1.0, -1.0):
        seen: list[Tensor] = []
        layer = Features("lstm", 1, 1, ())
        layer.states.add = seen.append  # type: ignore[method-assign]
        y = sign * x[..., None]
        reading = Reading("l", "lstm", x[..., None].double(), y.double(), lengths, ())
        layer.add(reading, 0, Draw.of(samples, most, torch.Generator().manual_seed(3)))
        chosen.append(sign * seen[0][:, 0])
        assert layer.joint[0].count == len(seen[0])
    assert torch.equal(chosen[0], chosen[1])
    places, rows = chosen[0].long() % 100, chosen[0].long() // 100
    assert (places < lengths[rows]).all()
    whole = [tuple(places[rows == row].tolist()) for row in (0, 2, 4)]
    assert [len(steps) for steps in whole] == [4, 4, 4]
    assert len(set(whole)) == 3
