"""Verdicts on the gradient over the depth of a network."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import GradientFlowLimits, source_of
from analyzer.rules.gradient_noise import gradient_noise
from analyzer.rules.numerical_health import numerical_health
from analyzer.rules.verdicts import Estimate, at_most, listed
from analyzer.statistics import bootstrap_interval

PROBE = "gradient_flow"

SCALING = ("Norm", "PReLU", "Embedding")
"""Kinds of layers that own parameters but do not add depth."""


PAIRED = 64
"""Layers whose pairs make up the trend; the number of pairs grows with its square."""


def gradient_flow(trace: xr.Dataset, limits: GradientFlowLimits) -> Iterator[Finding]:
    """Judge numerical health, the trend of the gradient over depth, its noise, and what gets none.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.gradient_flow.GradientFlow`.
    limits : GradientFlowLimits
        All are used.

    Yields
    ------
    Finding
        At least two: numerical health and the trend.
    """
    yield numerical_health(trace)
    yield _over_depth(trace, limits)
    yield from _blocked(trace)
    yield from gradient_noise(trace, limits)
    yield from _unused(trace)


def depth_decades(trace: xr.Dataset) -> Estimate:
    """Decades by which the gradient shrinks from the last weighted layer to the first.

    The trend is the median slope over all pairs of layers (of ``PAIRED`` evenly spaced ones in
    deeper networks), so that one step, a pooling layer or the classifier, does not pass for a
    trend; positive means vanishing.

    References
    ----------
    .. [1] Theil, A rank-invariant method of linear and polynomial regression analysis (1950).
    """
    gradient = gradient_norm(weighted(trace)).transpose("sample", "layer").to_numpy()
    count = gradient.shape[1]
    if count < 2:
        return Estimate()
    depth = np.unique(np.linspace(0, count - 1, min(count, PAIRED)).round().astype(int))
    first, last = np.triu_indices(len(depth), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(gradient[:, depth])
        slopes = (logs[:, last] - logs[:, first]) / (depth[last] - depth[first])
    slopes = np.where(np.isfinite(slopes), slopes, np.nan)
    usable = slopes[~np.isnan(slopes).all(1)]
    if not len(usable):
        return Estimate()
    decades = np.nanmedian(usable, 1) * (count - 1)
    low, high = bootstrap_interval(decades)
    return Estimate(float(np.median(decades)), low, high, len(decades))


def gradient_norm(trace: xr.Dataset) -> xr.DataArray:
    """Norm of the gradient over all elements of a layer's output, for each sample.

    Not per element: a stride, or a loss on the last timestep alone, spreads the same gradient over
    more elements without any of it being lost. Variance-preserving weights keep this norm.

    References
    ----------
    .. [1] He et al., Delving Deep into Rectifiers (2015), section 2.2, backward propagation.
    """
    return trace["activation_gradient"] * np.sqrt(trace["elements"])


def weighted(trace: xr.Dataset) -> xr.Dataset:
    """Select the layers that make up the depth: with weights of their own, one direction."""
    names, kinds = trace["layer"].to_numpy().astype(str), trace["kind"].to_numpy().astype(str)
    own = trace["weighted"].to_numpy() == 1
    deep = [not any(word in kind for word in SCALING) for kind in kinds]
    forward = [not name.endswith(".reverse") for name in names]
    return trace.isel(layer=np.flatnonzero(own & np.array(deep) & np.array(forward)))


def _over_depth(trace: xr.Dataset, limits: GradientFlowLimits) -> Finding:
    """Judge the trend of the gradient from output to input."""
    estimate, layers = depth_decades(trace), weighted(trace).sizes["layer"]
    finding = partial(Finding, code="gradient-over-depth", probe=PROBE, title="Gradient over depth")
    if layers < 2:
        return finding(
            severity=Severity.NOT_APPLICABLE,
            message=f"{layers} layer with weights: there is no depth to lose gradient over",
        )
    if np.isnan(estimate.value):
        return finding(
            severity=Severity.INCONCLUSIVE,
            message="no sample has a non-zero gradient at two layers",
            meaning="The loss does not depend on the layers, or it is zero on these samples.",
            action="Audit on samples with a loss above zero.",
            samples=trace.sizes["sample"],
        )
    size = abs(estimate.value)
    magnitude = _magnitude(estimate)
    severity = at_most(magnitude, limits.warn_decades, limits.fail_decades)
    factor, per_layer = 10**size, size / (layers - 1)
    towards = "shrinks" if estimate.value > 0 else "grows"
    return finding(
        severity=severity,
        message=f"from the last to the first of {layers} weighted layers the gradient {towards} "
        f"by a factor of {factor:.3g} ({per_layer:.2g} decades a layer)",
        meaning=_MEANING.get(severity, ""),
        action=_ACTION[towards] if severity in (Severity.WARN, Severity.FAIL) else "None.",
        value=magnitude.value,
        low=magnitude.low,
        high=magnitude.high,
        unit="decades",
        limit=limits.warn_decades,
        relation="<=",
        limit_source=source_of(limits, "warn_decades"),
        samples=estimate.samples,
    )


_MEANING = {
    Severity.PASS: "Depth does not keep the first layers from learning.",
    Severity.WARN: "The first and last layers learn at very different rates.",
    Severity.FAIL: "The first and last layers learn at rates more than a thousandfold apart.",
    Severity.INCONCLUSIVE: "The samples disagree too much to tell on which side of the limit.",
}

_ACTION = {
    "shrinks": "Add skip connections or normalization, or initialize the weights larger.",
    "grows": "Clip the gradient, or normalize or initialize the weights smaller.",
}


def _magnitude(estimate: Estimate) -> Estimate:
    """Size of a signed estimate, with the interval folded at zero."""
    ends = sorted((abs(estimate.low), abs(estimate.high)))
    low = 0.0 if estimate.low < 0 < estimate.high else ends[0]
    return Estimate(abs(estimate.value), low, ends[1], estimate.samples)


def _blocked(trace: xr.Dataset) -> Iterator[Finding]:
    """FAIL where the gradient is exactly zero for every sample although the loss has one."""
    gradient = trace["activation_gradient"]
    alive = (gradient > 0).any("layer")
    if not bool(alive.any()):
        return
    zero = (gradient.isel(sample=np.flatnonzero(alive)) == 0).all("sample").to_numpy()
    names = [str(name) for name in trace["layer"].to_numpy()[zero]]
    if names:
        yield Finding(
            code="gradient-blocked",
            probe=PROBE,
            severity=Severity.FAIL,
            title="Blocked gradient",
            message=f"the gradient is exactly zero in every sample at {listed(names)}",
            meaning="These layers cannot learn: something after them is dead or saturated.",
            action=f"See what follows {names[-1]}: dead ReLUs, saturated units, a detached path.",
            value=float(len(names)),
            unit="layers",
            limit=0.0,
            relation="<=",
            limit_source="by definition",
            samples=int(alive.sum()),
            where=tuple(names),
        )


def _unused(trace: xr.Dataset) -> Iterator[Finding]:
    """Name parameters without gradient, modules never called, and those that were not observed."""
    kinds = {
        "parameters get no gradient": _names(trace.attrs.get("without_gradient", "")),
        "modules are never called": _names(trace.attrs.get("not_called", "")),
        "layers are not called, but their weights are used": _names(
            trace.attrs.get("not_observed", "")
        ),
    }
    parts = [f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names]
    where = tuple(name for names in kinds.values() for name in names)
    if parts:
        yield Finding(
            code="unused-parts",
            probe=PROBE,
            severity=Severity.INFO,
            title="Unused parts",
            message="; ".join(parts),
            meaning="What gets no gradient or is not called takes no part in this objective on "
            "these data; the outputs of layers that are not called are not measured.",
            action="If that is not intended, check the forward pass and which output is audited.",
            value=float(len(where)),
            unit="parts",
            samples=trace.sizes["sample"],
            where=where,
        )


def _names(joined: str) -> list[str]:
    """Split a comma-joined attribute."""
    return [name.strip() for name in joined.split(",") if name.strip()]
