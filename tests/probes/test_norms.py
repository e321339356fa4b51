"""Norms against float64, where float32 would overflow, vanish or round."""

import pytest
import torch

from probes.algebra.norms import SAFE, by_sample, rough, unsafe, whole

SIZES = torch.tensor([1e-30, -1e-20, 0.0, 1.0, -1e20, 1e30])


def reference(values: torch.Tensor) -> torch.Tensor:
    return values.double().flatten(1).square().sum(1).sqrt()


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 40), (6, 3, 5), (6, 3, 5, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_of_any_size(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.randn(shape, dtype=dtype).abs().clamp_min(0.1)
    values = values * SIZES.to(dtype).reshape(-1, *[1] * (len(shape) - 1))
    found = by_sample(values)
    assert found.dtype is torch.float64
    torch.testing.assert_close(found, reference(values.reshape(6, -1)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_samples_along_any_axis(dim: int) -> None:
    values = torch.randn(3, 4, 5)
    torch.testing.assert_close(
        by_sample(values, dim), reference(values.movedim(dim, 0)), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype: torch.dtype) -> None:
    values = torch.full((2, 100), 3e4, dtype=dtype)
    torch.testing.assert_close(by_sample(values), reference(values), rtol=1e-6, atol=0)


def test_which_norms_may_be_spoilt() -> None:
    nan = float("nan")
    assert unsafe(torch.tensor([2 * SAFE, 1.0, 0.5 / SAFE])) is None
    norms = torch.tensor([0.5 * SAFE, 1.0, 1.5 / SAFE, 0.0, nan])
    found = unsafe(norms)
    assert found is not None
    assert found.tolist() == [True, False, True, True, True]
    for edge in (SAFE, 1 / SAFE):
        found = unsafe(torch.tensor([edge, 1.0], dtype=torch.float64))
        assert found is not None
        assert found.tolist() == [True, False]


def test_sums_of_many_squares_keep_their_digits() -> None:
    values = torch.rand(1, 2**11, 2**11)
    torch.testing.assert_close(rough(values), reference(values), rtol=1e-6, atol=0)


@pytest.mark.parametrize("count", [1, 10, 2**16, 2**16 + 1])
def test_the_norm_of_everything(count: int) -> None:
    values = torch.linspace(-1, 1, count) * 1e-25
    expected = values.double().square().sum().sqrt().item()
    assert whole(values).item() == pytest.approx(expected, rel=1e-6, abs=0)
    assert whole(values).dtype is torch.float64
