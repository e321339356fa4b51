"""Traces of states that decay by known laws."""

import math

import numpy as np
import pytest
import xarray as xr

from analyzer.decay import EXPONENTIAL, POWER, STRETCHED
from analyzer.findings import Severity
from analyzer.limits import StateReachLimits
from analyzer.rules.state_reach import joint, stack_decays, state_reach

LAGS = np.arange(200)


def trace(profiles: dict[str, np.ndarray], samples: int = 32, noise: float = 0.02) -> xr.Dataset:
    """One stack of two layers for each profile (natural logarithms), split evenly over them."""
    random = np.random.default_rng(1)
    layers, logs = [], []
    for name, profile in profiles.items():
        walk = random.normal(0, noise, (samples, len(LAGS))).cumsum(1)
        for layer in range(2):
            layers.append(f"{name}.l{layer}")
            logs.append((profile + walk - math.log(2) / 2) / math.log(10))
    return xr.Dataset(
        {"state_reach": (("sample", "layer", "lag"), np.stack(logs, 1))},
        coords={
            "layer": layers,
            "stack": list(profiles),
            "stack_of": ("layer", [name for name in profiles for _ in range(2)]),
            "lag": LAGS,
        },
    )


def judged(dataset: xr.Dataset, **limits: float):
    (finding,) = state_reach(dataset, StateReachLimits(**limits))
    return finding


def test_an_exponential_is_named_with_its_time_constant():
    finding = judged(trace({"rnn": -LAGS / 20}))
    assert finding.severity is Severity.INFO
    assert finding.value == pytest.approx(20, rel=0.05)
    assert finding.low < 20 < finding.high
    assert finding.where == ("rnn.l0", "rnn.l1")
    assert finding.samples == 32
    assert finding.message == (
        f"the derivative of the final state of rnn by earlier states falls by a factor of e every "
        f"{finding.value:.3g} timesteps over 199 lags, exponentially"
    )
    assert finding.meaning == (
        "This is how long a change of the state is felt, and a training signal survives. What the "
        "network uses is the memory horizon."
    )


def test_of_several_stacks_the_one_that_keeps_longest_is_told():
    finding = judged(trace({"short": -LAGS / 5, "long": -LAGS / 20}))
    assert finding.value == pytest.approx(20, rel=0.05)
    assert finding.message.startswith(
        "the derivative of the final state of long (of 2, the one that keeps longest) by earlier"
    )


@pytest.mark.parametrize(
    ("profile", "law", "words"),
    [
        (-1.5 * np.log1p(LAGS), POWER, "as a power law with exponent 1.5"),
        (-np.sqrt(LAGS / 5), STRETCHED, "as a stretched exponential with exponent 0.5"),
    ],
)
def test_other_laws_are_named_with_their_exponents(profile, law, words):
    dataset = trace({"rnn": profile}, noise=0.002)
    assert stack_decays(dataset, StateReachLimits())["rnn"].law == law
    assert judged(dataset).message.endswith(f"over 199 lags, {words}")


def test_a_law_that_does_not_win_clearly_is_left_undecided():
    dataset = trace({"rnn": -LAGS / 20}, noise=0.5)
    assert judged(dataset, clear=1.0).message.endswith("by no clear law")


def test_the_stack_that_keeps_longest_is_reported():
    finding = judged(trace({"encoder": -LAGS / 5, "decoder": -LAGS / 30, "last": -LAGS / 10}))
    assert finding.value == pytest.approx(30, rel=0.05)
    assert finding.where == ("decoder.l0", "decoder.l1")
    assert (
        "state of decoder (of 3, the one that keeps longest) by earlier states falls"
        in finding.message
    )


def test_layers_of_a_stack_add_up():
    dataset = trace({"rnn": -LAGS / 20}, noise=0)
    assert joint(dataset, "rnn")[0] * math.log(10) == pytest.approx(-LAGS / 20)
    dataset["state_reach"][3:, :, 150:] = np.nan
    assert np.isnan(joint(dataset, "rnn")[3:, 150:]).all()
    dataset["state_reach"][:, 0] = -np.inf
    expected = -LAGS / 20 - math.log(2) / 2
    assert joint(dataset, "rnn")[0] * math.log(10) == pytest.approx(expected)


def test_growth_has_no_decay_time():
    finding = judged(trace({"rnn": LAGS / 50}))
    assert finding.value == math.inf
    assert finding.severity is Severity.INFO
    assert finding.message == (
        "the derivative of the final state of rnn by earlier states does not fall over 199 lags"
    )
    assert finding.meaning.startswith("Changes of the state do not fade")


def test_a_decay_slower_than_the_sequences_says_so():
    finding = judged(trace({"rnn": -LAGS / 500}))
    assert finding.meaning.startswith("The state fades more slowly than the sequences are long.")


@pytest.mark.parametrize(
    ("samples", "severity"), [(15, Severity.INCONCLUSIVE), (16, Severity.INFO)]
)
def test_both_sides_of_the_fewest_samples(samples, severity):
    dataset = trace({"rnn": -LAGS / 20}, samples)
    finding = judged(dataset)
    assert finding.severity is severity
    assert finding.value == pytest.approx(20, rel=0.05)
    few = severity is Severity.INCONCLUSIVE
    assert finding.action == ("Audit at least 16 samples." if few else "None.")
    named = stack_decays(dataset, StateReachLimits())["rnn"].law == EXPONENTIAL
    assert named is not few


def test_a_state_that_nothing_before_it_reaches_is_not_a_pass():
    dataset = trace({"rnn": np.where(LAGS > 1, -np.inf, 0.0)}, noise=0)
    finding = judged(dataset)
    assert finding.severity is Severity.INCONCLUSIVE
    assert math.isnan(finding.value)
    assert finding.message == (
        "the final state depends on no state more than one step before it, or the sequences are "
        "too short to see how that decays"
    )
