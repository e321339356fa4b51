"""What differs between two audits."""

from math import nan

import numpy as np
import pytest

from analyzer.comparison import Change, differences
from analyzer.findings import Finding, Severity


def finding(value=nan, low=nan, high=nan, severity=Severity.INFO, code="c", unit="steps"):
    return Finding(code, "p", severity, "Title", "seen", value=value, low=low, high=high, unit=unit)


CASES = {
    "apart": (finding(10, 9, 11), finding(20, 19, 21), Change.LARGER),
    "apart, downwards": (finding(20, 19, 21), finding(10, 9, 11), Change.SMALLER),
    # The intervals overlap, their difference is certain all the same.
    "beyond the overlap": (finding(10, 9, 11), finding(11.8, 10.8, 12.8), Change.LARGER),
    "within": (finding(10, 9, 11), finding(11, 10, 12), Change.NOISE),
    "no interval, same value": (finding(3), finding(3), Change.SAME),
    "no interval, other value": (finding(3), finding(4), Change.UNKNOWN),
    "no interval, other verdict": (
        finding(3),
        finding(4, severity=Severity.WARN),
        Change.VERDICT,
    ),
    "no value": (finding(), finding(), Change.SAME),
    "no value, other verdict": (finding(), finding(severity=Severity.FAIL), Change.VERDICT),
    "other unit": (finding(10, 9, 11), finding(20, 19, 21, unit="s"), Change.UNKNOWN),
    "not applicable in one": (
        finding(1, 0, 2),
        finding(severity=Severity.NOT_APPLICABLE),
        Change.ONLY_ONE,
    ),
    "another diagnostic": (finding(1, 0, 2), None, Change.ONLY_ONE),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_difference(name):
    first, second, expected = CASES[name]
    (difference,) = differences([first], [second] if second else [])
    assert difference.change is expected


def test_the_interval_of_a_difference_of_normal_means_is_exact():
    (difference,) = differences([finding(10, 9.5, 10.5)], [finding(13, 11.8, 14.2)])
    np.testing.assert_allclose(
        [difference.value, difference.low, difference.high], [3, 3 - 1.3, 3 + 1.3]
    )


def test_an_asymmetric_interval_counts_on_its_own_side():
    (difference,) = differences([finding(10, 6, 11)], [finding(20, 17, 32)])
    np.testing.assert_allclose(difference.low, 10 - np.hypot(3, 1))
    np.testing.assert_allclose(difference.high, 10 + np.hypot(12, 4))


def test_what_is_certain_comes_first_and_the_reach_is_left_out():
    first = [finding(1, 0, 2), finding(5, 4, 6, code="d"), finding(code="reach")]
    second = [finding(1.5, 0, 2), finding(9, 8, 10, code="d"), finding(2, 1, 3, code="e")]
    found = differences(first, second)
    assert [difference.finding.code for difference in found] == ["d", "c", "e"]
    assert found[2].first is None
