"""Timesteps that train and conflicts, on traces in which they are known."""

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Severity
from analyzer.limits import TimestepContributionLimits
from analyzer.rules.timestep_contribution import (
    by_lag,
    coherence,
    entrance,
    mean_conflict,
    sample_steps,
    steps_holding,
    timestep_contribution,
)

LIMITS = TimestepContributionLimits()
STEPS, SAMPLES = 20, 12
RNG = np.random.default_rng(6)


def even(last: int) -> np.ndarray:
    """Shares of a sample of which the last timesteps add the same, and earlier ones nothing."""
    return np.r_[np.zeros(STEPS - last), np.full(last, 1 / last)]


def trace(rows: dict[str, np.ndarray], conflict: float = 0.4, **values: object) -> xr.Dataset:
    """One weight per entry, with the shares (sample, timestep) of its samples."""
    layers, parameters = zip(*(name.rsplit(".", 1) for name in rows), strict=True)
    shares = np.stack([*rows.values()], 1)
    count = len(rows)
    conflicts = conflict + RNG.uniform(-0.05, 0.05, (len(shares), count))
    data = {
        "own_share": (("sample", "weight", "timestep"), shares),
        "sample_conflict": (("sample", "weight"), conflicts),
        "conflict": ("weight", np.full(count, 0.3)),
        "conflict_without": (("sample", "weight"), 0.3 + RNG.normal(0, 0.01, conflicts.shape)),
        "gradient": ("weight", np.full(count, 1.0)),
        "sample_gradient": (("sample", "weight"), np.full(conflicts.shape, 1.0)),
        "length": (("sample", "weight"), np.full(conflicts.shape, STEPS)),
    }
    dataset = xr.Dataset(
        data,
        {
            "weight": [*rows],
            "layer": ("weight", [*layers]),
            "parameter": ("weight", [*parameters]),
        },
    )
    return dataset.assign(values) if values else dataset


def samples(last: int, count: int = SAMPLES) -> np.ndarray:
    return np.tile(even(last), (count, 1))


def judged(dataset: xr.Dataset, **limits: float):
    return [*timestep_contribution(dataset, TimestepContributionLimits(**limits))]


def test_steps_that_hold_a_part():
    assert steps_holding([0.5, 0.3, 0.15, 0.05], 0.95) == 3
    assert steps_holding([1.0, 0.0], 0.95) == 1
    assert steps_holding([0.0, 0.0, 2.0], 0.95) == 3
    # An early timestep that works against the others: the sum has to stay above.
    assert steps_holding([1.2, 0.2, -0.4, 0.0], 0.95) == 1
    assert steps_holding([0.96, -0.1, 0.14], 0.95) == 3
    assert np.isnan(steps_holding([0.0, 0.0], 0.95))
    assert np.isnan(steps_holding([-1.0, 0.5], 0.95))
    assert np.isnan(steps_holding([np.nan, np.nan], 0.95))
    np.testing.assert_array_equal(steps_holding([[0.5, 0.5], [0.99, 0.01]], 0.95), [2, 1])


def test_lags_are_counted_from_the_end_of_each_sample_in_the_order_of_reading():
    shares = np.array([[0.1, 0.2, 0.3, 0.4], [0.6, 0.4, np.nan, np.nan], [0.5, 0.3, 0.2, 0.0]])
    dataset = trace({"rnn.l0.weight_ih": shares, "rnn.l0.reverse.weight_ih": shares})
    dataset["length"][:] = np.array([[4, 2, 2], [4, 2, 2]]).T
    np.testing.assert_allclose(
        by_lag(dataset, "own_share", 0),
        # The padding of the last sample counts for its last timestep.
        [[0.4, 0.3, 0.2, 0.1], [0.4, 0.6, np.nan, np.nan], [0.5, 0.5, np.nan, np.nan]],
    )
    np.testing.assert_allclose(by_lag(dataset, "own_share", 1), shares)
    early = trace({"rnn.l0.weight_ih": np.array([[0.3, 0.7, 0.0, 0.0]])})
    early["length"][:] = 4
    np.testing.assert_allclose(by_lag(early, "own_share", 0), [[0.7, 0.3, np.nan, np.nan]])


