"""The interval of the alignment by its definition, and constants that only rounding changes."""

import math

import pytest
import torch

from probes.algebra.similarity import GROUPS, NORMAL, linear_cka


def test_the_interval_is_that_of_the_jackknife_over_groups() -> None:
    x = torch.randn(45, 6, dtype=torch.float64)
    y = x[:, :3] + torch.randn(45, 3, dtype=torch.float64)
    kept = [[at for at in range(45) if at % GROUPS != group] for group in range(GROUPS)]
    drawn = [linear_cka(x[at], y[at]).value for at in kept]
    mean = sum(drawn) / GROUPS
    error = math.sqrt((GROUPS - 1) / GROUPS * sum((value - mean) ** 2 for value in drawn))
    found = linear_cka(x, y)
    assert found.low == pytest.approx(found.value - NORMAL * error)
    assert found.high == pytest.approx(min(found.value + NORMAL * error, 1.0))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_constant_beside_zero_is_constant(sign: float) -> None:
    constant = torch.full((44, 2), sign * 0.1, dtype=torch.float64)
    constant[::2, 0] += sign * 2e-17
    constant[1::3, 0] *= 1 + 4e-16
    constant[:, 1] = 0
    other = torch.randn(44, 3, dtype=torch.float64)
    assert math.isnan(linear_cka(constant, other).value)


def test_four_samples_are_enough_and_three_are_not() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, -1.0], [5.0, 3.0], [1.0, 7.0]], dtype=torch.float64)
    assert linear_cka(x, 2 * x).value == pytest.approx(1)
    assert math.isnan(linear_cka(x[:3], 2 * x[:3]).value)


def test_features_far_from_zero_are_compared_as_well() -> None:
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 4, dtype=torch.float64)
    y[:, 0] += x[:, 0]
    assert linear_cka(x + 1e7, y - 1e7).value == pytest.approx(linear_cka(x, y).value, abs=1e-6)


def test_samples_at_the_mean_have_no_deviation() -> None:
    x = torch.tensor([-1.0, 0, 1, 0, 2, -2, 0], dtype=torch.float64)[:, None]
    y = torch.tensor([-2.0, 0, 2, 0, -1, 1, 0], dtype=torch.float64)[:, None]
    # Moved by less than can be told from rounding, and then by more.
    nudged = x + 1e-9 * torch.arange(7)[:, None]
    assert linear_cka(x, y).value == pytest.approx(linear_cka(nudged, y).value, abs=1e-6)
    assert linear_cka(x, x).value == pytest.approx(1)
