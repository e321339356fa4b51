"""Contributions of blocks, and unproductive depth, judged on hand-made traces."""

from math import isnan, nan

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import DepthContributionLimits, Limits
from analyzer.rules.depth_contribution import depth_contribution
from analyzer.rules.unproductive_depth import unproductive_depth

RNG = np.random.default_rng(1)


def depth(
    shares: list[float],
    samples: int = 100,
    noise: float = 0.1,
    joint: dict[int, float] | None = None,
) -> xr.Dataset:
    """Blocks that are worth ``shares`` of a loss of about 1; nan was not left out."""
    joint = joint or {}
    loss = RNG.uniform(0.5, 1.5, samples)
    spread = noise * RNG.normal(size=(samples, 1))
    change = np.array(shares) * loss[:, None] + (spread - spread.mean())
    blocks = [f"blocks.{at}" for at in range(len(shares))]
    dims = ("sample", "block")
    return xr.Dataset(
        {
            "intact_loss": ("sample", loss),
            "loss_change": (dims, change),
            "estimate": (dims, 0.5 * np.nan_to_num(np.array(shares)) * np.ones((samples, 1))),
            "decision_change": (dims, np.abs(change) / 10),
            "similarity_low": ("block", np.linspace(0.5, 1.0, len(shares))),
            "rank": ("block", np.argsort(np.argsort(shares)).astype(float)),
            "joint_change": (
                ("sample", "removed"), np.array([*joint.values()]) * loss[:, None]
            ),
        },
        {
            "block": blocks,
            "removed": [*joint],
            "layers": ("block", [f"{name}.conv1, {name}.conv2" for name in blocks]),
            "reason": ("block", [""] * len(shares)),
        },
        {"removable": len(shares)},
    )  # fmt: skip


def judged(trace: xr.Dataset, **limits: float) -> list[Finding]:
    return [*depth_contribution(trace, DepthContributionLimits(**limits))]


def test_idle_blocks_are_named() -> None:
    (finding,) = judged(depth([0.5, 0.0, -0.2], noise=0.01))
    assert finding.code == "idle-blocks"
    assert finding.severity is Severity.WARN
    assert finding.where == ("blocks.1", "blocks.2")
    assert finding.message.startswith(
        "without 2 of the 3 blocks that were left out one at a time the loss rises by less than 5% "
        "or falls: blocks.1 ("
    )
    assert "; at most " in finding.message
    assert finding.value == pytest.approx(-0.2, abs=0.02)
    assert finding.low < finding.value < finding.high < 0.05
    assert finding.action == (
        "Remove blocks.1, blocks.2 and compare, after some further training; if the accuracy "
        "holds, the network can be shallower."
    )


def test_blocks_at_work_pass() -> None:
    (finding,) = judged(depth([0.5, 0.3, nan], noise=0.01))
    assert finding.severity is Severity.PASS
    assert finding.message == (
        "2 of 3 blocks were left out one at a time; each raises the loss by more than 5%: least "
        "blocks.1 (+30 %)"
    )


def test_blocks_that_may_be_idle_are_no_pass() -> None:
    (finding,) = judged(depth([0.5, 0.05], noise=0.5))
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.where == ("blocks.1",)
    assert finding.action == "Audit more samples."
    (few,) = judged(depth([0.5, 0.0], samples=20, noise=0.001))
    assert few.severity is Severity.INCONCLUSIVE
    assert few.meaning == "20 samples are too few to judge an ablation."
    assert few.action == "Audit at least 32 samples."


def test_decisions_are_left_out_where_there_are_none() -> None:
    trace = depth([0.5, 0.0], noise=0.01)
    trace["decision_change"][:] = nan
    (finding,) = judged(trace)
    assert finding.message.endswith(f"blocks.1 ({100 * finding.value:+.2g} %)")


def test_a_chain_that_cannot_be_cut_is_not_applicable() -> None:
    trace = depth([nan, nan])
    trace["reason"][:] = "it does not return the shape that it reads"
    (finding,) = judged(trace)
    assert finding.severity is Severity.NOT_APPLICABLE
    assert finding.message == (
        "no block could be left out: each layer of blocks.0, blocks.1 changes the shape of what it "
        "reads or is part of a recurrence, and there is no shortcut around any"
    )
    trace["reason"][:] = ""
    (finding,) = judged(trace)
    assert finding.message == "no block could be left out: ablation was turned off"


def test_how_many_blocks_go_together() -> None:
    trace = depth([0.3, 0.0, 0.6, 0.1], noise=0.01, joint={2: 0.01, 3: 0.5, 4: 0.02})
    _, finding = judged(trace)
    assert finding.code == "removable-blocks"
    assert finding.value == 4
    _, finding = judged(depth([0.3, 0.0, 0.6, 0.1], noise=0.01, joint={2: 0.01, 3: 0.5}))
    assert finding.value == 2
    assert finding.where == ("blocks.1", "blocks.3")
    assert finding.message == (
        "the 2 of 4 blocks with the smallest estimates can be left out at once: the loss changes "
        "by +1.0% [+1.0%, +1.0%] (tried: 2, 3)"
    )
    _, finding = judged(depth([0.3, 0.2], noise=0.01, joint={2: 0.4}))
    assert finding.value == 0
    assert finding.message.startswith("not even the 2 of 2 blocks with the smallest estimates")


def test_the_estimate_is_compared_from_five_blocks_on() -> None:
    (_,) = judged(depth([0.5, 0.4, 0.3, 0.2], noise=0.01))
    _, finding = judged(depth([0.5, 0.4, 0.3, 0.2, 0.1], noise=0.001))
    assert finding.code == "depth-ranking"
    assert finding.value == pytest.approx(1)
    assert finding.samples == 100
    trace = depth([0.5, 0.4, 0.3, 0.2, 0.1])
    trace["estimate"][:, 2] = nan
    _, finding = judged(trace)
    assert finding.severity is Severity.INCONCLUSIVE
    assert isnan(finding.value)


