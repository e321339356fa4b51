"""Every option of nn.LSTM, nn.GRU and nn.RNN against hand-unrolled autograd, in float64."""

from itertools import product

import pytest
import torch

from probes.recurrent.watching.split import recorded

TOLERANCE = 1e-12
SAMPLES, TIMESTEPS, INPUTS, UNITS = 3, 7, 4, 5
KINDS = (("GRU", {}), ("RNN", {"nonlinearity": "tanh"}), ("RNN", {"nonlinearity": "relu"}))


def random_states(module, units):
    """Initial hidden and cell states that are leaves."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    return [
        torch.randn(rows, SAMPLES, size, dtype=torch.float64).requires_grad_()
        for size in (units, UNITS)
    ]


def objective(y, finals, weights):
    """Depends on every output and final state, nonlinearly and unequally."""
    terms = (weight * torch.sin(part) for weight, part in zip(weights, [y, *finals], strict=True))
    return sum(term.sum() for term in terms)


def compare(module, units, given, unrolled, kept_grads, error):
    """Record the module, unroll it, and return the largest relative error of each quantity."""
    x = torch.randn(TIMESTEPS, SAMPLES, INPUTS, dtype=torch.float64, requires_grad=True)
    h0, c0 = random_states(module, units)
    lstm = module.mode == "LSTM"
    states = ((h0, c0) if lstm else h0) if given else None
    if not given:
        h0, c0 = torch.zeros_like(h0), torch.zeros_like(c0)
    data = x.transpose(0, 1) if module.batch_first else x
    with torch.no_grad():
        plain_y, plain_final = module(data, states)
    with recorded(module, keep="all", weights=True) as recordings:
        y, final = module(data, states)
    finals, plain_finals = (final, plain_final) if lstm else ((final,), (plain_final,))
    for ours, torchs in zip((y, *finals), (plain_y, *plain_finals), strict=True):
        assert torch.equal(ours, torchs)

    expected = unrolled(module, x, h0, c0)
    weights = [torch.randn_like(part) for part in (expected.y, *expected.finals)]
    leaves = [x, *module.parameters(), *([h0, *([c0] if lstm else [])] if given else [])]
    y = y.transpose(0, 1) if module.batch_first else y
    gradients = torch.autograd.grad(objective(y, finals, weights), leaves)
    objective(expected.y, expected.finals, weights).backward()

    errors = {
        f"leaf {i}": error(gradient, leaf.grad)
        for i, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True))
    }
    for found in recordings.take():
        key = (found.site.layer, found.site.reverse)
        norms, all_of = found.measured, found.measured.trajectory
        hidden = kept_grads(expected.hidden[key])
        errors |= {
            f"{key} dh": error(all_of.hidden_gradient, hidden),
            f"{key} |dh|": error(norms.hidden, hidden.norm(dim=-1)),
            f"{key} da": error(all_of.input_side_gradient, kept_grads(expected.input_side[key])),
            f"{key} du": error(
                all_of.recurrent_side_gradient, kept_grads(expected.recurrent_side[key])
            ),
            f"{key} |du|": error(norms.gate, kept_grads(expected.recurrent_side[key]).norm(dim=-1)),
            f"{key} h": error(all_of.hidden, torch.stack(expected.hidden[key])),
            f"{key} replay": float(norms.residual),
        }
        if lstm:
            cell = kept_grads(expected.cell[key])
            errors |= {
                f"{key} dc": error(all_of.cell_gradient, cell),
                f"{key} |dc|": error(norms.cell, cell.norm(dim=-1)),
                f"{key} c": error(all_of.cell, torch.stack(expected.cell[key])),
            }
    assert len(recordings.segments) == len(expected.hidden)
    return {name: value for name, value in errors.items() if not value <= TOLERANCE}


@pytest.mark.parametrize(
    ("layers", "both", "projection", "first", "bias", "given"),
    [*product((1, 2, 3), (False, True), (0, 3), (False, True), (True, False), (False, True))],
)
def test_lstm(layers, both, projection, first, bias, given, trained, unrolled, kept_grads, error):
    module = trained(
        "LSTM",
        INPUTS,
        UNITS,
        layers,
        bidirectional=both,
        proj_size=projection,
        batch_first=first,
        bias=bias,
        dropout=0.3 if layers > 1 else 0.0,
    )
    assert not compare(module, projection or UNITS, given, unrolled, kept_grads, error)


@pytest.mark.parametrize(
    ("kind", "layers", "both", "first", "bias", "given"),
    [*product(KINDS, (1, 2), (False, True), (False, True), (True, False), (False, True))],
)
def test_gru_and_rnn(kind, layers, both, first, bias, given, trained, unrolled, kept_grads, error):
    name, options = kind
    module = trained(
        name, INPUTS, UNITS, layers, bidirectional=both, batch_first=first, bias=bias, **options
    )
    assert not compare(module, UNITS, given, unrolled, kept_grads, error)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_float32_outputs_are_those_of_inference_and_the_replay_is_close(kind):
    module = getattr(torch.nn, kind)(24, 40, 2, batch_first=True).eval()
    x = torch.randn(4, 33, 24)
    with torch.no_grad():
        expected, _ = module(x)
    with recorded(module) as recordings:
        y, _ = module(x)
    assert torch.equal(y, expected)
    residuals = [found.measured.residual for found in recordings.gradients(y.square().mean())]
    assert max(residuals) < 1e-6


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_gradients_too_small_to_square_in_float32_are_not_read_as_zero(kind):
    module = getattr(torch.nn, kind)(3, 8).eval()
    x = torch.randn(11, 2, 3)
    with recorded(module, keep="all") as recordings:
        y, _ = module(x)
    scale = 1e-28
    (ordinary,) = recordings.gradients(y[-1].sum())
    (tiny,) = recordings.gradients(y[-1].sum() * scale)
    torch.testing.assert_close(
        tiny.measured.hidden / scale, ordinary.measured.hidden, rtol=1e-5, atol=0
    )
    assert float(tiny.measured.hidden.max()) < 1e-26