def test_the_weight_of_the_inputs_is_reported():
    dataset = trace(
        {
            "lstm.l0.weight_ih": samples(10),
            "lstm.l0.bias_ih": samples(1),
            "lstm.l0.reverse.weight_ih": samples(4)[:, ::-1],
            "lstm.l1.weight_ih": samples(14),
            "lstm.l1.weight_hh": samples(2),
        }
    )
    assert entrance(dataset, sample_steps(dataset, LIMITS)) == 0
    finding, _ = judged(dataset)
    assert finding.severity is Severity.INFO
    assert finding.code == "timestep-share"
    assert finding.message == (
        "95% of a sample's gradient of lstm.l0.weight_ih comes from the last 10 of 20 timesteps "
        "(median); fewest for lstm.l1.weight_hh, 2"
    )
    assert (finding.value, finding.low, finding.high, finding.samples) == (10, 10, 10, SAMPLES)
    assert finding.where == ("lstm.l0",)


@pytest.mark.parametrize(
    ("required", "severity"),
    [
        (10.0, Severity.PASS),
        (11.0, Severity.WARN),
        (21.0, Severity.INCONCLUSIVE),
    ],
)
def test_both_sides_of_a_requirement(required, severity):
    finding, _ = judged(trace({"cell.l0.weight_ih": samples(10)}), required=required)
    assert finding.severity is severity
    assert finding.limit == required
    actions = {
        Severity.WARN: "Raise the forget-gate bias of cell.l0, or add losses at earlier timesteps.",
        Severity.INCONCLUSIVE: "Audit longer sequences.",
    }
    assert finding.action == actions.get(severity, "None.")


def test_samples_that_disagree_are_inconclusive():
    mixed = np.concatenate([samples(4, 6), samples(16, 6)])
    finding, _ = judged(trace({"l0.weight_ih": mixed}), required=10.0)
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.meaning == "The samples disagree too much to tell."


def test_too_few_samples_are_inconclusive():
    for finding in judged(trace({"l0.weight_ih": samples(4, 5)}, -0.9), required=10.0):
        assert finding.severity is Severity.INCONCLUSIVE
        assert finding.meaning == "5 samples are too few for a median to be judged."
        assert finding.action == "Audit at least 6 samples."


def test_no_gradient_is_not_a_pass():
    dataset = trace({"l0.weight_ih": np.full((SAMPLES, STEPS), np.nan)})
    dataset["sample_conflict"][:] = np.nan
    share, conflict = judged(dataset)
    assert share.severity is Severity.INCONCLUSIVE
    assert share.message == ("no sample has a gradient in a recurrent layer that reads the inputs")
    assert conflict.severity is Severity.INCONCLUSIVE
    assert conflict.message == "no sample has a gradient from both halves of its timesteps"


@pytest.mark.parametrize(
    ("conflict", "severity"),
    [(-0.44, Severity.PASS), (-0.5, Severity.INCONCLUSIVE), (-0.56, Severity.WARN)],
)
def test_both_sides_of_the_conflict(conflict, severity):
    rows = {"l0.weight_ih": samples(4), "l0.bias_ih": samples(4)}
    dataset = trace(rows, conflict)
    dataset["sample_conflict"][:, 1] = -1.0  # a bias is not judged
    _, finding = judged(dataset)
    assert finding.code == "timestep-conflict"
    assert finding.severity is severity
    assert finding.value == pytest.approx(conflict, abs=0.03)
    assert (finding.action != "None.") == (severity is Severity.WARN)
    assert finding.relation == ">="


def test_the_mean_gradient_is_told_where_it_is_not_zero():
    dataset = trace({"l0.weight_ih": samples(4)})
    assert coherence(dataset, 0) == pytest.approx(SAMPLES)
    _, finding = judged(dataset)
    mean = mean_conflict(dataset, 0)
    assert finding.message.endswith(
        f"; 0.3 [{mean.low:.2g}, {mean.high:.2g}] for the mean gradient"
    )
    assert mean.low < 0.3 < mean.high
    dataset["gradient"][:] = (3.9 / SAMPLES) ** 0.5
    assert coherence(dataset, 0) == pytest.approx(3.9)
    _, finding = judged(dataset)
    assert finding.message.endswith(
        "the mean gradient over samples cannot be told from zero, as after training, where the "
        "halves cancel by necessity"
    )
    dataset["sample_gradient"][:] = 0
    assert np.isnan(coherence(dataset, 0))


