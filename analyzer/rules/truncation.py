"""Verdicts on the gradient that truncated backpropagation through time loses."""

from collections.abc import Iterator
from functools import partial
from math import isnan, nan
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import TruncationLimits, source_of
from analyzer.rules.jackknife import jackknife_interval
from analyzer.rules.verdicts import Estimate, at_least

PROBE = "truncation"

Values = npt.NDArray[np.float64]


class Curve(NamedTuple):
    """A number for every chunk length, with its 95 % interval."""

    value: Values
    low: Values
    high: Values


def truncation(trace: xr.Dataset, limits: TruncationLimits) -> Iterator[Finding]:
    """Judge the chunk length used in training, or say which one would do.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.truncation.Truncation`.
    limits : TruncationLimits
        All are used.

    Yields
    ------
    Finding
        One.
    """
    curve = cosine(trace)
    if isnan(curve.value[-1]):
        yield Finding(
            code="truncation-loss",
            probe=PROBE,
            severity=Severity.INCONCLUSIVE,
            title="Truncation",
            message="the gradient of the recurrent weights is zero",
            meaning="The loss of these samples is zero, or does not depend on the weights.",
            action="Audit samples with a loss above zero.",
            samples=int(trace.attrs["samples"]),
        )
    elif isnan(limits.trained_with):
        yield _enough(trace, curve, limits)
    else:
        yield _trained(trace, curve, limits)


def cosine(trace: xr.Dataset) -> Curve:
    """Cosine of the truncated with the whole gradient of all recurrent weights."""
    return _curve(trace, "cosine", -1.0, 1.0)


def error(trace: xr.Dataset) -> Curve:
    """Norm of what is lost, as a share of that of the whole gradient of all recurrent weights."""
    return _curve(trace, "error", 0.0, np.inf)


def _curve(trace: xr.Dataset, name: str, least: float, most: float) -> Curve:
    """Put jackknife intervals around a number."""
    value = trace[f"{name}_all"].to_numpy().astype(np.float64)
    without = trace[f"{name}_without_all"].transpose("group", "chunk_length").to_numpy()
    low, high = jackknife_interval(value, without, trace["group_size"].to_numpy())
    return Curve(value, np.clip(low, least, most), np.clip(high, least, most))


def sufficient(trace: xr.Dataset, curve: Curve, limit: float) -> Estimate:
    """Find the shortest chunks that keep the direction of the gradient.

    Those at which, and above which, the cosine is not below the limit. The ends of the interval are
    where the same holds for the upper and for the lower end of the cosine's interval. All nan where
    the whole gradient is zero.
    """
    lengths, samples = trace["chunk_length"].to_numpy(), int(trace.attrs["samples"])
    if isnan(curve.value[-1]):
        return Estimate(samples=samples)

    def shortest(values: Values) -> float:
        below = np.flatnonzero(~(values >= limit))
        return float(lengths[below[-1] + 1 if below.size else 0])

    ends = (nan, nan)
    if np.isfinite(curve.low[-1]):
        ends = shortest(curve.high), shortest(curve.low)
    return Estimate(shortest(curve.value), *ends, samples)


def _enough(trace: xr.Dataset, curve: Curve, limits: TruncationLimits) -> Finding:
    """Say which chunks are long enough."""
    found = sufficient(trace, curve, limits.cosine)
    length = int(trace.attrs["sequence_length"])
    finding = partial(
        Finding,
        code="truncation-loss",
        probe=PROBE,
        title="Truncation",
        unit="timesteps",
        value=found.value,
        low=found.low,
        high=found.high,
        samples=found.samples,
    )
    message, meaning = _at(trace, curve, found.value, limits), _OTHER
    action = (
        f"If training is truncated, use chunks of {found.value:g} timesteps or more; set the limit "
        "truncation.trained_with to have the length used judged."
    )
    if found.value >= length:
        message = (
            f"detaching the state even every {trace['chunk_length'].to_numpy()[-2]} of {length} "
            "timesteps turns the gradient of the recurrent weights (cosine below "
            f"{limits.cosine:g}): how long chunks have to be is beyond these sequences"
        )
        meaning = f"Training needs the whole sequences, and may need longer ones. {_MEMORY}"
        action = "Do not truncate, and audit longer sequences to see where it ends."
    if found.samples < limits.min_samples:
        return finding(
            severity=Severity.INCONCLUSIVE,
            message=message,
            meaning=f"{found.samples} samples are too few for it to be judged.",
            action=f"Audit at least {limits.min_samples:g} samples.",
        )
    return finding(severity=Severity.INFO, message=message, meaning=meaning, action=action)


