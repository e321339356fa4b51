"""The largest singular value by iteration, where it is known; on networks see test_jacobian."""

import math

import pytest
import torch
from torch import nn

from probes.base import Subject
from probes.recurrent.backward.cells import Weights
from probes.recurrent.reach import spectral
from probes.recurrent.reach.jacobian import Linearized
from probes.recurrent.reach.spectral import TOLERANCE, spectral_norms
from probes.state_reach import StateReach


class Wrapped(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0]


def linear(weight, steps, samples=1):
    """A layer whose Jacobian at a lag is a power of ``weight``."""
    units = len(weight)
    slopes = torch.ones(steps, samples, 1, units, dtype=weight.dtype)
    return Linearized("rnn_relu", Weights(torch.eye(units, dtype=weight.dtype), weight), slopes)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_singular_values_that_are_all_alike_are_found_at_once():
    weight = 0.9 * torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64)).Q
    lags = [1, 40, 7]
    found = spectral_norms([linear(weight, 41)], lags, generator())
    assert found.norm[0].tolist() == pytest.approx([lag * math.log(0.9) for lag in lags])
    assert found.missing[0].tolist() == pytest.approx([0] * 3, abs=1e-12)


def test_what_does_not_converge_is_called_a_lower_bound(monkeypatch):
    monkeypatch.setattr(spectral, "STEPS", 1)
    values = torch.linspace(1, 0.9, 400, dtype=torch.float64)
    found = spectral_norms([linear(values.diag(), 3)], [2], generator())
    assert -0.2 < float(found.norm) < -2 * TOLERANCE
    assert float(found.missing) > TOLERANCE
    assert -float(found.norm) < float(found.margin) < 1


@pytest.mark.parametrize("doubt", [0.001, 0.3, 0.6])
def test_the_margin_holds_but_for_its_chance_over_many_starts(doubt, monkeypatch):
    monkeypatch.setattr(spectral, "DOUBT", doubt)
    values = torch.full((50,), 0.7, dtype=torch.float64)
    values[0] = 1
    found = spectral_norms([linear(values.diag(), 2, samples=4000)], [1], generator())
    exceeded = float((found.norm + found.margin < -1e-9).double().mean())
    # The other directions grow as well, so that the bound holds a little more often.
    assert 0.9 * doubt - 0.002 < exceeded < doubt + 0.002


def test_states_that_nothing_depends_on_and_numbers_that_are_none():
    weight = torch.zeros(6, 6, dtype=torch.float64)
    found = spectral_norms([linear(weight, 4)], [0, 3], generator())
    assert found.norm[0].tolist() == pytest.approx([0, -math.inf])
    assert found.missing[0].tolist() == pytest.approx([0, 0])
    assert found.margin[0, 1] == 0
    layer = linear(torch.eye(6, dtype=torch.float64), 4, samples=2)
    layer.slopes[2, 1] = torch.nan
    found = spectral_norms([layer], [1, 3], generator())
    assert found.norm[0].tolist() == pytest.approx([0, 0])
    assert found.norm[1].isnan().tolist() == [False, True]


def test_float32_survives_what_no_float32_can_hold():
    torch.manual_seed(3)
    module = nn.LSTM(4, 40, 2, batch_first=True)
    for name, weight in module.named_parameters():
        weight.data.mul_(0.5)
        if "bias_hh" in name:
            weight.data[40:80] -= 3
    x = torch.randn(2, 300, 4)
    single, double = (
        StateReach(samples=2, seeds=1)(Subject(Wrapped(module.to(dtype)), [x.to(dtype)]))[
            "spectral_reach"
        ].to_numpy()
        for dtype in (torch.float32, torch.float64)
    )
    assert double[0, 0, 299] < -100
    assert single == pytest.approx(double, abs=2e-3, nan_ok=True)
