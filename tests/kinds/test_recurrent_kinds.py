"""What the reports on recurrent networks with built-in memory must say."""

import math

import numpy as np
import pytest
import recurrent

from analyzer.findings import Severity

STEPS = recurrent.STEPS - 1
"""From the last timestep to the first."""


def test_a_small_spectral_radius_makes_the_gradient_vanish_over_time(audited):
    found = audited("vanilla_rnn")
    over_time = found.one("gradient-over-time")
    assert over_time.severity is Severity.WARN
    assert over_time.value == pytest.approx(-STEPS * math.log10(recurrent.RADIUS), rel=0.02)
    assert over_time.where == ("layer.l0",)
    assert found.one("layers-or-time").meaning.startswith("Time is the bottleneck")
    assert found.one("memory-horizon").value <= 5
    # A scaled rotation: every direction of the state fades alike, and none is lost.
    fading = math.log(recurrent.RADIUS)
    assert found.one("state-stability").value == pytest.approx(fading, rel=0.01)
    assert found.one("state-reach").value == pytest.approx(-1 / fading, rel=0.01)
    assert found.one("memory-capacity").value == pytest.approx(recurrent.UNITS, rel=0.05)
    assert found.one("truncation-loss").value <= 8


@pytest.mark.slow
def test_a_large_spectral_radius_makes_it_explode(audited):
    found = audited("exploding_rnn")
    over_time = found.one("gradient-over-time")
    assert over_time.severity is Severity.WARN
    assert over_time.value == pytest.approx(STEPS * math.log10(recurrent.GROWTH), rel=0.02)
    assert "grows" in over_time.message
    assert over_time.action.startswith("Clip the gradient")
    assert found.severity("state-stability") is Severity.WARN
    assert found.one("state-stability").value == pytest.approx(math.log(recurrent.GROWTH), rel=0.01)


def test_a_forget_gate_of_one_half_forgets_within_a_few_steps(audited):
    found = audited("forgetting_lstm")
    over_time = found.one("gradient-over-time")
    assert over_time.severity is Severity.WARN
    assert over_time.value == pytest.approx(-STEPS * math.log10(recurrent.FORGET), rel=0.02)
    # Distances of outputs fall by a quarter with every step: below 1 % after the third.
    horizon = found.one("memory-horizon")
    assert horizon.low <= 3 <= horizon.high
    assert horizon.value < 5
    fading = math.log(recurrent.FORGET)
    assert found.one("state-stability").value == pytest.approx(fading, rel=0.01)
    assert found.one("state-reach").value == pytest.approx(-1 / fading, rel=0.01)
    assert found.one("gate-timescales").value == pytest.approx(-1 / fading, rel=0.01)


@pytest.mark.slow
def test_an_open_forget_gate_remembers(audited):
    found = audited("remembering_lstm")
    assert found.severity("gradient-over-time") is Severity.PASS
    assert found.one("gradient-over-time").value == pytest.approx(0, abs=0.01)
    assert found.one("memory-horizon").value > 25
    # It sums up: half of the sum is left of half the inputs, and as much comes in with others.
    assert 0.2 < found.one("shorter-sequences").value < 0.4
    assert 0.3 < found.one("longer-sequences").value < 0.7
    assert found.one("gate-timescales").value == pytest.approx(1e4, rel=0.05)
    assert found.one("state-reach").value == pytest.approx(1e4, rel=0.05)


def test_a_delay_line_has_the_horizon_of_its_delay(audited):
    found = audited("delay_lstm")
    assert found.one("memory-horizon").value == recurrent.DELAY
    assert found.one("gradient-reach").value == recurrent.DELAY
    assert found.one("lag-use").value == recurrent.DELAY
    assert found.one("decision-lag").value == recurrent.DELAY
    # Each of its units holds one input, and chunks as long as the delay lose nothing.
    assert found.one("memory-capacity").value == pytest.approx(recurrent.DELAY + 1, rel=0.05)
    assert found.one("truncation-loss").value == 16
    assert found.severity("gate-saturation") is Severity.WARN
    # What it needs is in half the length, and nothing older counts.
    for side in ("shorter", "longer"):
        assert found.one(f"{side}-sequences").value == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_the_heartbeat_network_of_four_lstm_layers(audited):
    found = audited("heartbeat_lstm")
    # It learnt to read heartbeats: the gradient reaches the first of 140 samples.
    assert found.severity("gradient-over-time") is Severity.PASS
    assert found.severity("gradient-over-depth") is Severity.PASS
    assert found.one("layers-or-time").meaning.startswith("Time is the bottleneck")
    assert 10 < found.one("memory-horizon").value < 100
    reason = "the model has no convolution: only layers that slide over their input see just a part"
    assert found.outcome("receptive_field") == f"not_applicable: {reason} of it"


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 3])
def test_time_not_depth_is_the_bottleneck_of_stacks_with_half_open_gates(layers, audited):
    found = audited(f"stacked_{layers}")
    assert found.severity("gradient-over-time") is Severity.WARN
    assert found.one("gradient-over-time").where == ("layer.l0",)
    over = found.one("layers-or-time")
    assert over.meaning.startswith("Time is the bottleneck")
    assert f"over {layers} recurrent layers" in over.message
    # Every layer is needed: none is a linear map of the one below.
    assert found.severity("stack-depth") is Severity.PASS


def test_the_directions_of_a_bidirectional_layer_are_told_apart(audited):
    found = audited("bidirectional_lstm")
    over_time = found.one("gradient-over-time")
    # Signals reach the far end in the direction that loses less.
    assert over_time.severity is Severity.PASS
    assert over_time.where == ("layer.l0.reverse",)
    # The other one, in its order of time, halves the gradient with every step.
    assert "most in layer.l0, 5.37e+08" in over_time.message


def test_weights_that_are_not_shared_in_time_are_a_chain_of_layers(audited):
    found = audited("unshared_weights")
    trace = found.trace("timestep_gradient")
    assert [str(name) for name in trace["layer"].to_numpy()] == [f"cells.{t}.l0" for t in range(10)]
    cell = trace["cell_gradient_final"].mean("sample").max("timestep").to_numpy()
    # Each cell forgets half, as if they were one.
    assert cell[1:] / cell[:-1] == pytest.approx(np.full(9, 2), rel=0.1)
    assert found.trace("memory_horizon").attrs["time_axis"] == 1
    # Shared weights take sequences of any length; these take one.
    for side, length in (("shorter", 5), ("longer", 20)):
        told = f"the network takes no sequences of {length} timesteps: ValueError"
        assert found.one(f"{side}-sequences").message.startswith(told)


@pytest.mark.slow
def test_padded_and_packed_sequences_are_the_same_to_the_report(audited):
    padded, packed = audited("ragged_padded"), audited("ragged_packed")
    for code in ("gradient-over-time", "gradient-over-depth", "memory-horizon", "gradient-reach"):
        one, other = padded.one(code), packed.one(code)
        assert (one.severity, one.message) == (other.severity, other.message)
    lengths = padded.trace("timestep_gradient")["length"].to_numpy()
    assert lengths.min() >= 5
    assert lengths.max() == 25
    assert len(set(lengths.tolist())) > 10


def test_a_gradient_that_stops_at_the_delay_vanishes_over_time(audited):
    found = audited("delay_lstm").one("gradient-over-time")
    # Before the delay it is exactly zero, which is no reason not to judge.
    assert found.severity is Severity.WARN


def test_cells_that_are_called_once_have_a_gradient_at_the_last_timestep(audited):
    found = audited("unshared_weights").one("gradient-over-time")
    assert found.message != "no sample has a non-zero gradient at the last timestep"
