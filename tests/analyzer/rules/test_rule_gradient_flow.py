"""The trend over depth against traces whose trend is known."""

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Severity
from analyzer.limits import GradientFlowLimits
from analyzer.rules.gradient_flow import depth_decades, gradient_flow

RNG = np.random.default_rng(0)


def trace(gradient: np.ndarray, kinds: list[str] | None = None, **attrs: str) -> xr.Dataset:
    """(sample, layer) gradients of a chain of convolutions."""
    count = gradient.shape[1]
    kinds = kinds or ["Conv2d"] * count
    return xr.Dataset(
        {
            "activation_gradient": (("sample", "layer"), gradient),
            "activation": (("sample", "layer"), np.ones_like(gradient)),
            "elements": (("sample", "layer"), np.full_like(gradient, 9)),
        },
        coords={
            "layer": [f"layer{index}" for index in range(count)],
            "kind": ("layer", kinds),
            "weighted": ("layer", [int(kind != "ReLU") for kind in kinds]),
            "per_sample": ("layer", np.ones(count, int)),
        },
        attrs={"without_gradient": "", "not_called": "", **attrs},
    )


def chain(decades: float, layers: int = 11, samples: int = 40) -> np.ndarray:
    """Gradients that lose ``decades`` from the last layer to the first; samples differ in size."""
    size = 10 ** RNG.uniform(-3, 0, (samples, 1))
    return size * 10 ** np.linspace(-decades, 0, layers) * 10 ** RNG.normal(0, 0.02, (samples, 1))


def found(dataset: xr.Dataset, code: str):
    (finding,) = (f for f in gradient_flow(dataset, GradientFlowLimits()) if f.code == code)
    return finding


@pytest.mark.parametrize("decades", [-1.5, 0.0, 0.7, 4.0])
def test_the_trend_is_exact(decades):
    estimate = depth_decades(trace(chain(decades)))
    assert estimate.value == pytest.approx(decades, abs=1e-9)
    assert estimate.samples == 40


def test_one_step_is_no_trend():
    gradient = chain(0.0)
    gradient[:, :-1] /= 300  # a pooling layer before the classifier
    assert depth_decades(trace(gradient)).value == pytest.approx(0.0, abs=1e-9)


def test_the_same_gradient_over_more_elements_is_not_lost():
    elements = 4 ** np.arange(11)[::-1]
    dataset = trace(chain(0.0) / np.sqrt(elements))
    dataset["elements"] = dataset["elements"] * 0 + xr.DataArray(elements, dims="layer")
    assert depth_decades(dataset).value == pytest.approx(0.0, abs=1e-9)


def test_layers_that_only_scale_do_not_count():
    gradient = chain(2.0, layers=3)
    wide = np.insert(gradient, [1, 2], 1e6, axis=1)
    kinds = ["Conv2d", "BatchNorm2d", "Conv2d", "ReLU", "Conv2d"]
    assert depth_decades(trace(wide, kinds)).value == pytest.approx(2.0, abs=1e-9)


@pytest.mark.parametrize(
    ("decades", "severity"),
    [
        (1.9, Severity.PASS),
        (2.1, Severity.WARN),
        (2.9, Severity.WARN),
        (3.1, Severity.FAIL),
        (-1.9, Severity.PASS),
        (-2.1, Severity.WARN),
        (-3.1, Severity.FAIL),
    ],
)
def test_both_sides_of_each_limit(decades, severity):
    finding = found(trace(chain(decades)), "gradient-over-depth")
    assert finding.severity is severity
    assert finding.value == pytest.approx(abs(decades), abs=1e-6)
    assert ("shrinks" in finding.message) == (decades > 0)


def test_samples_that_disagree_are_inconclusive():
    gradient = np.concatenate([chain(0.5, samples=5), chain(4.0, samples=6)])
    assert found(trace(gradient), "gradient-over-depth").severity is Severity.INCONCLUSIVE


def test_one_layer_has_no_depth():
    finding = found(trace(chain(0.0, layers=1)), "gradient-over-depth")
    assert finding.severity is Severity.NOT_APPLICABLE


