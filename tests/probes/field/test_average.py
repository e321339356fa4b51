"""From the maps of samples to one field with intervals."""

import numpy as np
import pytest

from probes.field import average
from probes.field.average import Energies


def energies(*maps) -> Energies:
    found = Energies((len(maps[0]),))
    for one in maps:
        found.add(np.array(one, float))
    return found


def box(half: int, total: float = 1.0) -> list[float]:
    """Energy of a centred box of 2 half + 1 among eleven positions."""
    field = np.zeros(11)
    field[5 - half : 6 + half] = total / (2 * half + 1)
    return field.tolist()


CENTRE = np.array([5.0])


def test_few_samples_are_weighted_by_their_energy():
    found = average.average(energies(box(1, 30), box(3, 70)), CENTRE, 0, 0)
    inner, outer = 0.3 / 3 + 0.7 / 7, 0.7 / 7
    np.testing.assert_allclose(found.share[2:9], [outer] * 2 + [inner] * 3 + [outer] * 2, rtol=1e-6)
    assert found.total_energy == 50
    assert found.live_samples == 2


def test_many_samples_count_the_same():
    found = average.average(energies(box(1, 1e-30), *[box(3, 7.0)] * 4), CENTRE, 0, 0)
    outer = 0.8 / 7
    np.testing.assert_allclose(found.share[2], outer, rtol=1e-6)
    np.testing.assert_allclose(found.share[5], outer + 0.2 / 3, rtol=1e-6)


def test_samples_without_a_map_are_left_out():
    bad = [np.nan] * 11
    found = average.average(energies(bad, box(2), [0.0] * 11, [np.inf] * 11), CENTRE, 0, 0)
    assert found.live_samples == 1
    np.testing.assert_allclose(found.sigma, np.sqrt(24 / 12), rtol=1e-6)
    assert np.isnan(found.half_sample_sigma).all()
    assert np.isnan([found.sigma_low, found.sigma_high]).all()
    assert np.isnan(found.diameter[1:]).all()


def test_without_any_map_nothing_is_known():
    found = average.average(energies([0.0] * 11), CENTRE, 5, 0)
    assert found.live_samples == 0
    assert np.isnan([found.total_energy, found.luo_size, *found.sigma, *found.diameter]).all()
    assert np.isnan(found.share).all()


def test_the_first_half_is_measured_alone():
    found = average.average(energies(*[box(1)] * 2, *[box(4)] * 2), CENTRE, 0, 0)
    np.testing.assert_allclose(found.half_sample_sigma, np.sqrt(8 / 12), rtol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 6, 7])
def test_the_first_half_is_rounded_down(count):
    maps = [box(1 + sample % 4, 1.0 + sample) for sample in range(count)]
    found = average.average(energies(*maps), CENTRE, 0, 0)
    # Fewer than four samples are weighted by their energy, all by the same.
    half = np.array(maps)[: count // 2]
    half = half / (1 if count < 4 else half.sum(1, keepdims=True))
    amplitude = np.sqrt(half.sum(0))
    amplitude /= amplitude.sum()
    expected = np.sqrt((amplitude * (np.arange(11) - 5) ** 2).sum())
    np.testing.assert_allclose(found.half_sample_sigma, expected, rtol=1e-6)


def test_sizes_are_of_the_amplitude_and_of_the_energy():
    field = np.array([1.0, 16, 1])
    found = average.average(energies(field), np.array([1.0]), 0, 0)
    np.testing.assert_allclose(found.sigma, np.sqrt(2 / 6), rtol=1e-6)
    np.testing.assert_allclose(found.sigma_energy, np.sqrt(2 / 18), rtol=1e-6)
    assert found.side50.tolist()[0] == 1


def test_intervals_hold_what_resampling_gives():
    rng = np.random.default_rng(1)
    maps = energies(*rng.random((6, 11)) ** 3)
    found = average.average(maps, CENTRE, 400, 3)
    again = average.average(maps, CENTRE, 400, 3)
    assert found.sigma_low.tolist() == again.sigma_low.tolist()
    shares = np.stack(maps.shares).astype(float)
    sigmas = []
    for row in np.random.default_rng(3).multinomial(6, [1 / 6] * 6, 400):
        field = np.sqrt(row @ shares)
        field /= field.sum()
        middle = (field * np.arange(11)).sum()
        sigmas.append(np.sqrt((field * (np.arange(11) - middle) ** 2).sum()))
    low, high = np.quantile(sigmas, [0.025, 0.975])
    assert found.sigma_low == pytest.approx(low)
    assert found.sigma_high == pytest.approx(high)
    assert found.diameter.tolist() == pytest.approx([4 * found.sigma[0], 4 * low, 4 * high])


@pytest.mark.parametrize("block", [5, 33])
def test_blocks_do_not_matter(block, monkeypatch):
    maps = energies(*np.random.default_rng(1).random((6, 11)))
    whole = average.average(maps, CENTRE, 50, 3)
    monkeypatch.setattr(average, "BLOCK", block)
    parts = average.average(maps, CENTRE, 50, 3)
    np.testing.assert_allclose(whole.diameter, parts.diameter, rtol=1e-12)
    np.testing.assert_allclose(whole.share, parts.share, rtol=1e-12)


def test_resamples_are_kept_row_by_row():
    maps = energies(*np.random.default_rng(1).random((6, 11)))
    found = average.average(maps, CENTRE, 7, 3)
    assert found.resampled.shape == (7, 1)
    # The first two rows would be of all samples and of half of them.
    drawn = np.random.default_rng(3).multinomial(6, [1 / 6] * 6, 7)
    shares = np.stack(maps.shares).astype(float)
    for row, (sigma,) in zip(drawn, found.resampled, strict=True):
        again = Energies((11,))
        again.add(row @ shares)
        assert average.plain_sigma(again) == pytest.approx([sigma], rel=1e-6)
    alone = average.average(energies(box(2)), CENTRE, 7, 3)
    np.testing.assert_array_equal(alone.resampled, np.full((7, 1), np.nan))


def test_a_plain_deviation_is_that_of_the_amplitude():
    maps = energies(box(1), box(3), box(2))
    expected = average.average(maps, CENTRE, 0, 0).sigma
    np.testing.assert_allclose(average.plain_sigma(maps), expected, rtol=1e-12)
    np.testing.assert_array_equal(average.plain_sigma(Energies((3, 4))), [np.nan, np.nan])


def test_two_axes_stay_apart():
    found = Energies((3, 11))
    field = np.outer([1.0, 16, 1], box(2))
    found.add(field.ravel())
    result = average.average(found, np.array([1.0, 5.0]), 0, 0)
    np.testing.assert_allclose(result.sigma, [np.sqrt(2 / 6), np.sqrt(24 / 12)], rtol=1e-6)
    np.testing.assert_allclose(result.share, field / field.sum(), rtol=1e-6)
    np.testing.assert_allclose(average.plain_sigma(found), result.sigma, rtol=1e-12)
