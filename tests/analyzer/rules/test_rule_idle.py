"""Shares of the loss, and what a limit says of them."""

from math import isnan, nan

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from analyzer.findings import Severity
from analyzer.rules.idle import described, judged, rank_correlation, shares
from analyzer.rules.verdicts import Estimate

RNG = np.random.default_rng(0)


def arrays(change: np.ndarray, loss: np.ndarray) -> list[Estimate]:
    return shares(xr.DataArray(change, dims=("sample", "block")), xr.DataArray(loss, dims="sample"))


def test_shares_are_means_over_means_with_paired_intervals() -> None:
    loss = RNG.uniform(0.1, 2, 200)
    change = np.stack([0.3 * loss, np.full(200, nan), RNG.normal(0.1, 0.2, 200)], 1)
    exact, missing, noisy = arrays(change, loss)
    assert [exact.value, exact.low, exact.high] == pytest.approx([0.3] * 3)
    assert exact.samples == 200
    assert isnan(missing.value)
    assert missing.samples == 0
    assert noisy.value == pytest.approx(change[:, 2].mean() / loss.mean())
    assert noisy.low < noisy.value < noisy.high
    spread = 1.96 * 0.2 / np.sqrt(200) / loss.mean()
    assert noisy.high - noisy.low == pytest.approx(2 * spread, rel=0.25)


def test_samples_that_were_not_left_out_take_no_part() -> None:
    loss = np.array([1.0, 3.0, 100.0])
    (found,) = arrays(np.array([[0.5], [0.1], [nan]]), loss)
    assert found.value == pytest.approx(0.3 / 2)
    assert found.samples == 2


@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_a_share_of_a_loss_that_is_not_positive_means_nothing(loss: float) -> None:
    (found,) = arrays(np.ones((5, 1)), np.full(5, loss))
    assert isnan(found.value)
    assert found.samples == 0


def part(value: float, low: float, high: float, samples: int = 100) -> Estimate:
    return Estimate(value, low, high, samples)


IDLE, DOUBTFUL, AT_WORK = part(0.0, -0.1, 0.04), part(0.04, 0.01, 0.06), part(0.3, 0.06, 0.4)


@pytest.mark.parametrize(
    ("parts", "severity", "named"),
    [
        ({"a": AT_WORK, "b": IDLE, "c": DOUBTFUL}, Severity.WARN, ("b",)),
        ({"a": AT_WORK, "c": DOUBTFUL}, Severity.INCONCLUSIVE, ("c",)),
        ({"a": AT_WORK}, Severity.PASS, ()),
        ({"a": Estimate()}, Severity.INCONCLUSIVE, ()),
        ({}, Severity.INCONCLUSIVE, ()),
    ],
)
def test_both_sides_of_the_limit(
    parts: dict[str, Estimate], severity: Severity, named: tuple[str, ...]
) -> None:
    verdict = judged(parts, 0.05, 32)
    assert verdict.severity is severity
    assert verdict.named == named


def test_an_interval_that_ends_at_the_limit() -> None:
    assert judged({"a": part(0, 0, 0.0499)}, 0.05, 32).severity is Severity.WARN
    assert judged({"a": part(0, 0, 0.05)}, 0.05, 32).severity is Severity.INCONCLUSIVE
    assert judged({"a": part(0.1, 0.05, 0.2)}, 0.05, 32).severity is Severity.PASS


@pytest.mark.parametrize(("samples", "severity"), [(31, "INCONCLUSIVE"), (32, "WARN")])
def test_few_samples_convict_nobody(samples: int, severity: str) -> None:
    assert judged({"a": part(0, -0.1, 0.04, samples)}, 0.05, 32).severity == severity
    assert judged({"a": part(0.3, 0.2, 0.4, samples)}, 0.05, 32).severity is Severity.PASS


def test_the_part_that_is_worth_least_decides() -> None:
    verdict = judged({"a": part(0.01, 0, 0.02), "b": part(-0.2, -0.3, -0.1)}, 0.05, 32)
    assert verdict.estimate.value == -0.2
    assert verdict.named == ("a", "b")


def test_parts_are_written_with_their_shares() -> None:
    parts = {"a": part(-0.262, 0, 0), "b": part(0.0082, 0, 0), "c": part(1.5, 0, 0)}
    assert described(parts, ["a", "b"]) == "a (-26 %), b (+0.82 %)"
    assert described(parts, ["a", "b", "c"], 2) == "a (-26 %), b (+0.82 %) and 1 more"


def test_rank_correlation_is_spearmans() -> None:
    values = RNG.normal(size=(50, 2, 8)) + RNG.normal(size=(1, 2, 8))
    means = values.mean(0)
    expected = spearmanr(means[0], means[1])[0]
    assert float(rank_correlation(values, axis=0)) == pytest.approx(expected)
    resampled = np.stack([values, values[::-1] * 2])
    np.testing.assert_allclose(rank_correlation(resampled, axis=1), [expected, expected])


def test_large_losses_are_whole_percents_of_either_sign() -> None:
    parts = {"a": part(-1.512, -2, 0), "b": part(0.512, 0, 1), "c": part(-0.0512, -1, 0)}
    assert described(parts, ["a", "b", "c"]) == "a (-151 %), b (+51 %), c (-5.1 %)"