def test_intervals_of_cosines_end_at_one():
    dataset = trace({"lstm.weight_ih_l0": np.tile(even(5), (SAMPLES, 1))})
    for value in (1.0, -1.0):
        dataset["conflict"][:] = value
        dataset["conflict_without"][:] = value + RNG.normal(0, 0.05, (SAMPLES, 1))
        found = mean_conflict(dataset, 0)
        assert (found.high if value > 0 else found.low) == value
        assert found.low < found.high


def test_an_unknown_cosine_without_a_sample_leaves_the_interval_unknown():
    dataset = trace({"l0.weight_ih": samples(4)})
    dataset["conflict_without"][3] = np.nan
    found = mean_conflict(dataset, 0)
    assert found.value == 0.3
    assert np.isnan([found.low, found.high]).all()
    assert judged(dataset)[1].message.endswith(
        "; 0.3 for the mean gradient, of an unknown interval: without one of the samples next to "
        "nothing is left of a half"
    )


@pytest.mark.parametrize("missing", [0, 1])
def test_as_many_samples_as_the_limit_asks_for_are_enough(missing):
    dataset = trace({"lstm.weight_hh_l0": np.tile(even(5), (SAMPLES, 1))})
    limits = TimestepContributionLimits(min_samples=float(SAMPLES + missing))
    few = ["too few" in finding.meaning for finding in timestep_contribution(dataset, limits)]
    assert few[-1] is bool(missing)


def test_what_a_requirement_is_held_against_is_told_with_one_only():
    dataset = trace({"l0.weight_ih": samples(10)})
    (free, _), (set_, _) = judged(dataset), judged(dataset, required=8.0)
    assert (free.relation, free.limit_source) == ("", "")
    assert free.action == "Set timestep_contribution.required to have it judged."
    assert set_.relation == ">="
    assert set_.limit_source.startswith("set by the user")


@pytest.mark.parametrize(("required", "told"), [(20.0, False), (21.0, True)])
def test_sequences_as_long_as_required_are_long_enough(required, told):
    finding, _ = judged(trace({"l0.weight_ih": samples(20)}), required=required)
    assert finding.severity is (Severity.INCONCLUSIVE if told else Severity.WARN)
    assert ("more than the sequences have" in finding.meaning) is told


@pytest.mark.parametrize(("count", "few"), [(5, True), (6, False)])
def test_both_verdicts_need_as_many_samples(count, few):
    for finding in judged(trace({"l0.weight_ih": samples(4, count)}), min_samples=6.0):
        assert ("too few" in finding.meaning) is few


def test_a_weight_without_gradient_is_not_the_one_trained_by_the_fewest():
    dataset = trace(
        {
            "lstm.l1.weight_ih": np.full((SAMPLES, STEPS), np.nan),
            "lstm.l0.weight_ih": samples(10),
            "lstm.l0.weight_hh": samples(3),
        }
    )
    assert judged(dataset)[0].message.endswith("; fewest for lstm.l0.weight_hh, 3")


def test_the_weight_that_agrees_least_is_named():
    dataset = trace({"l0.weight_ih": samples(4), "l0.weight_hh": samples(4)})
    dataset["sample_conflict"][:, 1] -= 0.2
    _, finding = judged(dataset)
    assert "agrees least for l0.weight_hh: cosine" in finding.message
    assert finding.value == pytest.approx(0.2, abs=0.05)


def test_a_part_that_is_just_reached_is_held():
    assert steps_holding([0.5, 0.5], 0.5) == 1
    assert steps_holding([2.0, 1.0, 1.0], 0.8) == 3


def test_the_mean_gradient_is_held_against_the_squares_of_unequal_ones():
    dataset = trace({"l0.weight_ih": samples(4)})
    sizes = np.arange(1.0, SAMPLES + 1) / 100
    dataset["sample_gradient"][:, 0] = sizes
    dataset["gradient"][:] = sizes.mean()
    expected = sizes.sum() ** 2 / (sizes**2).sum()
    assert coherence(dataset, 0) == pytest.approx(expected)


@pytest.mark.parametrize(("least", "told"), [(12.0, True), (12.5, False)])
def test_a_coherence_of_exactly_the_limit_is_enough(least, told):
    _, finding = judged(trace({"l0.weight_ih": samples(4)}), coherence=least)
    assert finding.message.endswith("for the mean gradient") is told
