"""The probe against a loop of cells whose states keep their gradient, sample by sample."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.recurrent.backward.recordings import Recordings
from probes.timestep_gradient import TimestepGradient

INPUTS, UNITS, CLASSES = 3, 4, 5


class Net(nn.Module):
    """A recurrent layer and a linear head, at every step or at the last one."""

    def __init__(self, kind="LSTM", *, every_step=True, **options):
        super().__init__()
        self.rnn = getattr(nn, kind)(INPUTS, UNITS, batch_first=True, **options)
        width = UNITS * (2 if self.rnn.bidirectional else 1)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(width, CLASSES))
        self.every_step = every_step
        self.double()

    def forward(self, x, lengths=None):
        if lengths is None:
            y, _ = self.rnn(x)
        else:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            y, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(y if self.every_step else y[:, -1])


def inputs(samples, timesteps):
    return torch.randn(samples, timesteps, INPUTS, dtype=torch.float64)


def classes(*shape):
    return torch.randint(CLASSES, shape)


def expected(model, x_TI, targets, last):
    """Root mean squares of dL/dh_t and dL/dc_t of one sample of one layer, by a loop of cells."""
    cell = nn.LSTMCell(INPUTS, UNITS, dtype=torch.float64)
    for own, weight in zip(cell.parameters(), model.rnn.parameters(), strict=True):
        own.data.copy_(weight.data)
    state, states = None, []
    for x_I in x_TI:
        state = cell(x_I[None], state)
        for part in state:
            part.retain_grad()
        states.append(state)
    y = model.head[1](torch.cat([h for h, _ in states]))
    losses = nn.functional.cross_entropy(y, targets, reduction="none")
    (losses[-1] if last else losses.mean()).backward()
    return [[float(state[part].grad.square().mean().sqrt()) for state in states] for part in (0, 1)]


def test_every_state_of_ragged_samples_in_several_batches():
    model = Net()
    lengths = [[4, 6, 2], [9, 3]]
    batches = []
    for own in lengths:
        x = inputs(len(own), max(own) + 1)  # one timestep is padding in every sample
        targets = classes(len(own), max(own))
        count = torch.tensor(own)
        batches.append(Batch({"x": x, "lengths": count}, targets, count))
    trace = TimestepGradient()(Subject(model, batches, loss="cross_entropy"))

    assert dict(trace.sizes) == {"sample": 5, "layer": 1, "timestep": 9}
    assert trace["length"].values.tolist() == [4, 6, 2, 9, 3]
    rows = [(batch, b) for batch in batches for b in range(len(batch.lengths))]
    for sample, (batch, b) in enumerate(rows):
        length = int(batch.lengths[b])
        x_TI, targets = batch.inputs["x"][b, :length], batch.targets[b, :length]
        for suffix, last in (("", False), ("_final", True)):
            reference = expected(model, x_TI, targets, last)
            for kind, values in zip(("hidden", "cell"), reference, strict=True):
                found = trace[f"{kind}_gradient{suffix}"][sample, 0].values
                np.testing.assert_allclose(found[:length], values, rtol=1e-10)
                assert np.isnan(found[length:]).all()


def test_padding_that_the_model_reads_is_left_out():
    model, x = Net(bidirectional=True), inputs(2, 6)
    batch = Batch(x, classes(2, 6), torch.tensor([3, 5]))
    trace = TimestepGradient()(Subject(model, batch, loss="cross_entropy", time_axis=1))
    assert trace["hidden_gradient"].isnull().sum("timestep").values.tolist() == [[3, 3], [1, 1]]
    assert trace["length"].values.tolist() == [3, 5]
    batch = Batch(x, None, torch.tensor([1, 5]))
    for axis in (None, 1):
        trace = TimestepGradient()(Subject(Decoder(), batch, time_axis=axis))
        gaps = trace["hidden_gradient"].isnull().sum("timestep")
        assert gaps.sel(layer="decoder.l0").values.tolist() == [4, 4]
        assert gaps.sel(layer="encoder.l0").values.tolist() == [5, 1]


class Decoder(nn.Module):
    """Reads with one layer and writes two steps with another."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(INPUTS, UNITS, batch_first=True)
        self.decoder = nn.GRU(UNITS, UNITS, batch_first=True)
        self.double()

    def forward(self, x):
        _, state = self.encoder(x)
        return self.decoder(state.transpose(0, 1).repeat(1, 2, 1), state)[0]