def fields(minimal: list[float], size: float = 20.0) -> xr.Dataset:
    """Two convolutions in each block, with the smallest fields of what they read."""
    layers = [f"blocks.{at}.conv{which}" for at in range(len(minimal) // 2) for which in (1, 2)]
    return xr.Dataset(
        {
            "minimal_input": (("layer", "axis"), np.array([*minimal, size])[:, None]),
            "jump": (("layer", "axis"), np.ones((len(layers) + 1, 1))),
            "status": ("layer", ["EXACT"] * len(layers) + ["WHOLE_INPUT"]),
            "input_size": ("axis", [size]),
        },
        {
            "layer": [*layers, "head"],
            "kind": ("layer", ["Conv1d"] * len(layers) + ["Linear"]),
            "axis": ["time"],
        },
    )


def crossed(shares: list[float], noise: float = 0.01) -> list[Finding]:
    """Three blocks; the last two are past the input; the last returns nearly what it reads."""
    traces = {
        "receptive_field": fields([1, 5, 21, 25, 29, 33]),
        "depth_contribution": depth(shares, noise=noise),
    }
    return [*unproductive_depth(traces, Limits())]


def test_two_signals_of_three_convict() -> None:
    (finding,) = crossed([0.5, 0.4, 0.0])
    assert finding.severity is Severity.FAIL
    assert finding.where == ("blocks.2",)
    assert finding.message.startswith(
        "2 blocks lie past the point where the field covers the input; 1 of them also cost nothing "
        "to leave out: blocks.2 ("
    )
    assert finding.action == (
        "Inputs of more than 33 positions would give all 6 convolutions context to add; for 20, 2 "
        "convolutions are enough: remove blocks.2, train and compare."
    )


@pytest.mark.parametrize("missing", [0, 1])
def test_as_many_samples_as_the_limit_asks_for_convict(missing: int) -> None:
    count = int(Limits().depth_contribution.min_samples) - missing
    traces = {
        "receptive_field": fields([1, 5, 21, 25, 29, 33]),
        "depth_contribution": depth([0.5, 0.4, 0.0], count, 0.01),
    }
    (finding,) = unproductive_depth(traces, Limits())
    assert (finding.severity is Severity.FAIL) == (not missing)


def test_similarity_alone_warns_where_the_ablation_does_not_tell() -> None:
    (finding,) = crossed([0.5, 0.4, 0.05], noise=0.5)
    assert finding.severity is Severity.WARN
    assert finding.where == ("blocks.2",)
    assert "blocks.2 return nearly what they read (similarity of 0.9999 or more)" in finding.message


def test_blocks_that_contribute_are_acquitted() -> None:
    (finding,) = crossed([0.5, 0.4, 0.3])
    assert finding.severity is Severity.INFO
    assert finding.action == "None."
    assert "return nearly" not in finding.message
    assert finding.where == ("blocks.1", "blocks.2")
    assert "2 contribute all the same: blocks.1 (+40 %), blocks.2 (+30 %) of the loss" in (
        finding.message
    )


def test_an_ablation_that_does_not_tell_is_inconclusive() -> None:
    traces = {
        "receptive_field": fields([1, 5, 21, 25]),
        "depth_contribution": depth([0.5, 0.05], noise=0.5),
    }
    traces["depth_contribution"]["similarity_low"][:] = nan
    (finding,) = unproductive_depth(traces, Limits())
    assert finding.severity is Severity.INCONCLUSIVE
    assert "of blocks.1 leaving out does not tell" in finding.message
    assert finding.action.endswith("Audit more samples to decide.")


def test_nothing_is_said_without_both_traces_or_past_the_input() -> None:
    assert not [*unproductive_depth({"receptive_field": fields([1, 5])}, Limits())]
    traces = {"receptive_field": fields([1, 19]), "depth_contribution": depth([0.0])}
    assert not [*unproductive_depth(traces, Limits())]
    half = {"receptive_field": fields([1, 20]), "depth_contribution": depth([0.0])}
    assert not [*unproductive_depth(half, Limits())]


@pytest.mark.parametrize("samples", [31, 32])
def test_as_many_samples_as_the_limit_asks_for_are_enough(samples: int) -> None:
    finding = judged(depth([0.5, 0.05], samples=samples, noise=0.3), min_samples=32.0)[0]
    assert finding.severity is Severity.INCONCLUSIVE
    assert ("too few" in finding.meaning) is (samples < 32)


def test_decisions_are_told_where_those_of_all_blocks_are_known() -> None:
    trace = depth([0.5, 0.0, -0.2], noise=0.01)
    trace["decision_change"][:, 1] = nan
    assert "of decisions change" not in judged(trace)[0].message


@pytest.mark.parametrize(("joint", "whole"), [({1: 0.4}, True), ({1: 0.01}, False)])
def test_a_network_is_a_whole_where_nothing_can_be_left_out(joint, whole) -> None:
    finding = judged(depth([0.3, 0.2], noise=0.01, joint=joint))[-1]
    assert (finding.meaning == "The network uses its depth as a whole.") is whole


def test_a_ranking_is_that_of_the_means_over_samples() -> None:
    trace = depth([0.5, 0.4, 0.3, 0.2, 0.1], noise=0.001)
    trace["estimate"][:] = -trace["estimate"].to_numpy()
    assert judged(trace)[-1].value == pytest.approx(-1)
    trace["estimate"][:] = [3.0, 1.0, 2.0, 5.0, 4.0]
    assert judged(trace)[-1].value == pytest.approx(-0.6)
