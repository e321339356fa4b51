"""Verdicts on gates whose shares of time are given."""

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Severity
from analyzer.limits import GatesLimits
from analyzer.rules.gates import gates, stuck, timescales

RNG = np.random.default_rng(4)
UNITS = 10


def trace(layers: dict[str, dict[str, float]], samples: int = 20) -> xr.Dataset:
    """One layer per entry: gate and end -> share of its units that are always there."""
    names = ["input", "forget", "candidate", "update", "state"]
    shape = (samples, len(layers), len(names), UNITS)
    mean = RNG.uniform(0.3, 0.6, shape)
    opened, closed = RNG.uniform(0, 0.3, shape), RNG.uniform(0, 0.3, shape)
    for index, (layer, ends) in enumerate(layers.items()):
        own = {"lstm": [0, 1, 2], "gru": [2, 3], "tanh": [4], "relu": [4]}[layer.split(".")[0]]
        for values in (mean, opened, closed):
            values[:, index, [gate for gate in range(5) if gate not in own]] = np.nan
        if layer.startswith("relu"):
            opened[:, index] = np.nan
        for place, share in ends.items():
            gate, end = place.split()
            table = {"open": opened, "closed": closed}[end]
            table[:, index, names.index(gate), : round(share * UNITS)] = 1.0
    dims = ("sample", "layer", "gate", "unit")
    return xr.Dataset(
        {
            "mean": (dims, mean),
            "open": (dims, opened.astype(np.float32)),
            "closed": (dims, closed.astype(np.float32)),
            "length": ("sample", np.linspace(30, 50, samples)),
        },
        coords={"layer": [*layers], "gate": names},
    )


def saturation(dataset: xr.Dataset, **limits: float):
    finding, _ = gates(dataset, GatesLimits(**limits))
    return finding


@pytest.mark.parametrize(
    ("share", "severity"), [(0.0, Severity.PASS), (0.5, Severity.PASS), (0.6, Severity.WARN)]
)
def test_both_sides_of_the_limit(share, severity):
    finding = saturation(trace({"lstm.l0": {"input closed": share}, "lstm.l1": {}}))
    assert finding.severity is severity
    assert finding.value == share
    assert (finding.low, finding.high) == (share, share)


def test_what_is_stuck_is_named_with_what_to_do():
    finding = saturation(
        trace({"lstm.l0": {"input closed": 0.7}, "gru.l0": {"update closed": 0.9}})
    )
    assert finding.message == (
        "update gate of 9 of 10 units in gru.l0 always closed, "
        "input gate of 7 of 10 units in lstm.l0 always closed"
    )
    assert finding.where == ("gru.l0", "lstm.l0")
    assert finding.meaning == (
        "These units replace their state at every timestep: nothing is carried on directly."
    )
    assert finding.action == (
        "In gru.l0: start the update gates with a bias of 1 or more, if the task needs memory."
    )


def test_nothing_stuck_is_said_plainly():
    finding = saturation(trace({"lstm.l0": {}}))
    assert finding.message == "no gate of any unit stays at one end all the time"
    assert finding.action == "None."


@pytest.mark.parametrize("place", ["forget open", "update open"])
def test_a_state_that_is_held_is_no_fault(place):
    layer = {"forget": "lstm.l0", "update": "gru.l0"}[place.split()[0]]
    assert saturation(trace({layer: {place: 1.0}})).severity is Severity.PASS


def test_a_tanh_is_saturated_at_either_end():
    dataset = trace({"tanh.l0": {"state open": 0.0}, "relu.l0": {"state closed": 0.8}})
    dataset["open"][:, 0, 4, :7], dataset["closed"][:, 0, 4, :7] = 0.6, 0.4
    found = {(one.layer, one.end): one.count for one in stuck(dataset, GatesLimits())}
    assert found == {("tanh.l0", "saturated"): 7, ("relu.l0", "zero"): 8}
    finding = saturation(dataset)
    assert finding.message == (
        "state of 8 of 10 units in relu.l0 always zero, "
        "state of 7 of 10 units in tanh.l0 always at the end of its tanh"
    )


