"""What the reports on networks without recurrence must say."""

import math

import feedforward
import pytest

from analyzer.findings import Severity


@pytest.mark.slow
def test_every_convolution_of_alexnet_adds_context_to_images_of_its_size(audited):
    found = audited("alexnet")
    assert found.one("theoretical-field").value == 163
    assert "163 x 163 of 224 x 224 positions" in found.one("theoretical-field").message
    assert found.severity("unproductive-layers") is Severity.PASS
    assert found.severity("gradient-over-depth") is Severity.PASS
    # Effective fields of random networks are Gaussian, a good deal smaller than theirs.
    assert 60 < found.one("effective-field").value < 163


def test_vgg_is_too_deep_for_images_of_32_pixels(audited):
    found = audited("vgg").one("unproductive-layers")
    assert found.severity is Severity.WARN
    # From the third convolution of the third stage on, whose inputs see 32 pixels.
    assert found.where == ("14", "17", "19", "21", "24", "26", "28")


@pytest.mark.parametrize(
    ("kind", "block"),
    [
        ("residual_18", feedforward.DEAD_BLOCK),
        pytest.param("residual_110", feedforward.DEAD_BLOCK_110, marks=pytest.mark.slow),
    ],
)
def test_a_block_that_learnt_nothing_is_named(kind, block, audited):
    found = audited(kind)
    blocked = found.one("gradient-blocked")
    assert blocked.severity is Severity.FAIL
    assert {name.rpartition(".")[0] for name in blocked.where} == {block}
    without = found.trace("depth_contribution")
    assert block in [str(name) for name in without["block"].to_numpy()]


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("residual_18", 435),
        pytest.param("residual_110", 501, marks=pytest.mark.slow),
        pytest.param("wide_residual", 53, marks=pytest.mark.slow),
    ],
)
def test_shortcuts_keep_the_gradient_and_fields_are_the_published_ones(kind, field, audited):
    found = audited(kind)
    assert found.one("theoretical-field").value == field
    assert found.one("gradient-over-depth").value < 2.1
    assert found.severity("gradient-over-depth") in (Severity.PASS, Severity.INCONCLUSIVE)


def test_one_wide_layer_has_neither_time_nor_positions_nor_depth(audited):
    found = audited("one_wide_layer")
    assert found.severity("gradient-over-depth") is Severity.PASS
    assert found.outcome("timestep_gradient") == (
        "not_applicable: the model runs no recurrent layer of torch (LSTM, GRU, RNN or their cells)"
    )
    reason = "the model has no convolution: only layers that slide over their input see just a part"
    assert found.outcome("receptive_field") == f"not_applicable: {reason} of it"
    assert "have no time axis that can be told" in found.outcome("memory_horizon")


def test_the_gradient_that_sigmoids_lose_is_found_and_sized(audited):
    found = audited("deep_sigmoid").one("gradient-over-depth")
    assert found.severity is Severity.FAIL
    # Orthogonal weights keep a gradient; each of 12 sigmoids leaves a quarter, or a little less.
    assert 12 * math.log10(4) < found.value < 12 * math.log10(5)
    assert "shrinks" in found.message
    assert found.action.startswith("Add skip connections")


def test_a_filter_that_reads_one_lag_has_that_horizon(audited):
    found = audited("signal_filter")
    assert found.one("memory-horizon").value == feedforward.DELAY
    assert found.one("gradient-reach").value == feedforward.DELAY
    assert found.one("theoretical-field").value == feedforward.DELAY + 1
    assert found.one("lag-use").value == feedforward.DELAY
    assert found.one("decision-lag").value == feedforward.DELAY
    assert found.outcome("timestep_gradient").startswith("not_applicable: ")


@pytest.mark.slow
def test_the_heartbeat_network_of_12_convolutions_sees_49_samples(audited):
    found = audited("heartbeat_cnn")
    assert found.one("theoretical-field").value == 1 + 12 * 4
    assert found.severity("unproductive-layers") is Severity.PASS
    # It averages over all positions, so that it needs inputs from the first to the last.
    assert found.one("memory-horizon").value > 100
    assert 10 < found.one("effective-field").value < 49


@pytest.mark.slow
def test_a_residual_network_of_1001_layers_is_audited(audited):
    found = audited("residual_1001")
    assert found.trace("gradient_flow").sizes["layer"] > 1001
    assert found.severity("gradient-over-depth") in (Severity.PASS, Severity.INCONCLUSIVE)
