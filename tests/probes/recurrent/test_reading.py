"""What layers read, and the gates replayed from it, against a network unrolled by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.model.taps import untouched
from probes.recurrent.watching.watch import Read, first_samples, read

T, B, INPUTS, UNITS = 6, 3, 4, 5
Trained = Callable[..., nn.RNNBase]
Unroll = Callable[..., Any]


def reads(model: nn.Module, batch: Any, **options: Any) -> Read:
    own = batch if isinstance(batch, Batch) else Batch(batch)
    with untouched(model):
        return read(Subject(model, [own], **options), own)


def activations(kind: str, a: Tensor, u: Tensor, h: Tensor) -> Tensor:
    """Gates of (T, B, G) pre-activations from the input and from the state: (T, B, K, UNITS)."""
    if kind == "LSTM":
        i, f, g, o = (a + u).chunk(4, -1)
        return torch.stack([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], 2)
    if kind == "GRU":
        (ar, az, an), (ur, uz, un) = a.chunk(3, -1), u.chunk(3, -1)
        r = (ar + ur).sigmoid()
        return torch.stack([r, (az + uz).sigmoid(), (an + r * un).tanh()], 2)
    return h.unsqueeze(2)


CASES = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
    ("LSTM", {"bias": False, "batch_first": True}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("RNN", {"num_layers": 2}),
    ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_states_and_gates_are_those_of_the_unrolled_layer(
    kind: str, options: dict[str, Any], trained: Trained, unrolled: Unroll
) -> None:
    torch.manual_seed(0)
    module = trained(kind, INPUTS, UNITS, **options)
    axis = 0 if module.batch_first else 1
    x = torch.randn(T, B, INPUTS, dtype=torch.float64)
    count = module.num_layers * (2 if module.bidirectional else 1)
    size = module.proj_size or UNITS
    zeros = torch.zeros(count, B, size).double(), torch.zeros(count, B, UNITS).double()
    expected = unrolled(module, x, *zeros)
    found = reads(module, x.transpose(0, 1) if module.batch_first else x, batch_axis=axis)
    assert found.samples == B
    assert len(found.readings) == count
    for reading in found.readings:
        key = (reading.site.layer, reading.site.reverse)
        turn = (lambda v: v.flip(0)) if reading.site.reverse else (lambda v: v)
        hidden = turn(torch.stack(expected.hidden[key]))
        torch.testing.assert_close(reading.hidden, hidden, rtol=0, atol=1e-12)
        torch.testing.assert_close(reading.before[1:], hidden[:-1], rtol=0, atol=1e-12)
        torch.testing.assert_close(reading.entering, turn(x), rtol=0, atol=0)
        a, u = (turn(torch.stack(side[key])) for side in (expected.input_side,
                                                           expected.recurrent_side))  # fmt: skip
        replay = reading.replay()
        gates = activations(kind, a, u, hidden)
        torch.testing.assert_close(replay.activations, gates, rtol=0, atol=1e-12)
        assert replay.residual < 1e-12


class Loop(nn.Module):
    """A cell called step by step, whose input buffer and states are overwritten afterwards."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell = getattr(nn, f"{kind}Cell")(INPUTS, UNITS)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        buffer = torch.zeros_like(x[:, 0])
        for x_BI in x.unbind(1):
            buffer.copy_(x_BI)
            state = self.cell(buffer, state)
        buffer.zero_()
        return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_loop_of_cells_is_one_layer(kind: str) -> None:
    torch.manual_seed(0)
    model, x = Loop(kind), torch.randn(B, T, INPUTS, dtype=torch.float64)
    (reading,) = reads(model, x).readings
    assert reading.calls == (1,) * T
    torch.testing.assert_close(reading.entering, x.transpose(0, 1), rtol=0, atol=0)
    fused = getattr(nn, kind)(INPUTS, UNITS, batch_first=True).double()
    for own, weight in zip(fused.parameters(), model.cell.parameters(), strict=True):
        own.data.copy_(weight.data)
    (whole,) = reads(fused, x).readings
    torch.testing.assert_close(reading.hidden, whole.hidden, rtol=0, atol=1e-12)
    found, expected = reading.replay(), whole.replay()
    torch.testing.assert_close(found.activations, expected.activations, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.slopes, expected.slopes, rtol=0, atol=1e-12)
    assert found.residual < 1e-12