def test_no_gradient_at_all_is_not_a_pass():
    finding = found(trace(np.zeros((4, 5))), "gradient-over-depth")
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.message == "no sample has a non-zero gradient at two layers"


def test_nan_fails_and_names_the_first_layer():
    dataset = trace(chain(0.0))
    dataset["activation"][2, 3:] = np.nan
    finding = found(dataset, "numerical-health")
    assert finding.severity is Severity.FAIL
    assert finding.where[0] == "layer3"
    assert finding.message == "NaN or infinity first appears at layer3, in 2% of the samples"


def test_an_infinite_gradient_fails():
    dataset = trace(chain(0.0))
    dataset["activation_gradient"][0, 1] = np.inf
    assert found(dataset, "numerical-health").where == ("layer1",)


def test_a_layer_that_was_not_reached_is_not_broken():
    dataset = trace(chain(0.0))
    dataset["activation_gradient"][:, 2] = np.nan
    assert found(dataset, "numerical-health").severity is Severity.PASS


def test_a_layer_without_one_row_per_sample_is_not_broken():
    dataset = trace(chain(0.0))
    dataset["activation"][:, 2] = np.nan
    dataset["per_sample"][2] = 0
    assert found(dataset, "numerical-health").severity is Severity.PASS


def test_a_blocked_gradient_is_named():
    gradient = chain(0.0)
    gradient[:, :3] = 0
    finding = found(trace(gradient), "gradient-blocked")
    assert finding.severity is Severity.FAIL
    assert finding.where == ("layer0", "layer1", "layer2")


def test_a_sample_without_loss_does_not_block():
    gradient = chain(0.0)
    gradient[0] = 0
    codes = [f.code for f in gradient_flow(trace(gradient), GradientFlowLimits())]
    assert codes == ["numerical-health", "gradient-over-depth"]


def test_unused_parts_are_listed():
    dataset = trace(chain(0.0), without_gradient="head.weight,head.bias", not_called="head")
    finding = found(dataset, "unused-parts")
    assert finding.severity is Severity.INFO
    assert finding.message == (
        "2 parameters get no gradient: head.weight, head.bias; 1 modules are never called: head"
    )
    assert finding.where == ("head.weight", "head.bias", "head")


def test_layers_that_are_used_without_being_called_are_not_unused():
    finding = found(trace(chain(0.0), not_observed="head"), "unused-parts")
    assert finding.message == "1 layers are not called, but their weights are used: head"
    assert finding.where == ("head",)


def test_a_deep_network_is_judged_on_evenly_spaced_layers():
    estimate = depth_decades(trace(chain(2.5, layers=1001, samples=3)))
    assert estimate.value == pytest.approx(2.5, abs=1e-9)


def test_what_is_lost_in_each_layer_is_told() -> None:
    finding = found(trace(chain(2.5, layers=6)), "gradient-over-depth")
    assert finding.message == (
        "from the last to the first of 6 weighted layers the gradient shrinks by a factor of 316 "
        "(0.5 decades a layer)"
    )


def test_two_layers_have_a_trend() -> None:
    assert depth_decades(trace(chain(1.5, layers=2))).value == pytest.approx(1.5, abs=1e-9)


def test_a_trend_of_uncertain_sign_may_be_none() -> None:
    gradient = chain(0.0)
    slope = np.where(np.arange(40) % 2, 0.5, -0.6)[:, None] * np.linspace(-1, 0, 11)
    finding = found(trace(gradient * 10**slope), "gradient-over-depth")
    assert finding.low == 0
    assert 0.4 < finding.high < 0.7


def test_samples_without_any_gradient_do_not_tell_what_is_blocked() -> None:
    gradient = chain(0.0)
    gradient[:, 2] = 0
    gradient[:3] = 0
    finding = found(trace(gradient), "gradient-blocked")
    assert finding.samples == 37
    assert finding.where == ("layer2",)


@pytest.mark.parametrize("decades", [0.0, 5.0])
def test_an_action_follows_a_warning_only(decades: float) -> None:
    finding = found(trace(chain(decades)), "gradient-over-depth")
    assert (finding.action == "None.") is (finding.severity is Severity.PASS)
