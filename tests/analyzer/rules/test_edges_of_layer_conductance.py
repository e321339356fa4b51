"""Shares over depth at the limits: nothing decided, two samples, errors at the tolerance."""

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import LayerConductanceLimits
from analyzer.rules.layer_conductance import layer_conductance, layer_shares


def trace(conductance: np.ndarray, difference: np.ndarray, error: float = 0.0) -> xr.Dataset:
    """Layers of given conductance, of which the coarse path is off by a share of the decision."""
    count = conductance.shape[1]
    return xr.Dataset(
        {
            "conductance": (("sample", "layer"), conductance),
            "coarse": (("sample", "layer"), conductance + error * difference[:, None]),
            "carriers": (("sample", "layer"), np.full(conductance.shape, 0.5)),
            "difference": ("sample", difference),
        },
        {
            "layer": [f"layer{index}" for index in range(count)],
            "reason": ("layer", [""] * count),
        },
        {"steps": 32},
    )


def exact(shares: list[float], difference: list[float], error: float = 0.0) -> xr.Dataset:
    whole = np.array(difference)
    return trace(np.array(shares) * whole[:, None], whole, error)


def judged(dataset: xr.Dataset, **limits: float) -> Finding:
    (finding,) = layer_conductance(dataset, LayerConductanceLimits(**limits))
    return finding


def test_two_samples_have_an_interval_and_one_has_none() -> None:
    two, one = (layer_shares(exact([0.5], [1.0, -2.0][:count]))[0] for count in (2, 1))
    assert (two.value, two.low, two.high) == pytest.approx((0.5, 0.5, 0.5))
    assert one.value == pytest.approx(0.5)
    assert np.isnan([one.low, one.high]).all()


def test_where_nothing_is_decided_there_are_no_shares() -> None:
    shares = layer_shares(exact([1.0, 0.5], [0.0, 0.0, 0.0]))
    assert [share.samples for share in shares] == [3, 3]
    assert np.isnan([share.value for share in shares]).all()
    assert judged(exact([1.0, 0.5], [0.0] * 40)).severity is Severity.INCONCLUSIVE


def test_decisions_that_cancel_are_decisions() -> None:
    finding = judged(exact([1.0, 0.5], [1.0, -1.0] * 20))
    assert finding.severity is not Severity.INCONCLUSIVE


@pytest.mark.parametrize(("error", "coarse"), [(0.25, False), (0.375, True)])
def test_an_error_of_exactly_the_tolerance_is_small_enough(error: float, coarse: bool) -> None:
    dataset = exact([1.0, 0.5], [1.0, -2.0] * 20, error)
    assert (judged(dataset, tolerance=0.25).severity is Severity.INCONCLUSIVE) is coarse


@pytest.mark.parametrize(("share", "bypassed"), [(0.75, False), (1.25, False), (1.375, True)])
def test_a_share_of_exactly_the_tolerance_beside_the_whole_is_the_whole(
    share: float, bypassed: bool
) -> None:
    finding = judged(exact([1.0, share], [1.0, -2.0] * 20), tolerance=0.25)
    assert finding.where == (("layer1",) if bypassed else ())


def test_a_layer_whose_error_is_exactly_the_tolerance_is_not_called_coarse() -> None:
    dataset = exact([1.0, 0.25], [1.0, -2.0] * 20, 0.25)
    assert "coarsely" not in judged(dataset, tolerance=0.25).message
    dataset["coarse"][:, 0] += 0.5 * dataset["difference"]
    assert judged(dataset, tolerance=0.25).message.endswith("; too coarsely integrated: layer0")


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_why_nothing_can_be_said(scale: float) -> None:
    coarse = "no layer's conductance is integrated to within 5% of the decision"
    for count in (8, 20):  # 16 samples are just enough
        finding = judged(exact([1.0, 0.5], [scale, -scale] * count, 0.5))
        assert (finding.message, finding.samples) == (coarse, 2 * count)
    undecided = exact([1.0, 0.5], [scale] * 40, 0.5)
    undecided["difference"][:] = 0
    assert judged(undecided).message == (
        "no decision differs from that at the baseline, or none is finite"
    )
