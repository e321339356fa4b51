"""The sentence on how far everything reaches, word for word."""

import numpy as np
import pytest
import xarray as xr

from analyzer.limits import Limits
from analyzer.rules.reach import reach

SAMPLES = 40


def over_layers(decades: float, layers: int = 5) -> xr.Dataset:
    """Gradients that lose some decades from the last layer to the first."""
    gradient = np.tile(10 ** np.linspace(-decades, 0, layers), (SAMPLES, 1))
    return xr.Dataset(
        {
            "activation_gradient": (("sample", "layer"), gradient),
            "activation": (("sample", "layer"), np.ones_like(gradient)),
            "elements": (("sample", "layer"), np.full_like(gradient, 9)),
        },
        coords={
            "layer": [f"layer{index}" for index in range(layers)],
            "kind": ("layer", ["Linear"] * layers),
            "weighted": ("layer", [1] * layers),
            "per_sample": ("layer", [1] * layers),
        },
        attrs={"without_gradient": "", "not_called": ""},
    )


def over_time(decades: float, steps: int = 20) -> xr.Dataset:
    gradient = np.tile(10 ** np.linspace(-decades, 0, steps), (SAMPLES, 1, 1))
    dims = ("sample", "layer", "timestep")
    return xr.Dataset(
        {
            "hidden_gradient_final": (dims, gradient),
            "cell_gradient_final": (dims, np.full_like(gradient, np.nan)),
            "length": ("sample", np.full(SAMPLES, steps)),
        },
        coords={"layer": ["rnn.l0"]},
    )


def memory(excess: list[float]) -> xr.Dataset:
    return xr.Dataset(
        {"excess_loss": (("sample", "kept"), np.tile(excess, (SAMPLES, 1)))},
        coords={"kept": [0, 4, 8, 20]},
        attrs={"sequence_length": 20},
    )


def field(diameters: list[float]) -> xr.Dataset:
    return xr.Dataset(
        {
            "diameter": ("layer", diameters),
            "input_size": (("layer", "axis"), [[32.0, 24.0]] * len(diameters)),
        }
    )


def said(**traces: xr.Dataset) -> list[str]:
    return [finding.message for finding in reach(traces, Limits())]


@pytest.mark.parametrize(
    ("decades", "words"),
    [
        (1.5, "reaches the first of 5 layers (31.6 times smaller)"),
        (-1.0, "reaches the first of 5 layers (10 times larger)"),
        (3.0, "fades before the first of 5 layers (1e+03 times smaller)"),
    ],
)
def test_over_layers(decades: float, words: str) -> None:
    assert said(gradient_flow=over_layers(decades)) == [f"layers: the gradient {words}"]


@pytest.mark.parametrize(
    ("decades", "words"),
    [
        (0.5, "reaches the first of 20 timesteps (3.16 times smaller)"),
        (9.0, "fades before the first of 20 timesteps (1e+09 times smaller)"),
    ],
)
def test_over_time(decades: float, words: str) -> None:
    assert said(timestep_gradient=over_time(decades)) == [f"time: the gradient {words}"]


def test_the_limits_of_both_are_reached_inclusively() -> None:
    limits = Limits()
    layers = said(gradient_flow=over_layers(limits.gradient_flow.warn_decades - 1e-9))
    steps = said(timestep_gradient=over_time(limits.timestep_gradient.warn_decades - 1e-9))
    assert "reaches" in layers[0]
    assert "reaches" in steps[0]


def test_memory_and_field() -> None:
    traces = {
        "memory_horizon": memory([1.0, 0.5, 0.0, 0.0]),
        "effective_field": field([3.0, 5.0, 7.25, np.nan]),
    }
    assert said(**traces) == [
        "memory: inputs up to 4 of 19 timesteps back matter; input: a unit of the last convolution "
        "draws on 7.25 of 32 x 24 positions"
    ]


def test_what_is_undefined_is_not_said() -> None:
    nothing = {
        "gradient_flow": over_layers(0.0, layers=1),
        "timestep_gradient": over_time(0.0) * np.nan,
        "memory_horizon": memory([0.0] * 4),
        "effective_field": field([np.nan]),
    }
    assert said() == said(**nothing) == []
