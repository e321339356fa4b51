"""Cells called in a loop, modules called many times, and state handed from call to call."""

import pytest
import torch
from torch import nn

from probes.recurrent.watching.split import recorded

TOLERANCE = 1e-12
INPUTS, UNITS, SAMPLES, TIMESTEPS = 4, 5, 3, 8
CELLS = (
    ("LSTM", nn.LSTMCell, {}),
    ("GRU", nn.GRUCell, {}),
    ("RNN", nn.RNNCell, {"nonlinearity": "tanh"}),
    ("RNN", nn.RNNCell, {"nonlinearity": "relu"}),
)


class Loop(nn.Module):
    """A cell applied by hand, from a state of zeros."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x_TBI, at=None):
        state, outputs = None, []
        for x_BI in x_TBI:
            state = self.cell(x_BI, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs) if at is None else outputs[at]


def data(timesteps=TIMESTEPS):
    return torch.randn(timesteps, SAMPLES, INPUTS, dtype=torch.float64)


def labels(recordings):
    return list(dict.fromkeys(segment.site.label for segment in recordings.segments))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "cell_class", "options"), CELLS)
def test_a_loop_over_a_cell_is_the_same_measurement(
    kind, cell_class, options, bias, trained, error
):
    module = trained(kind, INPUTS, UNITS, bias=bias, **options)
    cell = cell_class(INPUTS, UNITS, bias=bias, **options, dtype=torch.float64)
    for weight, value in zip(cell.parameters(), module.parameters(), strict=True):
        weight.data.copy_(value)
    loop, x = Loop(cell), data()
    with torch.no_grad():
        plain = loop(x)
    with recorded(loop, keep="all", weights=True) as recordings:
        y = loop(x)
    with recorded(module, keep="all", weights=True) as whole:
        expected_y, _ = module(x)
    assert torch.equal(y, plain)

    gradients = torch.autograd.grad(y.sin().sum(), loop.parameters())
    expected = torch.autograd.grad(expected_y.sin().sum(), module.parameters())
    for gradient, value in zip(gradients, expected, strict=True):
        assert error(gradient, value) < TOLERANCE
    (found,), (reference,) = recordings.take(), whole.take()
    assert found.site.label == "cell.l0"
    assert (found.units, found.cells) == (UNITS, UNITS * (kind == "LSTM"))
    assert found.lengths.tolist() == [TIMESTEPS] * SAMPLES
    assert found.measured.residual < TOLERANCE
    for name in ("hidden", "gate") + (("cell",) if kind == "LSTM" else ()):
        ours, theirs = getattr(found.measured, name), getattr(reference.measured, name)
        assert error(ours, theirs) < TOLERANCE
    pairs = zip(found.measured.trajectory, reference.measured.trajectory, strict=True)
    for ours, theirs in pairs:
        assert (ours is None) == (theirs is None)
        assert ours is None or error(ours, theirs) < TOLERANCE


def test_only_the_calls_that_matter_have_a_gradient():
    loop, x = Loop(nn.GRUCell(INPUTS, UNITS, dtype=torch.float64)), data()
    with recorded(loop, keep="all") as recordings:
        y = loop(x, at=4)
    (found,) = recordings.gradients(y.sum())
    assert found.measured.hidden[:5].all()
    assert not found.measured.hidden[5:].any()
    assert found.measured.trajectory is None


def test_a_sequence_read_in_pieces_is_the_whole_sequence(trained, error):
    module, x = trained("LSTM", INPUTS, UNITS, 2), data()

    class Pieces(nn.Module):
        def __init__(self):
            super().__init__()
            self.read = module

        def forward(self, x):
            state, outputs = None, []
            for piece in x.split((3, 1, 4)):
                y, state = self.read(piece, state)
                outputs.append(y)
            return torch.cat(outputs)

    model = Pieces()
    with recorded(model) as recordings:
        y = model(x)
    with recorded(module) as whole:
        expected_y, _ = module(x)
    assert labels(recordings) == ["read.l0", "read.l1"]
    found, expected = recordings.gradients(y.sin()), whole.gradients(expected_y.sin())
    for ours, theirs in zip(found, expected, strict=True):
        assert error(ours.measured.hidden, theirs.measured.hidden) < TOLERANCE
        assert error(ours.measured.cell, theirs.measured.cell) < TOLERANCE


def test_a_state_changed_between_calls_goes_on_and_a_fresh_one_begins_anew(trained):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.read = trained("GRU", INPUTS, UNITS)

        def forward(self, x, chained):
            _, state = self.read(x)
            return self.read(x, 0.5 * state if chained else None)[0]

    model, x = Twice(), data()
    with recorded(model) as recordings:
        y = model(x, True)
    assert labels(recordings) == ["read.l0"]
    (found,) = recordings.gradients(y.sum())
    assert found.measured.hidden.shape == (2 * TIMESTEPS, SAMPLES)

    with recorded(model) as recordings:
        y = model(x, False)
    assert labels(recordings) == ["read.l0", "read.call2.l0"]
    first, second = recordings.gradients(y.sum())
    assert (first.reached, second.reached) == (False, True)
    assert first.measured.hidden.isnan().all()
    assert second.measured.hidden.all()


def test_a_detached_state_goes_on_and_another_batch_or_packed_data_begin_anew():
    module = nn.LSTM(INPUTS, UNITS, dtype=torch.float64)
    x = data()

    def reading(*calls):
        with recorded(module) as recordings:
            state = None
            for call in calls:
                state = call(state)
        return labels(recordings)

    def plain(state):
        return module(x, state)[1]

    def detached(state):
        return module(x, tuple(part.detach() for part in state))[1]

    def fewer(state):
        return module(x[:, :2], tuple(part[:, :2].contiguous() for part in state))[1]

    def packed(state):
        return module(nn.utils.rnn.pack_sequence([*x.unbind(1)]), state)[1]

    assert reading(plain, detached) == ["l0"]
    assert reading(plain, fewer) == ["l0", "call2.l0"]
    assert reading(plain, packed, packed) == ["l0", "call2.l0", "call3.l0"]


def test_a_decoder_hands_its_gradient_to_the_encoder(trained, unrolled, kept_grads, error):
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = trained("LSTM", INPUTS, UNITS)
            self.decoder = trained("LSTM", UNITS, UNITS)

        def forward(self, x):
            y, state = self.encoder(x)
            step, outputs = y[-1:], []
            for _ in range(4):
                step, state = self.decoder(step, state)
                outputs.append(step)
            return torch.cat(outputs)

    model, x = Translator(), data()
    with recorded(model) as recordings:
        y = model(x)
    zeros = torch.zeros(1, SAMPLES, UNITS, dtype=torch.float64)
    encoded = unrolled(model.encoder, x, zeros, zeros)
    step, finals, decoded = encoded.y[-1:], encoded.finals, []
    for _ in range(4):
        decoded.append(unrolled(model.decoder, step, *finals))
        step, finals = decoded[-1].y, decoded[-1].finals
    torch.cat([part.y for part in decoded]).sin().sum().backward()

    encoder, decoder = recordings.gradients(y.sin())
    assert (encoder.site.label, decoder.site.label) == ("encoder.l0", "decoder.l0")
    key = (0, False)
    for found, parts in ((encoder, [encoded]), (decoder, decoded)):
        for measured, name in ((found.measured.hidden, "hidden"), (found.measured.cell, "cell")):
            kept = torch.cat([kept_grads(getattr(part, name)[key]) for part in parts])
            assert error(measured, kept.norm(dim=-1)) < TOLERANCE


def test_an_unbatched_sequence_is_a_batch_of_one(trained, error):
    module, x = trained("LSTM", INPUTS, UNITS, 2), data()
    with torch.no_grad():
        expected, _ = module(x[:, 1])
    with recorded(module) as recordings:
        y, _ = module(x[:, 1])
    with recorded(module) as batched:
        y_TBP, _ = module(x)
    assert torch.equal(y, expected)
    pairs = zip(recordings.gradients(y.sin()), batched.gradients(y_TBP.sin()), strict=True)
    for alone, among in pairs:
        assert alone.site.label in ("l0", "l1")
        assert error(alone.measured.hidden[:, 0], among.measured.hidden[:, 1]) < TOLERANCE


def test_the_model_may_change_what_the_layer_returned_and_was_given_in_place(trained):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.read = trained("RNN", INPUTS, UNITS)
            self.register_buffer("state", torch.ones(1, SAMPLES, UNITS, dtype=torch.float64))

        def forward(self, x, in_place):
            y, state = self.read(x, self.state)
            if in_place:
                self.state.copy_(state.detach())
                return y.mul_(2).relu_()
            return (y * 2).relu()

    model, x = InPlace(), data()
    found = []
    for in_place in (False, True):
        with recorded(model) as recordings:
            y = model(x, in_place)
        found.append(recordings.gradients(y.sin())[0].measured.hidden)
    assert torch.equal(*found)
    assert not torch.equal(model.state, torch.ones_like(model.state))
