"""Verdicts on exponents that are given."""

import math

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Severity
from analyzer.limits import LyapunovLimits
from analyzer.rules.lyapunov import largest, lyapunov, spectrum, time_constant

NOISE = np.array([-1.5, -0.5, 0.0, 0.3, 0.7, 1.0])


def trace(layers: dict[str, float], spread: float = 0.001, steps: float = 100) -> xr.Dataset:
    """One layer per entry with its largest exponent, known from six trajectories."""
    first = np.array([*layers.values()]) + spread * NOISE[:, None]
    exponents = first[:, :, None] - np.array([0.0, 0.1])
    dims = ("sample", "layer", "exponent")
    return xr.Dataset(
        {
            "exponents": (dims, exponents),
            "first_half": (dims[:2], first + 0.01),
            "steps": (dims[:2], np.full(first.shape, float(steps))),
        },
        coords={"layer": [*layers], "exponent": [1, 2]},
    )


def judged(dataset: xr.Dataset, **limits: float):
    (finding,) = lyapunov(dataset, LyapunovLimits(**limits))
    return finding


def test_stable_states_are_told_with_the_one_that_lasts_longest():
    finding = judged(trace({"a.l0": -0.5, "a.l1": -0.02}))
    assert finding.severity is Severity.INFO
    assert finding.message == (
        "small changes of the states do not grow; those that last longest, in a.l1, fade to 1/e in "
        "50 timesteps (change by a factor of 0.98 per timestep)"
    )
    assert finding.where == ("a.l1",)
    assert finding.value == pytest.approx(-0.02)
    assert finding.low < -0.02 < finding.high
    assert finding.limit == 0.01


@pytest.mark.parametrize(
    ("exponent", "severity"),
    [
        (0.0085, Severity.INFO),  # by less than e over a hundred timesteps
        (0.01, Severity.INCONCLUSIVE),
        (0.012, Severity.WARN),
    ],
)
def test_both_sides_of_the_limit(exponent, severity):
    assert judged(trace({"a.l0": -0.1, "a.l1": exponent})).severity is severity


def test_growth_is_told_with_all_layers_that_grow():
    finding = judged(trace({"a.l0": 0.05, "a.l1": -0.1, "b.l0": 0.02}))
    assert finding.message == (
        "a small change of the state of a.l0 grows by a factor of 1.05 per timestep, 148 times "
        "over 100 timesteps; unstable are a.l0, b.l0"
    )
    assert finding.where == ("a.l0", "b.l0")
    assert finding.action == (
        "Clip the gradient in training, and make the recurrent weights of a.l0 smaller (weight "
        "decay, orthogonal start)."
    )


def test_what_surely_grows_comes_before_what_may_grow_more():
    dataset = trace({"a.l0": 0.05, "a.l1": 0.06})
    dataset["exponents"][:, 1, 0] = 0.06 + 0.1 * NOISE
    finding = judged(dataset)
    assert finding.severity is Severity.WARN
    assert finding.where == ("a.l0",)
    assert finding.value == pytest.approx(0.05)


def test_a_state_that_stays_is_said_to_stay():
    finding = judged(trace({"a.l0": 0.002}))
    assert finding.message == (
        "small changes of the states do not grow; those that last longest, in a.l0, stay (change "
        "by a factor of 1 per timestep)"
    )


def test_trajectories_that_disagree_leave_it_open():
    finding = judged(trace({"a.l0": 0.03}, spread=0.05))
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.message == (
        "whether small changes of the state of a.l0 grow is open: by a factor of 1.03 per timestep"
    )


def test_few_timesteps_or_trajectories_are_not_judged():
    finding = judged(trace({"a.l0": 0.5}, steps=19))
    assert finding.severity is Severity.INCONCLUSIVE
    assert math.isnan(finding.value)
    assert finding.message == (
        "6 trajectories of 19 timesteps after the transient are too few to say whether small "
        "changes of the states fade or grow"
    )
    assert finding.action == "Audit sequences with at least 20 timesteps after the transient."
    finding = judged(trace({"a.l0": 0.5}).isel(sample=slice(0, 3)))
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.action == "Audit at least 4 samples."


def test_layers_that_were_not_measured_are_left_out():
    dataset = trace({"a.l0": -0.2, "a.l1": 0.5})
    dataset["exponents"][:, 1], dataset["steps"][:, 1] = np.nan, np.nan
    assert judged(dataset).where == ("a.l0",)
    assert math.isnan(largest(dataset)["a.l1"].value)


def test_missing_exponents_of_small_layers_are_left_out():
    dataset = trace({"a.l0": -0.2, "a.l1": -0.3})
    dataset["exponents"][:, 1, 1] = np.nan
    found = spectrum(dataset)
    assert [len(own) for own in found.values()] == [2, 1]
    assert found["a.l0"][1].value == pytest.approx(-0.3)


def test_a_time_constant_is_one_over_the_exponent():
    assert time_constant(-0.25) == 4
    assert time_constant(0.0) == time_constant(0.1) == math.inf


@pytest.mark.parametrize(("layers", "told"), [(1, False), (2, True)])
def test_unstable_layers_are_listed_where_there_are_several(layers, told):
    finding = judged(trace({f"a.l{index}": 0.5 for index in range(layers)}))
    assert ("unstable are" in finding.message) is told


def test_the_longest_of_all_layers_is_told_where_none_is_long_enough():
    dataset = trace({"a.l0": -0.1, "a.l1": -0.1}, steps=3)
    dataset["steps"][:, 1] = 4
    dataset["exponents"][:2, 0] = np.nan
    finding = judged(dataset)
    assert finding.severity is Severity.INCONCLUSIVE
    assert "4" in finding.message
    assert finding.samples == 6