def test_labels_and_units():
    model = Net("GRU", num_layers=2, bidirectional=True)
    trace = TimestepGradient()(Subject(model, [(inputs(2, 3), classes(2, 3))], "cross_entropy"))
    names = ["rnn.l0", "rnn.l0.reverse", "rnn.l1", "rnn.l1.reverse"]
    assert trace["layer"].values.tolist() == names
    assert trace["kind"].values.tolist() == ["GRU"] * 4
    assert trace["units"].values.tolist() == [UNITS] * 4
    assert trace["direction"].values.tolist() == ["forward", "reverse"] * 2
    assert trace["timestep"].values.tolist() == [0, 1, 2]
    assert trace["cell_gradient"].isnull().all()
    assert trace["hidden_gradient"].attrs == {
        "long_name": "rms gradient of the sample's loss at the hidden state",
        "units": "loss / state",
    }
    assert trace["length"].attrs == {"long_name": "valid timesteps", "units": "timestep"}
    residual = trace.attrs.pop("replay_residual")
    assert 0 <= residual < 1e-12
    assert trace.attrs == {
        "objective": "cross_entropy, per sample",
        "not_called": "",
        "without_gradient": "",
        "not_per_sample": "",
    }


def counted(monkeypatch):
    """Count the losses that are differentiated."""
    losses = []
    gradients, each = Recordings.gradients, Recordings.each

    def counting(self, loss):
        losses.append(loss)
        return gradients(self, loss)

    def counting_each(self, several):
        losses.extend(several)
        return each(self, several)

    monkeypatch.setattr(Recordings, "gradients", counting)
    monkeypatch.setattr(Recordings, "each", counting_each)
    return losses


def test_one_output_per_sequence_needs_one_loss(monkeypatch):
    passes = counted(monkeypatch)
    batch = (inputs(3, 6), classes(3))
    trace = TimestepGradient()(Subject(Net(every_step=False), [batch], "cross_entropy"))
    assert len(passes) == 1
    for kind in ("hidden", "cell"):
        assert trace[f"{kind}_gradient"].identical(
            trace[f"{kind}_gradient_final"].assign_attrs(trace[f"{kind}_gradient"].attrs)
            .rename(f"{kind}_gradient")
        )  # fmt: skip
    assert (trace["hidden_gradient"] > 0).all()


def test_outputs_that_do_not_change_over_time_are_still_several(monkeypatch):
    model = Net("RNN")
    for name in ("weight_ih_l0", "weight_hh_l0"):
        getattr(model.rnn, name).data.zero_()
    passes = counted(monkeypatch)
    trace = TimestepGradient()(Subject(model, [inputs(2, 4)]))
    assert len(passes) == 2
    whole, last = trace["hidden_gradient"].values, trace["hidden_gradient_final"].values
    np.testing.assert_allclose(whole[..., -1] * 4, last[..., -1], rtol=1e-12)
    assert not last[..., :-1].any()
    assert (whole > 0).all()


class Folding(nn.Module):
    """Reads the parts of every sample as if they were samples."""

    def __init__(self):
        super().__init__()
        self.part = nn.GRU(INPUTS, UNITS, batch_first=True, dtype=torch.float64)
        self.whole = nn.GRU(UNITS, UNITS, batch_first=True, dtype=torch.float64)
        self.spare = nn.GRU(UNITS, UNITS, dtype=torch.float64)
        self.idle = nn.RNNCell(UNITS, UNITS, dtype=torch.float64)

    def forward(self, x):
        y, _ = self.part(x.flatten(0, 1))
        y = y[:, -1].view(*x.shape[:2], UNITS)
        self.spare(y)
        return self.whole(y)[0]


