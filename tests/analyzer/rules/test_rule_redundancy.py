"""Units that repeat others or never vary, on hand-made traces: whole messages, unequal layers."""

from math import nan

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import WidthLimits
from analyzer.rules.redundancy import constant_units, redundant_units, twin_groups

LIMITS = WidthLimits()
WIDTHS = np.array([20, 10, 30])
MERGED = (
    "They are the same but for scale and offset, before an activation function. Where these agree, "
    "or no such function follows, they can be merged without loss."
)


def repeating(
    copies: list[float], samples: int = 400, jitter: float = 0.0, **values: object
) -> xr.Dataset:
    """Three layers of 20, 10 and 30 units, of which so many repeat another one."""
    without = np.array(copies) + jitter * np.random.default_rng(2).normal(size=(10, 3))
    unit = np.arange(30)
    padded = np.where(unit < WIDTHS[:, None], 0.0, nan)
    trace = xr.Dataset(
        {
            "copies": ("layer", np.array(copies, float)),
            "copies_without": (("group", "layer"), without),
            "rank": ("layer", WIDTHS.astype(float)),
            "constant": (("layer", "unit"), padded),
            "twin": (("layer", "unit"), unit + padded),
        },
        {
            "layer": ["a", "b", "c"],
            "width": ("layer", WIDTHS),
            "most": ("layer", WIDTHS),
            "read": ("layer", [1, 1, 1]),
        },
        {"samples": samples, "correlated": 0.9},
    )
    return trace.assign_coords(values)


def said(trace: xr.Dataset) -> str:
    return redundant_units(trace, LIMITS).message


def constant(trace: xr.Dataset) -> Finding:
    (finding,) = constant_units(trace, LIMITS)
    return finding


def test_copies_of_a_pass_are_told_the_largest_share_first() -> None:
    finding = redundant_units(repeating([0, 1, 2], jitter=0.2), LIMITS)
    assert finding.severity is Severity.PASS
    assert finding.message == (
        "1 of 10 units in b, 2 of 30 units in c repeat another unit of the layer (correlation "
        "above 0.9 in magnitude)"
    )
    assert (finding.meaning, finding.action, finding.where) == (MERGED, "None.", ())
    assert finding.value == 0.1
    assert finding.low == 0 < finding.value < finding.high


def test_without_copies_every_unit_counts() -> None:
    finding = redundant_units(repeating([0, 0, 0]), LIMITS)
    assert finding.message == (
        "no unit repeats another one of the layer (correlation above 0.9 in magnitude)"
    )
    assert finding.meaning == "Every unit says something of its own."


@pytest.mark.parametrize("samples", [31, 32])
def test_only_the_layers_beyond_the_limit_are_blamed(samples: int) -> None:
    finding = redundant_units(repeating([10, 1, 18], samples), LIMITS)
    if samples == 32:
        assert finding.severity is Severity.WARN
        assert finding.message.startswith("18 of 30 units in c, 10 of 20 units in a repeat another")
        assert finding.action == "Make c, a narrower, or merge these units and train on."
        assert finding.where == ("c", "a")
    else:
        assert finding.severity is Severity.INCONCLUSIVE
        assert finding.action == "Audit at least 32 samples."
        assert finding.where == ("c", "a", "b")
    assert (finding.value, finding.meaning) == (0.6, MERGED)


def test_doubtful_layers_come_before_those_of_which_nothing_is_known() -> None:
    trace = repeating([nan, 0, 12])
    trace["copies_without"][:, 2] = [12] * 8 + [0, 3]
    finding = redundant_units(trace, LIMITS)
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.where == ("c", "a")
    assert finding.action == "Audit at least 401 samples."
    assert finding.value == 0.4


def test_layers_that_nothing_reads_are_left_out_unless_there_are_no_others() -> None:
    head = repeating([10, 1, 18], read=("layer", [0, 1, 0]))
    assert redundant_units(head, LIMITS).severity is Severity.PASS
    alone = repeating([10, 1, 18], read=("layer", [0, 0, 0]))
    assert redundant_units(alone, LIMITS).where == ("c", "a")


def test_dependence_is_beyond_what_weights_and_constant_units_explain() -> None:
    trace = repeating([0, 0, 0], most=("layer", [12, 10, 30]))
    trace["rank"][:] = [12, 7, 26]
    trace["constant"][1, :3] = 1
    trace["constant"][2, :3] = 1
    assert said(trace).endswith(
        "; exact linear dependence: c varies in 26 directions of 27 that its weights allow"
    )
    trace["rank"][2] = 27
    assert "dependence" not in said(trace)


def test_groups_are_told_the_largest_first() -> None:
    trace = repeating([3, 0, 0])
    trace["twin"][0, 5] = 4
    trace["twin"][0, 8:10] = 7
    assert twin_groups(trace, "a") == [[7, 8, 9], [4, 5]]
    assert "3 of 20 units in a (7 = 8 = 9, 4 = 5) repeat" in said(trace)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (5, "0 = 1 = 2 = 3 = 4"),
        (6, "0 = 1 = 2 = 3 = 4 = 5"),
        (7, "0 = 1 = 2 = 3 = 4 = 5 ..."),
    ],
)
def test_six_units_of_a_group_are_named(size: int, text: str) -> None:
    trace = repeating([size - 1, 0, 0])
    trace["twin"][0, :size] = 0
    assert f"units in a ({text}) repeat" in said(trace)


def test_the_layer_with_the_largest_constant_share_is_judged() -> None:
    trace = repeating([0, 0, 0])
    trace["constant"][1, 2] = 1
    only = constant(trace)
    assert (only.severity, only.value, only.where) == (Severity.INFO, 0.1, ("b",))
    trace["constant"][1, :6] = 1
    trace["constant"][2, :9] = 1
    finding = constant(trace)
    assert finding.severity is Severity.WARN
    assert finding.message == (
        "6 of 10 units in b, 9 of 30 units in c return one and the same number in all 400 samples"
    )
    assert (finding.value, finding.where) == (0.6, ("b", "c"))


@pytest.mark.parametrize(("samples", "severity"), [(31, Severity.INFO), (32, Severity.WARN)])
def test_constant_units_need_samples_for_a_warning(samples: int, severity: Severity) -> None:
    trace = repeating([0, 0, 0], samples)
    trace["constant"][0, :11] = 1
    assert constant(trace).severity is severity
