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
        Two: the field against the input, and unproductive layers.
    """
    kinds = trace["kind"].to_numpy().astype(str)
    convolutions = trace.isel(layer=np.flatnonzero([CONVOLUTION in kind for kind in kinds]))
    yield _coverage(convolutions)
    yield _unproductive(convolutions, limits)
    yield from _unknown(trace)


def _coverage(trace: xr.Dataset) -> Finding:
    """Compare the largest theoretical field of a convolution with the input."""
    inputs = trace["input_size"].to_numpy()
    last = trace.isel(layer=-1)
    size, name = last["size_without_gates"].to_numpy(), str(last["layer"].item())
    share = float(np.min(size / inputs))
    covered = "covers the input" if share >= 1 else f"sees {share:.0%} of the input"
    return Finding(
        code="theoretical-field",
        probe=PROBE,
        severity=Severity.INFO,
        title="Theoretical field",
        message=f"a unit of the last convolution ({name}) {covered}: {by(size)} of {by(inputs)} "
        "positions",
        meaning="No unit of a convolution can use what lies outside of its field."
        if share < 1
        else "Units of the last convolution can use the whole input.",
        value=float(np.min(size)),
        unit="positions",
        samples=1,
        where=(name,),
    )


def _unproductive(trace: xr.Dataset, limits: ReceptiveFieldLimits) -> Finding:
    """WARN on convolutions whose every input already covers the input of the network."""
    inputs = trace["input_size"]
    covered = (trace["minimal_input"] >= inputs).all("axis").to_numpy()
    names = [str(name) for name in trace["layer"].to_numpy()[covered]]
    total = trace.sizes["layer"]
    return Finding(
        code="unproductive-layers",
        probe=PROBE,
        severity=Severity.WARN if len(names) > limits.unproductive else Severity.PASS,
        title="Unproductive layers",
        message=f"{len(names)} of {total} convolutions only see inputs that already cover the "
        f"whole {by(inputs.to_numpy())} input" + (f": {listed(names)}" if names else ""),
        meaning="They cannot add context; whether they add anything else, ablation has to show."
        if names
        else "Every convolution adds context.",
        action="Use larger inputs, or remove layers from the end and compare."
        if names
        else "None.",
        value=float(len(names)),
        unit="layers",
        limit=limits.unproductive,
        relation="<=",
        limit_source=source_of(limits, "unproductive"),
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
