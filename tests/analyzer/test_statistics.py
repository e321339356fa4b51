import numpy as np
import pytest

from analyzer.statistics import (
    Horizon,
    bootstrap_interval,
    horizon,
    horizon_interval,
    relative_excess,
)


def naive(values: np.ndarray, seed: int, share: float = 0.95) -> tuple[float, float]:
    """The same interval of the mean, one resample at a time."""
    random = np.random.default_rng(seed)
    rows = random.integers(len(values), size=(1000, len(values)))
    means = sorted(values[row].mean() for row in rows)
    return tuple(np.quantile(means, [(1 - share) / 2, (1 + share) / 2]))


def test_the_interval_is_the_percentile_interval_of_resampled_means() -> None:
    values = np.random.default_rng(1).gamma(2, size=40)
    assert bootstrap_interval(values, np.mean, seed=3) == pytest.approx(naive(values, 3))
    assert bootstrap_interval(values, np.mean, seed=3, coverage=0.5) == pytest.approx(
        naive(values, 3, 0.5)
    )
    assert bootstrap_interval(values, np.mean, seed=3) != bootstrap_interval(values, np.mean, 4)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for seed in range(300):
        low, high = bootstrap_interval(random.normal(5, 2, size=60), np.mean, seed)
        inside += low <= 5 <= high
    assert 0.90 <= inside / 300 <= 0.98


def test_rows_are_drawn_whole() -> None:
    first = np.random.default_rng(2).normal(size=30)
    values = np.stack([first, -first, np.full(30, 7.0)], 1)
    low, high = bootstrap_interval(values, np.mean)
    assert low.shape == (3,)
    assert low[0] == pytest.approx(-high[1])
    assert (low[2], high[2]) == (7, 7)


def test_many_samples_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).normal(size=(50, 2))
    whole = bootstrap_interval(values)
    monkeypatch.setattr("analyzer.statistics._CHUNK", 700)
    parts = bootstrap_interval(values)
    assert np.array(parts) == pytest.approx(np.array(whole))
    assert np.isfinite(parts).all()


def test_what_is_undefined_stays_undefined() -> None:
    assert np.isnan(bootstrap_interval([3.0])).all()
    low, high = bootstrap_interval(np.ones((1, 4)))
    assert np.isnan(low).all()
    assert high.shape == (4,)
    values = [np.nan, *range(30)]
    assert np.isnan(bootstrap_interval(values)).all()
    assert np.isfinite(bootstrap_interval(values, np.nanmedian)).all()


KEPT = np.array([0, 1, 2, 4, 8, 16])


def excess_of(means: list[float], samples: int = 200, noise: float = 0.0) -> np.ndarray:
    """Excess losses with exact means, unequal over samples."""
    random = np.random.default_rng(0)
    scale = random.uniform(0.5, 1.5, size=(samples, 1))
    wobble = random.normal(size=(samples, len(means)))
    wobble[:, -1] = 0
    return np.array(means) * scale / scale.mean() + noise * (wobble - wobble.mean(0))


def test_the_excess_is_a_share_of_that_with_nothing_kept() -> None:
    assert relative_excess([[4.0, 1.0, 0.0], [2.0, 2.0, 0.0]]) == pytest.approx([1, 0.5, 0])


def test_samples_without_enough_context_are_left_out_on_both_sides() -> None:
    excess = [[4.0, 1.0, 0.5], [2.0, 0.0, np.nan], [10.0, np.nan, np.nan]]
    assert relative_excess(excess) == pytest.approx([1, 1 / 6, 0.5 / 4])
    nobody = relative_excess([[1.0, np.nan]])
    assert nobody[0] == 1
    assert np.isnan(nobody[1])


def test_the_horizon_is_the_last_number_that_is_too_few() -> None:
    excess = excess_of([1.0, 0.5, 0.005, 0.03, 0.009, 0.0])
    assert horizon(excess, KEPT, 0.01) == 4
    assert horizon(excess, KEPT, 0.05) == 1
    assert horizon(excess, KEPT, 0.5001) == 0


@pytest.mark.parametrize("total", [0.0, -1.0])
def test_without_an_excess_there_is_no_horizon(total: float) -> None:
    excess = np.full((5, 6), total)
    assert np.isnan(horizon(excess, KEPT, 0.01))
    assert np.isnan(horizon_interval(excess, KEPT, 0.01)).all()


def test_infinite_losses_have_no_horizon() -> None:
    excess = excess_of([1.0, 0.5, 0.2, 0.03, 0.0, 0.0])
    excess[3] = np.inf
    assert np.isnan(horizon(excess, KEPT, 0.01))


def test_without_noise_the_interval_is_one_step() -> None:
    excess = excess_of([1.0, 0.5, 0.2, 0.03, 0.0, 0.0])
    assert horizon_interval(excess, KEPT, 0.01) == Horizon(4, 4, 8)
    assert horizon_interval(excess, KEPT, 0.05) == Horizon(2, 2, 4)


def test_noise_widens_the_interval_and_more_samples_narrow_it() -> None:
    means = [1.0, 0.5, 0.2, 0.015, 0.0005, 0.0]
    few = horizon_interval(excess_of(means, 60, noise=0.06), KEPT, 0.01)
    many = horizon_interval(excess_of(means, 20000, noise=0.06), KEPT, 0.01)
    assert few.low < few.value
    assert few.high == 16
    assert many == Horizon(4, 4, 8)


def test_the_interval_is_that_of_resampled_pairs() -> None:
    kept = np.arange(40)
    excess = excess_of([*np.exp(-kept[:-1] / 5), 0.0], 30, noise=0.02)
    found = []
    for seed in range(4):
        random = np.random.default_rng(seed)
        counts = random.multinomial(30, np.full(30, 1 / 30), 50)
        drawn = np.array([relative_excess(np.repeat(excess, count, 0)) for count in counts])
        low, high = np.quantile(drawn, [0.1, 0.9], axis=0)
        needed = max(k for k, edge in zip(kept, low, strict=True) if edge > 0.03)
        enough = max(k for k, edge in zip(kept, high, strict=True) if edge > 0.03) + 1
        found.append(horizon_interval(excess, kept, 0.03, seed, 50, 0.8))
        assert found[-1] == Horizon(horizon(excess, kept, 0.03), needed, enough)
    assert len({*found}) > 1


def test_a_horizon_beyond_the_data_is_censored() -> None:
    excess = excess_of([1.0, 0.9, 0.8, 0.7, 0.6, 0.0])
    assert horizon_interval(excess, KEPT, 0.01) == Horizon(8, 8, 16)
    no_end = excess_of([1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    assert horizon_interval(no_end, KEPT, 0.01) == Horizon(16, 16, 16)


def test_one_sample_has_a_horizon_but_no_interval() -> None:
    value, low, high = horizon_interval([[1.0, 0.5, 0.1, 0.1, 0.0, 0.0]], KEPT, 0.01)
    assert value == 4
    assert np.isnan([low, high]).all()
