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
