"""Norms of the products of Jacobians, against torch.func.jacrev on networks unrolled by hand."""

import math

import pytest
import torch
from torch import nn
from torch.func import jacrev
from torch.nn.utils.rnn import pack_padded_sequence

from probes.base import Batch, Subject
from probes.recurrent.backward.cells import Weights
from probes.recurrent.reach.jacobian import Linearized, all_rows, random_rows, reach
from probes.state_reach import StateReach

INPUTS, UNITS, SAMPLES, TIMESTEPS = 3, 5, 3, 9


def advance(mode, a, u, h, c):
    """One step, as the torch documentation writes it: a from the input, u from the state."""
    if mode == "LSTM":
        i, f, g, o = (a + u).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if mode == "GRU":
        (ar, az, an), (ur, uz, un) = a.chunk(3), u.chunk(3)
        z = (az + uz).sigmoid()
        return (1 - z) * (an + (ar + ur).sigmoid() * un).tanh() + z * h, c
    return (a + u).tanh() if mode == "RNN_TANH" else (a + u).relu(), c


def side(module, name, x):
    weight, bias = (getattr(module, f"{part}_{name}", None) for part in ("weight", "bias"))
    return weight @ x if bias is None else weight @ x + bias


def final_state(module, dh, dc, x, layers, suffix=""):
    """Last hidden state with states moved by dh, dc (T, L, units) right after each step."""
    h = [x.new_zeros(dh.shape[-1]) for _ in layers]
    c = [x.new_zeros(dc.shape[-1]) for _ in layers]
    for t in range(len(x)):
        value = x[t]
        for place, layer in enumerate(layers):
            own = f"l{layer}{suffix}"
            after = advance(
                module.mode,
                side(module, f"ih_{own}", value),
                side(module, f"hh_{own}", h[place]),
                h[place],
                c[place],
            )
            projection = getattr(module, f"weight_hr_{own}", None)
            value = after[0] if projection is None else projection @ after[0]
            h[place], c[place] = value + dh[t, place], after[1] + dc[t, place]
            value = h[place]
    return h[-1]


def expected(module, x, layers=(0,), suffix=""):
    """Log10 norms by lag: by the state of each layer, by the input, and the spectral ones."""
    steps, units = len(x), module.hidden_size
    hidden = module.proj_size or units
    zeros = torch.zeros(steps, len(layers), hidden), torch.zeros(steps, len(layers), units)
    by_h, by_c, by_x = jacrev(final_state, argnums=(1, 2, 3))(
        module, *(zero.double() for zero in zeros), x, layers, suffix
    )
    if module.mode != "LSTM":
        by_c = by_c[..., :0]
    both = torch.cat([by_h, by_c], -1).flip(1)
    state = torch.linalg.vector_norm(both, dim=(0, 3))
    spectral = torch.linalg.matrix_norm(both.transpose(0, 1).flatten(2), 2)
    reached = torch.linalg.vector_norm(by_x, dim=(0, 2)).flip(0)
    return state.log10().T, reached.log10(), spectral.log10()


class Wrapped(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0]


def worst(found, wanted):
    """Largest relative error of norms, where there are any to compare."""
    found = torch.as_tensor(found)
    known = ~found.isnan()
    assert known.any()
    return float((10 ** (found[known] - wanted.detach()[known]) - 1).abs().max())


