"""Dead and saturated units on hand-made traces: unequal groups and functions, whole messages."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isnan, nan

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import WidthLimits
from analyzer.rules.jackknife import jackknife_interval
from analyzer.rules.units import dead, dead_units, saturated, saturated_units

LIMITS = WidthLimits()
GROUPS, UNITS = 4, 20
SEEN = np.array([100.0, 50.0, 150.0, 100.0])


def responding(
    active: Mapping[str, np.ndarray] | None = None,
    ends: Mapping[str, np.ndarray] | None = None,
    seen: np.ndarray = SEEN,
) -> xr.Dataset:
    """ReLUs (group, unit) and tanhs (group, unit, end) behind layers of these names."""
    active, ends = active or {}, ends or {}
    count = len(active) + len(ends)
    lows, both = np.full((GROUPS, count, UNITS), nan), np.full((GROUPS, count, UNITS, 2), nan)
    for at, values in enumerate(active.values()):
        lows[:, at, : values.shape[1]] = values
    for at, values in enumerate(ends.values(), len(active)):
        both[:, at, : values.shape[1]] = values
    layers = [*active, *ends]
    names = [f"relu after {name}" for name in active] + [f"tanh after {name}" for name in ends]
    return xr.Dataset(
        {
            "active": (("group", "response", "response_unit"), lows),
            "at_end": (("group", "response", "response_unit", "end"), both),
            "seen": (("group", "response"), np.tile(seen[:, None], count)),
        },
        {
            "response": names,
            "response_layer": ("response", layers),
            "layer": ["a", "b", "head"],
            "read": ("layer", [1, 1, 0]),
        },
    )


def alive(units: int, idle: int, seen: np.ndarray = SEEN) -> np.ndarray:
    """Counts of units that are active in a tenth of the samples, but for the first few."""
    return np.tile(seen[:, None] / 10, units) * (np.arange(units) >= idle)


def stuck(units: int, idle: int, time: float = 1.0, seen: np.ndarray = SEEN) -> np.ndarray:
    """Counts of units of which the first few are at their ends for a part of the time."""
    share = np.where(np.arange(units) < idle, time, 0.25)
    return seen[:, None, None] * share[:, None] * np.array([0.75, 0.25])


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_intervals_are_those_without_each_group_of_any_size() -> None:
    active = alive(5, 1)
    active[1:, 1] = 0  # alive in the first group only
    active[[0, 1, 3], 2] = 0  # in the third only
    (found,) = dead(responding({"a": active}))
    low, high = jackknife_interval(0.2, [0.4, 0.2, 0.4, 0.2], SEEN)
    assert (found.share.low, found.share.high) == (0, pytest.approx(float(high)))
    assert float(low) < 0 < found.share.value == 0.2 < float(high) < 1
    assert (found.units, found.share.samples, str(found)) == (
        5, 400, "1 of 5 behind relu after a"
    )  # fmt: skip
    active[:, :2] = active[[0, 1, 2], 3] = 0
    active[:, 4] = 0
    (most,) = dead(responding({"a": active}))
    low, high = jackknife_interval(0.6, [0.6, 0.6, 0.8, 0.8], SEEN)
    assert (most.share.low, most.share.high) == (pytest.approx(float(low)), 1)
    assert float(low) > 0
    assert float(high) > 1


def test_units_that_are_not_known_in_every_group_are_not_counted() -> None:
    active = alive(10, 3)
    active[2, 9] = nan
    (found,) = dead(responding({"a": active}))
    assert found.units == 9
    assert found.share.value == pytest.approx(3 / 9)
    assert dead(responding(ends={"a": stuck(4, 1)})) == []


def test_groups_that_a_function_did_not_see_do_not_count() -> None:
    seen = np.array([100.0, 0.0, 1.0, 99.0])
    active = alive(10, 3, seen)
    active[[0, 3], 3] = 0  # alive in the single sample of the third group
    (found,) = dead(responding({"a": active}, seen=seen))
    assert (found.share.value, found.share.samples) == (0.3, 200)
    once = np.array([0.0, 7.0, 0.0, 0.0])
    (alone,) = dead(responding({"a": alive(10, 3, once)}, seen=once))
    assert alone.share.value == 0.3
    assert isnan(alone.share.low)
    assert dead(responding({"a": alive(10, 3)}, seen=0 * SEEN)) == []


def test_the_functions_beyond_the_limit_are_blamed_the_worst_first() -> None:
    trace = responding({"a": alive(20, 11), "b": alive(10, 7), "head": alive(4, 1)})
    finding = only(dead_units(trace, LIMITS))
    assert finding.severity is Severity.WARN
    assert finding.message == (
        "7 of 10 behind relu after b, 11 of 20 behind relu after a are never above zero in 400 "
        "samples"
    )
    assert (finding.value, finding.limit, finding.where) == (0.7, 0.5, ("b", "a"))
    assert finding.meaning == (
        "No gradient reaches a unit that is not active, so that it does not recover. With 95 % "
        "confidence each is active in fewer than 0.75% of such samples (rule of three)."
    )
    assert finding.action == (
        "Lower the learning rate, use a leaky activation, or remove these units."
    )
    failed = only(dead_units(responding({"a": alive(20, 17), "b": alive(10, 7)}), LIMITS))
    assert (failed.severity, failed.where, failed.action) == (
        Severity.FAIL, ("a",), finding.action
    )  # fmt: skip


def test_dead_units_of_a_pass_are_told_where_there_are_any() -> None:
    finding = only(dead_units(responding({"a": alive(20, 0), "b": alive(10, 1)}), LIMITS))
    assert finding.severity is Severity.PASS
    assert finding.message == "1 of 10 behind relu after b are never above zero in 400 samples"
    assert (finding.value, finding.action, finding.where) == (0.1, "None.", ())
    none = only(dead_units(responding({"a": alive(20, 0)}), LIMITS))
    assert none.message == "every unit is above zero at some time in 400 samples"
    assert none.meaning == "Every unit takes part."


def test_saturated_units_are_told_the_worst_first() -> None:
    trace = responding(ends={"a": stuck(20, 11), "b": stuck(10, 7), "head": stuck(4, 4)})
    finding = only(saturated_units(trace, LIMITS))
    assert finding.severity is Severity.WARN
    assert finding.message == (
        "7 of 10 behind tanh after b, 11 of 20 behind tanh after a are at an end of the function "
        "for 99% of the time"
    )
    assert finding.meaning == "Such a unit is a switch at best, and passes hardly any gradient."
    assert finding.action == "Normalize what the layer reads, or decay its weights."
    assert (finding.value, finding.where) == (0.7, ("b", "a"))
    passed = only(saturated_units(responding(ends={"a": stuck(20, 0), "b": stuck(5, 1)}), LIMITS))
    assert passed.severity is Severity.PASS
    assert passed.message.startswith("1 of 5 behind tanh after b are at an end of the function for")
    assert (passed.value, passed.action, passed.where) == (0.2, "None.", ())
    none = only(saturated_units(responding(ends={"a": stuck(20, 0)}), LIMITS))
    assert none.message == "no unit is at an end of the function for 99% of the time"
    assert none.meaning == "Every unit moves."


@pytest.mark.parametrize(("time", "count"), [(0.5, 3), (0.49, 0)])
def test_units_are_saturated_from_the_limit_on(time: float, count: int) -> None:
    (found,) = saturated(responding(ends={"a": stuck(10, 3, time)}), 0.5)
    assert found.share.value == count / 10


def test_a_function_behind_a_layer_that_was_not_measured_is_judged() -> None:
    trace = responding(ends={"elsewhere": stuck(10, 8), "head": stuck(10, 9)})
    assert only(saturated_units(trace, LIMITS)).where == ("elsewhere",)


@pytest.mark.parametrize(("samples", "few"), [(31, True), (32, False)])
def test_saturated_units_need_samples(samples: int, few: bool) -> None:
    seen = np.array([8.0, 8.0, 8.0, samples - 24.0])
    trace = responding(ends={"a": stuck(10, 8, seen=seen)}, seen=seen)
    finding = only(saturated_units(trace, LIMITS))
    assert finding.severity is (Severity.INCONCLUSIVE if few else Severity.WARN)
    assert finding.action == (
        "Audit at least 32 samples."
        if few
        else "Normalize what the layer reads, or decay its weights."
    )


def test_few_samples_say_little_of_dead_units() -> None:
    seen = np.full(GROUPS, 2.0)
    trace = responding({"a": alive(10, 8, seen)}, seen=seen)
    finding = only(dead_units(trace, LIMITS))
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.meaning == (
        "8 samples are too few: a unit unseen in them may be active in 38% of others."
    )
    assert finding.action == "Audit at least 60 samples."
    assert only(dead_units(trace, replace(LIMITS, rare=0.375))).severity is Severity.WARN
