"""Capacities of traces in which they are known."""

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Severity
from analyzer.limits import MemoryCapacityLimits
from analyzer.rules.memory_capacity import (
    capacity,
    held,
    measurable,
    memory_capacity,
    recovered,
    told_by_present,
)

RNG = np.random.default_rng(5)
LAGS = 6


def trace(
    layers: dict[str, list[float]], samples: int = 30, rows: float = 900, units: int = 80
) -> xr.Dataset:
    """One layer per entry: share that is recovered of the new part at every lag."""
    shares = np.array([*layers.values()])
    energy = RNG.uniform(5, 15, (samples, 1, 1)) * np.ones((samples, *shares.shape))
    missed = energy * (1 - shares) * RNG.uniform(0.9, 1.1, (samples, 1, 1))
    missed *= (energy * (1 - shares)).sum(0) / missed.sum(0).clip(1e-9)
    dims = ("sample", "layer", "lag")
    present = np.linspace(1, 0, LAGS) ** 2
    facts = {"rows": rows, "predictors": 4, "components": 2, "input_share": 0.9}
    return xr.Dataset(
        {
            "new_energy": (dims, energy),
            "new_error": (dims, missed),
            "past_energy": (dims, 3 * energy),
            "past_error": (dims, 3 * missed),
            "present_error": (dims, 3 * energy * (1 - present)),
            "new_numbers": (dims[1:], np.full(shares.shape, 2.0)),
        }
        | {name: ("layer", np.full(len(shares), value)) for name, value in facts.items()},
        coords={"layer": [*layers], "units": ("layer", [units] * len(shares))},
    )


def test_the_capacity_is_the_sum_over_lags_and_components():
    dataset = trace({"a.l0": [1, 0.8, 0.5, 0, 0, -0.1]})
    estimate = capacity(dataset, "a.l0")
    assert estimate.value == pytest.approx(2 * 2.2)
    assert 4 < estimate.low < 4.4 < estimate.high < 4.8
    assert estimate.samples == 30
    curve = recovered(dataset, "a.l0", "new")
    np.testing.assert_allclose(curve.value, [1, 0.8, 0.5, 0, 0, -0.1], atol=1e-12)
    assert (curve.low[1:] < curve.value[1:]).all()


def test_where_nothing_is_new_nothing_is_counted():
    dataset = trace({"a.l0": [1, 0.8, 0.5, 0, 0, 0]})
    for name in ("new_energy", "new_error"):
        dataset[name][:, :, 1:3] = 0
    dataset["new_numbers"][:, 1:3] = 0
    assert capacity(dataset, "a.l0").value == pytest.approx(2)
    assert np.isnan(recovered(dataset, "a.l0", "new").value[1])


def test_what_the_present_tells_is_no_memory():
    dataset = trace({"a.l0": [1, 1, 1, 1, 0.4, 0]})
    np.testing.assert_allclose(told_by_present(dataset, "a.l0"), [1, 0.64, 0.36, 0.16, 0.04, 0])
    assert held(dataset, "a.l0") == 3
    nothing = trace({"a.l0": [1, 0, 0, 0, 0, 0]})
    nothing["past_error"] = nothing["present_error"]
    assert held(nothing, "a.l0") == 0


def test_it_is_told_not_judged():
    dataset = trace({"a.l0": [1, 1, 1, 0.9, 0.3, 0], "a.l1": [1, 0, 0, 0, 0, 0]})
    (finding,) = memory_capacity(dataset, MemoryCapacityLimits())
    assert finding.severity is Severity.INFO
    assert finding.message == (
        "a linear readout of a.l0 recovers 8.4 numbers of past inputs, of 80 that it could hold ("
        "at least half of the input is recovered up to 3 timesteps back, beyond what the present "
        "input tells); 2 in a.l1"
    )
    assert finding.where == ("a.l0",)
    assert np.isnan(finding.limit)
    (finding,) = memory_capacity(dataset.sel(layer=["a.l1"]), MemoryCapacityLimits())
    assert finding.message == (
        "a linear readout of a.l1 recovers 2 numbers of past inputs, of 80 that it could hold (no "
        "past input is recovered by half, beyond what the present input tells)"
    )


@pytest.mark.parametrize(
    ("rows", "samples", "enough"), [(800, 16, True), (799, 16, False), (800, 15, False)]
)
def test_few_timesteps_or_samples_are_not_enough(rows, samples, enough):
    dataset = trace({"a.l0": [1, 0, 0, 0, 0, 0]}, samples, rows)
    assert measurable(dataset, MemoryCapacityLimits()) == (["a.l0"] if enough else [])
    (finding,) = memory_capacity(dataset, MemoryCapacityLimits())
    assert (finding.severity is Severity.INFO) == enough
    assert (finding.severity is Severity.INCONCLUSIVE) != enough


def test_what_is_missing_is_said():
    (finding,) = memory_capacity(
        trace({"a.l0": [1, 0, 0, 0, 0, 0]}, rows=200), MemoryCapacityLimits()
    )
    assert finding.message == (
        "30 samples have 200 timesteps to fit a readout of a.l0 on, which takes 800"
    )
    assert finding.action == (
        "Audit at least 120 samples (setting memory_capacity.samples), or longer ones."
    )
    dataset = trace({"a.l0": [1, 0, 0, 0, 0, 0]}, 5)
    dataset["rows"][:] = 0
    for name in ("past", "new"):
        dataset[f"{name}_energy"][:] = np.nan
    (finding,) = memory_capacity(dataset, MemoryCapacityLimits())
    assert finding.message == (
        "5 samples are too few, too short or too alike to fit and test a readout on"
    )
    assert finding.action == (
        "Audit at least 16 samples (setting memory_capacity.samples), or longer ones."
    )


def test_predictions_of_the_input_take_timesteps_too():
    dataset = trace({"a.l0": [1, 0, 0, 0, 0, 0]}, rows=500, units=20)
    assert measurable(dataset, MemoryCapacityLimits()) == ["a.l0"]
    dataset["predictors"][:] = 64
    assert measurable(dataset, MemoryCapacityLimits()) == []


def test_the_last_lag_held_is_counted_from_zero():
    for shares, lag in (([0.0] * 6, 0), ([1.0, 1.0, 1.0, 0.2, 0.0, 0.0], 2)):
        dataset = trace({"a.l0": shares})
        dataset["present_error"] = dataset["past_energy"].copy()
        assert held(dataset, "a.l0") == lag


def test_a_sample_counts_where_any_lag_was_measured():
    dataset = trace({"a.l0": [1.0] * 6}, samples=32)
    dataset["past_energy"][:3, :, 3:] = np.nan
    assert measurable(dataset, MemoryCapacityLimits(min_samples=32.0)) == ["a.l0"]
    dataset["past_energy"][0] = np.nan
    assert measurable(dataset, MemoryCapacityLimits(min_samples=32.0)) == []


def test_layers_without_any_row_are_not_measurable():
    assert measurable(trace({"a.l0": [1.0] * 6}, rows=0), MemoryCapacityLimits()) == []


def test_a_sample_that_ends_early_is_counted_by_its_first_lag():
    dataset = trace({"a.l0": [1, 0.8, 0.5, 0, 0, 0]})
    for name in ("new_energy", "new_error"):
        dataset[name][:4, :, 4:] = np.nan
    assert capacity(dataset, "a.l0").samples == 30
    for name in ("new_energy", "new_error"):
        dataset[name][:4] = np.nan
    assert capacity(dataset, "a.l0").samples == 26