CASES = {
    "lstm": ("LSTM", 2, {}),
    "deep lstm": ("LSTM", 3, {"bias": False}),
    "projected lstm": ("LSTM", 2, {"proj_size": 2}),
    "gru": ("GRU", 2, {}),
    "gru without bias": ("GRU", 1, {"bias": False}),
    "tanh": ("RNN", 2, {}),
    "relu": ("RNN", 2, {"nonlinearity": "relu"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stack_is_followed_exactly(case, trained):
    kind, layers, options = CASES[case]
    module = trained(kind, INPUTS, UNITS, layers, batch_first=True, scale=1.7, **options)
    if case == "relu":
        for name, weight in module.named_parameters():
            weight.data.abs_().mul_(0.5) if "hh" in name else weight.data.abs_()
    x = torch.randn(SAMPLES, TIMESTEPS, INPUTS, dtype=torch.float64)
    x = x.abs() if case == "relu" else x
    trace = StateReach()(Subject(Wrapped(module), [x[:2], x[2:]]))
    assert trace["layer"].to_numpy().tolist() == [f"rnn.l{layer}" for layer in range(layers)]
    assert trace["stack"].to_numpy().tolist() == ["rnn"]
    for sample in range(SAMPLES):
        state, reached, spectral = expected(module, x[sample], range(layers))
        own = trace.isel(sample=sample)
        assert own["state_reach"].shape == state.shape
        assert worst(own["state_reach"].to_numpy(), state) < 1e-10
        assert worst(own["input_reach"].to_numpy()[0], reached) < 1e-10
        assert worst(own["spectral_reach"].to_numpy()[0], spectral) < 1e-10
        for name in ("spectral_missing", "spectral_margin"):
            assert own[name].to_numpy()[0, 1:].tolist() == [0] * (TIMESTEPS - 1)


WIDE = 20


@pytest.mark.parametrize("case", CASES)
def test_the_largest_singular_value_is_found_by_iteration_where_not_all_rows_are(case, trained):
    kind, layers, options = CASES[case]
    if "proj_size" in options:
        options = {"proj_size": 9}
    module = trained(kind, INPUTS, WIDE, layers, batch_first=True, scale=1.7, **options)
    x = torch.randn(SAMPLES, TIMESTEPS, INPUTS, dtype=torch.float64)
    if case == "relu":
        x = x.abs()
        for name, weight in module.named_parameters():
            weight.data.abs_().mul_(0.2 if "hh" in name else 1)
    # A row of each sample is followed, which is all rows of none.
    trace = StateReach(samples=SAMPLES, seeds=1)(Subject(Wrapped(module), [x]))
    assert trace.attrs["spectral_tolerance"] == pytest.approx(0.02 / math.log(10))
    assert trace["spectral_reach"].notnull().any("lag").to_numpy()[:, 0].tolist() == [1, 1, 0]
    for sample in range(2):
        own = trace.isel(sample=sample, stack=0).sel(lag=range(1, TIMESTEPS))
        found, missing, margin = (
            torch.tensor(own[f"spectral_{name}"].to_numpy())
            for name in ("reach", "missing", "margin")
        )
        lacking = expected(module, x[sample], range(layers))[2].detach()[1:] - found
        assert lacking.min() > -1e-9
        assert lacking.max() < math.log10(1.02)
        assert (lacking < missing + math.log10(1.005)).all()
        assert missing.min() >= 0
        assert missing.max() <= trace.attrs["spectral_tolerance"]
        assert (lacking < margin + 1e-9).all()
        assert margin.max() < 0.4


def test_the_directions_of_bidirectional_layers_are_followed_alone(trained):
    module = trained("LSTM", INPUTS, UNITS, 2, bidirectional=True, batch_first=True)
    x = torch.randn(SAMPLES, TIMESTEPS, INPUTS, dtype=torch.float64)
    lengths = torch.tensor([4, 9, 7])

    class Packed(Wrapped):
        def forward(self, x):
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.rnn(packed)[0].data

    trace = StateReach()(Subject(Packed(module), [x]))
    assert trace["stack"].to_numpy().tolist() == [
        "rnn.l0", "rnn.l0.reverse", "rnn.l1", "rnn.l1.reverse",
    ]  # fmt: skip
    assert trace["length"].to_numpy().T.tolist() == [[4, 9, 7]] * 4
    for sample, length in enumerate(lengths):
        own = x[sample, :length]
        below = nn.LSTM(INPUTS, UNITS, bidirectional=True, dtype=torch.float64)
        below.load_state_dict({k: v for k, v in module.state_dict().items() if "l0" in k})
        between = below(own)[0].detach()
        for layer, read in ((0, own), (1, between)):
            for suffix, ordered in (("", read), ("_reverse", read.flip(0))):
                label = f"rnn.l{layer}" + (".reverse" if suffix else "")
                found = trace.sel(stack=label, layer=label).isel(sample=sample)
                state, reached, _ = expected(module, ordered, (layer,), suffix)
                values = found["state_reach"].to_numpy(), found["input_reach"].to_numpy()
                for value, wanted in zip(values, (state[0], reached), strict=True):
                    assert (~torch.tensor(value).isnan()).sum() == length
                    assert worst(value[:length], wanted) < 1e-10


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_cell_in_a_loop_is_followed_like_a_layer(kind):
    cell = getattr(nn, f"{kind}Cell")(INPUTS, UNITS, dtype=torch.float64)
    module = getattr(nn, kind)(INPUTS, UNITS, dtype=torch.float64)
    module.load_state_dict({f"{k}_l0": v for k, v in cell.state_dict().items()})

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, x):
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return state[0] if kind == "LSTM" else state

    x = torch.randn(2, TIMESTEPS, INPUTS, dtype=torch.float64)
    trace = StateReach()(Subject(Loop(), [x]))
    assert trace["stack"].to_numpy().tolist() == ["cell"]
    for sample in range(2):
        state, reached, spectral = expected(module, x[sample])
        own = trace.isel(sample=sample)
        assert worst(own["state_reach"].to_numpy(), state) < 1e-10
        assert worst(own["input_reach"].to_numpy()[0], reached) < 1e-10
        assert worst(own["spectral_reach"].to_numpy()[0], spectral) < 1e-10


def test_padding_is_not_read(trained):
    module = trained("GRU", INPUTS, UNITS, 1, batch_first=True)
    x = torch.randn(2, TIMESTEPS, INPUTS, dtype=torch.float64)
    batch = Batch(x, None, torch.tensor([6, 9]))
    trace = StateReach()(Subject(Wrapped(module), [batch], time_axis=1))
    short = StateReach()(Subject(Wrapped(module), [x[:1, :6]]))
    found = trace["state_reach"].to_numpy()[0, 0]
    assert found[:6] == pytest.approx(short["state_reach"].to_numpy()[0, 0], rel=1e-12)
    assert torch.tensor(found[6:]).isnan().all()


def linear(weight, steps, units, inputs=None):
    """A stack of one linear layer."""
    slopes = torch.ones(steps, 1, 1, units, dtype=weight.dtype)
    inputs = torch.eye(units, dtype=weight.dtype) if inputs is None else inputs
    return Linearized("rnn_relu", Weights(inputs, weight), slopes)


@pytest.mark.parametrize("decay", [0.8, 0.95, 0.99])
def test_an_orthogonal_network_decays_by_its_radius(decay):
    units, steps = 16, 200
    weight = torch.linalg.qr(torch.randn(units, units, dtype=torch.float64)).Q * decay
    layer = linear(weight, steps, units)
    found = reach([layer], all_rows(1, weight, units), range(steps))
    lags = torch.arange(steps, dtype=torch.float64)
    assert torch.allclose(found.state[:, 0, 0], math.log(4) + lags * math.log(decay), atol=1e-11)
    assert torch.allclose(found.input[:, 0], math.log(4) + lags * math.log(decay), atol=1e-11)
    spectral = torch.stack([found.spectral[lag][0] for lag in range(steps)])
    assert torch.allclose(spectral, lags * math.log(decay), atol=1e-11)


def test_random_rows_keep_the_norm_in_the_mean_and_exactly_if_there_are_as_many():
    units, steps = 12, 6
    weight = torch.randn(units, units, dtype=torch.float64) / 3
    layer = linear(weight, steps, units)
    many = Linearized(layer.kind, layer.weights, layer.slopes.expand(-1, 4000, -1, -1))
    truth = reach([layer], all_rows(1, weight, units)).state[:, 0, 0]
    generator = torch.Generator().manual_seed(0)
    found = reach([many], random_rows(4000, 3, weight, units, generator)).state[:, 0]
    squares = (2 * (found - truth[:, None])).exp()
    assert squares.mean(1) == pytest.approx(1, abs=0.05)
    assert squares[1:].std(1).min() > 0.1
    whole = random_rows(5, units, weight, units, generator)
    five = Linearized(layer.kind, layer.weights, layer.slopes.expand(-1, 5, -1, -1))
    exact = reach([five], whole).state[:, 0]
    assert torch.allclose(exact, truth[:, None].expand_as(exact), atol=1e-12)


def test_float32_survives_what_no_float32_can_hold():
    def trace_in(dtype):
        torch.manual_seed(1)
        module = nn.LSTM(4, 16, 2, batch_first=True)
        for name, weight in module.named_parameters():
            weight.data.mul_(0.5)
            if "bias_hh" in name:
                weight.data[16:32] -= 3
        x = torch.randn(2, 300, 4)
        return StateReach()(Subject(Wrapped(module).to(dtype), [x]))

    single, double = (
        trace_in(dtype)["input_reach"].to_numpy() for dtype in (torch.float32, torch.float64)
    )
    assert double[:, 0, -1].max() < -100
    assert single == pytest.approx(double, abs=1e-3)


def test_an_input_that_no_state_remembers_has_a_derivative_of_zero():
    layer = linear(torch.zeros(3, 3, dtype=torch.float64), 4, 3)
    found = reach([layer], all_rows(1, layer.slopes, 3), (1, 3))
    assert found.state[:, 0, 0].tolist() == pytest.approx([math.log(3) / 2] + [-math.inf] * 3)
    assert found.input[1:, 0].tolist() == [-math.inf] * 3
    assert found.spectral[3].tolist() == [-math.inf]
