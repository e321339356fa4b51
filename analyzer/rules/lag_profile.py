"""Verdict on which inputs, by their lag, the last output uses."""

from collections.abc import Iterator
from functools import partial
from math import isnan, nan

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import LagProfileLimits
from analyzer.rules.verdicts import Estimate
from analyzer.statistics import Values, horizon_interval

PROBE = "lag_profile"


def lag_profile(trace: xr.Dataset, limits: LagProfileLimits) -> Iterator[Finding]:
    """Report the lag within which nearly all that single inputs are worth lies.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.lag_profile.LagProfile`.
    limits : LagProfileLimits
        Both are used.

    Yields
    ------
    Finding
        One.
    """
    used, length = lag_in_use(trace, limits.mass), int(trace.attrs["sequence_length"])
    finding = partial(
        Finding,
        code="lag-use",
        probe=PROBE,
        title="Lags in use",
        unit="timesteps",
        samples=used.samples,
    )
    if isnan(used.value):
        yield finding(
            severity=Severity.INCONCLUSIVE,
            message="replacing inputs one lag at a time by another sample's does not change the "
            f"final loss ({used.samples} samples)",
            meaning="No single input matters, or the samples are alike.",
            action="See the memory horizon, which replaces all older inputs at once.",
        )
        return
    few = used.samples < limits.min_samples
    reaches_end = used.high >= length - 1
    yield finding(
        severity=Severity.INCONCLUSIVE if few else Severity.INFO,
        message=f"{limits.mass:.0%} of what single inputs change in the final loss "
        f"{_extent(used.value, length, reaches_end)}; most per input {_place(trace)}",
        meaning=("The sequences are too short to see it end. " if reaches_end else "")
        + "This is what the network uses one input at a time; how far back it depends on its "
        "inputs is the memory horizon.",
        action=f"Audit at least {limits.min_samples:g} samples." if few else "None.",
        value=used.value,
        low=used.low,
        high=used.high,
    )


def _extent(oldest: float, length: int, reaches_end: bool) -> str:
    """Say which inputs hold the change, with "at least" where the sequences may be too short."""
    if oldest >= length - 1:
        return f"takes all {length} inputs"
    at_least = "at least " if reaches_end else ""
    return f"lies within {at_least}the last {oldest + 1:g} of {length} inputs"


def lag_in_use(trace: xr.Dataset, mass: float) -> Estimate:
    """Find the oldest lag needed to hold ``mass`` of the change of the loss over all lags.

    The change is taken without its sign: on single samples and inputs the loss also falls, which
    shows that the input is used, too. nan where no single input changes the loss.
    """
    left, edges = beyond(trace)
    if not left[:, 0].any():
        return Estimate(samples=len(left))
    # Where 1 - mass of the change is left is a horizon like any other.
    found = horizon_interval(left, edges, 1 - mass)
    after = edges[int(np.searchsorted(edges, found.value)) + 1]
    return Estimate(after - 1, found.low, max(found.high, after) - 1, len(left))


def beyond(trace: xr.Dataset) -> tuple[Values, Values]:
    """Change of the loss over all windows from each on, (sample, edge), and their lags, (edge,).

    The last edge is the length of the sequences, where nothing is left. Nothing changes at lags
    that a sample does not have.
    """
    change = abs(trace["excess_loss"]).transpose("sample", "lag").to_numpy()
    left = np.nan_to_num(change)[:, ::-1].cumsum(1)[:, ::-1]
    edges = np.append(trace["lag"].to_numpy(), trace.attrs["sequence_length"])
    return np.pad(left, ((0, 0), (0, 1))), edges.astype(np.float64)


def per_input(trace: xr.Dataset) -> Values:
    """Change of the loss, without its sign, per input replaced: (sample, lag)."""
    values = abs(trace["excess_loss"]) / trace["width"]
    return values.transpose("sample", "lag").to_numpy().astype(np.float64)


def _place(trace: xr.Dataset) -> str:
    """Say where one input is worth most."""
    values = per_input(trace)
    known = np.isfinite(values).sum(0)
    mean = np.nansum(values, 0) / np.where(known, known, nan)
    at = int(np.nanargmax(mean))
    first, width = int(trace["lag"][at]), int(trace["width"][at])
    return f"at lag {first}" if width == 1 else f"at lags {first} to {first + width - 1}"
