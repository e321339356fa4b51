"""Concentration and noise against samples whose gradients are known."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import GradientFlowLimits
from analyzer.rules.gradient_noise import (
    agreement,
    by_parameter,
    gradient_noise,
    half_share,
    noise_scale,
)

LIMITS = GradientFlowLimits()


def trace(gradients: np.ndarray[Any, Any]) -> xr.Dataset:
    """A record of (sample, parameter, element) gradients."""
    return xr.Dataset(
        {
            "parameter_gradient_per_sample": (
                ("sample", "parameter"),
                np.linalg.norm(gradients, axis=2),
            ),
            "parameter_gradient": (("parameter",), np.linalg.norm(gradients.mean(0), axis=1)),
        },
        {"parameter": [f"p{index}" for index in range(gradients.shape[1])]},
    )


def noisy(samples: int, signal: float, noise: float, elements: int = 400) -> np.ndarray[Any, Any]:
    """Two parameters whose gradients are a common direction and independent noise."""
    random = np.random.default_rng(0)
    common = random.normal(size=(2, elements))
    common *= signal / np.linalg.norm(common)
    scale = noise / np.sqrt(2 * elements)
    return common + random.normal(0, scale, (samples, 2, elements))


def found(dataset: xr.Dataset) -> dict[str, Finding]:
    return {finding.code: finding for finding in gradient_noise(dataset, LIMITS)}


@pytest.mark.parametrize(("signal", "noise"), [(1.0, 2.0), (1.0, 6.0), (3.0, 3.0)])
def test_the_noise_scale_is_the_variance_over_the_squared_mean(signal: float, noise: float) -> None:
    dataset = trace(noisy(512, signal, noise))
    assert noise_scale(dataset) == pytest.approx((noise / signal) ** 2, rel=0.1)
    finding = found(dataset)["gradient-noise"]
    assert finding.severity is Severity.INFO
    assert finding.value == noise_scale(dataset)
    assert finding.samples == 512


def test_the_noise_scale_does_not_depend_on_the_number_of_samples() -> None:
    few, many = (noise_scale(trace(noisy(count, 1.0, 2.0, 4000))) for count in (16, 256))
    assert few == pytest.approx(many, rel=0.1)


def test_gradients_that_cancel_have_no_signal() -> None:
    gradients = noisy(32, 0.0, 1.0)
    dataset = trace(gradients - gradients.mean(0))
    assert noise_scale(dataset) == np.inf
    finding = found(dataset)["gradient-noise"]
    assert finding.message == (
        "the gradients of 32 samples cancel: no direction in common is to be seen"
    )


def test_agreement_is_one_along_one_direction_and_falls_with_the_root_of_the_samples() -> None:
    same = np.ones((25, 1, 3))
    assert agreement(trace(same)) == pytest.approx([1])
    apart = np.eye(25)[:, None, :]
    assert agreement(trace(apart)) == pytest.approx([1 / 5])
    assert np.isnan(agreement(trace(0 * same))).all()


def test_the_interval_of_a_parameter_is_around_its_root_mean_square() -> None:
    gradients = np.arange(1, 41).reshape(-1, 1, 1) * np.array([[[1.0], [-2.0]]])
    value, low, high = by_parameter(trace(gradients))
    expected = np.sqrt((np.arange(1, 41) ** 2).mean())
    assert value == pytest.approx([expected, 2 * expected])
    assert (low < value).all()
    assert (value < high).all()
    assert high[1] == pytest.approx(2 * high[0])


def test_half_of_the_sum_is_held_by_the_largest() -> None:
    assert half_share(np.array([1.0, 1, 1, 1])) == 0.5
    assert half_share(np.array([1.0, 0, 9, 0, 2])) == 0.2
    assert half_share(np.array([3.0, 1, 2, 2])) == 0.5
    assert np.isnan(half_share(np.zeros(3)))
    table = np.array([[1.0, 1, 1, 1], [5, 1, 1, 1]])
    assert half_share(table, axis=1).tolist() == [0.5, 0.25]


def test_samples_that_carry_the_gradient_are_named() -> None:
    gradients = np.full((20, 1, 1), 0.1)
    gradients[[3, 17], 0, 0] = [5.0, 6.0]
    finding = found(trace(gradients))["gradient-concentration"]
    assert finding.severity is Severity.INFO
    assert finding.message == (
        "half of the squared gradient comes from 1 of 20 samples, the largest from sample 17 "
        "(counted from 0)"
    )
    assert finding.value == 0.05
    assert finding.low <= finding.value <= finding.high


def test_samples_that_are_not_finite_are_left_out_and_keep_their_number() -> None:
    gradients = np.full((20, 1, 1), 0.1)
    gradients[17] = 5.0
    gradients[3] = np.nan
    codes = found(trace(gradients))
    assert [*codes] == ["gradient-concentration"]
    assert codes["gradient-concentration"].samples == 19
    assert "from sample 17 (counted from 0)" in codes["gradient-concentration"].message


@pytest.mark.parametrize(("samples", "enough"), [(15, False), (16, True)])
def test_few_samples_are_inconclusive(samples: int, enough: bool) -> None:
    findings = found(trace(noisy(samples, 1.0, 1.0)))
    assert ("gradient-noise" in findings) == enough
    severity = findings["gradient-concentration"].severity
    assert severity is (Severity.INFO if enough else Severity.INCONCLUSIVE)
    if not enough:
        message = findings["gradient-concentration"].message
        assert message == "15 samples with a finite gradient: 16 are needed"


def test_no_gradient_at_all_is_inconclusive() -> None:
    finding = found(trace(np.zeros((20, 2, 3))))["gradient-concentration"]
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.message == "the gradient is zero in every sample"


def test_parameters_that_were_not_measured_do_not_count() -> None:
    gradients = noisy(64, 1.0, 2.0)
    dataset = trace(gradients)
    alone = trace(gradients[:, :1])
    dataset["parameter_gradient_per_sample"][:, 1] = np.nan
    assert noise_scale(dataset) == noise_scale(alone)
    assert np.isnan(by_parameter(dataset)[0]).tolist() == [False, True]


def test_older_records_have_nothing_to_judge() -> None:
    old = trace(noisy(20, 1.0, 1.0)).drop_vars("parameter_gradient_per_sample")
    assert found(old) == {}
    assert np.isnan(by_parameter(old)[0]).all()
    nothing = trace(np.full((20, 2, 3), np.nan))
    assert found(nothing) == {}


def test_the_noise_scale_is_that_of_unbiased_moments() -> None:
    gradients = noisy(5, 1.0, 2.0, elements=3)
    flat = gradients.reshape(5, -1)
    noise = flat.var(0, ddof=1).sum()
    signal = (flat.mean(0) ** 2).sum() - noise / 5
    assert noise_scale(trace(gradients)) == pytest.approx(noise / signal, rel=1e-12)


def test_a_parameter_that_was_not_measured_takes_no_part() -> None:
    gradients = noisy(8, 1.0, 2.0, elements=3)
    gradients[:, 0] = np.nan
    whole = trace(gradients)
    assert noise_scale(whole) == noise_scale(whole.isel(parameter=[1]))
