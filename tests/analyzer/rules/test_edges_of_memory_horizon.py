"""The horizon of traces at the limits, in part undefined, and in doubt."""

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Severity
from analyzer.limits import MemoryHorizonLimits
from analyzer.rules.memory_horizon import functional_horizon, gradient_reach, memory_horizon

KEPT = [0, 4, 8, 20]


def trace(excess: np.ndarray, reach: np.ndarray | None = None) -> xr.Dataset:
    found = np.ones((len(excess), 20)) if reach is None else reach
    return xr.Dataset(
        {"excess_loss": (("sample", "kept"), excess), "reach": (("sample", "lag"), found)},
        coords={"kept": KEPT},
        attrs={"sequence_length": 20},
    )


def costs(samples: int, *excess: float) -> np.ndarray:
    return np.tile(np.array(excess), (samples, 1))


def judged(excess: np.ndarray, **limits: float):
    finding, _ = memory_horizon(trace(excess), MemoryHorizonLimits(**limits))
    return finding


def test_samples_count_where_replacing_everything_is_defined() -> None:
    excess = costs(10, 1.0, 0.5, 0.0, 0.0)
    excess[:4, 1:] = np.nan
    assert functional_horizon(trace(excess), MemoryHorizonLimits()).samples == 10
    excess[:3, 0] = np.nan
    assert functional_horizon(trace(excess), MemoryHorizonLimits()).samples == 7


def test_without_any_known_sample_there_is_no_horizon() -> None:
    found = functional_horizon(trace(costs(5, np.nan, 1.0, 0.0, 0.0)), MemoryHorizonLimits())
    assert np.isnan(found.value)
    assert found.samples == 0


def test_an_excess_that_could_be_zero_is_none() -> None:
    excess = costs(9, 1.0, 0.9, 0.8, 0.7)
    excess[:4] *= -1
    assert excess[:, 0].mean() > 0
    found = functional_horizon(trace(excess), MemoryHorizonLimits())
    assert np.isnan(found.value)
    assert found.samples == 9


def test_a_sample_that_ends_early_has_a_reach() -> None:
    reach = np.ones((3, 20))
    reach[:, 10:] = np.nan
    found = gradient_reach(trace(costs(3, 1.0, 0.0, 0.0, 0.0), reach), mass=0.95)
    assert (found.value, found.samples) == (9, 3)


def test_a_reach_that_is_exactly_the_mass_is_enough() -> None:
    reach = np.array([[1.0, 1.0, 2.0, 0.0]])
    padded = np.pad(reach, ((0, 0), (0, 16)))
    assert gradient_reach(trace(costs(1, 1.0, 0.0, 0.0, 0.0), padded), mass=0.5).value == 1


@pytest.mark.parametrize(
    ("samples", "required", "severity", "meaning"),
    [
        (63, 4.0, Severity.INCONCLUSIVE, "63 samples are too few for a horizon to be judged."),
        (64, 4.0, Severity.PASS, "The network uses inputs as far back as the task needs."),
        (
            64,
            8.0,
            Severity.INCONCLUSIVE,
            "Whether the network uses inputs as far back as the task needs is uncertain.",
        ),
        (64, 9.0, Severity.WARN, "The network forgets before the task's longest dependency."),
        (64, 30.0, Severity.WARN, "The network forgets before the task's longest dependency."),
    ],
)
def test_what_a_requirement_comes_to(samples, required, severity, meaning) -> None:
    finding = judged(costs(samples, 1.0, 0.5, 0.0, 0.0), required=required)
    assert (finding.severity, finding.meaning) == (severity, meaning)


@pytest.mark.parametrize(
    ("required", "severity", "meaning", "action"),
    [
        (8.0, Severity.PASS, "The network uses inputs as far back as the task needs.", "None."),
        (
            19.0,
            Severity.INCONCLUSIVE,
            "Whether the network uses inputs as far back as the task needs is uncertain.",
            "Audit more samples.",
        ),
        (
            20.0,
            Severity.INCONCLUSIVE,
            "The dependency of 20 is longer than the sequences.",
            "Audit longer sequences.",
        ),
        (
            30.0,
            Severity.INCONCLUSIVE,
            "The dependency of 30 is longer than the sequences.",
            "Audit longer sequences.",
        ),
    ],
)
def test_a_horizon_that_lasts_to_the_end_may_last_longer(
    required: float, severity: Severity, meaning: str, action: str
) -> None:
    finding = judged(costs(100, 1.0, 0.9, 0.8, 0.0), required=required)
    assert finding.severity is severity
    assert finding.meaning == f"The sequences are too short to see it end. {meaning}"
    assert finding.action == action
