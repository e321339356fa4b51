"""Verdicts on the theoretical receptive field."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import ReceptiveFieldLimits, source_of
from analyzer.rules.verdicts import listed

PROBE = "receptive_field"

CONVOLUTION = "Conv"
"""What the kind of a convolution has in its name."""


def receptive_field(trace: xr.Dataset, limits: ReceptiveFieldLimits) -> Iterator[Finding]:
    """Judge the field of the deepest convolution, and name layers that add no context.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.receptive_field.ReceptiveField`.
    limits : ReceptiveFieldLimits
        ``unproductive`` is used.

    Yields
    ------
    Finding
        The field against the input; unproductive layers; where there are any, windows wider than
        what they slide over, and unknown fields.
    """
    convolutions = trace.isel(layer=np.flatnonzero(sliding(trace)))
    if convolutions.sizes["layer"]:
        yield _coverage(convolutions)
        yield _unproductive(convolutions, limits)
        yield from _wide(convolutions)
    else:
        yield _functions_only()
    yield from _unknown(trace)


def _functions_only() -> Finding:
    """Say that no layer is there to name."""
    return Finding(
        code="theoretical-field",
        probe=PROBE,
        severity=Severity.INCONCLUSIVE,
        title="Theoretical field",
        message="the model calls its convolutions as functions, not as modules",
        meaning="Fields are told of modules; there is none that slides over the input.",
        action="Make modules of them (torch.nn.Conv1d, Conv2d, ...) to see the field of each.",
    )


def sliding(trace: xr.Dataset) -> np.ndarray:
    """Tell which layers are convolutions over positions; those of a pooled vector are not.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.receptive_field.ReceptiveField`.

    Returns
    -------
    ndarray, shape (layer,)
        bool.
    """
    kinds = trace["kind"].to_numpy().astype(str)
    mapped = trace["jump"].notnull().any("axis").to_numpy()
    found: np.ndarray = np.array([CONVOLUTION in kind for kind in kinds]) & mapped
    return found


def _coverage(trace: xr.Dataset) -> Finding:
    """Compare the largest theoretical field of a convolution with the input."""
    inputs = trace["input_size"].to_numpy()
    last = trace.isel(layer=-1)
    size, name = last["size_without_gates"].to_numpy(), str(last["layer"].item())
    if np.isnan(size).any():
        return Finding(
            code="theoretical-field",
            probe=PROBE,
            severity=Severity.INCONCLUSIVE,
            title="Theoretical field",
            message=f"the field of the last convolution ({name}) is unknown",
            meaning=f"{last['reason'].item()}.",
            samples=1,
            where=(name,),
        )
    shares = size / inputs
    share = float(shares.min())
    along = "" if np.ptp(shares) == 0 else f" along {trace['axis'].to_numpy()[shares.argmin()]}"
    covered = "covers the input" if share >= 1 else f"sees {share:.0%} of the input{along}"
    meaning = (
        "No unit of a convolution can use what lies outside of its field."
        if share < 1
        else "Units of the last convolution can use the whole input."
    )
    return Finding(
        code="theoretical-field",
        probe=PROBE,
        severity=Severity.INFO,
        title="Theoretical field",
        message=f"a unit of the last convolution ({name}) {covered}: {by(size)} of {by(inputs)} "
        f"positions{seconds(trace, float(size[0]))}",
        meaning=" ".join(filter(None, [meaning, onwards(trace)])),
        value=float(np.min(size)),
        unit="positions",
        samples=1,
        where=(name,),
    )


def onwards(trace: xr.Dataset) -> str:
    """Say that the field of a hybrid network does not end with its convolutions.

    Parameters
    ----------
    trace : Dataset
        Of either field.

    Returns
    -------
    str
        Where the rest is told; empty if there is no recurrent layer.
    """
    recurrent = str(trace.attrs.get("recurrent", ""))
    if not recurrent:
        return ""
    return (
        f"Behind it recurrent layers ({listed(recurrent.split(', '))}) reach further along the "
        "sequence: see Memory horizon for the whole network."
    )


def past_input(trace: xr.Dataset) -> tuple[xr.Dataset, np.ndarray]:
    """Tell which convolutions only read what already depends on the whole input.

    Convolutions of a pooled vector are left out, and those behind an operation that sees
    everything at any input size.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.receptive_field.ReceptiveField`.

    Returns
    -------
    Dataset
        The other convolutions.
    ndarray, shape (layer,)
        bool, for each of them.
    """
    inputs = trace["input_size"]
    spread = (trace["minimal_input"] == inputs).all("axis") & (trace["status"] != "EXACT")
    kept = trace.isel(layer=np.flatnonzero(sliding(trace) & ~spread.to_numpy()))
    return kept, (kept["minimal_input"] >= inputs).all("axis").to_numpy()


def _unproductive(trace: xr.Dataset, limits: ReceptiveFieldLimits) -> Finding:
    """WARN on convolutions whose every input already covers the input of the network."""
    inputs, total = trace["input_size"], trace.sizes["layer"]
    trace, covered = past_input(trace)
    names = [str(name) for name in trace["layer"].to_numpy()[covered]]
    meaning, action = _remedy(trace, covered)
    return Finding(
        code="unproductive-layers",
        probe=PROBE,
        severity=Severity.WARN if len(names) > limits.unproductive else Severity.PASS,
        title="Unproductive layers",
        message=f"{len(names)} of {total} convolutions read maps that already cover the whole "
        f"input ({by(inputs.to_numpy())} positions)" + (f": {listed(names)}" if names else ""),
        meaning=meaning,
        action=action,
        value=float(len(names)),
        unit="layers",
        limit=limits.unproductive,
        relation="<=",
        limit_source=source_of(limits, "unproductive"),
        samples=1,
        where=tuple(names),
    )


def _remedy(trace: xr.Dataset, covered: np.ndarray) -> tuple[str, str]:
    """Say which input or which depth would use all of the network: meaning and action."""
    if not len(covered):
        return "All of them read what a global operation has spread over the whole map.", "None."
    most = trace["minimal_input"].max("layer").to_numpy()
    if not covered.any():
        enough = by(np.minimum(most + 1, trace["input_size"].to_numpy()))
        return f"Every convolution adds context, and would with inputs down to {enough}.", "None."
    meaning = (
        "They cannot add context; whether they add anything else, ablation has to show. Inputs of "
        f"more than {by(most)} positions would use every convolution."
    )
    if covered.all():
        return meaning, "Use larger inputs."
    last = int(np.flatnonzero(~covered)[-1])
    kept = int((~covered).sum())
    cut = f", cut after {trace['layer'].to_numpy()[last]}" if kept == last + 1 else ""
    return meaning, (
        f"Use larger inputs, or compare with a network of the {kept} convolutions that add "
        f"context{cut}."
    )


def _wide(trace: xr.Dataset) -> Iterator[Finding]:
    """Name convolutions whose window is wider than the map that they read."""
    own = trace["minimal"] - trace["minimal_input"]
    wide = (own >= trace["input_size"]).all("axis").to_numpy()
    names = [str(name) for name in trace["layer"].to_numpy()[wide]]
    if names:
        yield Finding(
            code="window-wider-than-map",
            probe=PROBE,
            severity=Severity.INFO,
            title="Windows wider than their map",
            message=f"{len(names)} of {trace.sizes['layer']} convolutions have a window wider than "
            f"the map it slides over: {listed(names)}",
            meaning="At every position part of their weights only meets padding.",
            action="Use larger inputs, fewer strides, or smaller kernels there.",
            value=float(len(names)),
            unit="layers",
            samples=1,
            where=tuple(names),
        )


def _unknown(trace: xr.Dataset) -> Iterator[Finding]:
    """Name the layers whose field could not be worked out."""
    unknown = trace["status"].to_numpy().astype(str) == "UNKNOWN"
    names = [str(name) for name in trace["layer"].to_numpy()[unknown]]
    if names:
        reason = str(trace["reason"].to_numpy()[unknown][0])
        yield Finding(
            code="field-unknown",
            probe=PROBE,
            severity=Severity.INCONCLUSIVE,
            title="Unknown fields",
            message=f"the field of {len(names)} layers is unknown from {names[0]} on: {reason}",
            meaning="They are taken to depend on the whole input.",
            samples=1,
            where=tuple(names),
        )


def by(sizes: np.ndarray) -> str:
    """Write sizes per axis as 11 x 11, or 11 where there is one axis."""
    return " x ".join(f"{size:g}" for size in np.atleast_1d(sizes))


def seconds(trace: xr.Dataset, size: float) -> str:
    """Write a size along time in seconds too, in brackets; empty where the rate is unknown."""
    if "sample_rate" not in trace.attrs:
        return ""
    return f" ({size / float(trace.attrs['sample_rate']):.3g} s)"
