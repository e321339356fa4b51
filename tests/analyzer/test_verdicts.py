"""One test on each side of each limit."""

from math import nan

import pytest

from analyzer.findings import Severity
from analyzer.rules.verdicts import Estimate, at_least, at_most, listed


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (1.0, 0.5, 2.0, Severity.PASS),
        (1.9, 1.5, 2.1, Severity.INCONCLUSIVE),
        (2.2, 1.9, 2.5, Severity.INCONCLUSIVE),
        (2.5, 2.1, 2.9, Severity.WARN),
        (3.1, 2.9, 3.3, Severity.WARN),
        (3.5, 3.1, 3.9, Severity.FAIL),
        (nan, nan, nan, Severity.INCONCLUSIVE),
        (1.0, nan, nan, Severity.INCONCLUSIVE),
    ],
)
def test_at_most(value, low, high, expected):
    assert at_most(Estimate(value, low, high), warn=2.0, fail=3.0) is expected


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (12.0, 10.0, 14.0, Severity.PASS),
        (9.0, 8.0, 9.9, Severity.WARN),
        (10.0, 9.0, 11.0, Severity.INCONCLUSIVE),
        (nan, nan, nan, Severity.INCONCLUSIVE),
    ],
)
def test_at_least(value, low, high, expected):
    assert at_least(Estimate(value, low, high), warn=10.0) is expected


def test_without_a_limit_nothing_is_a_pass():
    assert at_most(Estimate(1.0, 0.0, 2.0), warn=nan) is Severity.INCONCLUSIVE


def test_lists_are_cut():
    assert listed(["a", "b"], most=2) == "a, b"
    assert listed(["a", "b", "c", "d"], most=2) == "a, b and 2 more"


@pytest.mark.parametrize(
    ("value", "expected"), [(2.0, Severity.PASS), (3.0, Severity.WARN), (3.1, Severity.FAIL)]
)
def test_a_limit_itself_is_kept(value, expected):
    assert at_most(Estimate(value, value, value), warn=2.0, fail=3.0) is expected
    kept = at_least(Estimate(-value, -value, -value), warn=-2.0)
    assert (kept is Severity.PASS) is (expected is Severity.PASS)


def test_a_value_that_is_undefined_is_judged_by_no_interval():
    assert at_most(Estimate(nan, 1.0, 1.0), warn=2.0) is Severity.INCONCLUSIVE