class Halves(nn.Module):
    """Reads a sequence in two calls; a changed cell state goes from one to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUTS, UNITS).double()

    def forward(self, x: Tensor) -> Tensor:
        y, (h, c) = self.lstm(x[:2])
        return torch.cat([y, self.lstm(x[2:], (h, 0.5 * c))[0]])


def test_calls_that_go_on_are_one_sequence_with_the_cell_states_they_were_given() -> None:
    torch.manual_seed(0)
    model, x = Halves(), torch.randn(T, B, INPUTS, dtype=torch.float64)
    (reading,) = reads(model, x, batch_axis=1).readings
    assert reading.calls == (2, T - 2)
    replay = reading.replay()
    assert replay.residual < 1e-12
    assert replay.activations.shape == (T, B, 4, UNITS)


def test_packed_samples_are_in_the_order_of_the_batch_each_from_its_own_end() -> None:
    torch.manual_seed(0)
    gru = nn.GRU(INPUTS, UNITS, bidirectional=True).double()
    x, lengths = torch.randn(T, B, INPUTS, dtype=torch.float64), torch.tensor([2, 6, 4])
    found = reads(gru, pack_padded_sequence(x, lengths, enforce_sorted=False))
    assert [reading.valid.sum(0).tolist() for reading in found.readings] == [[2, 6, 4]] * 2
    for sample, length in enumerate(lengths.tolist()):
        alone = reads(gru, x[:length, sample : sample + 1], batch_axis=1)
        for one, own in zip(found.readings, alone.readings, strict=True):
            torch.testing.assert_close(
                one.hidden[:length, sample], own.hidden[:, 0], rtol=0, atol=1e-12
            )
            torch.testing.assert_close(one.entering[:length, sample], own.entering[:, 0])


def test_padding_that_is_read_comes_first_in_a_reverse_direction() -> None:
    gru = nn.GRU(INPUTS, UNITS, bidirectional=True, batch_first=True).double()
    batch = Batch(torch.randn(2, 4, INPUTS).double(), None, torch.tensor([1, 3]))
    forward, reverse = reads(gru, batch, time_axis=1).readings
    assert forward.valid.T.tolist() == [[True, False, False, False], [True, True, True, False]]
    assert reverse.valid.T.tolist() == [[False, False, False, True], [False, True, True, True]]


def test_chunks_have_all_samples_once() -> None:
    lstm = nn.LSTM(INPUTS, UNITS).double()
    (reading,) = reads(lstm, torch.randn(T, 7, INPUTS).double(), batch_axis=1).readings
    chunks = list(reading.chunks(2 * T * 4 * UNITS))
    assert [chunk.hidden.shape[1] for chunk in chunks] == [2, 2, 2, 1]
    gates = torch.cat([chunk.replay().activations for chunk in chunks], 1)
    torch.testing.assert_close(gates, reading.replay().activations, rtol=0, atol=1e-12)


def test_the_first_samples_are_cut_out_of_batches_where_all_inputs_have_them() -> None:
    lstm = nn.LSTM(INPUTS, UNITS, batch_first=True)
    batches = [
        Batch(torch.randn(3, T, INPUTS), None, torch.tensor([6, 2, 4])),
        torch.randn(3, T, INPUTS),
    ]
    one, two = first_samples(Subject(lstm, batches), 4)
    assert (one.inputs.shape, one.lengths.tolist()) == ((3, T, INPUTS), [6, 2, 4])
    assert two.inputs.shape == (1, T, INPUTS)
    (cut,) = first_samples(Subject(lstm, batches), 2)
    assert (cut.inputs.shape, cut.lengths.tolist()) == ((2, T, INPUTS), [6, 2])

    packed = pack_padded_sequence(
        torch.randn(3, T, INPUTS), torch.tensor([2, 6, 4]), batch_first=True, enforce_sorted=False
    )
    (cut,) = first_samples(Subject(lstm, [packed]), 2)
    assert cut.inputs.batch_sizes.tolist() == [2, 2, 1, 1, 1, 1]

    state = torch.zeros(1, 3, UNITS)
    (whole,) = first_samples(
        Subject(lstm, [((torch.randn(3, T, INPUTS), (state, state)), None)]), 2
    )
    assert whole.inputs[0].shape == (3, T, INPUTS)
    found = reads(lstm, whole).first(2)
    assert found.samples == 2
    assert found.readings[0].hidden.shape == (T, 2, UNITS)


def test_what_cannot_be_read_is_said() -> None:
    with pytest.raises(NotApplicable) as reason:
        reads(nn.Linear(INPUTS, UNITS), torch.randn(B, INPUTS))
    assert str(reason.value) == (
        "the model runs no recurrent layer of torch (LSTM, GRU, RNN or their cells)"
    )

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(INPUTS, UNITS)

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(NotApplicable) as raised:
        reads(Unused(), torch.randn(B, INPUTS))
    assert str(raised.value) == (
        "the model has recurrent layers (rnn) but ran none of them with this data"
    )
    with pytest.raises(AnalyzerError) as raised:
        reads(nn.GRU(INPUTS, UNITS), torch.randn(2, T, INPUTS))
    assert str(raised.value) == (
        f"l0 reads {T} sequences for the 2 samples of a batch, so that it cannot be told which are "
        "whose: check batch_first and batch_axis, or give batches of one sample"
    )
