"""Laws of decay and their times, on profiles whose law is known."""

import math

import numpy as np
import pytest
from scipy.stats import chi2

from analyzer.decay import EXPONENTIAL, POWER, STRETCHED, UNDECIDED, _fitted, _holds, decay

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


def test_two_lags_have_a_time_and_two_samples_an_interval():
    found = decay([[0.0, -2.0], [0.0, -4.0]], [1, 3])
    assert found.tau == pytest.approx(2 / 3)
    assert (found.low, found.high) == pytest.approx((0.5, 1.0))
    assert 0 < found.support <= 1
    assert (found.lags, found.law) == ((1, 3), UNDECIDED)


def test_the_time_is_that_of_the_mean_over_all_samples():
    logs = wandering(EXPONENTIAL, step=0.3)
    found = decay(logs, LAGS)
    assert found.tau == pytest.approx(199 / -np.diff(logs.mean(0)[[0, -1]]).item())


def test_one_resample_is_one_vote():
    logs = wandering(EXPONENTIAL, step=0.5)
    found = [decay(logs, LAGS, resamples=1, seed=seed) for seed in range(40)]
    assert {one.support for one in found} == {0, 1}
    assert all(one.low == one.high for one in found)


def test_the_interval_is_that_of_the_mean_rate():
    """Straight lines: the mean of 64 rates has a standard error, which is known."""
    rates = np.random.default_rng(7).normal(0.04, 0.004, 64)
    found = decay(-rates[:, None] * LAGS, LAGS, resamples=6000)
    width = 2 * 1.96 * rates.std() / 8
    assert found.tau == pytest.approx(1 / rates.mean())
    assert 1 / found.low - 1 / found.high == pytest.approx(width, rel=0.05)


@pytest.mark.parametrize(
    ("power", "size", "law"),
    [(3.0, 100, UNDECIDED), (2.9, 100, STRETCHED), (0.1, 1e-9, UNDECIDED), (0.12, 1e-7, STRETCHED)],
)
def test_a_power_at_the_end_of_the_grid_is_another_law(power, size, law):
    found = decay(np.tile(-((LAGS / size) ** power), (16, 1)), LAGS)
    assert (found.law, found.best, found.support) == (law, STRETCHED, 1)


def test_what_stays_the_same_does_not_decay():
    found = decay(np.zeros((16, 200)), LAGS)
    assert (found.law, found.tau, found.low, found.high) == (UNDECIDED, *[math.inf] * 3)


def test_all_resamples_are_enough_for_the_strictest():
    assert decay(np.tile(TRUTH[POWER], (16, 1)), LAGS, clear=1.0).law == POWER


@pytest.mark.parametrize(("known", "last"), [(8, 200), (7, 100)])
def test_lags_that_half_of_the_samples_know_count(known, last):
    logs = np.tile(TRUTH[EXPONENTIAL], (16, 1))
    logs[known:, 100:] = np.nan
    assert decay(logs, LAGS).lags[-1] == last


@pytest.mark.parametrize(("peak", "first"), [(99, 100), (100, 101), (101, 1)])
def test_a_peak_in_the_second_half_is_no_start(peak, first):
    assert decay(np.tile(-abs(LAGS - 1.0 - peak), (16, 1)), LAGS).lags[0] == first


def test_no_samples_are_nothing():
    found = decay(np.empty((0, 30)), np.arange(30))
    assert (found.samples, found.lags) == (0, ())


def residual(observed, shape, widths):
    """Sum of squares that a law of one size leaves, by a solver for least squares."""
    weight = 1 / np.sqrt(widths)
    solved = np.linalg.lstsq((shape * weight)[:, None], observed * weight, rcond=None)
    return solved[1][0], solved[0][0]


