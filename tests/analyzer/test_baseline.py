"""What counts as worse than before."""

from math import nan

import pytest

from analyzer.baseline import worsened
from analyzer.findings import Finding, Severity

WARN, PASS, FAIL, ERROR = Severity.WARN, Severity.PASS, Severity.FAIL, Severity.ERROR


def finding(severity, low=nan, high=nan, relation="", probe="p", code="c"):
    return Finding(code, probe, severity, "title", "seen", low=low, high=high, relation=relation)


CASES = {
    "at most: beyond the interval": (finding(WARN, 3, 4, "<="), finding(PASS, 1, 2, "<="), True),
    "at most: intervals overlap": (finding(WARN, 2, 4, "<="), finding(PASS, 1, 2.5, "<="), False),
    "at most: better": (finding(WARN, 3, 4, "<="), finding(FAIL, 5, 6, "<="), False),
    "at least: beyond the interval": (finding(WARN, 1, 2, ">="), finding(PASS, 3, 4, ">="), True),
    "at least: intervals overlap": (finding(WARN, 1, 3, ">="), finding(PASS, 2, 4, ">="), False),
    "at least: better": (finding(WARN, 5, 6, ">="), finding(WARN, 3, 4, ">="), False),
    "equally bad, value worse": (finding(FAIL, 9, 9.5, "<="), finding(FAIL, 5, 6, "<="), True),
    "no interval, severity worse": (finding(FAIL), finding(WARN), True),
    "no interval, severity the same": (finding(WARN), finding(WARN), False),
    "one interval only": (finding(FAIL, 3, 4, "<="), finding(WARN, nan, nan, "<="), True),
    "no limit": (finding(FAIL, 3, 4), finding(FAIL, 1, 2), False),
    "raised before too": (finding(ERROR), finding(ERROR), False),
    "raises now": (finding(ERROR), finding(PASS), True),
    "another probe": (finding(WARN), finding(WARN, probe="other"), True),
    "another code": (finding(WARN), finding(WARN, code="other"), True),
}


@pytest.mark.parametrize("name", CASES)
def test_worse_is_beyond_the_interval_on_the_bad_side(name):
    now, before, expected = CASES[name]
    assert worsened([now], [before]) == ([now] if expected else [])


def test_what_was_not_found_before_is_worse():
    assert worsened([finding(WARN)], []) == [finding(WARN)]
