"""Every timestep's part of every weight's gradient, against networks with weights of their own."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.timestep_contribution import TimestepContribution

INPUTS, UNITS, CLASSES = 3, 4, 5
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Net(nn.Module):
    """A recurrent layer and a linear head at every step."""

    def __init__(self, kind="LSTM", **options):
        super().__init__()
        self.rnn = getattr(nn, kind)(INPUTS, UNITS, batch_first=True, **options)
        self.head = nn.Linear(
            self.rnn.weight_hh_l0.shape[1] * (1 + self.rnn.bidirectional), CLASSES
        )
        self.double()

    def forward(self, x, lengths=None):
        if lengths is None:
            return self.head(self.rnn(x)[0])
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


def inputs(samples, timesteps):
    return torch.randn(samples, timesteps, INPUTS, dtype=torch.float64)


def classes(*shape):
    return torch.randint(CLASSES, shape)


def untied(model, x_TI, targets_T):
    """Gradients of one sample by weights that are another copy at every timestep and layer.

    Returns name of the layer and weight -> (T, ...), in the order of the data.
    """
    module, values, copies = model.rnn, x_TI, {}
    for layer in range(module.num_layers):
        sides = []
        for direction in range(1 + module.bidirectional):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            label = f"rnn.l{layer}" + (".reverse" if direction else "")
            own = {
                name: [
                    getattr(module, name + suffix).detach().clone().requires_grad_() for _ in values
                ]
                for name in NAMES
            }
            copies |= {f"{label}.{name}": weights for name, weights in own.items()}
            h = c = x_TI.new_zeros(1, UNITS)
            outputs = [h] * len(values)
            steps = range(len(values))
            for t in reversed(steps) if direction else steps:
                weights = [own[name][t] for name in NAMES]
                if module.mode == "LSTM":
                    h, c = torch._VF.lstm_cell(values[t : t + 1], (h, c), *weights)
                elif module.mode == "GRU":
                    h = torch._VF.gru_cell(values[t : t + 1], h, *weights)
                else:
                    h = torch._VF.rnn_tanh_cell(values[t : t + 1], h, *weights)
                outputs[t] = h
            sides.append(torch.cat(outputs))
        values = torch.cat(sides, 1)
    functional.cross_entropy(model.head(values), targets_T).backward()
    return {
        label: torch.stack([weight.grad for weight in weights]).flatten(1)
        for label, weights in copies.items()
    }


def compare(trace, samples):
    """Check a trace against the gradients of all samples: label -> (T, X), one entry each."""
    timesteps = trace.sizes["timestep"]
    for place, label in enumerate(trace["weight"].values):
        own = torch.stack(
            [functional.pad(s[label], (0, 0, 0, timesteps - len(s[label]))) for s in samples]
        )
        g, whole = own.sum(1), own.sum((0, 1))
        of = trace.isel(weight=place)
        share = (own @ whole) / whole.square().sum()
        np.testing.assert_allclose(np.nan_to_num(of["share"]), share, rtol=1e-9, atol=1e-12)
        # A sample of one timestep has no gradient of the recurrent weight, and no shares.
        own_share = ((own * g[:, None]).sum(2) / g.square().sum(1, keepdim=True)).nan_to_num()
        np.testing.assert_allclose(np.nan_to_num(of["own_share"]), own_share, rtol=1e-9, atol=1e-12)
        by_time = own.sum(0)
        np.testing.assert_allclose(of["norm"], by_time.norm(dim=1) / len(samples), rtol=1e-9)
        cosine = functional.cosine_similarity(by_time, whole[None])
        moving = by_time.norm(dim=1) > 0
        np.testing.assert_allclose(of["cosine"][moving.numpy()], cosine[moving], atol=1e-9)
        assert float(of["gradient"]) == pytest.approx(float(whole.norm()) / len(samples))
        np.testing.assert_allclose(of["sample_gradient"], g.norm(dim=1), rtol=1e-9)
        halves = [
            torch.stack([rows[: len(s[label]) // 2].sum(0), rows[len(s[label]) // 2 :].sum(0)])
            for rows, s in zip(own, samples, strict=True)
        ]
        first, second = torch.stack(halves).sum(0)
        assert float(of["conflict"]) == pytest.approx(
            float(functional.cosine_similarity(first, second, 0)), abs=1e-9
        )
        for b, (early, late) in enumerate(halves):
            expected = functional.cosine_similarity(first - early, second - late, 0)
            assert float(of["conflict_without"][b]) == pytest.approx(float(expected), abs=1e-9)
            if early.any():
                expected = functional.cosine_similarity(early, late, 0)
                assert float(of["sample_conflict"][b]) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_stack_in_both_directions_and_several_batches(kind):
    model = Net(kind, num_layers=2, bidirectional=True)
    batches = [(inputs(count, 7), classes(count, 7)) for count in (3, 2)]
    trace = TimestepContribution()(Subject(model, batches, "cross_entropy"))
    samples = [untied(model, x, y) for xs, ys in batches for x, y in zip(xs, ys, strict=True)]
    compare(trace, samples)
    labels = set(trace["weight"].values)
    assert ("rnn.l1.reverse.bias_hh" in labels) == (kind == "GRU")
    assert len(labels) == 4 * (4 if kind == "GRU" else 3)
    assert trace["kind"].values.tolist() == [kind] * len(labels)
    assert trace.attrs["gradient_residual"] < 1e-12
    assert trace.attrs["share_residual"] < 1e-12
    assert trace.attrs["replay_residual"] < 1e-12
    assert trace.attrs["samples"] == 5
    assert trace.attrs["objective"] == "cross_entropy, per sample"


def test_ragged_samples_in_packed_batches():
    model = Net("LSTM", num_layers=2, bidirectional=True)
    lengths = [[4, 6, 1], [9, 3]]
    batches = []
    for own in lengths:
        count = torch.tensor(own)
        x = inputs(len(own), max(own))
        batches.append(Batch({"x": x, "lengths": count}, classes(len(own), max(own)), count))
    trace = TimestepContribution()(Subject(model, batches, "cross_entropy"))
    samples = [
        untied(model, batch.inputs["x"][b, :length], batch.targets[b, :length])
        for batch, own in zip(batches, lengths, strict=True)
        for b, length in enumerate(own)
    ]
    compare(trace, samples)
    assert trace["length"].isel(weight=0).values.tolist() == [4, 6, 1, 9, 3]
    assert trace["share"].isel(weight=0).isnull().sum("timestep").values.tolist() == [5, 3, 8, 0, 6]
    assert trace.attrs["gradient_residual"] < 1e-12
    assert np.isnan(trace["sample_conflict"].isel(sample=2)).all()


def test_padding_that_the_model_reads_counts_for_the_second_half():
    model, x, y = Net("GRU", bidirectional=True), inputs(2, 6), classes(2, 6)
    y[0, 3:] = -100  # the loss leaves padding out, the model does not
    batch = Batch(x, y, torch.tensor([3, 6]))
    trace = TimestepContribution()(Subject(model, batch, "cross_entropy", time_axis=1))
    assert trace["length"].isel(weight=0).values.tolist() == [3, 6]
    assert trace["share"].notnull().all()
    reverse = trace["share"].sel(weight="rnn.l0.reverse.weight_ih", sample=0)
    assert (reverse[3:] != 0).all()
    own = untied(model, x[0], y[0])["rnn.l0.reverse.weight_ih"]
    expected = functional.cosine_similarity(own[:1].sum(0), own[1:].sum(0), 0)
    found = trace["sample_conflict"].sel(weight="rnn.l0.reverse.weight_ih", sample=0)
    assert float(found) == pytest.approx(float(expected), abs=1e-9)


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(INPUTS, UNITS)
        self.head = nn.Linear(UNITS, CLASSES)
        self.double()

    def forward(self, x):
        state, outputs = None, []
        for x_BI in x.transpose(0, 1):
            state = self.cell(x_BI, state)
            outputs.append(self.head(state[0]))
        return torch.stack(outputs, 1)


def test_a_loop_over_a_cell():
    model, loop = Net("LSTM"), Loop()
    for own, weight in zip(loop.parameters(), model.parameters(), strict=True):
        own.data.copy_(weight.data)
    data = inputs(3, 5), classes(3, 5)
    expected = TimestepContribution()(Subject(model, [data], "cross_entropy"))
    trace = TimestepContribution()(Subject(loop, [data], "cross_entropy"))
    assert trace["weight"].values.tolist() == [
        "cell.l0.weight_ih", "cell.l0.weight_hh", "cell.l0.bias_ih"
    ]  # fmt: skip
    for name in expected.data_vars:
        np.testing.assert_allclose(trace[name], expected[name], atol=1e-12)
    assert trace.attrs["gradient_residual"] < 1e-12


def test_calls_after_the_last_output_add_nothing():
    class Early(Loop):
        def forward(self, x):
            state, outputs = None, []
            for x_BI in x.transpose(0, 1):
                state = self.cell(x_BI, state)
                outputs.append(state[0])
            return self.head(outputs[2])

    model, x, y = Early(), inputs(3, 6), classes(3)
    trace = TimestepContribution()(Subject(model, [(x, y)], "cross_entropy"))
    short = TimestepContribution()(Subject(model, [(x[:, :3], y)], "cross_entropy"))
    assert not trace["share"][:, :, 3:].any()
    np.testing.assert_allclose(trace["share"][:, :, :3], short["share"], atol=1e-12)
    np.testing.assert_allclose(trace["norm"][:, :3], short["norm"], atol=1e-12)


class Twice(nn.Module):
    """Reads two sequences with the same layer, each from a state of zeros."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(INPUTS, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, CLASSES)
        self.double()

    def forward(self, x):
        first, second = (self.rnn(part)[0][:, -1] for part in (x[:, :5], x[:, 5:]))
        return self.head(first * second)


