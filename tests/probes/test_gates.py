"""Gates whose opening is set by hand, and a loop of cells as a second implementation."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from probes import gates as module
from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.gates import Gates

INPUTS, UNITS = 3, 4


def constant(kind, **opening):
    """A layer without inputs or recurrence, whose gates are what their biases say."""
    rnn = getattr(nn, kind)(INPUTS, UNITS, batch_first=True).double()
    for weight in rnn.parameters():
        weight.data.zero_()
    names = module.GATES[kind.lower()]
    for gate, values in opening.items():
        own = rnn.bias_ih_l0.data.view(len(names), UNITS)[names.index(gate)]
        own.copy_(torch.tensor(values, dtype=torch.float64).logit())
    return rnn


def inputs(samples, timesteps):
    return torch.randn(samples, timesteps, INPUTS, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "gate"), [("LSTM", "forget"), ("GRU", "update")])
def test_the_timescale_is_that_of_the_gate(kind, gate):
    opening = [0.95, 0.5, 0.05, 0.99]
    trace = Gates()(Subject(constant(kind, **{gate: opening}), inputs(2, 6)))
    assert trace["timescale"].dims == ("layer", "unit")
    expected = [-1 / math.log(share) for share in opening]
    np.testing.assert_allclose(trace["timescale"][0], expected, rtol=1e-12)
    assert expected[0] == pytest.approx(19.496, abs=1e-3)
    own = trace.sel(layer="l0", gate=gate)
    np.testing.assert_allclose(own["mean"], [opening] * 2, rtol=1e-6)
    assert own["open"].values.tolist() == [[1, 0, 0, 1]] * 2
    assert own["closed"].values.tolist() == [[0, 0, 1, 0]] * 2


def test_a_gate_that_is_always_one_never_forgets():
    lstm = constant("LSTM")
    lstm.bias_ih_l0.data[UNITS : 2 * UNITS] = 1000.0
    trace = Gates()(Subject(lstm, inputs(2, 6)))
    assert trace["timescale"].values.tolist() == [[math.inf] * UNITS]


def stepped(lstm, x_TI):
    """Gates (T, 4, H) of one sample, by the equations."""
    h, c = torch.zeros(UNITS).double(), torch.zeros(UNITS).double()
    found = []
    for x in x_TI:
        pre = lstm.weight_ih_l0 @ x + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
        i, f, g, o = pre.detach().chunk(4)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c + i * g
        h = o * c.tanh()
        found.append(torch.stack([i, f, g, o]))
    return torch.stack(found)


def test_shares_of_time_are_those_of_every_ragged_sample(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1)  # one sample at a time
    lstm = nn.LSTM(INPUTS, UNITS, batch_first=True).double()
    for weight in lstm.parameters():
        weight.data.mul_(8)
    lengths = [[3, 7], [5]]
    batches = [Batch(inputs(len(own), 8), None, torch.tensor(own)) for own in lengths]
    trace = Gates()(Subject(lstm, batches, time_axis=1))
    assert trace["gate"].values.tolist() == ["input", "forget", "candidate", "output"]
    assert trace["length"].values.tolist() == [3, 7, 5]
    rows = [(batch, b) for batch in batches for b in range(len(batch.lengths))]
    saturated = 0
    for sample, (batch, b) in enumerate(rows):
        values = stepped(lstm, batch.inputs[b, : int(batch.lengths[b])])
        low = torch.tensor([0.1, 0.1, -0.9, 0.1])[:, None]
        own = trace.isel(sample=sample, layer=0)
        order = ["input", "forget", "candidate", "output"]
        for name, expected in (
            ("mean", values.mean(0)),
            ("open", (values > 0.9).double().mean(0)),
            ("closed", (values <= low).double().mean(0)),
        ):
            np.testing.assert_allclose(own[name].sel(gate=order), expected, rtol=1e-6, atol=1e-7)
        saturated += float(own["closed"].sel(gate="candidate").sum())
    assert saturated > 0


def test_kinds_of_layers_share_one_trace():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(INPUTS, 2, bidirectional=True, batch_first=True)
            self.tanh = nn.RNN(4, 3, batch_first=True)
            self.relu = nn.RNN(3, 3, nonlinearity="relu", batch_first=True)
            self.double()

        def forward(self, x):
            return self.relu(self.tanh(self.gru(x)[0])[0])[0]

    model = Mixed()
    model.relu.bias_ih_l0.data = torch.tensor([-100.0, 100.0, 0.0]).double()
    trace = Gates()(Subject(model, inputs(3, 5)))
    assert trace["layer"].values.tolist() == ["gru.l0", "gru.l0.reverse", "tanh.l0", "relu.l0"]
    assert trace["kind"].values.tolist() == ["GRU", "GRU", "RNN", "RNN"]
    assert trace["gate"].values.tolist() == ["reset", "update", "candidate", "state"]
    measured = ~trace["mean"].isnull().all(["sample", "unit"])
    assert measured.values.tolist() == [[True] * 3 + [False]] * 2 + [[False] * 3 + [True]] * 2
    relu = trace.sel(layer="relu.l0", gate="state")
    assert relu["open"].isnull().all()
    assert relu["closed"][:, :2].values.tolist() == [[1, 0]] * 3
    assert trace["timescale"].isnull().all("unit").values.tolist() == [False, False, True, True]
    assert trace["timescale"].isnull().sum().item() == 2 * 1 + 2 * 3
    assert 0 <= trace.attrs.pop("replay_residual") < 1e-12
    assert trace.attrs == {"not_called": "", "not_per_sample": ""}
    assert trace["open"].attrs == {"long_name": "share of time open", "units": "1"}


def test_only_the_first_samples_are_measured():
    subject = Subject(constant("LSTM"), [inputs(3, 4), inputs(3, 4)])
    assert Gates(samples=4)(subject).sizes["sample"] == 4
    done = []
    Gates(samples=2)(subject, lambda *step: done.append(step))
    assert done == [(2, 2)]


def test_the_rows_of_a_single_sample_are_averaged():
    lstm = nn.LSTM(INPUTS, UNITS).double()
    x = inputs(5, 7)

    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = lstm

        def forward(self, x):
            return self.lstm(x[0])[0][None]

    one = Gates()(Subject(Single(), x[None]))
    many = Gates()(Subject(lstm, x, batch_axis=1))
    assert one.sizes["sample"] == 1
    np.testing.assert_allclose(one["mean"][0], many["mean"].mean("sample"), rtol=1e-6)


def test_misuse_and_models_without_recurrence():
    with pytest.raises(AnalyzerError) as error:
        Gates(samples=0)(Subject(constant("GRU"), inputs(2, 3)))
    assert str(error.value) == "gates needs samples >= 1: it is 0"
    with pytest.raises(AnalyzerError) as error:
        Gates()(Subject(constant("GRU"), []))
    assert str(error.value) == "there are no batches to measure with"
    with pytest.raises(NotApplicable):
        Gates()(Subject(nn.Linear(INPUTS, 1), inputs(2, 3)))
