"""Field rules against hand-made traces: both sides of each limit, and what is undefined."""

from math import nan

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Severity
from analyzer.limits import EffectiveFieldLimits, ReceptiveFieldLimits
from analyzer.rules.effective_field import effective_field
from analyzer.rules.receptive_field import receptive_field


def theoretical(sizes: list[float], inputs: float, status: str = "EXACT") -> xr.Dataset:
    """A chain of kernel-3 convolutions along time, with a linear layer at the end."""
    count = len(sizes) + 1
    values = np.array([*sizes, inputs])[:, None]
    return xr.Dataset(
        {
            "size": (("layer", "axis"), values),
            "size_without_gates": (("layer", "axis"), values),
            "minimal_input": (("layer", "axis"), values - 2),
            "status": ("layer", ["EXACT"] * (count - 2) + [status, "WHOLE_INPUT"]),
            "reason": ("layer", [""] * (count - 2) + ["sort is not known", "it is linear"]),
            "input_size": ("axis", [inputs]),
        },
        coords={
            "layer": [f"conv{index}" for index in range(count - 1)] + ["head"],
            "kind": ("layer", ["Conv1d"] * (count - 1) + ["Linear"]),
            "axis": ["time"],
        },
    )


def test_a_field_smaller_than_the_input():
    coverage, unproductive = receptive_field(theoretical([3, 5, 7], 28), ReceptiveFieldLimits())
    assert coverage.severity is Severity.INFO
    assert coverage.message == (
        "a unit of the last convolution (conv2) sees 25% of the input: 7 of 28 positions"
    )
    assert coverage.value == 7
    assert unproductive.severity is Severity.PASS
    assert unproductive.value == 0


def test_layers_past_the_input_are_named():
    coverage, unproductive = receptive_field(theoretical([5, 7, 9, 11], 7), ReceptiveFieldLimits())
    assert "covers the input: 11 of 7 positions" in coverage.message
    assert unproductive.severity is Severity.WARN
    assert unproductive.where == ("conv2", "conv3")
    assert unproductive.message == (
        "2 of 4 convolutions only see inputs that already cover the whole 7 input: conv2, conv3"
    )


def test_more_such_layers_can_be_allowed():
    limits = ReceptiveFieldLimits(unproductive=2)
    _, unproductive = receptive_field(theoretical([5, 7, 9, 11], 7), limits)
    assert unproductive.severity is Severity.PASS


def test_an_unknown_field_is_inconclusive():
    *_, unknown = receptive_field(theoretical([3, 5], 28, "UNKNOWN"), ReceptiveFieldLimits())
    assert unknown.severity is Severity.INCONCLUSIVE
    assert unknown.message == "the field of 1 layers is unknown from conv1 on: sort is not known"


def effective(diameter: list[float], half: float = 1.0) -> xr.Dataset:
    """Fields of a chain of convolutions; ``half`` scales those of half of the samples."""
    values = np.array(diameter)
    sigma = values[:, None] / 4
    return xr.Dataset(
        {
            "diameter": ("layer", values),
            "diameter_low": ("layer", values - 2),
            "diameter_high": ("layer", values + 3),
            "sigma": (("layer", "axis"), sigma),
            "half_sample_sigma": (("layer", "axis"), sigma * half),
            "theoretical": (("layer", "axis"), np.full((len(values), 1), 61.0)),
            "input_size": ("axis", [140.0]),
        },
        coords={"layer": [f"conv{index}" for index in range(len(values))], "axis": ["time"]},
        attrs={"samples": 16},
    )


def judged(trace: xr.Dataset, **limits: float):
    (finding,) = effective_field(trace, EffectiveFieldLimits(**limits))
    return finding


def test_without_a_requirement_the_field_is_reported():
    finding = judged(effective([10.0, 20.0]))
    assert finding.severity is Severity.INFO
    assert finding.message == (
        "the centre unit of conv1 draws on a diameter of 20 positions; its theoretical field is "
        "61, the input 140"
    )
    assert (finding.value, finding.low, finding.high, finding.samples) == (20, 18, 23, 16)
    assert finding.relation == ""


@pytest.mark.parametrize(
    ("required", "severity"),
    [(17.0, Severity.PASS), (20.0, Severity.INCONCLUSIVE), (24.0, Severity.WARN)],
)
def test_both_sides_of_a_requirement(required, severity):
    assert judged(effective([20.0]), required=required).severity is severity


@pytest.mark.parametrize(
    ("half", "severity"), [(0.92, Severity.PASS), (0.85, Severity.INCONCLUSIVE)]
)
def test_a_field_that_has_not_converged_is_inconclusive(half, severity):
    assert judged(effective([20.0], half), required=10.0).severity is severity


def test_the_deepest_measured_layer_counts():
    assert judged(effective([10.0, 20.0, nan])).where == ("conv1",)


def test_dead_centre_units_are_not_a_pass():
    finding = judged(effective([nan, nan]), required=1.0)
    assert finding.severity is Severity.INCONCLUSIVE
