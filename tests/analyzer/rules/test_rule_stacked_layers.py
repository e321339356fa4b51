"""Stacked recurrent layers judged on hand-made traces."""

from math import isnan, nan

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import StackedLayersLimits
from analyzer.rules.stacked_layers import half_reach, stacked_layers

RNG = np.random.default_rng(1)


def stack(shares: list[float], ranks: list[float], samples: int = 100) -> xr.Dataset:
    loss = RNG.uniform(0.5, 1.5, samples)
    layers = [f"lstm.l{at}" for at in range(len(shares))]
    kept = np.array([0, 1, 2, 4, 8, 16])
    half = np.arange(1, len(shares) + 1)[:, None]
    curve = 0.5 ** (kept / (half + 0.5)) * RNG.uniform(0.5, 1.5, (samples, 1, 1))
    noise = RNG.normal(0, 0.01, (samples, len(shares)))
    dims = ("sample", "layer")
    return xr.Dataset(
        {
            "intact_loss": ("sample", loss),
            "loss_change": (dims, np.array(shares) * loss[:, None] + noise),
            "state_change": ((*dims, "kept"), curve * (kept < 16)),
            "effective_rank": ("layer", ranks),
            "independent": ("layer", [200.0] * len(shares)),
        },
        {"layer": layers, "kept": kept, "units": ("layer", [64] * len(shares))},
    )


def stacked(trace: xr.Dataset) -> tuple[Finding, Finding]:
    depth_finding, states = stacked_layers(trace, StackedLayersLimits())
    return depth_finding, states


def test_layers_that_a_linear_map_can_replace_are_named() -> None:
    finding, states = stacked(stack([0.8, 0.01, 0.4], [12.3, 20.0, 5.0]))
    assert finding.severity is Severity.WARN
    assert finding.where == ("lstm.l1",)
    assert finding.action == "Train with 2 layers and compare."
    assert finding.message.startswith(
        "1 of 3 recurrent layers can be replaced by a linear map of what it reads; the loss "
        "rises by less than 5% or falls: lstm.l1 (+"
    )
    assert states.severity is Severity.INFO
    assert states.message == (
        "directions that the states fill: lstm.l0 12.3 of 64, lstm.l1 20.0 of 64, lstm.l2 5.0 of "
        "64; last inputs that decide less than half of the last state: lstm.l0 1, lstm.l1 2, "
        "lstm.l2 2"
    )
    both, _ = stacked(stack([0.8, 0.0, 0.01], [1.0, 1.0, 1.0]))
    assert both.action == "Train with 1 to 2 layers and compare."
    assert both.message.startswith("2 of 3 recurrent layers can each be replaced by a linear map")


def test_layers_at_work_pass_and_doubtful_ones_do_not() -> None:
    passed, _ = stacked(stack([0.8, 0.3], [1.0, 1.0]))
    assert passed.severity is Severity.PASS
    assert passed.message.endswith("raises the loss by more than 5%: least lstm.l1 (+30 %)")
    doubtful, _ = stacked(stack([0.8, 0.05], [1.0, 1.0]))
    assert doubtful.severity is Severity.INCONCLUSIVE
    few, _ = stacked(stack([0.8, 0.0], [1.0, 1.0], samples=10))
    assert few.action == "Audit at least 32 samples."
    trace = stack([0.8, 0.0], [1.0, 1.0])
    trace["intact_loss"][:] = 0
    nothing, _ = stacked(trace)
    assert nothing.severity is Severity.INCONCLUSIVE
    assert nothing.message == (
        "no layer can be judged: the loss is not above zero, or none was replaced"
    )


def test_ranks_without_power_are_said_to_be_unknown() -> None:
    trace = stack([0.8, 0.3], [nan, 4.0])
    _, states = stacked(trace)
    assert "lstm.l0 an unknown number of 64" in states.message
    assert states.meaning.endswith(
        "Too few to tell the rank: lstm.l0 (200 of 640 independent positions)."
    )
    trace["state_change"][:] = nan
    trace["effective_rank"][:] = nan
    _, states = stacked(trace)
    assert states.severity is Severity.INCONCLUSIVE
    assert isnan(half_reach(trace)["lstm.l0"].value)


def test_doubt_comes_from_few_samples_or_from_their_spread() -> None:
    least = StackedLayersLimits().min_samples
    for samples in (int(least) - 1, int(least)):
        trace = stack([0.8, 0.05], [1.0, 1.0], samples)
        trace["loss_change"][:, 1] = 0.05 + RNG.normal(0, 0.5, samples)
        trace["loss_change"][:, 1] -= trace["loss_change"][:, 1].mean() - 0.05
        finding, _ = stacked(trace)
        assert finding.severity is Severity.INCONCLUSIVE
        assert ("too few" in finding.meaning) is (samples < least)


def test_states_are_told_as_far_as_anything_is_known_of_them() -> None:
    for rank, change, severity in (
        (nan, True, Severity.INFO),
        (3.0, False, Severity.INFO),
        (nan, False, Severity.INCONCLUSIVE),
    ):
        trace = stack([0.8, 0.3], [rank, rank])
        if not change:
            trace["state_change"][:] = nan
        _, states = stacked(trace)
        assert states.severity is severity
        assert (states.action == "None.") is not isnan(rank)
    part = stack([0.8, 0.3], [nan, 3.0])
    part["state_change"][:, 0] = nan
    _, states = stacked(part)
    assert states.severity is Severity.INFO
    assert states.message.startswith(
        "directions that the states fill: lstm.l0 an unknown number of 64, lstm.l1 3.0 of 64; last "
        "inputs that decide less than half of the last state: lstm.l1 "
    )
    assert "Too few to tell the rank: lstm.l0 (200 of 640 independent positions)." in states.meaning


def test_states_are_those_of_the_last_layer_and_of_samples_that_were_measured() -> None:
    trace = stack([0.8, 0.3, 0.4], [12.3, 20.0, 5.0])
    trace["state_change"][:40, 1] = nan
    reach = half_reach(trace)
    assert [part.samples for part in reach.values()] == [100, 60, 100]
    assert reach["lstm.l1"].value == 2
    _, states = stacked(trace)
    assert states.value == 5
    assert (states.samples, states.where) == (100, ("lstm.l0", "lstm.l1", "lstm.l2"))


def test_a_reach_that_is_known_of_one_layer_is_told() -> None:
    trace = stack([0.8, 0.3], [nan, nan])
    trace["state_change"][:, 0] = nan
    _, states = stacked(trace)
    assert states.severity is Severity.INFO
    assert states.message == (
        "directions that the states fill: lstm.l0 an unknown number of 64, lstm.l1 an unknown "
        "number of 64; last inputs that decide less than half of the last state: lstm.l1 2"
    )
    trace["state_change"][:] = nan
    trace["effective_rank"][1] = 4.0
    _, states = stacked(trace)
    assert states.severity is Severity.INFO
    assert states.message.endswith("lstm.l0 an unknown number of 64, lstm.l1 4.0 of 64")
