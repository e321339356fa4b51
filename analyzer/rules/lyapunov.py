"""Verdicts on whether recurrent states are stable: whether small changes fade or grow."""

from collections.abc import Iterator
from functools import partial
from math import exp, inf, nan
from typing import Any

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import LyapunovLimits, source_of
from analyzer.rules.verdicts import Estimate, at_most, listed
from analyzer.statistics import bootstrap_interval

PROBE = "lyapunov"

MOST = 700.0
"""Exponent beyond which its exponential is no number any more."""


def lyapunov(trace: xr.Dataset, limits: LyapunovLimits) -> Iterator[Finding]:
    """Judge the largest Lyapunov exponent of every recurrent layer.

    It is a number about stability: its time constant is not how long the network remembers.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.lyapunov.Lyapunov`.
    limits : LyapunovLimits
        ``growth``, ``min_steps`` and ``min_samples`` are used.

    Yields
    ------
    Finding
        One.
    """
    steps = timesteps(trace)
    known = {
        layer: one
        for layer, one in largest(trace).items()
        if steps[layer] >= limits.min_steps and one.samples >= limits.min_samples
    }
    if not known:
        yield _too_little(trace, limits)
        return
    verdicts = {layer: _severity(one, limits.growth / steps[layer]) for layer, one in known.items()}
    beyond = [layer for layer in known if verdicts[layer] is Severity.WARN]
    open_ = [layer for layer in known if verdicts[layer] is Severity.INCONCLUSIVE]
    worst = max(beyond or open_ or known, key=lambda layer: known[layer].value)
    finding = partial(_finding, known[worst], steps[worst], limits, severity=verdicts[worst])
    if beyond:
        yield finding(**_growing(beyond, worst, known[worst].value, steps[worst]))
    elif open_:
        yield finding(**_open(worst, known[worst].value))
    else:
        yield finding(**_stable(worst, known[worst].value))


def _severity(one: Estimate, limit: float) -> Severity:
    """Judge an exponent; what does not grow is told, as no limit says how fast it should fade."""
    severity = at_most(one, limit)
    return Severity.INFO if severity is Severity.PASS else severity


def largest(trace: xr.Dataset) -> dict[str, Estimate]:
    """Average the largest exponent of each layer over its trajectories [1 / timestep]."""
    return {layer: spectra[0] for layer, spectra in spectrum(trace).items()}


def spectrum(trace: xr.Dataset) -> dict[str, list[Estimate]]:
    """Average every exponent of each layer over its trajectories [1 / timestep]."""
    found = {}
    for index, layer in enumerate(map(str, trace["layer"].to_numpy())):
        values = trace["exponents"].isel(layer=index).transpose("sample", "exponent").to_numpy()
        values = values[~np.isnan(values[:, 0])]
        values = values[:, ~np.isnan(values).all(0)] if len(values) else values[:, :1]
        if not len(values):
            found[layer] = [Estimate()]
            continue
        low, high = bootstrap_interval(values, np.mean)
        found[layer] = [
            Estimate(float(mean), float(a), float(b), len(values))
            for mean, a, b in zip(values.mean(0), low, high, strict=True)
        ]
    return found


def timesteps(trace: xr.Dataset) -> dict[str, float]:
    """Timesteps that the exponents of each layer rest on: the median over its trajectories."""
    steps = trace["steps"].transpose("sample", "layer").to_numpy()
    known = [column[~np.isnan(column)] for column in steps.T]
    medians = [float(np.median(column)) if column.size else 0.0 for column in known]
    return dict(zip(map(str, trace["layer"].to_numpy()), medians, strict=True))


def time_constant(exponent: float) -> float:
    """Timesteps in which a change of the state fades to 1/e of it; infinite where it does not."""
    return inf if exponent >= 0 else -1 / exponent


def _finding(one: Estimate, steps: float, limits: LyapunovLimits, **words: Any) -> Finding:
    """Put the numbers of the layer that is least stable into a finding."""
    return Finding(
        code="state-stability",
        probe=PROBE,
        title="State stability",
        value=one.value,
        low=one.low,
        high=one.high,
        unit="1 / timestep",
        limit=limits.growth / steps,
        relation="<=",
        limit_source=source_of(limits, "growth"),
        samples=one.samples,
        **words,
    )


def _growing(beyond: list[str], worst: str, exponent: float, steps: float) -> dict[str, Any]:
    """Word that states grow."""
    more = f"; unstable are {listed(beyond)}" if len(beyond) > 1 else ""
    return {
        "message": f"a small change of the state of {worst} grows {_per_step(exponent)}, "
        f"{exp(min(exponent * steps, MOST)):.3g} times over {steps:g} timesteps{more}",
        "meaning": "The state is chaotic on these data: it magnifies noise, and training "
        "gradients through it explode.",
        "action": f"Clip the gradient in training, and make the recurrent weights of {worst} "
        "smaller (weight decay, orthogonal start).",
        "where": tuple(beyond),
    }


def _open(worst: str, exponent: float) -> dict[str, Any]:
    """Word that the trajectories disagree."""
    return {
        "message": f"whether small changes of the state of {worst} grow is open: "
        f"{_per_step(exponent)}",
        "meaning": "The interval straddles the limit.",
        "action": "Follow more trajectories, or longer ones (setting lyapunov.samples).",
        "where": (worst,),
    }


def _stable(worst: str, exponent: float) -> dict[str, Any]:
    """Word that nothing grows."""
    constant = time_constant(exponent)
    course = "stay" if constant == inf else f"fade to 1/e in {constant:.3g} timesteps"
    return {
        "message": f"small changes of the states do not grow; those that last longest, in {worst}, "
        f"{course} (change {_per_step(exponent)})",
        "meaning": "The states are stable on these data. The time constant is that of a "
        "disturbance, not how long the network remembers.",
        "where": (worst,),
    }


def _per_step(exponent: float) -> str:
    """Write what a change is multiplied by."""
    return f"by a factor of {exp(min(exponent, MOST)):.3g} per timestep"


def _too_little(trace: xr.Dataset, limits: LyapunovLimits) -> Finding:
    """Say what is missing."""
    steps = max(timesteps(trace).values(), default=0.0)
    found = max((one.samples for one in largest(trace).values()), default=0)
    enough = steps >= limits.min_steps
    return Finding(
        code="state-stability",
        probe=PROBE,
        severity=Severity.INCONCLUSIVE,
        title="State stability",
        message=f"{found} trajectories of {steps:g} timesteps after the transient are too few to "
        "say whether small changes of the states fade or grow",
        meaning="An exponent is an average over time, and its interval one over trajectories.",
        action=f"Audit at least {limits.min_samples:g} samples."
        if enough
        else f"Audit sequences with at least {limits.min_steps:g} timesteps after the transient.",
        value=nan,
        samples=found,
        where=tuple(map(str, trace["layer"].to_numpy())),
    )
