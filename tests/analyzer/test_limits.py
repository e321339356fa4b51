"""Limits have sources, can be overridden, and do not take unknown names."""

from math import isnan

import pytest

from analyzer.limits import Limits, source_of
from probes.errors import AnalyzerError


def test_every_limit_has_a_source():
    assert all(row["source"] for row in Limits().table().values())


def test_an_override_is_marked_and_says_the_default():
    limits = Limits.of({"gradient_flow": {"warn_decades": 4}})
    rows = limits.table()
    assert rows["gradient_flow.warn_decades"]["value"] == 4
    assert [name for name, row in rows.items() if row["overridden"]] == [
        "gradient_flow.warn_decades"
    ]
    assert source_of(limits.gradient_flow, "warn_decades").startswith(
        "set by the user (default 2: torchmortem"
    )


def test_undeclared_requirements_are_nan_and_not_overrides():
    limits = Limits()
    assert isnan(limits.memory_horizon.required)
    assert not limits.table()["memory_horizon.required"]["overridden"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"gradient_flo": {}}, "unknown limit group 'gradient_flo': did you mean gradient_flow?"),
        (
            {"gradient_flow": {"warn": 1}},
            "unknown limit in gradient_flow 'warn': known: warn_decades, fail_decades, min_samples",
        ),
        (
            {"gradient_flow": {"warn_decades": "4"}},
            "limit gradient_flow.warn_decades is '4': a number is needed",
        ),
        (
            {"gradient_flow": {"warn_decades": True}},
            "limit gradient_flow.warn_decades is True: a number is needed",
        ),
    ],
)
def test_what_is_no_limit_is_refused(overrides, message):
    with pytest.raises(AnalyzerError) as raised:
        Limits.of(overrides)
    assert str(raised.value) == message
