"""Recurrent layers that are shift registers: what they hold is known."""

import numpy as np
import pytest
import torch
from torch import nn

from probes.base import Batch, Subject
from probes.errors import AnalyzerError
from probes.memory_capacity import MemoryCapacity


def register(units, **options):
    """A ReLU network that shifts its positive input through its units."""
    rnn = nn.RNN(1, units, nonlinearity="relu", batch_first=True, bias=False, **options).double()
    for name, weight in rnn.named_parameters():
        weight.data.zero_()
        if "weight_ih" in name:
            weight.data[0, 0] = 1
        else:
            weight.data[1:, :-1] = torch.eye(units - 1)
    return rnn


def inputs(samples, timesteps):
    return torch.rand(samples, timesteps, 1, dtype=torch.float64)


def shares(trace, part):
    sums = trace.sum("sample")
    return 1 - sums[f"{part}_error"] / sums[f"{part}_energy"]


def capacity(trace):
    return (shares(trace, "new") * trace["new_numbers"]).sum("lag")


def test_a_shift_register_holds_its_length():
    trace = MemoryCapacity(lags=12)(Subject(register(5), inputs(16, 100)))
    assert trace.sizes == {"sample": 16, "layer": 1, "lag": 13}
    np.testing.assert_allclose(capacity(trace), [5], atol=0.05)
    expected = [1.0] * 5 + [0.0] * 8
    np.testing.assert_allclose(shares(trace, "past")[0], expected, atol=0.02)
    assert trace["rows"].values.tolist() == [8 * 88]
    assert trace["components"].values.tolist() == [1]
    assert trace["input_share"].values.tolist() == [1]
    assert trace["predictors"].values.tolist() == [12]


def test_a_reverse_direction_looks_back_in_its_own_order():
    trace = MemoryCapacity(lags=6)(Subject(register(3, bidirectional=True), inputs(16, 60)))
    assert trace["layer"].values.tolist() == ["l0", "l0.reverse"]
    assert trace["direction"].values.tolist() == ["forward", "reverse"]
    np.testing.assert_allclose(capacity(trace), [3, 3], atol=0.1)


def test_upper_layers_are_asked_for_the_input_of_the_first():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(1, 2, 2, nonlinearity="relu", batch_first=True, bias=False).double()
            for weight in self.rnn.parameters():
                weight.data.zero_()
            # The lower one delays by one step in its unit 1, which the upper one repeats.
            self.rnn.weight_ih_l0.data[0, 0] = 1
            self.rnn.weight_hh_l0.data[1, 0] = 1
            self.rnn.weight_ih_l1.data[0, 1] = 1
            self.rnn.weight_hh_l1.data[1, 0] = 1

        def forward(self, x):
            return self.rnn(x)[0]

    trace = MemoryCapacity(lags=4)(Subject(Stack(), inputs(16, 80)))
    assert trace["layer"].values.tolist() == ["rnn.l0", "rnn.l1"]
    expected = [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]]
    np.testing.assert_allclose(shares(trace, "past"), expected, atol=0.03)


def test_batches_are_joined_and_ragged_samples_end_where_they_end():
    model, x = register(3), inputs(20, 40)
    lengths = torch.tensor([40] * 12 + [15] * 8)
    whole = MemoryCapacity(lags=5)(Subject(model, Batch(x, None, lengths), time_axis=1))
    parts = [Batch(x[:7], None, lengths[:7]), Batch(x[7:], None, lengths[7:])]
    parted = MemoryCapacity(lags=5)(Subject(model, parts, time_axis=1))
    np.testing.assert_allclose(parted["past_error"], whole["past_error"], rtol=1e-9)
    energy = whole["past_energy"].sum("lag")[:, 0]
    assert float(energy[12:].max()) < float(energy[:12].min())
    read = torch.arange(40)[:, None] < lengths[:, None, None]
    padded = Batch(torch.where(read, x, 9.0), None, lengths)
    same = MemoryCapacity(lags=5)(Subject(model, padded, time_axis=1))
    np.testing.assert_allclose(same["past_energy"], whole["past_energy"], rtol=1e-9)


def test_what_few_samples_reach_is_left_out():
    x, lengths = inputs(20, 40), torch.tensor([40] * 4 + [16] * 16)
    trace = MemoryCapacity(lags=30)(Subject(register(2), Batch(x, None, lengths), time_axis=1))
    assert trace.sizes["lag"] == 8 + 1  # half of the 16 timesteps that half of the samples reach
    assert trace["rows"].values.tolist() == [10 * 8]


@pytest.mark.parametrize(
    ("x", "share"),
    [
        (inputs(7, 20), None),
        (inputs(12, 1), None),
        (torch.ones(12, 20, 1).double(), 0.0),
    ],
)
def test_too_few_too_short_or_too_alike_samples_are_not_measured(x, share):
    trace = MemoryCapacity()(Subject(register(2), x))
    assert trace.sizes == {"sample": len(x), "layer": 1, "lag": 1}
    assert trace["past_energy"].isnull().all()
    assert trace["rows"].values.tolist() == [0]
    found = float(trace["input_share"][0])
    assert np.isnan(found) if share is None else found == share


def test_a_layer_whose_rows_are_no_samples_is_named():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole, self.part = register(2), register(2)

        def forward(self, x):
            self.part(x.reshape(2 * len(x), -1, 1))
            return self.whole(x)[0]

    trace = MemoryCapacity(lags=3)(Subject(Windows(), inputs(9, 12)))
    assert trace["layer"].values.tolist() == ["whole.l0"]
    assert trace.attrs == {"not_called": "", "not_per_sample": "part.l0"}


def test_misuse_is_said():
    with pytest.raises(AnalyzerError) as error:
        MemoryCapacity(samples=7)(Subject(register(2), inputs(9, 12)))
    assert str(error.value) == (
        "memory_capacity needs lags >= 1, components >= 1 and samples >= 8: they are 100, 4 and 7"
    )
    with pytest.raises(AnalyzerError) as error:
        MemoryCapacity()(Subject(register(2), []))
    assert str(error.value) == "there are no batches to measure with"
