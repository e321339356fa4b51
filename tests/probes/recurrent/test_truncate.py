"""Truncated gradients for all chunk lengths at once against networks whose states are detached."""

import gc
import weakref
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from probes.errors import AnalyzerError
from probes.recurrent.truncation.truncated import truncated, truncated_at
from probes.recurrent.watching.split import recorded

TOLERANCE = 1e-12
INPUTS, UNITS, SAMPLES = 4, 5, 3


def objective(y):
    """Depends on every output, unequally."""
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return (weight * torch.sin(y)).sum()


def found(model, run, loss=objective, **options):
    """Gradients by weight, for every chunk length."""
    sums, steps = {}, {}

    def add(site, factors):
        for factor in factors:
            suffix = f"_l{site.layer}" + ("_reverse" if site.reverse else "")
            key = site.module, factor.weight + suffix
            sums[key] = sums.get(key, 0) + factor.summed()

    with recorded(model, pulses=True) as recordings:
        y = run(model)
    for size in truncated(recordings, loss(y), add, **options):
        steps[size] = dict(sums)
    assert recordings.chunking is None
    assert not recordings.pulses
    return steps


def worst(steps, expected, module=""):
    """Largest error over chunk lengths and weights, as a share of the largest entry."""
    errors = []
    for size, gradients in steps.items():
        for name, own in expected(size).items():
            error = (gradients[module, name] - own).abs().max() / own.abs().max().clamp_min(1e-300)
            errors.append(float(error))
    return max(errors)


