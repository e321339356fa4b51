import math

import pytest
import torch
from torch import Tensor

from probes.algebra.similarity import GROUPS, linear_cka

torch.manual_seed(0)


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(double(size, size))[0]


def test_rotated_shifted_and_scaled_features_are_the_same() -> None:
    x = double(60, 7)
    found = linear_cka(x, 3 * x @ rotation(7) + 5)
    assert found.value == pytest.approx(1, abs=1e-12)
    assert found.low == pytest.approx(1, abs=1e-10)
    assert found.high == 1.0


def test_a_general_linear_map_changes_it() -> None:
    x = double(60, 2)
    stretched = x * torch.tensor([1.0, 30.0])
    value = linear_cka(x, stretched).value
    # Biased closed form for two independent directions of variances 1 and 900.
    shares = torch.tensor([1.0, 900.0])
    expected = shares.sum() / (2**0.5 * shares.norm())
    assert value == pytest.approx(float(expected), abs=0.1)
    assert value < 0.9


def test_independent_features_are_unlike_even_with_few_samples() -> None:
    values = torch.tensor([linear_cka(double(12, 40), double(12, 40)).value for _ in range(200)])
    assert abs(float(values.mean())) < 0.05


def test_it_is_the_unbiased_statistic_over_distinct_samples() -> None:
    # Sums over all ordered quadruples, i, j, q, r all different: Song et al. 2012, definition.
    x, y = double(7, 3), double(7, 2)

    def dependence(left: Tensor, right: Tensor) -> float:
        k, l_ = left @ left.T, right @ right.T
        n, total, count = len(k), 0.0, 0
        for i in range(n):
            for j in range(n):
                for q in range(n):
                    for r in range(n):
                        if len({i, j, q, r}) == 4:
                            total += float(k[i, j] * (l_[i, j] + l_[q, r] - 2 * l_[i, q]))
                            count += 1
        return total / count

    x, y = x - x.mean(0), y - y.mean(0)
    expected = dependence(x, y) / math.sqrt(dependence(x, x) * dependence(y, y))
    assert linear_cka(x, y).value == pytest.approx(expected, abs=1e-12)


def test_the_interval_holds_the_value_of_many_samples() -> None:
    mix = double(5, 5)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        x = double(count, 5)
        return x, x @ mix + 2 * double(count, 5)

    truth = linear_cka(*draw(600)).value
    held = [
        found.low <= truth <= found.high for found in (linear_cka(*draw(120)) for _ in range(60))
    ]
    assert sum(held) >= 48
    assert all(found.high < 1 for found in [linear_cka(*draw(120))])


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_samples_are_undefined(count: int) -> None:
    assert math.isnan(linear_cka(double(count, 2), double(count, 2)).value)


def test_few_samples_have_no_interval() -> None:
    found = linear_cka(double(4 * GROUPS - 1, 2), double(4 * GROUPS - 1, 2))
    assert math.isfinite(found.value)
    assert math.isnan(found.low)
    assert math.isfinite(linear_cka(double(4 * GROUPS, 2), double(4 * GROUPS, 2)).low)


def test_constant_features_are_undefined_whatever_their_size() -> None:
    constant = torch.full((44, 3), 0.1, dtype=torch.float64)
    rounded = constant * (1 + 2.3e-16 * torch.randint(-1, 2, (44, 3)).double())
    assert (rounded != constant).any()
    for alike in (constant, rounded):
        assert math.isnan(linear_cka(alike, double(44, 3)).value)
        assert math.isnan(linear_cka(double(44, 3), 1e6 * alike).value)
    small = 1e-12 * double(44, 3)
    assert linear_cka(small, small).value == pytest.approx(1)
