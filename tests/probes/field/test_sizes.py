"""Sizes of maps whose size is known."""

from math import isnan, log, pi, sqrt

import numpy as np
import pytest

from probes.field import sizes


def bell(shape, centre, cov) -> np.ndarray:
    """Gaussian of a given covariance, (y, x)."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) - np.asarray(centre)
    return np.exp(-0.5 * np.einsum("...i,ij,...j->...", grid, np.linalg.inv(cov), grid))


def test_deviations_of_uniform_boxes():
    field = np.zeros((2, 9, 12))
    field[0, 2:7, 3:10] = 4.0
    field[1, 8, 11] = 1.0
    expected = [[sqrt(24 / 12), sqrt(48 / 12)], [0, 0]]
    np.testing.assert_allclose(sizes.deviations(field, 2), expected, atol=1e-12)


def test_deviations_of_three_axes_and_of_one():
    field = np.zeros((8, 9, 10))
    field[1:4, 2:7, :] = 1.0
    expected = [sqrt(8 / 12), sqrt(24 / 12), sqrt(99 / 12)]
    np.testing.assert_allclose(sizes.deviations(field, 3), expected)
    np.testing.assert_allclose(sizes.deviations(field[1, 2], 1), expected[2:])


def test_nothing_has_no_size():
    assert np.isnan(sizes.deviations(np.zeros((3, 3)), 2)).all()
    assert isnan(sizes.luo_size(np.zeros((3, 3))))
    assert np.isnan(sizes.enclosing_sides(np.zeros((1, 9)), sizes.rings((3, 3), (1, 1)), 0.5)).all()
    assert isnan(sizes.fitted_gaussian(np.zeros((3, 3))).r2)


def test_diameter_is_four_times_the_root_mean_square():
    assert sizes.diameter(np.array([[3.0, 4.0], [2.0, 2.0]])).tolist() == [4 * sqrt(12.5), 8.0]


def test_luo_size_of_a_gaussian():
    field = bell((101, 101), (50, 50), np.diag([36.0, 36.0]))
    expected = sqrt(pi) * 6 * sqrt(2 * log(1 / 0.0455))
    assert sizes.luo_size(field) == pytest.approx(expected, rel=0.005)
    assert sizes.luo_size(np.array([1, 22, 1.01, 0.9])) == 2


def test_rings_are_squares_about_the_centre():
    found = sizes.rings((3, 4), (1, 1)).reshape(3, 4)
    assert found.tolist() == [[3, 3, 3, 5], [3, 1, 3, 5], [3, 3, 3, 5]]
    assert sizes.rings((4,), (1.5,)).tolist() == [4, 2, 2, 4]


def test_enclosing_sides_of_rings_of_known_mass():
    mass = np.array([1.0, 2, 4, 2, 1])
    maps = np.stack([mass, np.array([0.0, 0, 1, 0, 9]), np.array([5.0, 0, 0, 0, 5])])
    sides = sizes.rings((5,), (2,))
    assert sizes.enclosing_sides(maps, sides, 0.4).tolist() == [1, 5, 5]
    assert sizes.enclosing_sides(maps, sides, 0.41).tolist() == [3, 5, 5]
    assert sizes.enclosing_sides(maps, sides, 1.0).tolist() == [5, 5, 5]
    assert sizes.enclosing_sides(maps / 1e9, sides, 0.41).tolist() == [3, 5, 5]


@pytest.mark.parametrize("angle", [-60, 0, 30, 90])
def test_a_gaussian_is_found_again(angle):
    turn = np.radians(angle)
    # Columns are the principal axes in (y, x); the angle is from x towards y.
    axes = np.array([[np.sin(turn), np.cos(turn)], [np.cos(turn), -np.sin(turn)]])
    field = 7e-9 * bell((80, 90), (37.3, 41.8), axes @ np.diag([64.0, 16.0]) @ axes.T)
    found = sizes.fitted_gaussian(field)
    assert (found.major, found.minor) == (pytest.approx(8, rel=1e-4), pytest.approx(4, rel=1e-4))
    assert found.angle == pytest.approx(angle, abs=0.1)
    assert found.r2 == pytest.approx(1, abs=1e-6)


def test_a_gaussian_of_one_axis_is_found_again():
    field = np.exp(-0.5 * ((np.arange(60) - 22.5) / 5) ** 2)
    found = sizes.fitted_gaussian(field)
    assert (found.major, found.minor) == (pytest.approx(5, rel=1e-4), pytest.approx(5, rel=1e-4))


def test_a_box_is_no_gaussian():
    field = np.zeros((40, 40))
    field[10:31, 10:31] = 1
    assert sizes.fitted_gaussian(field).r2 < 0.9


def test_three_axes_are_not_fitted():
    assert isnan(sizes.fitted_gaussian(np.ones((3, 3, 3))).r2)


def test_elongation_is_the_longest_over_the_shortest():
    resampled = np.array([[1.0, 2, 4], [1, 3, 9], [2, 3, 4]])
    found = sizes.elongation(np.array([2.0, 3.0, 5.0]), resampled)
    expected = np.quantile([4, 9, 2], [0.025, 0.975])
    np.testing.assert_allclose(found, [2.5, *expected])
    backwards = sizes.elongation(np.array([5.0, 2.0]), np.array([[6.0, 3.0]]))
    np.testing.assert_allclose(backwards, [2.5, 2, 2])
    alone = sizes.elongation(np.array([2.0, 3.0]), np.empty((0, 2)))
    np.testing.assert_array_equal(alone, [1.5, np.nan, np.nan])


@pytest.mark.parametrize("sigma", [[2.0], [0.0, 1.0], [np.nan, 1.0]])
def test_elongation_needs_two_axes_with_a_size(sigma):
    rows = np.ones((4, len(sigma)))
    np.testing.assert_array_equal(sizes.elongation(np.array(sigma), rows), [np.nan] * 3)


def test_elongation_over_nothing_has_no_interval():
    found = sizes.elongation(np.array([1.0, 2.0]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    np.testing.assert_array_equal(found, [2, np.nan, np.nan])


def test_what_lies_outside_of_a_box():
    share = np.arange(12.0).reshape(3, 4) / 66
    start, stop = np.array([1.0, 1.0]), np.array([1.0, 2.0])
    assert sizes.outside(share, start, stop) == pytest.approx(1 - (5 + 6) / 66)
    assert sizes.outside(share, np.zeros(2), np.array([2.0, 3.0])) == 0
    assert share.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("start", "stop", "share"),
    [([np.nan, 0], [1, 1], 1), ([0, 0], [1, np.nan], 1), ([0, 0], [0, 0], np.nan)],
)
def test_outside_of_what_is_undefined_is_undefined(start, stop, share):
    found = sizes.outside(np.full((2, 2), share), np.array(start, float), np.array(stop, float))
    assert isnan(found)


def test_wide_gaussians_are_fitted_to_a_part_of_their_points():
    field = bell((400, 300), (180, 160), np.diag([30.0**2, 15.0**2]))
    found = sizes.fitted_gaussian(field)
    assert (found.major, found.minor) == (pytest.approx(30, rel=1e-4), pytest.approx(15, rel=1e-4))
    assert found.angle == pytest.approx(90, abs=0.1)


def test_small_gaussians_are_fitted_to_what_is_around_them():
    found = sizes.fitted_gaussian(bell((21, 21), (9.5, 10.25), np.diag([0.49, 0.49])))
    assert (found.major, found.minor) == (pytest.approx(0.7, rel=1e-3),) * 2


def test_points_are_those_within_four_deviations_or_four_positions():
    field = np.zeros((40, 60))
    field[9:12, 20:41] = 2.0
    y, x, values = sizes._grid(field)
    # The deviations are sqrt(8 / 12) and sqrt(440 / 12).
    assert (y.min(), y.max(), x.min(), x.max()) == (6, 14, 5, 54)
    assert len(np.unique(y)) == 9
    assert len(np.unique(x)) == 50
    assert (values.max(), values.sum()) == (1, 63)
    wide = np.ones((3, 200))
    y, x, _ = sizes._grid(wide)
    assert np.unique(y).tolist() == [0, 1, 2]
    assert np.unique(x).tolist() == [*range(0, 200, 4)]
    far = np.zeros((1, 600))
    far[:, 250:350] = 1
    # 299.5, and four times the root of (100^2 - 1) / 12 to both sides.
    assert np.unique(sizes._grid(far)[1]).tolist() == [*range(184, 416, 4)]


def test_a_fit_explains_a_part_of_the_variance():
    rng = np.random.default_rng(0)
    field = np.exp(-0.5 * ((np.arange(41) - 20) / 4) ** 2) + 0.1 * rng.random(41)
    found = sizes.fitted_gaussian(field)
    _, x, value = sizes._grid(field[None])
    # What a Gaussian of the true size leaves over cannot be less.
    shape = np.exp(-0.5 * ((x - 20) / 4) ** 2)
    height, ground = np.linalg.lstsq(np.stack([shape, 0 * shape + 1], 1), value, rcond=None)[0]
    best = 1 - ((value - height * shape - ground) ** 2).sum() / value.var() / len(value)
    assert best - 0.05 < found.r2 < best
    assert found.angle == 0