def detached(module, x, size):
    """Gradients by the trainer's loop: a state that is detached between calls of nn.LSTM."""
    state, outputs = None, []
    for start in range(0, len(x), size):
        y, state = module(x[start : start + size], state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        outputs.append(y)
    gradients = torch.autograd.grad(objective(torch.cat(outputs)), [*module.parameters()])
    return dict(zip(dict(module.named_parameters()), gradients, strict=True))


@pytest.mark.parametrize("timesteps", [1, 2, 17, 23, 32])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", ["LSTM", "PROJ", "GRU", "RNN", "RELU"])
def test_every_power_of_two_is_what_detaching_gives(kind, layers, timesteps, trained):
    options = {"PROJ": {"proj_size": 3}, "RELU": {"nonlinearity": "relu"}}.get(kind, {})
    name = {"PROJ": "LSTM", "RELU": "RNN"}.get(kind, kind)
    module = trained(name, INPUTS, UNITS, layers, scale=1.5, **options)
    x = torch.randn(timesteps, SAMPLES, INPUTS, dtype=torch.float64)
    steps = found(module, lambda model: model(x)[0])
    assert [*steps] == [1 << power for power in range((timesteps - 1).bit_length() + 1)]
    assert worst(steps, lambda size: detached(module, x, size)) < TOLERANCE


def found_at(model, run, size, **options):
    """Gradients by weight, for one chunk length, and for all powers of two after it."""
    sums, after = {}, {}

    def adding(into):
        def add(site, factors):
            for factor in factors:
                suffix = f"_l{site.layer}" + ("_reverse" if site.reverse else "")
                key = site.module, factor.weight + suffix
                into[key] = into.get(key, 0) + factor.summed()

        return add

    with recorded(model, pulses=True) as recordings:
        y = run(model)
    truncated_at(recordings, objective(y), adding(sums), size, **options)
    assert recordings.chunking is None
    steps = [*truncated(recordings, objective(y), adding(after), **options)]
    return {size: sums}, {steps[-1]: after}


@pytest.mark.parametrize("size", [3, 5, 7, 12, 16, 30])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", ["LSTM", "PROJ", "GRU", "RNN"])
def test_any_chunk_length_is_what_detaching_gives(kind, layers, size, trained):
    options = {"proj_size": 3} if kind == "PROJ" else {}
    module = trained(kind.replace("PROJ", "LSTM"), INPUTS, UNITS, layers, scale=1.5, **options)
    x = torch.randn(23, SAMPLES, INPUTS, dtype=torch.float64)
    steps, after = found_at(module, lambda model: model(x)[0], size)
    assert worst(steps, lambda size: detached(module, x, size)) < TOLERANCE
    assert worst(after, lambda size: detached(module, x, size)) < TOLERANCE


@pytest.mark.parametrize("size", [3, 6, 13])
@pytest.mark.parametrize("both", [False, True])
def test_any_chunk_length_counted_from_the_end(both, size, trained):
    module = trained("LSTM", INPUTS, UNITS, 2, bidirectional=both, scale=1.5)
    x = torch.randn(13, SAMPLES, INPUTS, dtype=torch.float64)
    steps, _ = found_at(module, lambda model: model(x)[0], size, from_end=True)
    expected = lambda size: by_cells(module, x, lambda t, count: (count - t) % size == 0)  # noqa: E731
    assert worst(steps, expected) < TOLERANCE


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_only_the_earlier_chunk_of_each_pair_is_scanned(kind, trained):
    module = trained(kind, INPUTS, UNITS, 3)
    x = torch.randn(32, SAMPLES, INPUTS, dtype=torch.float64)
    scanned = {}

    def add(site, factors):
        scanned.setdefault(site.layer, []).append(len(factors[0].left))

    with recorded(module, pulses=True) as recordings:
        y, _ = module(x)
    assert [*truncated(recordings, objective(y), add)] == [1, 2, 4, 8, 16, 32]
    assert scanned == {layer: [32, 16, 16, 16, 16, 16] for layer in range(3)}


def cells(module, x, cut):
    """Run ``module`` step by step; ``cut(t, T)``, t in reading order, says where to detach."""
    kind = module.mode
    for layer in range(module.num_layers):
        sides = []
        for direction in range(2 if module.bidirectional else 1):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            weights = [
                getattr(module, f"{name}{suffix}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            h = c = x.new_zeros(x.shape[1], module.hidden_size)
            outputs = []
            for step, x_BI in enumerate(x.flip(0) if direction else x):
                if cut(step, len(x)):
                    h, c = h.detach(), c.detach()
                if kind == "LSTM":
                    h, c = torch._VF.lstm_cell(x_BI, (h, c), *weights)
                else:
                    h = torch._VF.gru_cell(x_BI, h, *weights)
                outputs.append(h)
            sides.append(torch.stack(outputs[::-1] if direction else outputs))
        x = torch.cat(sides, -1)
    return x


def by_cells(module, x, cut):
    gradients = torch.autograd.grad(objective(cells(module, x, cut)), [*module.parameters()])
    return dict(zip(dict(module.named_parameters()), gradients, strict=True))


@pytest.mark.parametrize("timesteps", [1, 13, 16])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_reverse_direction_is_cut_in_its_own_order(kind, timesteps, trained):
    module = trained(kind, INPUTS, UNITS, 3, bidirectional=True, scale=1.5)
    x = torch.randn(timesteps, SAMPLES, INPUTS, dtype=torch.float64)
    steps = found(module, lambda model: model(x)[0])
    assert (
        worst(steps, lambda size: by_cells(module, x, lambda step, _: step % size == 0)) < TOLERANCE
    )


@pytest.mark.parametrize("timesteps", [1, 13, 16])
@pytest.mark.parametrize(("kind", "both"), [*product(["LSTM", "GRU"], [False, True])])
def test_chunks_counted_from_the_end(kind, both, timesteps, trained):
    module = trained(kind, INPUTS, UNITS, 2, bidirectional=both, scale=1.5)
    x = torch.randn(timesteps, SAMPLES, INPUTS, dtype=torch.float64)
    steps = found(module, lambda model: model(x)[0], from_end=True)
    expected = lambda size: by_cells(module, x, lambda t, count: (count - t) % size == 0)  # noqa: E731
    assert worst(steps, expected) < TOLERANCE


class Loop(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x_TBI):
        state, outputs = None, []
        for x_BI in x_TBI:
            state = self.cell(x_BI, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs)


@pytest.mark.parametrize("from_end", [False, True])
@pytest.mark.parametrize(("kind", "cell"), [("LSTM", nn.LSTMCell), ("GRU", nn.GRUCell)])
def test_a_loop_over_a_cell(kind, cell, from_end, trained):
    module = trained(kind, INPUTS, UNITS, scale=1.5)
    loop = Loop(cell(INPUTS, UNITS, dtype=torch.float64))
    for weight, value in zip(loop.cell.parameters(), module.parameters(), strict=True):
        weight.data.copy_(value)
    x = torch.randn(11, SAMPLES, INPUTS, dtype=torch.float64)
    steps = found(loop, lambda model: model(x), from_end=from_end)
    whole = found(module, lambda model: model(x)[0], from_end=from_end)
    assert [*steps] == [1, 2, 4, 8, 16]
    steps |= found_at(loop, lambda model: model(x), 3, from_end=from_end)[0]
    whole |= found_at(module, lambda model: model(x)[0], 3, from_end=from_end)[0]
    for size, gradients in whole.items():
        expected = {name: value for (_, name), value in gradients.items()}
        assert worst({size: steps[size]}, lambda _size, e=expected: e, "cell") < TOLERANCE


@pytest.mark.parametrize("from_end", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_calls_that_go_on_from_a_state_are_one_sequence(kind, from_end, trained):
    module = trained(kind, INPUTS, UNITS, 2, scale=1.5)
    x = torch.randn(19, SAMPLES, INPUTS, dtype=torch.float64)

    def in_pieces(model):
        state, outputs = None, []
        for piece in x.split([3, 7, 1, 8]):
            y, state = model(piece, state)
            outputs.append(y)
        return torch.cat(outputs)

    steps = found(module, in_pieces, from_end=from_end)
    whole = found(module, lambda model: model(x)[0], from_end=from_end)
    steps |= found_at(module, in_pieces, 5, from_end=from_end)[0]
    whole |= found_at(module, lambda model: model(x)[0], 5, from_end=from_end)[0]
    for size, gradients in whole.items():
        expected = {name: value for (_, name), value in gradients.items()}
        assert worst({size: steps[size]}, lambda _size, e=expected: e) < TOLERANCE


class Translator(nn.Module):
    """Hands the last state of one layer to another, through something nonlinear."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(INPUTS, UNITS)
        self.decoder = nn.GRU(INPUTS, UNITS)
        self.double()

    def forward(self, x, size=None):
        def run(module, values, state):
            outputs = []
            for piece in values.split(size or len(values)):
                y, state = module(piece, state)
                outputs.append(y)
                handed = state
                state = state.detach()
            return torch.cat(outputs), handed

        _, last = run(self.encoder, x[:9], None)
        return run(self.decoder, x[9:], last.sin())[0]


def test_a_state_handed_to_another_module_is_not_cut():
    model, x = Translator(), torch.randn(15, SAMPLES, INPUTS, dtype=torch.float64)
    steps = found(model, lambda m: m(x))
    assert [*steps] == [1, 2, 4, 8, 16]
    for size, gradients in steps.items():
        named = dict(model.named_parameters())
        given = torch.autograd.grad(objective(model(x, size)), [*named.values()])
        for (name, _), own in zip(named.items(), given, strict=True):
            module, _, weight = name.partition(".")
            error = (gradients[module, weight] - own).abs().max() / own.abs().max()
            assert error < TOLERANCE


@pytest.mark.parametrize("both", [False, True])
def test_packed_samples_are_cut_as_if_alone(both, trained):
    module = trained("LSTM", INPUTS, UNITS, 2, bidirectional=both, scale=1.5)
    lengths = [3, 9, 6]
    x = torch.randn(9, 3, INPUTS, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    samples = []

    def loss(y):
        return sum(objective(y[:length, b]) for b, length in enumerate(lengths))

    with recorded(module, pulses=True) as recordings:
        y = pad_packed_sequence(module(packed)[0])[0]
    rows = {}

    def add(site, factors):
        key = site.layer, site.reverse
        own = torch.einsum("tbg,tbi->bgi", factors[1].left, factors[1].right)
        rows[key] = rows.get(key, 0) + own

    for size in truncated(recordings, loss(y), add):
        samples.append((size, dict(rows)))
    assert [size for size, _ in samples] == [1, 2, 4, 8, 16]
    for size, gradients in samples:
        for b, length in enumerate(lengths):
            alone = by_cells(module, x[:length, b : b + 1], lambda t, _, s=size: t % s == 0)
            for (layer, reverse), own in gradients.items():
                expected = alone[f"weight_hh_l{layer}" + ("_reverse" if reverse else "")]
                assert (own[b] - expected).abs().max() < TOLERANCE * expected.abs().max()


def test_a_loss_without_the_states_is_refused_and_nothing_stays_behind(trained):
    module = trained("LSTM", INPUTS, UNITS)
    x = torch.randn(4, SAMPLES, INPUTS, dtype=torch.float64)
    with recorded(module, pulses=True) as recordings:
        y = module(x)[0].detach()
    with pytest.raises(AnalyzerError) as caught:
        next(truncated(recordings, y.sum(), lambda site, factors: None))
    assert str(caught.value) == "the loss does not depend on the states of l0"
    assert recordings.chunking is None
    assert not recordings.pulses


def test_the_graph_is_freed_afterwards(trained):
    module = trained("GRU", INPUTS, UNITS, 2)
    x = torch.randn(5, SAMPLES, INPUTS, dtype=torch.float64)

    def run():
        with recorded(module, pulses=True) as recordings:
            y = module(x)[0]
        for _ in truncated(recordings, objective(y), lambda site, factors: None):
            pass
        return weakref.ref(recordings)

    gc.disable()
    try:
        assert run()() is None
    finally:
        gc.enable()
