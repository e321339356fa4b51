"""What is no number, where it begins, and in how many samples."""

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.rules.numerical_health import numerical_health

SAMPLES, LAYERS, PARAMETERS = 8, ["a", "b", "c"], ["a.weight", "a.bias", "scale", "c.weight"]


def trace() -> xr.Dataset:
    rows, parameters = np.ones((SAMPLES, len(LAYERS))), np.ones(len(PARAMETERS))
    return xr.Dataset(
        {
            "activation": (("sample", "layer"), rows.copy()),
            "activation_gradient": (("sample", "layer"), rows.copy()),
            "per_sample": ("layer", [1, 1, 1]),
            "parameter_norm": ("parameter", parameters.copy()),
            "parameter_gradient": ("parameter", parameters.copy()),
            "parameter_gradient_per_sample": (
                ("sample", "parameter"), np.ones((SAMPLES, len(PARAMETERS)))
            ),
        },
        {"layer": LAYERS, "parameter": PARAMETERS},
        {"without_gradient": "c.weight"},
    )  # fmt: skip


def judged(dataset: xr.Dataset) -> Finding:
    return numerical_health(dataset)


def test_finite_numbers_pass() -> None:
    finding = judged(trace())
    assert finding.severity is Severity.PASS
    assert (finding.value, finding.limit, finding.samples) == (0, 0, SAMPLES)
    assert finding.message == "all activations and gradients are finite in 8 samples"


@pytest.mark.parametrize("name", ["activation", "activation_gradient"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_layer_is_named_with_its_share_of_the_samples(name: str, bad: float) -> None:
    dataset = trace()
    dataset[name][:2, 1] = bad
    dataset[name][:6, 2] = bad
    finding = judged(dataset)
    assert finding.severity is Severity.FAIL
    assert finding.message == "NaN or infinity first appears at b, in 25% of the samples"
    assert finding.where == ("b", "c")
    assert finding.value == 0.75
    assert finding.limit == 0


def test_layers_without_a_gradient_or_without_samples_of_their_own_are_not_broken() -> None:
    dataset = trace()
    dataset["activation_gradient"][:, 0] = np.nan
    dataset["activation"][:, 1] = np.nan
    dataset["per_sample"][1] = 0
    assert judged(dataset).severity is Severity.PASS


def test_gradients_of_parameters() -> None:
    dataset = trace()
    dataset["parameter_gradient"][[1, 2, 3]] = np.nan
    dataset["parameter_gradient_per_sample"][:2, 1] = np.inf
    dataset["parameter_gradient_per_sample"][:4, 2] = np.nan
    finding = judged(dataset)
    assert finding.message == (
        "the gradient of a.bias, scale is NaN or infinite, of a.bias in 25% of the samples"
    )
    assert finding.where == ("a", "the model")
    assert finding.value == 0.5


def test_weights_come_before_all_else() -> None:
    dataset = trace()
    dataset["parameter_norm"][[1, 2]] = np.inf
    dataset["activation"][:] = np.nan
    finding = judged(dataset)
    assert finding.message == "the weights a.bias, scale hold NaN or infinity"
    assert (finding.where, finding.value) == (("a", "the model"), 1)
