"""Shares of traces in which they are known."""

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import LayerConductanceLimits
from analyzer.rules.layer_conductance import integration_error, layer_conductance, layer_shares


def trace(
    shares: list[float], samples: int = 40, error: float = 0.01, reasons: list[str] | None = None
) -> xr.Dataset:
    """Layers that carry known shares, give or take, of decisions of either sign."""
    rng = np.random.default_rng(3)
    difference = rng.uniform(0.5, 4, samples) * rng.choice([-1, 1, 1], samples)
    noise = rng.normal(0, 0.02, (samples, len(shares)))
    conductance = (np.array(shares) + noise - noise.mean(0)) * difference[:, None]
    reasons = reasons or [""] * len(shares)
    return xr.Dataset(
        {
            "conductance": (("sample", "layer"), conductance),
            "coarse": (("sample", "layer"), conductance + error * difference[:, None]),
            "carriers": (("sample", "layer"), np.full((samples, len(shares)), 0.5)),
            "difference": ("sample", difference),
        },
        {
            "layer": [f"layer{index}" for index in range(len(shares))],
            "reason": ("layer", reasons),
        },
        {"steps": 32},
    )


def judged(dataset: xr.Dataset, **limits: float) -> Finding:
    (finding,) = layer_conductance(dataset, LayerConductanceLimits(**limits))
    return finding


def test_shares_follow_the_sign_of_the_decision() -> None:
    found = layer_shares(trace([1.0, 0.4, -0.2]))
    assert [share.value for share in found] == pytest.approx([1, 0.4, -0.2], abs=0.01)
    assert all(share.low < share.value < share.high for share in found)
    assert found[0].samples == 40


def test_the_error_is_that_of_the_coarser_path() -> None:
    assert integration_error(trace([1.0, 0.5], error=-0.03)) == pytest.approx([0.03, 0.03])


def test_samples_that_are_not_finite_are_left_out() -> None:
    dataset = trace([1.0, 0.4])
    expected = layer_shares(dataset.isel(sample=slice(1, None)))
    dataset["conductance"][0, 1] = np.inf
    assert layer_shares(dataset) == expected


def test_the_layer_with_the_least_is_named() -> None:
    finding = judged(trace([1.0, 0.7, 0.2, 1.0]))
    assert finding.severity is Severity.INFO
    assert finding.code == "layer-share"
    assert finding.message == (
        "2 of 4 layers are bypassed by other paths; the least flows through layer2, 20% of the "
        "decision"
    )
    assert finding.where == ("layer2", "layer1")
    assert finding.value == pytest.approx(0.2, abs=0.01)
    assert finding.low < finding.value < finding.high


def test_a_chain_is_told() -> None:
    finding = judged(trace([1.0, 0.97, 1.03]))
    assert finding.severity is Severity.INFO
    assert finding.message == (
        "nothing goes around any of 3 layers: each carries the whole decision"
    )
    assert finding.where == ()


@pytest.mark.parametrize(("share", "bypassed"), [(0.93, True), (0.97, False), (1.08, True)])
def test_both_sides_of_the_whole(share: float, bypassed: bool) -> None:
    assert judged(trace([1.0, share])).where == (("layer1",) if bypassed else ())


def test_what_is_missing_is_named() -> None:
    dataset = trace([1.0, 0.5, 0.3, 0.0], reasons=["", "", "", "not called with these data"])
    dataset["conductance"][:, 3] = np.nan
    dataset["coarse"][:, 1] += 1
    assert judged(dataset).message == (
        "1 of 2 layers are bypassed by other paths; the least flows through layer2, 30% of the "
        "decision; not measured: layer3 (not called with these data); too coarsely integrated: "
        "layer1"
    )


@pytest.mark.parametrize(("error", "sound"), [(0.04, True), (0.06, False)])
def test_both_sides_of_the_tolerance(error: float, sound: bool) -> None:
    finding = judged(trace([1.0, 0.5], error=error))
    assert finding.severity is (Severity.INFO if sound else Severity.INCONCLUSIVE)
    if not sound:
        assert finding.message == (
            "no layer's conductance is integrated to within 5% of the decision"
        )
        assert finding.action == ("Raise the setting layer_conductance.steps, which is 32, to 128.")


@pytest.mark.parametrize(("samples", "sound"), [(15, False), (16, True)])
def test_both_sides_of_the_smallest_number_of_samples(samples: int, sound: bool) -> None:
    finding = judged(trace([1.0, 0.5], samples=samples))
    assert finding.severity is (Severity.INFO if sound else Severity.INCONCLUSIVE)
    if not sound:
        assert finding.message == "the decisions on 15 samples were followed"
        assert finding.action == "Audit at least 16 samples."


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_decision_that_does_not_depend_on_the_input_is_not_a_pass(value: float) -> None:
    dataset = trace([1.0, 0.5])
    for name in ("conductance", "coarse", "difference"):
        dataset[name][:] = value
    finding = judged(dataset)
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.message == ("no decision differs from that at the baseline, or none is finite")
