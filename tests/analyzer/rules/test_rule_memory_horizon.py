"""The horizon of traces in which the last needed input is known."""

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Severity
from analyzer.limits import MemoryHorizonLimits
from analyzer.rules.memory_horizon import functional_horizon, gradient_reach, memory_horizon

RNG = np.random.default_rng(2)
LENGTH = 50
KEPT = np.array([0, 1, 2, 4, 8, 16, 32, LENGTH])


def trace(needed: int, samples: int = 100) -> xr.Dataset:
    """Losses that rise by about 1 as long as the input at lag ``needed`` is replaced."""
    cost = RNG.uniform(0.5, 1.5, (samples, 1))
    excess = cost * (needed >= KEPT) * (KEPT < LENGTH)
    reach = RNG.uniform(0.5, 1.5, (samples, 1)) * 0.9 ** np.arange(LENGTH)
    return xr.Dataset(
        {
            "excess_loss": (("sample", "kept"), excess),
            "reach": (("sample", "lag"), reach),
        },
        coords={"kept": KEPT},
        attrs={"sequence_length": LENGTH},
    )


def judged(dataset: xr.Dataset, **limits: float):
    finding, _ = memory_horizon(dataset, MemoryHorizonLimits(**limits))
    return finding


@pytest.mark.parametrize("needed", [0, 2, 8, 16])
def test_the_horizon_is_the_oldest_needed_input(needed):
    estimate = functional_horizon(trace(needed), MemoryHorizonLimits())
    assert estimate.value == needed
    assert estimate.samples == 100


def test_without_a_requirement_it_is_reported():
    finding = judged(trace(8))
    assert finding.severity is Severity.INFO
    assert finding.message == (
        "the final output depends on inputs up to 8 timesteps back, of 49: replacing older ones "
        "costs less than 1% of replacing all (5% horizon: 8)"
    )


def test_the_coarse_horizon_is_told_too():
    dataset = trace(8)
    dataset["excess_loss"][:, KEPT == 8] *= 0.03
    finding = judged(dataset)
    assert finding.value == 8
    assert "(5% horizon: 4)" in finding.message
    assert "(20% horizon: 4)" in judged(dataset, coarse=0.2).message


def test_a_horizon_beyond_the_sequence_is_censored():
    finding = judged(trace(49))
    assert finding.message == (
        "the final output depends on inputs 32 or more timesteps back, of 49 (5% horizon: >= 32)"
    )
    assert finding.meaning.startswith("The sequences are too short to see it end.")
    assert finding.high == LENGTH


@pytest.mark.parametrize(("required", "severity"), [(7.0, Severity.PASS), (40.0, Severity.WARN)])
def test_both_sides_of_a_requirement(required, severity):
    assert judged(trace(8), required=required).severity is severity


def test_too_few_samples_are_inconclusive():
    finding = judged(trace(8, samples=63), required=40.0)
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.action == "Audit at least 64 samples."


def test_an_output_that_ignores_its_input_is_not_a_pass():
    dataset = trace(8)
    dataset["excess_loss"][:] = RNG.normal(0, 1, dataset["excess_loss"].shape)
    finding = judged(dataset, required=1.0)
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.message == (
        "replacing the whole input by another sample's does not raise the loss for certain (100 "
        "samples)"
    )


def test_the_gradient_reach_of_an_exponential():
    estimate = gradient_reach(trace(8))
    total = (1 - 0.9**LENGTH) / 0.1
    shares = (1 - 0.9 ** np.arange(1, LENGTH + 1)) / 0.1 / total
    assert estimate.value == np.argmax(shares >= 0.95)


def test_no_gradient_is_not_a_pass():
    dataset = trace(8)
    dataset["reach"][:] = 0
    _, reach = memory_horizon(dataset, MemoryHorizonLimits())
    assert reach.severity is Severity.INCONCLUSIVE
