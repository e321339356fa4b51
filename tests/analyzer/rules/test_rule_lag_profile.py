"""Traces in which the lags that are used are known."""

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Severity
from analyzer.limits import LagProfileLimits
from analyzer.rules.lag_profile import beyond, lag_in_use, lag_profile, per_input

LENGTH = 50
SINGLE = np.arange(LENGTH)


def trace(excess: np.ndarray, lag=SINGLE, length=LENGTH) -> xr.Dataset:
    width = np.diff([*lag, length])
    return xr.Dataset(
        {"excess_loss": (("sample", "lag"), excess), "width": (("lag",), width)},
        coords={"lag": lag},
        attrs={"sequence_length": length},
    )


def spread(worth: np.ndarray, samples: int = 100) -> np.ndarray:
    """Samples whose losses change by about ``worth``, some down."""
    random = np.random.default_rng(5)
    sign = np.where(random.random((samples, 1)) < 0.3, -1, 1)
    return sign * random.uniform(0.5, 1.5, (samples, 1)) * worth


def judged(dataset: xr.Dataset, **limits: float):
    (finding,) = lag_profile(dataset, LagProfileLimits(**limits))
    return finding


@pytest.mark.parametrize("delay", [0, 7, 48])
def test_a_single_lag_in_use_is_found(delay):
    finding = judged(trace(spread((delay == SINGLE) + 1e-4 * (SINGLE > 0))))
    assert (finding.low, finding.value, finding.high) == (delay, delay, delay)
    assert finding.severity is Severity.INFO
    assert finding.samples == 100
    assert finding.message == (
        f"95% of what single inputs change in the final loss lies within the last {delay + 1} of "
        f"50 inputs; most per input at lag {delay}"
    )
    assert finding.meaning == (
        "This is what the network uses one input at a time; how far back it depends on its inputs "
        "is the memory horizon."
    )


def test_the_oldest_input_may_be_the_one_in_use():
    used = lag_in_use(trace(spread((SINGLE == LENGTH - 1) * 1.0)), 0.95)
    assert (used.low, used.value, used.high) == (LENGTH - 1,) * 3
    left, edges = beyond(trace(spread((SINGLE == LENGTH - 1) * 1.0)))
    assert left.shape[1] == len(edges) == LENGTH + 1
    assert edges[-1] == LENGTH
    assert not left[:, -1].any()


@pytest.mark.parametrize("forget", [0.8, 0.9])
def test_an_exponential_is_used_for_one_and_a_half_time_constants(forget):
    used = lag_in_use(trace(spread(forget ** (2 * SINGLE))), 0.95)
    left = forget ** (2 * SINGLE) - forget ** (2 * LENGTH)
    assert used.value == np.flatnonzero(left > 0.05 * left[0])[-1]
    assert used.value == pytest.approx(-1.5 / np.log(forget), abs=1)


def test_samples_that_use_different_lags_widen_the_interval():
    excess = np.zeros((60, LENGTH))
    excess[:, 3] = 1.0
    excess[:4, 20] = 1.0
    used = lag_in_use(trace(excess), 0.95)
    assert used.value == 20
    assert (used.low, used.high) == (3, 20)
    assert lag_in_use(trace(excess), 0.9).value == 3


def test_a_window_counts_to_its_oldest_lag():
    lag = np.array([0, 1, 2, 4, 8, 16, 32])
    worth = np.array([1.0, 1, 1, 1, 2, 0, 0])
    finding = judged(trace(spread(worth), lag))
    assert (finding.low, finding.value, finding.high) == (8, 15, 15)
    assert "within the last 16 of 50 inputs; most per input at lag 0" in finding.message
    worth = np.array([0.0, 0, 0, 9, 2, 0, 0])
    assert "most per input at lags 4 to 7" in judged(trace(spread(worth), lag)).message


def test_use_up_to_the_oldest_input_is_censored():
    finding = judged(trace(spread(np.ones(LENGTH))))
    assert finding.message.startswith(
        "95% of what single inputs change in the final loss lies within the last 48 of 50 inputs"
    )
    excess = spread(1.0 * (SINGLE == 4))
    excess[:3, 49] = 1.3 * abs(excess[:3, 4])
    assert "within at least the last 5 of 50 inputs" in judged(trace(excess)).message
    finding = judged(trace(spread(1.0 * (SINGLE >= 45))))
    assert finding.message.startswith(
        "95% of what single inputs change in the final loss takes all 50 inputs; most per input at "
    )
    assert finding.meaning.startswith("The sequences are too short to see it end. ")


def test_ragged_samples_take_part_where_they_have_inputs():
    excess = spread(np.where(SINGLE == 5, 1.0, 0.0))
    excess[::2, 20:] = np.nan
    excess[1::2, 30] = 0.2 * abs(excess[1::2, 5])
    left, edges = beyond(trace(excess))
    assert edges.tolist() == [*range(51)]
    assert not left[0, 20:].any()
    # Half of the samples have lag 30, which makes a sixth of their change.
    assert left[:, 30].sum() == pytest.approx(left[1::2].sum(0)[0] / 6)
    assert lag_in_use(trace(excess), 0.93).value == 30
    assert lag_in_use(trace(excess), 0.9).value == 5


@pytest.mark.parametrize(
    ("samples", "severity"), [(63, Severity.INCONCLUSIVE), (64, Severity.INFO)]
)
def test_both_sides_of_the_fewest_samples(samples, severity):
    finding = judged(trace(spread(1.0 * (SINGLE == 4), samples)))
    assert finding.severity is severity
    assert finding.value == 4
    few = severity is Severity.INCONCLUSIVE
    assert finding.action == ("Audit at least 64 samples." if few else "None.")


def test_an_output_that_no_input_changes_is_no_use_of_none():
    finding = judged(trace(np.zeros((70, LENGTH))))
    assert finding.severity is Severity.INCONCLUSIVE
    assert np.isnan(finding.value)
    assert finding.message == (
        "replacing inputs one lag at a time by another sample's does not change the final loss "
        "(70 samples)"
    )


def test_windows_are_shared_out_over_their_inputs():
    dataset = trace(np.array([[1.0, -6.0]]), np.array([0, 2]), 5)
    assert per_input(dataset).tolist() == [[0.5, 2.0]]
