"""Verdict on how far back the final state of recurrent layers depends on the states before it."""

from collections.abc import Iterator
from functools import partial
from math import isinf, isnan, log

import numpy as np
import xarray as xr

from analyzer.decay import EXPONENTIAL, POWER, STRETCHED, UNDECIDED, Decay, decay
from analyzer.findings import Finding, Severity
from analyzer.limits import StateReachLimits
from analyzer.statistics import Values

PROBE = "state_reach"

_DECADE = log(10)


def state_reach(trace: xr.Dataset, limits: StateReachLimits) -> Iterator[Finding]:
    """Report the decay of the stack of recurrent layers that keeps its state longest.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.state_reach.StateReach`.
    limits : StateReachLimits
        Both are used.

    Yields
    ------
    Finding
        One.
    """
    decays = stack_decays(trace, limits)
    stack = slowest(decays)
    finding = partial(
        Finding, code="state-reach", probe=PROBE, title="State reach", unit="timesteps"
    )
    if not stack:
        yield finding(
            severity=Severity.INCONCLUSIVE,
            message="the final state depends on no state more than one step before it, or the "
            "sequences are too short to see how that decays",
            meaning="A recurrent layer that forgets at every step is no memory.",
            action="Audit longer sequences, or look at the gates.",
            samples=trace.sizes["sample"],
            where=tuple(decays),
        )
        return
    found = decays[stack]
    few = found.samples < limits.min_samples
    yield finding(
        severity=Severity.INCONCLUSIVE if few else Severity.INFO,
        message=_message(stack, found, len(decays)),
        meaning=_meaning(found),
        action=f"Audit at least {limits.min_samples:g} samples." if few else "None.",
        value=found.tau,
        low=found.low,
        high=found.high,
        samples=found.samples,
        where=layers_of(trace, stack),
    )


def stack_decays(trace: xr.Dataset, limits: StateReachLimits) -> dict[str, Decay]:
    """Fit the decay of every stack's derivative by its earlier states."""
    return {
        stack: decay(
            joint(trace, stack) * _DECADE,
            trace["lag"].to_numpy(),
            limits.clear,
            limits.min_samples,
        )
        for stack in trace["stack"].to_numpy().astype(str)
    }


def slowest(decays: dict[str, Decay]) -> str:
    """Name the stack with the longest decay time; empty where none is known."""
    known = {stack: found.tau for stack, found in decays.items() if not isnan(found.tau)}
    return max(known, key=lambda stack: known[stack], default="")


def joint(trace: xr.Dataset, stack: str) -> Values:
    """Decimal logarithm of the norm by the states of all layers of a stack: (sample, lag)."""
    own = trace["state_reach"].isel(layer=trace["stack_of"].to_numpy() == stack)
    logs = own.transpose("sample", "layer", "lag").to_numpy() * _DECADE
    with np.errstate(invalid="ignore"):
        return np.asarray(np.logaddexp.reduce(2 * logs, axis=1) / 2 / _DECADE)


def layers_of(trace: xr.Dataset, stack: str) -> tuple[str, ...]:
    """Name the layers of a stack."""
    own = trace["layer"].to_numpy()[trace["stack_of"].to_numpy() == stack]
    return tuple(str(name) for name in own)


def law(found: Decay) -> str:
    """Name a law with its exponent, in words."""
    named = {
        EXPONENTIAL: "exponentially",
        POWER: f"as a power law with exponent {found.exponent:.2g}",
        STRETCHED: f"as a stretched exponential with exponent {found.exponent:.2g}",
        UNDECIDED: "by no clear law",
    }
    return named[found.law]


def _message(stack: str, found: Decay, stacks: int) -> str:
    """Say how fast the derivative decays."""
    longest = f" (of {stacks}, the one that keeps longest)" if stacks > 1 else ""
    what = f"the derivative of the final state of {stack}{longest} by earlier states"
    over = f"over {found.lags[-1]} lags"
    if isinf(found.tau):
        return f"{what} does not fall {over}"
    mean = "" if found.law == EXPONENTIAL else " on average"
    steps = f"every {found.tau:.3g} timesteps{mean} {over}"
    return f"{what} falls by a factor of e {steps}, {law(found)}"


def _meaning(found: Decay) -> str:
    """Say what that is, and what it is not."""
    if isinf(found.tau):
        start = "Changes of the state do not fade: gradients do not vanish over time, and may grow."
    elif found.high > found.lags[-1]:
        start = "The state fades more slowly than the sequences are long."
    else:
        start = "This is how long a change of the state is felt, and a training signal survives."
    return f"{start} What the network uses is the memory horizon."
