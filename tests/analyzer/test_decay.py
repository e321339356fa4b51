"""Laws of decay and their times, on profiles whose law is known."""

import math

import numpy as np
import pytest

from analyzer.decay import EXPONENTIAL, POWER, STRETCHED, UNDECIDED, decay

LAGS = np.arange(1, 201)
TAU = 25.0
TRUTH = {
    EXPONENTIAL: -LAGS / TAU,
    POWER: -1.5 * np.log1p(LAGS),
    STRETCHED: -np.sqrt(LAGS / 8),
}


def wandering(law, samples=32, step=0.1, seed=0):
    """Samples whose logarithms follow the law, each with a random walk of its own."""
    walk = np.random.default_rng(seed).normal(0, step, (samples, len(LAGS))).cumsum(1)
    return TRUTH[law] + walk


@pytest.mark.parametrize("law", TRUTH)
def test_a_law_without_noise_is_named(law):
    found = decay(np.tile(TRUTH[law], (16, 1)), LAGS)
    assert found.law == found.best == law
    assert found.support == 1
    assert found.tau == pytest.approx(199 / (TRUTH[law][0] - TRUTH[law][-1]))
    assert found.low == pytest.approx(found.tau)
    assert found.high == pytest.approx(found.tau)
    at = np.array(found.lags) - 1
    assert np.array(found.fitted) == pytest.approx(TRUTH[law][at], abs=0.03)
    assert (found.lags[0], found.lags[-1]) == (1, 200)
    assert len(found.lags) <= 20


def test_the_exponents_are_those_of_the_laws():
    assert math.isnan(decay(np.tile(TRUTH[EXPONENTIAL], (16, 1)), LAGS).exponent)
    assert decay(np.tile(TRUTH[POWER], (16, 1)), LAGS).exponent == pytest.approx(1.5)
    assert decay(np.tile(TRUTH[STRETCHED], (16, 1)), LAGS).exponent == pytest.approx(0.5, rel=0.03)


def test_a_power_may_be_any_but_not_that_of_a_stretched_exponential():
    steep = decay(np.tile(-4.5 * np.log1p(LAGS), (16, 1)), LAGS)
    assert (steep.law, steep.exponent) == (POWER, pytest.approx(4.5))
    sudden = decay(np.tile(-((LAGS / 100.0) ** 5), (16, 1)), LAGS)
    assert (sudden.law, sudden.best, sudden.support) == (UNDECIDED, STRETCHED, 1)


@pytest.mark.parametrize(("law", "least"), [(EXPONENTIAL, 0.5), (POWER, 0.7), (STRETCHED, 0.9)])
def test_a_law_is_seldom_named_wrongly_through_wandering(law, least):
    named = [decay(wandering(law, seed=seed), LAGS, resamples=200).law for seed in range(60)]
    right, undecided = named.count(law) / 60, named.count(UNDECIDED) / 60
    assert right >= least
    assert 1 - right - undecided <= 0.05


def test_the_interval_covers_the_time_constant():
    found = [decay(wandering(EXPONENTIAL, seed=seed), LAGS, resamples=200) for seed in range(100)]
    covered = np.mean([one.low <= TAU <= one.high for one in found])
    assert 0.87 <= covered <= 0.99


def test_the_time_does_not_come_from_the_first_crossing():
    profile = np.where(LAGS == 3, -2.0, 0.0) - LAGS / 50
    found = decay(np.tile(profile, (16, 1)), LAGS)
    assert found.tau == pytest.approx(50)


def test_a_rise_before_the_peak_is_left_out():
    profile = np.where(LAGS < 12, LAGS - 12.0, -(LAGS - 12) / 20)
    found = decay(np.tile(profile, (16, 1)), LAGS)
    assert found.lags[0] == 12
    assert found.law == EXPONENTIAL
    assert found.tau == pytest.approx(20)


@pytest.mark.parametrize(("bend", "law"), [(0.0, EXPONENTIAL), (1.5, UNDECIDED)])
def test_a_law_that_all_samples_contradict_is_not_named(bend, law):
    profile = TRUTH[EXPONENTIAL] + bend * np.sin(LAGS / 25)
    found = decay(profile + wandering(EXPONENTIAL, step=0.05) - TRUTH[EXPONENTIAL], LAGS)
    assert found.law == law
    assert found.support > 0.8


def test_growth_has_no_time_and_no_law():
    found = decay(wandering(EXPONENTIAL) + 2 * LAGS / TAU, LAGS)
    assert (found.law, found.tau, found.high) == (UNDECIDED, math.inf, math.inf)
    assert found.low == math.inf


def test_what_may_not_decay_has_an_open_interval():
    flat = wandering(EXPONENTIAL, step=0.5) + LAGS / TAU
    found = decay(flat, LAGS)
    assert found.law == UNDECIDED
    assert found.high == math.inf
    assert 0 < found.low < math.inf


@pytest.mark.parametrize(("samples", "law"), [(15, UNDECIDED), (16, EXPONENTIAL)])
def test_both_sides_of_the_fewest_samples(samples, law):
    found = decay(np.tile(TRUTH[EXPONENTIAL], (samples, 1)), LAGS, fewest=16)
    assert (found.law, found.best, found.samples) == (law, EXPONENTIAL, samples)


@pytest.mark.parametrize(("clear", "named"), [(0.6, True), (1.0, False)])
def test_both_sides_of_what_is_clear(clear, named):
    found = decay(wandering(EXPONENTIAL, step=0.3, seed=3), LAGS, clear=clear)
    assert 0.6 < found.support < 1
    assert (found.law == found.best) is named


@pytest.mark.parametrize(("lags", "law"), [(7, UNDECIDED), (8, EXPONENTIAL)])
def test_both_sides_of_the_fewest_lags(lags, law):
    assert decay(np.tile(TRUTH[EXPONENTIAL], (16, 1))[:, :lags], LAGS[:lags]).law == law


def test_one_sample_has_a_time_but_no_interval():
    found = decay(TRUTH[EXPONENTIAL][None], LAGS)
    assert found.tau == pytest.approx(TAU)
    assert math.isnan(found.low)
    assert math.isnan(found.support)
    assert found.law == UNDECIDED


def test_lag_zero_and_what_most_samples_lack_are_left_out():
    logs = np.tile(np.concatenate([[9.0], TRUTH[EXPONENTIAL]]), (17, 1))
    logs[:9, 101:] = -np.inf
    logs[12:, 51:] = np.nan
    found = decay(logs, np.arange(201))
    assert (found.lags[0], found.lags[-1]) == (1, 100)
    assert found.tau == pytest.approx(TAU)


def test_samples_that_end_earlier_bend_nothing():
    logs = np.tile(TRUTH[EXPONENTIAL], (32, 1)) + np.linspace(-3, 3, 32)[:, None]
    for sample in range(15):
        logs[sample, 20 + 5 * sample :] = np.nan
    found = decay(logs, LAGS)
    assert found.tau == pytest.approx(TAU)
    assert found.law == EXPONENTIAL


def test_nothing_known_is_nothing_said():
    found = decay(np.full((5, 30), np.nan), np.arange(30))
    assert (found.law, found.samples) == (UNDECIDED, 5)
    assert math.isnan(found.tau)
    assert found.lags == ()
    assert math.isnan(decay(np.zeros((5, 1)), [1]).tau)


def test_the_same_seed_gives_the_same():
    logs = wandering(EXPONENTIAL)
    assert decay(logs, LAGS) == decay(logs, LAGS)
    assert decay(logs, LAGS).low != decay(logs, LAGS, seed=1).low
