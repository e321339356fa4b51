import math

import pytest
import torch
from torch import Tensor

from probes.algebra.linear_map import explained, fitted
from probes.algebra.spectrum import Covariance, effective_rank


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_a_covariance_in_unequal_pieces_is_that_of_all() -> None:
    values = double(50, 4) @ double(4, 4) + torch.tensor([1e5, 0, -3, 2])
    sums = Covariance()
    for piece in (values[:1], values[1:1], values[1:30], values[30:]):
        sums.add(piece)
    assert sums.count == 50
    expected = torch.cov(values.T, correction=0)
    torch.testing.assert_close(sums.matrix(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sums.mean(), values.mean(0), rtol=1e-12, atol=0)


def test_single_precision_with_a_large_mean_does_not_cancel() -> None:
    values = (1000 + 1e-3 * torch.randn(4000, 2)).float()
    sums = Covariance()
    sums.add(values[:7])
    sums.add(values[7:])
    expected = torch.cov(values.double().T, correction=0)
    torch.testing.assert_close(sums.matrix(), expected, rtol=1e-6, atol=1e-15)


def test_a_covariance_of_nothing_raises() -> None:
    empty = Covariance()
    empty.add(double(0, 3))
    for ask in (empty.matrix, empty.mean):
        with pytest.raises(ValueError, match=r"^a covariance of no positions$"):
            ask()


@pytest.mark.parametrize(
    ("spectrum", "rank"),
    [
        ([1.0, 1.0, 1.0], 3.0),
        ([4.0, 0.0, 0.0], 1.0),
        ([2.0, 2.0, 0.0], 2.0),
        ([0.5, 0.25, 0.25], 2**1.5),
        ([9e-30, 9e-30, 0.0], 2.0),
    ],
)
def test_known_spectra(spectrum: list[float], rank: float) -> None:
    turn = torch.linalg.qr(double(3, 3))[0]
    covariance = turn @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ turn.T
    assert effective_rank(covariance) == pytest.approx(rank, rel=1e-9)


def test_what_does_not_vary_has_no_rank() -> None:
    assert math.isnan(effective_rank(torch.zeros(3, 3)))


def joint(x: Tensor, y: Tensor) -> Covariance:
    sums = Covariance()
    sums.add(torch.cat([x, y], 1))
    return sums


def test_an_exact_map_is_found_and_explains_all() -> None:
    x, weight, bias = double(40, 3), double(3, 2), double(2)
    linear = fitted(joint(x, x @ weight + bias), 3)
    torch.testing.assert_close(linear.weight, weight)
    torch.testing.assert_close(linear.bias, bias)
    torch.testing.assert_close(linear(x), x @ weight + bias)
    other = double(30, 3)
    assert explained(linear, joint(other, other @ weight + bias)) == pytest.approx(1)


def test_the_map_is_least_squares_and_the_explained_variance_that_of_other_data() -> None:
    x, y, x2, y2 = double(40, 3), double(40, 2), double(30, 3), double(30, 2)
    y, y2 = y + x[:, :2], y2 + x2[:, :2] + 0.5
    linear = fitted(joint(x, y), 3)
    ones = torch.ones(40, 1, dtype=torch.float64)
    expected = torch.linalg.lstsq(torch.cat([x, ones], 1), y).solution
    torch.testing.assert_close(torch.cat([linear.weight, linear.bias[None]]), expected)
    missed = (y2 - linear(x2)).square().mean(0).sum() / y2.var(0, correction=0).sum()
    assert explained(linear, joint(x2, y2)) == pytest.approx(float(1 - missed))


def test_inputs_that_do_not_vary_are_not_used() -> None:
    x = torch.cat([double(40, 1), torch.full((40, 1), 7.0, dtype=torch.float64)], 1)
    linear = fitted(joint(x, 2 * x[:, :1]), 2)
    torch.testing.assert_close(linear.weight[:, 0], torch.tensor([2.0, 0.0], dtype=torch.float64))


def test_outputs_that_do_not_vary_have_nothing_to_explain() -> None:
    x = double(20, 2)
    constant = joint(x, torch.ones(20, 1, dtype=torch.float64))
    assert math.isnan(explained(fitted(constant, 2), constant))
    elsewhere = fitted(joint(x, double(20, 1)), 2)
    assert math.isnan(explained(elsewhere, constant))


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_outputs_of_any_size_are_explained_as_well(size: float) -> None:
    x, noise = double(40, 3), double(40, 2)
    plain, scaled = (fitted(joint(x, scale * x[:, :2]), 3) for scale in (1.0, size))
    expected = explained(plain, joint(x, x[:, :2] + noise))
    assert 0 < expected < 1
    found = explained(scaled, joint(x, size * (x[:, :2] + noise)))
    assert found == pytest.approx(expected)


def test_a_map_works_in_the_precision_of_what_it_maps() -> None:
    linear = fitted(joint(double(9, 2), double(9, 1)), 2)
    assert linear(torch.randn(5, 4, 2)).dtype == torch.float32