@pytest.mark.parametrize("unknown", [[], [2, 7]])
def test_laws_are_compared_by_akaike_over_the_known_increments_weighted(unknown):
    steps = np.array([1, 2, 4, 7, 12, 20, 33, 50, 80, 120, 200], float)
    widths, noise = np.diff(steps), np.random.default_rng(3).normal(0, 0.01, (2, 10))
    laws = np.stack([steps**0.6, 0.1 * steps**1.2])
    observed = -0.3 * np.diff(laws) + noise * np.sqrt(widths)
    observed[range(len(unknown)), unknown] = np.nan
    fit = _fitted(observed, steps)
    grid = np.geomspace(0.1, 3, 137)
    for row, own in enumerate(observed):
        kept = np.isfinite(own)
        count = kept.sum()

        def solved(shape, own=own, kept=kept):
            return residual(own[kept], -np.diff(shape)[kept], widths[kept])

        powers = [solved(steps**power)[0] for power in grid]
        alone = [solved(time)[0] for time in (steps, np.log1p(steps))]
        expected = [
            count * np.log(rest / count + 1e-6) + 2 * parameters
            for rest, parameters in zip([*alone, min(powers)], [1, 1, 2], strict=True)
        ]
        assert fit.criterion[row] == pytest.approx(expected, rel=1e-9)
        if row == 0:
            slope = solved(np.log1p(steps))[1]
            assert fit.exponents[1:] == pytest.approx([slope, grid[np.argmin(powers)]])
            straight = solved(steps)[1] * (1 - steps)
            bent = steps ** grid[np.argmin(powers)]
            bent *= solved(bent)[1]
            assert fit.curves[0] == pytest.approx(straight)
            assert fit.curves[2] == pytest.approx(bent[0] - bent)


@pytest.mark.parametrize("parameters", [1, 2])
@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_a_law_is_contradicted_beyond_the_quantile_of_chi_squared(parameters, noise):
    """Of ten lags, which samples know to unequal numbers, with all of the allowance or none."""
    steps = np.array([1, 2, 4, 8, 16, 32, 64, 100, 150, 200], float)
    values = np.random.default_rng(5).normal(0, noise, (12, 10)).cumsum(1)
    values[:4, 9], values[:2, 6:] = np.nan, np.nan
    changes = [column[np.isfinite(column)] for column in np.diff(values, axis=1).T]
    variance = np.array([own.var(ddof=1) / len(own) for own in changes]) + 1e-6 * np.diff(steps)
    edge = chi2.ppf(0.99, 9 - parameters) * (8 - 1) / (8 - 3)
    for factor, holds in ((0.99, True), (1.01, False)):
        away = np.sqrt(factor * edge * variance / 9)
        curve = np.cumsum([0.0, *(np.array([own.mean() for own in changes]) + away)])
        assert _holds(values, curve, steps, parameters) is holds


@pytest.mark.parametrize(("both", "law"), [(0, UNDECIDED), (3, UNDECIDED), (4, EXPONENTIAL)])
def test_a_step_that_few_samples_take_does_not_slow_the_decay(both, law):
    """Half of the samples know the first lags and half the later ones, and a few all of them."""
    logs = np.tile(TRUTH[EXPONENTIAL], (20, 1))
    logs[:10, 60:] = np.nan
    logs[10 + both :, :60] = np.nan
    found = decay(logs, LAGS)
    assert found.law == law
    assert (found.tau, found.low, found.high) == pytest.approx((TAU, TAU, TAU))
    assert np.isfinite(found.fitted).all()


def test_where_no_sample_knows_two_lags_there_is_no_time():
    found = decay([[0.0, np.nan], [np.nan, -1.0]], [1, 2])
    assert math.isnan(found.tau)
    assert math.isnan(found.support)
    assert (found.law, found.best, found.lags, found.fitted) == (UNDECIDED, UNDECIDED, (), ())
    assert found.samples == 2


@pytest.mark.parametrize("law", TRUTH)
def test_a_step_that_no_sample_takes_is_left_out_of_the_fit(law):
    """Half of the samples know the lags up to 60, and half the lags from there on."""
    logs = np.tile(TRUTH[law], (20, 1))
    logs[:10, 60:] = logs[10:, :60] = np.nan
    found = decay(logs, LAGS)
    assert (found.law, found.best, found.support) == (UNDECIDED, law, 1)
    at = np.array(found.lags) - 1
    assert np.diff(found.fitted) == pytest.approx(np.diff(TRUTH[law][at]), rel=0.02)


def test_a_resample_that_knows_no_step_supports_no_law():
    """It draws the second of two samples twice: one time in four."""
    found = decay([[0.0, -1.0], [np.nan, -2.0]], [1, 2], resamples=4000)
    assert found.support == pytest.approx(0.75, abs=0.03)
    assert found.tau == 1
    assert math.isnan(found.low)