def test_what_was_not_measured_is_named():
    x = torch.randn(2, 4, 6, INPUTS, dtype=torch.float64)
    trace = TimestepGradient()(Subject(Folding(), [x]))
    assert trace["layer"].values.tolist() == ["part.l0", "spare.l0", "whole.l0"]
    missing = trace["hidden_gradient"].isnull().all(["sample", "timestep"])
    assert missing.values.tolist() == [True, True, False]
    assert trace["length"].values.tolist() == [4, 4]
    assert trace.attrs["not_called"] == "idle"
    assert trace.attrs["without_gradient"] == "spare.l0"
    assert trace.attrs["not_per_sample"] == "part.l0, spare.l0"
    assert 0 <= trace.attrs["replay_residual"] < 1e-12


def test_the_rows_of_a_batch_of_one_are_that_sample():
    model = Folding()
    x = torch.randn(2, 4, 6, INPUTS, dtype=torch.float64)
    trace = TimestepGradient()(Subject(model, [x[:1], x[1:]]))
    assert dict(trace.sizes) == {"sample": 2, "layer": 3, "timestep": 6}
    assert trace.attrs["not_per_sample"] == ""
    for b in range(2):
        part, _ = model.part(x[b])
        last = part[:, -1].detach().requires_grad_()
        loss = 0.5 * model.whole(last[None])[0].square().mean()
        (gradient,) = torch.autograd.grad(loss, last)
        np.testing.assert_allclose(
            trace["hidden_gradient"].sel(layer="part.l0")[b, -1],
            gradient.square().mean().sqrt(),
            rtol=1e-10,
        )


def test_samples_that_cannot_be_told_apart_are_refused():
    model = nn.GRU(INPUTS, UNITS, dtype=torch.float64)
    model.batch_first = False
    with pytest.raises(AnalyzerError) as caught:
        TimestepGradient()(Subject(model, [inputs(2, 6)]))
    assert str(caught.value) == (
        "l0 reads 6 sequences for the 2 samples of a batch, so that it cannot be told which are "
        "whose: check batch_first and batch_axis, or give batches of one sample"
    )


def test_time_first_data():
    model = nn.LSTM(INPUTS, UNITS, dtype=torch.float64)
    x = inputs(7, 3)  # (timestep, sample, feature)
    trace = TimestepGradient()(Subject(model, [x], batch_axis=1, time_axis=0))
    alone = TimestepGradient()(Subject(model, [x[:, 1:2]], batch_axis=1, time_axis=0))
    assert dict(trace.sizes) == {"sample": 3, "layer": 1, "timestep": 7}
    np.testing.assert_allclose(
        trace["cell_gradient"][1].values, alone["cell_gradient"][0].values, rtol=1e-10
    )


def test_integers_through_an_embedding():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, INPUTS)
            self.net = Net().float()

        def forward(self, tokens):
            return self.net(self.embed(tokens))

    trace = TimestepGradient()(Subject(Tokens(), [torch.randint(11, (2, 6))]))
    assert (trace["hidden_gradient"] > 0).all()


def test_the_model_is_in_eval_mode_meanwhile_and_as_it_was_afterwards():
    model, x = Net(num_layers=2, dropout=0.5).train(), inputs(2, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    subject = Subject(model, [x, x[:, :3]])
    seen = []
    first = TimestepGradient()(subject, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert first.identical(TimestepGradient()(subject))
    assert model.training
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_it_does_not_apply_to():
    with pytest.raises(NotApplicable) as caught:
        TimestepGradient()(Subject(nn.Linear(3, 2), [torch.randn(4, 3)]))
    assert str(caught.value) == (
        "the model runs no recurrent layer of torch (LSTM, GRU, RNN or their cells)"
    )
    with pytest.raises(AnalyzerError) as error:
        TimestepGradient()(Subject(Net(), []))
    assert str(error.value) == "there are no batches to measure with"
