"""Verdict on whether everything that a gradient is made of is a number."""

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.rules.verdicts import listed

PROBE = "gradient_flow"


def numerical_health(trace: xr.Dataset) -> Finding:
    """FAIL on weights, activations or gradients that are infinite or undefined.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.gradient_flow.GradientFlow`.

    Returns
    -------
    Finding
        Names the weights, else the first layer, else the parameters.
    """
    weights = _weights(trace)
    if weights:
        return _broken(
            trace,
            1.0,
            _owners(weights),
            f"the weights {listed(weights)} hold NaN or infinity",
            "Go back to the last checkpoint without them, and train on with a smaller learning "
            "rate or clipped gradients.",
        )
    layers, share = _layers(trace)
    if layers:
        return _broken(
            trace,
            float(share.max()),
            layers,
            f"NaN or infinity first appears at {layers[0]}, in {share[0]:.0%} of the samples",
            f"Check the weights of {layers[0]} and the range of the inputs that reach it.",
        )
    parameters, share = _gradients(trace)
    if parameters:
        return _broken(
            trace,
            float(share.max()),
            _owners(parameters),
            f"the gradient of {listed(parameters)} is NaN or infinite, of {parameters[0]} in "
            f"{share[0]:.0%} of the samples",
            "Check the loss, and the inputs for NaN and infinity.",
        )
    return Finding(
        code="numerical-health",
        probe=PROBE,
        severity=Severity.PASS,
        title="Numerical health",
        message=f"all activations and gradients are finite in {trace.sizes['sample']} samples",
        value=0.0,
        limit=0.0,
        relation="<=",
        limit_source="by definition",
        samples=trace.sizes["sample"],
    )


def _broken(
    trace: xr.Dataset, share: float, where: list[str], message: str, action: str
) -> Finding:
    """Say what is no number."""
    return Finding(
        code="numerical-health",
        probe=PROBE,
        severity=Severity.FAIL,
        title="Numerical health",
        message=message,
        meaning="Nothing computed from these samples can be trusted, the prediction included.",
        action=action,
        value=share,
        limit=0.0,
        relation="<=",
        limit_source="by definition",
        samples=trace.sizes["sample"],
        where=tuple(where),
    )


def _owners(parameters: list[str]) -> list[str]:
    """Name the modules that parameters belong to."""
    return [*dict.fromkeys(name.rpartition(".")[0] or "the model" for name in parameters)]


def _weights(trace: xr.Dataset) -> list[str]:
    """Name the parameters that hold a NaN or an infinity."""
    if "parameter_norm" not in trace:
        return []
    broken = ~np.isfinite(trace["parameter_norm"].to_numpy())
    return [str(name) for name in trace["parameter"].to_numpy()[broken]]


def _layers(trace: xr.Dataset) -> tuple[list[str], np.ndarray]:
    """Name the layers with such activations or gradients, and in which share of the samples."""
    rows = trace.isel(layer=np.flatnonzero(trace["per_sample"].to_numpy() == 1))
    activation = rows["activation"].transpose("sample", "layer").to_numpy()
    gradient = rows["activation_gradient"].transpose("sample", "layer").to_numpy()
    # A layer that ran but got no gradient in any sample is not measured, which is not broken.
    undefined = np.isnan(gradient) & ~np.isnan(gradient).all(0)
    share = (~np.isfinite(activation) | undefined | np.isinf(gradient)).mean(0)
    return [str(name) for name in rows["layer"].to_numpy()[share > 0]], share[share > 0]


def _gradients(trace: xr.Dataset) -> tuple[list[str], np.ndarray]:
    """Name the parameters with such a gradient, and in which share of the samples."""
    if "parameter_gradient" not in trace:
        return [], np.zeros(0)
    names = trace["parameter"].to_numpy().astype(str)
    reached = ~np.isin(names, trace.attrs["without_gradient"].split(", "))
    broken = reached & ~np.isfinite(trace["parameter_gradient"].to_numpy())
    single = trace["parameter_gradient_per_sample"].transpose("sample", "parameter").to_numpy()
    # Nothing is known of single samples where a gradient does not come apart.
    share = (~np.isfinite(single)).mean(0)
    return [*map(str, names[broken])], share[broken]