_MEMORY = (
    "What the network remembers is another question: its state is handed on from chunk to chunk, "
    "so that its memory can reach further back than the chunks."
)

_OTHER = f"Shorter chunks train in another direction. {_MEMORY}"


def _at(trace: xr.Dataset, curve: Curve, length: float, limits: TruncationLimits) -> str:
    """Say what chunks of some length keep, and of half that length."""
    lengths = trace["chunk_length"].to_numpy()
    place = int(np.flatnonzero(lengths == length)[0])
    text = (
        f"detaching the state every {length:g} of {trace.attrs['sequence_length']} timesteps keeps "
        f"the direction of the recurrent weights' gradient (cosine {curve.value[place]:.3g}, at "
        f"least {limits.cosine:g} from there on), and differs by "
        f"{100 * error(trace).value[place]:.2g} % of its norm"
    )
    if not place:
        return text
    return f"{text}; every {lengths[place - 1]}: cosine {curve.value[place - 1]:.3g}"


def _trained(trace: xr.Dataset, curve: Curve, limits: TruncationLimits) -> Finding:
    """Judge the chunk length used in training."""
    used, length = limits.trained_with, int(trace.attrs["sequence_length"])
    lengths = trace["chunk_length"].to_numpy()
    finding = partial(
        Finding,
        code="truncation-loss",
        probe=PROBE,
        title="Truncation",
        limit=limits.cosine,
        relation=">=",
        limit_source=source_of(limits, "cosine"),
        samples=int(trace.attrs["samples"]),
    )
    if used >= length or used < 1:
        return finding(
            severity=Severity.INCONCLUSIVE,
            message=f"the sequences have {length} timesteps, so that chunks of {used:g} cut nothing"
            if used >= length
            else f"chunks of {used:g} timesteps are not possible",
            meaning="What training loses on longer sequences cannot be seen on these.",
            action="Audit sequences longer than the chunks of the training.",
        )
    place = int(np.flatnonzero(lengths <= used)[-1])
    value, low, high = (float(part[place]) for part in curve)
    found = Estimate(value, low, high, int(trace.attrs["samples"]))
    severity = at_least(found, limits.cosine)
    if found.samples < limits.min_samples:
        severity = Severity.INCONCLUSIVE
    # A record that was measured without knowing of this length has the powers of two alone.
    near = "" if lengths[place] == used else f" (measured with {lengths[place]})"
    meaning, action = _judged(severity, found, sufficient(trace, curve, limits.cosine), limits)
    return finding(
        severity=severity,
        message=f"with the chunks of {used:g} timesteps of the training{near} the gradient of the "
        f"recurrent weights has a cosine of {found.value:.3g} with the whole one, and differs by "
        f"{100 * error(trace).value[place]:.2g} % of its norm{_worst(trace, place)}",
        meaning=meaning,
        action=action,
        value=found.value,
        low=found.low,
        high=found.high,
        where=tuple(str(name) for name in trace["layer"].to_numpy()),
    )


def _worst(trace: xr.Dataset, place: int) -> str:
    """Name the layer whose gradient turns most."""
    if trace.sizes["layer"] < 2:
        return ""
    values = trace["cosine"].isel(chunk_length=place).to_numpy()
    if np.isnan(values).all():
        return ""
    least = int(np.nanargmin(values))
    return f"; least in {trace['layer'].to_numpy()[least]}, {values[least]:.3g}"


def _judged(
    severity: Severity, found: Estimate, enough: Estimate, limits: TruncationLimits
) -> tuple[str, str]:
    """Meaning and action."""
    if found.samples < limits.min_samples:
        meaning = f"{found.samples} samples are too few for it to be judged."
        return meaning, f"Audit at least {limits.min_samples:g} samples."
    if severity is Severity.PASS:
        return f"Truncation hardly changes what is learned from these sequences. {_MEMORY}", "None."
    if severity is Severity.INCONCLUSIVE:
        return f"The samples disagree too much to tell. {_MEMORY}", "Audit more samples."
    meaning = f"Dependencies longer than the chunks are not trained. {_MEMORY}"
    return meaning, f"Train with chunks of {enough.value:g} timesteps or more, if memory allows."
