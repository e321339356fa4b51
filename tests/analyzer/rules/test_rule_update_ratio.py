"""Layers inside and outside of the usual band."""

from math import isnan, nan

import pytest
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import UpdateRatioLimits, source_of
from analyzer.rules.update_ratio import by_layer, update_ratio

LIMITS = UpdateRatioLimits()


def trace(ratios: dict[str, float], rate: float = 0.01, initial: float = 0.01) -> xr.Dataset:
    """Layers of two parameters, whose norms are those of a 3-4-5 triangle, with these ratios."""
    parameters, update, weight = [], [], []
    for layer, ratio in ratios.items():
        parameters += [f"{layer}.weight", f"{layer}.bias"]
        update += [5 * ratio, 0.0]
        weight += [3.0, 4.0]
    count = len(parameters)
    return xr.Dataset(
        {
            "update": ("parameter", update),
            "weight": ("parameter", weight),
            "rate": ("parameter", [rate] * count),
            "initial_rate": ("parameter", [initial] * count),
            "steps": ("parameter", [7.0] * count),
        },
        {"parameter": parameters, "layer": ("parameter", [p.split(".")[0] for p in parameters])},
        {"optimizer": "Adam"},
    )


def judged(measured: xr.Dataset) -> Finding:
    (found,) = update_ratio(measured, LIMITS)
    return found


def test_the_ratio_of_a_layer_is_that_of_all_its_parameters() -> None:
    assert by_layer(trace({"a": 0.02, "b": 0.3})) == pytest.approx({"a": 0.02, "b": 0.3})


@pytest.mark.parametrize(
    ("ratio", "severity", "where"),
    [
        (0.09, Severity.PASS, ()),
        (0.11, Severity.WARN, ("b",)),
        (1.1e-5, Severity.PASS, ()),
        (0.9e-5, Severity.WARN, ("b",)),
        (0.0, Severity.WARN, ("b",)),
    ],
)
def test_layers_are_judged_on_both_sides_of_the_band(
    ratio: float, severity: Severity, where: tuple[str, ...]
) -> None:
    found = judged(trace({"a": 1e-3, "b": ratio, "c": 2e-3}))
    assert (found.severity, found.where) == (severity, where)
    if where:
        assert found.value == pytest.approx(ratio)
        assert found.limit == (0.1 if ratio > 0.1 else 1e-5)
        assert found.relation == ("<=" if ratio > 0.1 else ">=")


def test_a_message_names_what_is_outside() -> None:
    found = judged(trace({"a": 1e-3, "b": 0.5, "c": 1e-6}))
    assert found.message == (
        "the last update changes a layer by 1.0e-03 of its norm (median of 3; 1.0e-06 to 5.0e-01, "
        "farthest off c), as Adam at a learning rate of 0.01; above 0.1: b; below 1e-05: c"
    )
    assert found.action == "Lower the learning rate, at least of b."
    assert found.where == ("b", "c")
    assert judged(trace({"a": 1e-6, "b": 1e-3})).action == (
        "Raise the learning rate of a, or freeze them."
    )


def test_the_smallest_and_the_largest_rate_are_told() -> None:
    measured = trace({"a": 1e-3, "b": 2e-3})
    measured["rate"][:] = [0.02, 0.01, 0.05, 0.02]
    assert "as Adam at a learning rate of 0.01 to 0.05" in judged(measured).message


def test_small_updates_at_the_end_of_a_schedule_are_meant() -> None:
    found = judged(trace({"a": 1e-7, "b": 2e-7}, rate=1e-6, initial=1e-2))
    assert found.severity is Severity.INFO
    assert judged(trace({"a": 1e-7}, rate=2e-4, initial=1e-2)).severity is Severity.WARN


def test_what_is_undefined_is_no_pass() -> None:
    measured = trace({"a": 1e-3})
    measured["weight"] *= 0
    found = judged(measured)
    assert found.severity is Severity.INCONCLUSIVE
    assert isnan(found.value)
    measured = trace({"a": 1e-3, "b": 1e-3})
    measured["update"][2] = nan
    found = judged(measured)
    assert found.severity is Severity.INCONCLUSIVE
    assert found.meaning == ("Of b nothing is known: the weights are zero, or the moments nan.")
    measured["update"][0] = 5.0
    assert judged(measured).severity is Severity.WARN


@pytest.mark.parametrize(("ratio", "name"), [(0.5, "high"), (1e-7, "low"), (1e-3, "high")])
def test_the_limit_that_is_broken_is_named_with_its_source(ratio: float, name: str) -> None:
    found = judged(trace({"a": 1e-3, "b": ratio}))
    assert found.limit == getattr(LIMITS, name)
    assert found.limit_source == source_of(LIMITS, name)


def test_a_rate_of_exactly_the_share_is_not_the_end_of_a_schedule() -> None:
    quarter = UpdateRatioLimits(decayed=0.25)
    for rate, ended in ((0.25, False), (0.125, True)):
        (found,) = update_ratio(trace({"a": 1e-7}, rate=rate, initial=1.0), quarter)
        assert (found.severity is Severity.INFO) is ended