def test_a_weight_that_is_used_for_two_sequences():
    model, x, y = Twice(), inputs(4, 8), classes(4)
    trace = TimestepContribution()(Subject(model, [(x, y)], "cross_entropy"))
    labels = trace["weight"].values.tolist()
    assert "rnn.l0.weight_hh" in labels
    assert "rnn.call2.l0.weight_hh" in labels
    both = trace.sel(weight=["rnn.l0.weight_hh", "rnn.call2.l0.weight_hh"])
    assert float(both["share"].sum()) == pytest.approx(1)
    np.testing.assert_allclose(both["own_share"].sum(["weight", "timestep"]), 1)
    functional.cross_entropy(model(x), y).backward()
    norm = float(model.rnn.weight_hh_l0.grad.norm())
    np.testing.assert_allclose(both["gradient"], norm)
    assert trace.attrs["gradient_residual"] < 1e-12
    assert trace.attrs["share_residual"] < 1e-12


def test_float32_is_close_to_float64():
    model, x, y = Net("LSTM", num_layers=2), inputs(5, 40), classes(5, 40)
    exact = TimestepContribution()(Subject(model, [(x, y)], "cross_entropy"))
    single = TimestepContribution()(Subject(model.float(), [(x.float(), y)], "cross_entropy"))
    np.testing.assert_allclose(single["share"], exact["share"], atol=2e-5)
    np.testing.assert_allclose(single["norm"], exact["norm"], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(single["conflict_without"], exact["conflict_without"], atol=1e-4)
    assert 0 < single.attrs["gradient_residual"] < 1e-4


def test_samples_are_spread_and_fewer_where_memory_is_short():
    model, x, y = Net("LSTM"), inputs(9, 6), classes(9, 6)
    subject = Subject(model, [(x[:5], y[:5]), (x[5:], y[5:])], "cross_entropy")
    few = TimestepContribution(samples=3)(subject)
    expected = TimestepContribution()(Subject(model, [(x[::3], y[::3])], "cross_entropy"))
    for name in expected.data_vars:
        np.testing.assert_allclose(few[name], expected[name], rtol=1e-9, atol=1e-13)
    row = 6 * 8 * (4 * UNITS + INPUTS + UNITS)  # bytes of a sample
    short = TimestepContribution(memory=3.5 * row / 2**30)(subject)
    assert short.attrs["samples"] == 3
    np.testing.assert_allclose(short["share"], few["share"], rtol=1e-9, atol=1e-13)


def test_remarks_and_progress():
    class Spare(Net):
        def __init__(self):
            super().__init__("GRU", num_layers=2)
            self.unused = nn.LSTM(2, 2)
            self.side = nn.RNN(INPUTS, 2, batch_first=True).double()

        def forward(self, x):
            self.side(x)
            return super().forward(x)

    x, y = inputs(4, 3), classes(4, 3)
    seen = []
    subject = Subject(Spare(), [(x[:3], y[:3]), (x[3:], y[3:])], "cross_entropy")
    trace = TimestepContribution()(subject, lambda done, total: seen.append((done, total)))
    assert seen == [(3, 4), (4, 4)]
    assert trace.attrs["not_called"] == "unused"
    assert trace.attrs["without_gradient"] == "side.l0"
    assert set(trace["layer"].values) == {"rnn.l0", "rnn.l1"}
    assert trace.attrs["share_residual"] < 1e-12


def test_what_is_refused():
    with pytest.raises(AnalyzerError) as caught:
        TimestepContribution(samples=1)(Subject(Net(), [(inputs(2, 3), classes(2, 3))]))
    assert str(caught.value) == (
        "timestep_contribution needs samples >= 2 and memory > 0: they are 1 and 1"
    )
    with pytest.raises(NotApplicable) as reason:
        TimestepContribution()(Subject(nn.Linear(3, 2), [torch.randn(4, 3)]))
    assert str(reason.value) == (
        "the model runs no recurrent layer of torch (LSTM, GRU, RNN or their cells)"
    )

    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(INPUTS, UNITS)

        def forward(self, x):
            return self.rnn(x.flatten(0, 1)[None])[0].view(len(x), -1)

    with pytest.raises(AnalyzerError) as error:
        TimestepContribution()(Subject(Frames(), [torch.randn(4, 6, INPUTS)]))
    assert str(error.value) == (
        "rnn.l0 reads 24 sequences for the 4 samples, so that it cannot be told which are whose: "
        "check batch_first and batch_axis"
    )


def test_a_linear_network_learns_from_geometrically_fewer_earlier_steps():
    decay, timesteps = 0.9, 30
    rnn = nn.RNN(1, 1, nonlinearity="relu", bias=False, batch_first=True, dtype=torch.float64)
    rnn.weight_ih_l0.data.fill_(1.0)
    rnn.weight_hh_l0.data.fill_(decay)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = rnn

        def forward(self, x):
            return self.rnn(x)[0][:, -1]

    x = torch.ones(3, timesteps, 1, dtype=torch.float64)
    trace = TimestepContribution()(Subject(Last(), [x]))
    of = trace.sel(weight="rnn.l0.weight_ih")
    lag = timesteps - 1 - np.arange(timesteps)
    expected = decay**lag * (1 - decay) / (1 - decay**timesteps)
    np.testing.assert_allclose(of["own_share"], np.tile(expected, (3, 1)), rtol=1e-12)
    np.testing.assert_allclose(of["share"].sum("sample"), expected, rtol=1e-12)
    np.testing.assert_allclose(of["cosine"], 1)
    assert float(of["conflict"]) == pytest.approx(1)


def test_without_the_only_sample_there_is_no_conflict_to_speak_of() -> None:
    model = nn.LSTM(2, 3, batch_first=True)
    subject = Subject(model, [torch.randn(1, 8, 2)])
    trace = TimestepContribution()(subject)
    assert trace["conflict"].notnull().all()
    assert trace["conflict_without"].isnull().all()
