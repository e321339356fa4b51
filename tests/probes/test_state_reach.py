"""Decay of the state of recurrent networks whose memory is known; what is measured and what not."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from analyzer.decay import EXPONENTIAL
from analyzer.limits import StateReachLimits
from analyzer.rules.state_reach import stack_decays
from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.samples.excerpt import part_of, pieces
from probes.state_reach import StateReach


class Outputs(nn.Module):
    def __init__(self, *rnns: nn.Module) -> None:
        super().__init__()
        self.rnns = nn.ModuleList(rnns)

    def forward(self, x: Tensor) -> Tensor:
        for rnn in self.rnns:
            x = rnn(x)[0]
        return x


def decay_of(trace, stack="rnns.0"):
    return stack_decays(trace, StateReachLimits())[stack]


@pytest.mark.parametrize("tau", [4.5, 19.5, 49.5])
def test_a_leaky_integrator_has_the_time_constant_of_its_forget_gate(tau):
    forget = math.exp(-1 / tau)
    lstm = nn.LSTM(1, 12, batch_first=True)
    for weight in lstm.parameters():
        nn.init.zeros_(weight)
    lstm.bias_ih_l0.data[12:24] = math.log(forget / (1 - forget))
    lstm.weight_ih_l0.data[24:36] = torch.randn(12, 1)
    trace = StateReach(seeds=12)(Subject(Outputs(lstm), [torch.randn(20, 150, 1)]))
    found = decay_of(trace)
    assert found.law == EXPONENTIAL
    assert found.tau == pytest.approx(tau, rel=1e-3)
    spectral = trace["spectral_reach"].to_numpy()[:, 0]
    at = np.flatnonzero(np.isfinite(spectral[0]))
    assert (at[0], at[-1], len(at)) == (1, 149, 18)
    slopes = np.diff(spectral[:, at], axis=1) / np.diff(at)
    assert slopes == pytest.approx(math.log10(forget), rel=1e-3)


@pytest.mark.parametrize("decay", [0.8, 0.95])
def test_a_linear_network_loses_the_same_share_at_every_lag(decay):
    rnn = nn.RNN(6, 6, nonlinearity="relu", bias=False, batch_first=True)
    order = torch.randperm(6)
    rnn.weight_hh_l0.data = decay * torch.eye(6)[order]
    rnn.weight_ih_l0.data = torch.eye(6)
    trace = StateReach()(Subject(Outputs(rnn), [torch.rand(18, 60, 6) + 0.1]))
    expected = math.log10(math.sqrt(6)) + np.arange(60) * math.log10(decay)
    for name in ("state_reach", "input_reach"):
        assert trace[name].to_numpy()[:, 0] == pytest.approx(np.tile(expected, (18, 1)), abs=1e-5)
    assert decay_of(trace).tau == pytest.approx(-1 / math.log(decay), rel=1e-5)


def test_large_layers_are_estimated():
    lstm = nn.LSTM(3, 40, 2, batch_first=True)
    model, x = Outputs(lstm), torch.randn(24, 30, 3)
    exact = StateReach(seeds=40)(Subject(model, [x]))
    assert np.isfinite(exact["spectral_reach"]).any("lag").all()
    found = StateReach(seeds=4, spectral=11)(Subject(model, [x[:10], x[10:]]))
    for name in ("state_reach", "input_reach"):
        error = (found[name] - exact[name]).to_numpy()
        assert np.abs(error).max(axis=(1, 2)).min() > 1e-3
        squares = 100**error
        assert squares.mean(0) == pytest.approx(np.ones(squares.shape[1:]), abs=0.5)
        assert squares.mean() == pytest.approx(1, abs=0.1)
    spectral = found["spectral_reach"].to_numpy()[:, 0]
    assert np.isfinite(spectral).any(1).tolist() == [True] * 11 + [False] * 13
    assert spectral[:11] == pytest.approx(
        exact["spectral_reach"].to_numpy()[:11, 0], abs=0.01, nan_ok=True
    )
    none = StateReach(seeds=4, spectral=0)(Subject(model, [x]))
    assert none["spectral_reach"].isnull().all()


def test_the_first_samples_are_measured_over_batches_of_any_length():
    gru = nn.GRU(3, 4, batch_first=True)
    short, long = torch.randn(5, 6, 3), torch.randn(9, 11, 3)
    trace = StateReach(samples=8)(Subject(Outputs(gru), [short, long]))
    assert dict(trace.sizes) == {"sample": 8, "layer": 1, "stack": 1, "lag": 11}
    alone = StateReach()(Subject(Outputs(gru), [long[:3]]))
    assert trace["state_reach"].to_numpy()[5:] == pytest.approx(alone["state_reach"].to_numpy())
    assert trace["length"].to_numpy()[:, 0].tolist() == [6] * 5 + [11] * 3
    limited = StateReach(lags=4)(Subject(Outputs(gru), [long]))
    assert limited["lag"].to_numpy().tolist() == [0, 1, 2, 3, 4]


def test_modules_one_after_the_other_are_stacks_of_their_own():
    lstm, gru = nn.LSTM(3, 5, 2, batch_first=True), nn.GRU(5, 4, batch_first=True)
    trace = StateReach()(Subject(Outputs(lstm, gru), [torch.randn(4, 9, 3)]))
    assert trace["stack"].to_numpy().tolist() == ["rnns.0", "rnns.1"]
    assert trace["layer"].to_numpy().tolist() == ["rnns.0.l0", "rnns.0.l1", "rnns.1.l0"]
    assert trace["stack_of"].to_numpy().tolist() == ["rnns.0", "rnns.0", "rnns.1"]
    assert trace["kind"].to_numpy().tolist() == ["LSTM", "GRU"]
    assert trace["units"].to_numpy().tolist() == [5, 4]
    assert trace.attrs["left_out"] == ""


def test_what_cannot_be_followed_is_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.folded = nn.GRU(3, 4, batch_first=True)
            self.plain = nn.GRU(3, 4, batch_first=True)

        def forward(self, x):
            y = self.folded(x.flatten(0, 1).unflatten(0, (2 * len(x), -1)))[0]
            return self.plain(x)[0], y

    x = torch.randn(4, 8, 3)
    trace = StateReach()(Subject(Model(), [x]))
    assert trace["stack"].to_numpy().tolist() == ["plain"]
    assert trace.attrs["left_out"] == "folded.l0: it reads no sequence for each sample"


def reason(model, x):
    with pytest.raises(NotApplicable) as caught:
        StateReach()(Subject(model, [x]))
    return str(caught.value)


def test_networks_without_a_recurrence_are_not_measured():
    assert reason(nn.Linear(3, 2), torch.randn(4, 3)) == (
        "the model runs no recurrent layer of torch (LSTM, GRU, RNN or their cells)"
    )
    assert reason(Outputs(nn.GRU(3, 4, batch_first=True)), torch.randn(4, 1, 3)) == (
        "the recurrent layers read one timestep: there is nothing before it"
    )


def test_layers_that_read_something_else_than_samples_are_refused():
    with pytest.raises(AnalyzerError, match=r"rnns\.0\.l0 reads 7 sequences for the 4 samples"):
        StateReach()(Subject(Outputs(nn.GRU(3, 4)), [torch.randn(4, 7, 3)]))
    with pytest.raises(NotApplicable) as caught:
        StateReach()(Subject(Outputs(nn.GRU(3, 4)), [torch.randn(1, 7, 3)]))
    assert str(caught.value) == (
        "no recurrent layer could be followed: rnns.0: it reads 7 sequences for one sample"
    )


def test_layers_that_no_output_depends_on_are_followed_too():
    class Detached(Outputs):
        def forward(self, x):
            return super().forward(x).detach()

    torch.manual_seed(1)
    gru, x = nn.GRU(3, 4, batch_first=True), torch.randn(4, 7, 3)
    found, known = (StateReach()(Subject(kind(gru), [x])) for kind in (Detached, Outputs))
    assert found.equals(known)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(AnalyzerError) as caught:
        StateReach(seeds=0)(Subject(Outputs(nn.GRU(3, 4)), [torch.randn(4, 7, 3)]))
    assert str(caught.value) == (
        "state_reach needs samples, seeds, lags and chunk >= 1 and spectral >= 0: they are 32, 0, "
        "400, 32 and 2"
    )


def test_the_first_samples_are_cut_out_of_all_that_a_model_is_given():
    x, mask, states = torch.randn(6, 9, 3), torch.ones(6, 9), torch.randn(2, 6, 4)
    subject = Subject(nn.Identity(), [])
    batch = part_of(subject, Batch((x, mask, states), x), 3, 2)
    for part, own in zip(batch.inputs, (x[3:5], mask[3:5], states[:, 3:5]), strict=True):
        assert torch.equal(part, own)
    packed = pack_padded_sequence(x, torch.tensor([4, 9, 2, 7, 7, 1]), True, False)
    cut = part_of(subject, next(iter(Subject(nn.Identity(), [packed]))), 0, 3)
    assert cut.inputs.batch_sizes.tolist() == [3, 3, 2, 2, 1, 1, 1, 1, 1]
    lengths = torch.tensor([4, 9, 2, 7, 7, 1])
    cuts = [*pieces(Subject(nn.Identity(), [Batch(x, None, lengths), x]), 9, 4)]
    assert [len(cut.inputs) for cut in cuts] == [4, 2, 3]
    assert cuts[1].lengths.tolist() == [7, 1]
    assert torch.equal(cuts[1].inputs, x[4:])


def test_progress_is_reported_up_to_the_end():
    seen = []
    subject = Subject(Outputs(nn.GRU(3, 4, batch_first=True)), [torch.randn(20, 5, 3)] * 3)
    StateReach(chunk=8)(subject, lambda done, total: seen.append((done, total)))
    assert seen == [(8, 32), (16, 32), (20, 32), (28, 32), (32, 32)]
