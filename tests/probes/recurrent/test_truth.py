"""Against what is known otherwise: closed forms, finite differences, and the usual wrong answer."""

import numpy as np
import pytest
import torch
from torch import nn

from probes.recurrent.watching.split import recorded

INPUTS, UNITS, SAMPLES, TIMESTEPS = 3, 4, 2, 6


def test_a_constant_forget_gate_scales_the_cell_gradient_by_itself_at_every_step():
    forget = 0.95
    module = nn.LSTM(1, 2, dtype=torch.float64)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.weight_ih_l0[4:6] = torch.tensor([[0.7], [1.3]])  # the candidate alone is driven
        module.bias_hh_l0[2:4] = torch.logit(torch.tensor(forget, dtype=torch.float64))
    x = torch.randn(60, 3, 1, dtype=torch.float64)
    with recorded(module) as recordings:
        y, _ = module(x)
    (found,) = recordings.gradients(y[-1].sum())
    ratio = found.measured.cell[:-1] / found.measured.cell[1:]
    torch.testing.assert_close(ratio, torch.full_like(ratio, forget), rtol=1e-12, atol=0)
    timescale = float(-1 / ratio.mean().log())
    assert timescale == pytest.approx(19.496, abs=5e-4)
    assert not found.measured.hidden[:-1].any()


def test_a_linear_network_falls_to_known_fractions_at_known_lags():
    module = nn.RNN(1, 1, nonlinearity="relu", bias=False, dtype=torch.float64)
    module.weight_ih_l0.data.fill_(1.0)
    module.weight_hh_l0.data.fill_(0.9)
    with recorded(module) as recordings:
        y, _ = module(1 + torch.rand(60, 2, 1, dtype=torch.float64))
    (found,) = recordings.gradients(y[-1].sum())
    profile = found.measured.hidden[:, 1].flip(0).numpy()
    levels = np.log([0.5, np.exp(-1), 0.1, 0.01])
    lags = np.interp(-levels, -np.log(profile / profile[0]), np.arange(60))
    assert lags == pytest.approx([6.58, 9.49, 21.85, 43.71], abs=5e-3)


def test_the_gradient_of_the_fused_output_is_not_that_of_the_states(trained):
    module = trained("LSTM", INPUTS, UNITS, 2, batch_first=True)
    x = torch.randn(SAMPLES, TIMESTEPS, INPUTS, dtype=torch.float64)
    y, _ = module(x)
    y.retain_grad()
    y[:, -1].sin().sum().backward()
    wrong_BT = y.grad.norm(dim=-1)
    assert not wrong_BT[:, :-1].any()

    with recorded(module) as recordings:
        y, _ = module(x)
    _, top = recordings.gradients(y[:, -1].sin())
    assert top.measured.hidden.all()
    assert torch.equal(top.measured.hidden[-1], wrong_BT[:, -1])


def one_layer(module, layer, direction):
    """The same layer and direction as a module of its own."""
    units = module.hidden_size
    width = module.input_size if layer == 0 else units * (2 if module.bidirectional else 1)
    alone = type(module)(width, units, dtype=torch.float64)
    suffix = f"_l{layer}" + ("_reverse" if direction else "")
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(alone, f"{name}_l0").data.copy_(getattr(module, name + suffix).data)
    return alone


def nudged(module, x, where, step, change, cell):
    """Outputs of ``module`` with ``change`` added to one state after ``step``, in data order."""
    for layer in range(module.num_layers):
        sides = []
        for direction in range(2 if module.bidirectional else 1):
            alone = one_layer(module, layer, direction)
            read = x.flip(0) if direction else x
            at = len(x) - 1 - step if direction else step
            before, state = alone(read[: at + 1])
            if (layer, direction) == where:
                parts = list(state) if isinstance(state, tuple) else [state]
                parts[cell] = parts[cell] + change
                if not cell:
                    before = torch.cat([before[:-1], before[-1:] + change])
                elif cell:
                    before = before.clone()
                    gate = output_gate(alone, read, before, at)
                    before[-1] = gate * parts[1][0].tanh()
                    parts[0] = before[-1:]
                state = tuple(parts) if isinstance(state, tuple) else parts[0]
            after, _ = alone(read[at + 1 :], state) if at + 1 < len(x) else (before[:0], None)
            y = torch.cat([before, after])
            sides.append(y.flip(0) if direction else y)
        x = torch.cat(sides, -1)
    return x


def output_gate(alone, read, hidden, at):
    """Output gate of an LSTM at one step, from the equations of the documentation."""
    last = hidden[at - 1] if at else torch.zeros_like(hidden[0])
    rows = slice(3 * alone.hidden_size, None)
    return torch.sigmoid(
        read[at] @ alone.weight_ih_l0[rows].T
        + last @ alone.weight_hh_l0[rows].T
        + (alone.bias_ih_l0 + alone.bias_hh_l0)[rows]
    )


@pytest.mark.parametrize(
    ("kind", "layers", "both"),
    [("LSTM", 3, False), ("LSTM", 2, True), ("GRU", 2, True), ("RNN", 3, False)],
)
def test_finite_differences(kind, layers, both, trained):
    module = trained(kind, INPUTS, UNITS, layers, bidirectional=both, scale=1.5)
    x = torch.randn(TIMESTEPS, SAMPLES, INPUTS, dtype=torch.float64)
    weight = torch.randn(UNITS * (2 if both else 1), dtype=torch.float64)
    with recorded(module, keep="all") as recordings:
        y, _ = module(x)
    found = recordings.gradients((y.sin() @ weight).square().sum())
    step_size = 1e-6
    with torch.no_grad():
        for site in found:
            where = (site.site.layer, int(site.site.reverse))
            all_of = site.measured.trajectory
            states = [all_of.hidden_gradient, all_of.cell_gradient][: 2 if site.cells else 1]
            for cell, analytic in enumerate(states):
                for step in (0, 2, TIMESTEPS - 1):
                    change = torch.zeros(1, SAMPLES, UNITS, dtype=torch.float64)
                    change[0, 1, 2] = step_size
                    up, down = (
                        (nudged(module, x, where, step, sign * change, cell).sin() @ weight)
                        .square()
                        .sum()
                        for sign in (1, -1)
                    )
                    difference = float(up - down) / (2 * step_size)
                    assert float(analytic[step, 1, 2]) == pytest.approx(difference, rel=1e-6)