def test_samples_that_disagree_leave_it_open():
    dataset = trace({"lstm.l0": {"input open": 0.4}})
    # One sample in five opens the gates of three more units only for 95 % of the time.
    dataset["open"][:, 0, 0, 4:7] = 1.0
    dataset["open"][::5, 0, 0, 4:7] = 0.95
    finding = saturation(dataset)
    assert finding.severity is Severity.INCONCLUSIVE
    assert (finding.low, finding.high) == (0.4, 0.7)
    assert finding.action == "Audit more samples."


@pytest.mark.parametrize(("time", "count"), [(0.9, 6), (0.8999, 0), (0.9001, 6)])
def test_the_time_that_makes_a_unit_stuck_is_enough_in_single_precision(time, count):
    dataset = trace({"lstm.l0": {}})
    dataset["closed"][:, 0, 0, :6] = np.float32(time)
    limits = GatesLimits(stuck_time=0.9)
    found = {(one.gate, one.end): one.count for one in stuck(dataset, limits)}
    assert found["input", "closed"] == count


def test_few_samples_are_not_judged():
    finding = saturation(trace({"lstm.l0": {"input closed": 1.0}}, samples=7))
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.meaning == "7 samples are too few to say that a gate never moves."
    assert finding.action == "Audit at least 8 samples."
    single = saturation(trace({"lstm.l0": {"input closed": 1.0}}, samples=1), min_samples=1)
    assert single.severity is Severity.INCONCLUSIVE  # no interval


def test_timescales_are_those_of_the_mean_gate():
    dataset = trace({"lstm.l0": {}, "gru.l0": {}, "tanh.l0": {}})
    dataset["mean"][:, 0, 1] = np.linspace(0.8, 0.98, UNITS)
    dataset["mean"][:, 1, 3] = 0.5
    dataset["mean"][::2, 1, 3] += 0.2
    found = timescales(dataset)
    assert list(found) == ["lstm.l0", "gru.l0"]
    middle = found["gru.l0"][2]
    assert middle.value == pytest.approx(-1 / np.log(0.6))
    assert middle.low < -1 / np.log(0.59)
    assert middle.high > -1 / np.log(0.61)
    expected = np.quantile(-1 / np.log(np.linspace(0.8, 0.98, UNITS)), [0.05, 0.5, 0.95])
    assert [found["lstm.l0"][place].value for place in (0, 2, 4)] == pytest.approx(expected)
    _, finding = gates(dataset, GatesLimits())
    assert finding.severity is Severity.INFO
    assert finding.message == (
        f"the median timescale of the units is {expected[1]:.3g} in lstm.l0, 1.96 in gru.l0; the "
        f"slowest twentieth of lstm.l0 hold their state for {expected[2]:.3g} timesteps or longer, "
        "of 50"
    )
    assert finding.where == ("lstm.l0",)
    slowest = found["lstm.l0"][2]
    told = finding.value, finding.low, finding.high
    assert told == (slowest.value, slowest.low, slowest.high)


def test_the_layer_of_the_longest_median_is_named():
    dataset = trace({"lstm.l0": {}, "lstm.l1": {}})
    dataset["mean"][:, 0, 1], dataset["mean"][:, 1, 1] = 0.8, 0.95
    dataset["mean"][:, 1, 1, :4] = 0.5
    _, finding = gates(dataset, GatesLimits())
    assert finding.where == ("lstm.l1",)
    assert finding.value == pytest.approx(-1 / np.log(0.95))


def test_layers_without_gates_have_no_timescales():
    _, finding = gates(trace({"tanh.l0": {}}), GatesLimits())
    assert finding.severity is Severity.NOT_APPLICABLE
    assert finding.message == "the recurrent layers have neither a forget nor an update gate"


@pytest.mark.parametrize("missing", [0, 1])
def test_as_many_samples_as_the_limit_asks_for_are_enough(missing):
    dataset = trace({"lstm.l0": {"input closed": 0.9}}, samples=24)
    finding = saturation(dataset, min_samples=24.0 + missing)
    assert (finding.severity is Severity.INCONCLUSIVE) is bool(missing)
