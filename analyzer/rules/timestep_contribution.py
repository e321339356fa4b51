"""Verdicts on which timesteps train the weights that all timesteps share."""

from collections.abc import Iterator, Sequence
from functools import partial
from math import isnan

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import TimestepContributionLimits, source_of
from analyzer.rules.jackknife import jackknife_interval
from analyzer.rules.verdicts import Estimate, at_least
from analyzer.statistics import bootstrap_interval

PROBE = "timestep_contribution"

REVERSE = ".reverse"
"""How the name of a layer ends that reads the sequence backwards."""

Values = npt.NDArray[np.float64]


def timestep_contribution(
    trace: xr.Dataset, limits: TimestepContributionLimits
) -> Iterator[Finding]:
    """Judge how many of the last timesteps train the weights, and whether early and late agree.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.timestep_contribution.TimestepContribution`.
    limits : TimestepContributionLimits
        All are used.

    Yields
    ------
    Finding
        Two.
    """
    yield _share(trace, limits)
    yield _conflict(trace, limits)


def matrices(trace: xr.Dataset) -> list[int]:
    """Places of the weight matrices among the weights: biases are left out."""
    names = trace["parameter"].to_numpy().astype(str)
    return [place for place, name in enumerate(names) if name.startswith("weight")]


def by_lag(trace: xr.Dataset, name: str, place: int) -> Values:
    """Shares of one weight by lag: (sample, lag).

    Counted back, in the order of reading, from the last timestep that adds anything: what is read
    after the last output adds nothing at all. What padding at the end of a sample adds counts for
    its last timestep.
    """
    values = trace[name].isel(weight=place).transpose("sample", "timestep").to_numpy()
    lengths = trace["length"].isel(weight=place).to_numpy().astype(int)
    reverse = str(trace["layer"].to_numpy()[place]).endswith(REVERSE)
    ordered = np.full(values.shape, np.nan)
    for row, (sample, length) in enumerate(zip(values, lengths, strict=True)):
        own = sample[~np.isnan(sample)]
        if not reverse:
            padding = own[length:].sum()
            own = own[:length][::-1].copy()
            own[:1] += padding
        own = own[(own != 0).argmax() :] if own.any() else own
        ordered[row, : own.size] = own
    return ordered


def steps_holding(shares: npt.ArrayLike, held: float) -> Values:
    """Count the last timesteps that hold a part of what all add up to.

    Parameters
    ----------
    shares : array_like, shape (..., lag)
        Nan past the first timestep. They may be negative: counted are as many timesteps as the sum
        needs to come to the part and to stay there.
    held : float
        The part, in (0, 1).

    Returns
    -------
    ndarray, shape (...)
        Timesteps; nan where no share is known or they add up to nothing.
    """
    values = np.asarray(shares, np.float64)
    total = np.nansum(values, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        reached = np.nan_to_num(values).cumsum(-1) / total[..., None]
    below = reached < held
    last = below.shape[-1] - below[..., ::-1].argmax(-1)
    steps = np.where(below.any(-1), last + 1.0, 1.0)
    return np.where(np.isfinite(total) & (total > 0), steps, np.nan)


def sample_steps(trace: xr.Dataset, limits: TimestepContributionLimits) -> dict[int, Estimate]:
    """Timesteps that hold the gradient of a sample's own loss, median over samples, by weight."""
    found = {}
    for place in matrices(trace):
        steps = steps_holding(by_lag(trace, "own_share", place), limits.held)
        found[place] = _median(steps)
    return found


def sample_conflict(trace: xr.Dataset) -> dict[int, Estimate]:
    """Cosine of the halves of a sample, median over samples, by weight."""
    values = trace["sample_conflict"].transpose("sample", "weight").to_numpy()
    return {place: _median(values[:, place]) for place in matrices(trace)}


def mean_conflict(trace: xr.Dataset, place: int) -> Estimate:
    """Cosine of the halves of the mean gradient of one weight."""
    value = float(trace["conflict"].to_numpy()[place])
    without = trace["conflict_without"].isel(weight=place).to_numpy()
    low, high = (float(end) for end in jackknife_interval(value, without))
    return Estimate(value, max(low, -1.0), min(high, 1.0), len(without))


def coherence(trace: xr.Dataset, place: int) -> float:
    """How much longer the mean gradient is than that of samples that have nothing in common.

    The squared norm of their sum over the sum of their squared norms: 1 on average for samples
    whose gradients are independent and zero on average, the number of samples for identical ones.
    """
    samples = trace["sample_gradient"].isel(weight=place).to_numpy()
    total = len(samples) * float(trace["gradient"].to_numpy()[place])
    squares = float(np.square(samples).sum())
    return total**2 / squares if squares > 0 else float("nan")


def entrance(trace: xr.Dataset, steps: dict[int, Estimate]) -> int | None:
    """Weight by which the inputs enter the recurrence: of several, the one trained furthest back.

    None where no first layer has a gradient.
    """
    layers = trace["layer"].to_numpy().astype(str)
    names = trace["parameter"].to_numpy().astype(str)
    first = [
        place
        for place, found in steps.items()
        if names[place] == "weight_ih"
        and layers[place].removesuffix(REVERSE).rpartition("l")[2] == "0"
        and not isnan(found.value)
    ]
    return max(first, key=lambda place: steps[place].value, default=None)


def _median(values: Sequence[float] | Values) -> Estimate:
    """Median over the samples where the number is defined."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return Estimate()
    low, high = bootstrap_interval(known)
    return Estimate(float(np.median(known)), low, high, len(known))


def _share(trace: xr.Dataset, limits: TimestepContributionLimits) -> Finding:
    """Judge how many of the last timesteps train the weights of the inputs."""
    steps = sample_steps(trace, limits)
    place = entrance(trace, steps)
    finding = partial(
        Finding, code="timestep-share", probe=PROBE, title="Timesteps that train", unit="timesteps"
    )
    if place is None:
        return finding(
            severity=Severity.INCONCLUSIVE,
            message="no sample has a gradient in a recurrent layer that reads the inputs",
            meaning="The loss of these samples is zero, or does not depend on the layer.",
            action="Audit samples with a loss above zero.",
            samples=trace.sizes["sample"],
        )
    found, names = steps[place], trace["weight"].to_numpy().astype(str)
    least = min(steps, key=lambda other: np.nan_to_num(steps[other].value, nan=np.inf))
    length = int(np.nanmax(trace["length"].to_numpy()))
    fewest = f"; fewest for {names[least]}, {steps[least].value:g}" if least != place else ""
    layer = str(trace["layer"].to_numpy()[place])
    severity, meaning, action = _trained(found, layer, length, limits)
    judged = not isnan(limits.required)
    return finding(
        severity=severity,
        message=f"{limits.held:.0%} of a sample's gradient of {names[place]} comes from the last "
        f"{found.value:g} of {length} timesteps (median){fewest}",
        meaning=meaning,
        action=action,
        value=found.value,
        low=found.low,
        high=found.high,
        limit=limits.required,
        relation=">=" if judged else "",
        limit_source=source_of(limits, "required") if judged else "",
        samples=found.samples,
        where=(layer,),
    )


def _trained(
    found: Estimate, layer: str, length: int, limits: TimestepContributionLimits
) -> tuple[Severity, str, str]:
    """Severity, meaning and action."""
    if found.samples < limits.min_samples:
        return Severity.INCONCLUSIVE, *_too_few(found, limits)
    if isnan(limits.required):
        meaning = (
            "Every timestep uses this weight, but earlier ones hardly change it. Whether these are "
            "enough depends on the task."
        )
        return Severity.INFO, meaning, "Set timestep_contribution.required to have it judged."
    if limits.required > length:
        meaning = f"The {limits.required:g} timesteps required are more than the sequences have."
        return Severity.INCONCLUSIVE, meaning, "Audit longer sequences."
    severity = at_least(found, limits.required)
    meaning = {
        Severity.PASS: "The weight learns from timesteps as far back as the task needs.",
        Severity.WARN: "The weight does not learn from timesteps as far back as the task needs.",
    }.get(severity, "The samples disagree too much to tell.")
    action = f"Raise the forget-gate bias of {layer}, or add losses at earlier timesteps."
    return severity, meaning, action if severity is Severity.WARN else "None."


def _too_few(found: Estimate, limits: TimestepContributionLimits) -> tuple[str, str]:
    """Meaning and action where there are too few samples."""
    meaning = f"{found.samples} samples are too few for a median to be judged."
    return meaning, f"Audit at least {limits.min_samples:g} samples."


def _conflict(trace: xr.Dataset, limits: TimestepContributionLimits) -> Finding:
    """Judge whether what early and late timesteps add agrees, where it agrees least."""
    conflicts = {p: c for p, c in sample_conflict(trace).items() if not isnan(c.value)}
    finding = partial(
        Finding,
        code="timestep-conflict",
        probe=PROBE,
        title="Early against late timesteps",
        limit=limits.conflict,
        relation=">=",
        limit_source=source_of(limits, "conflict"),
    )
    if not conflicts:
        return finding(
            severity=Severity.INCONCLUSIVE,
            message="no sample has a gradient from both halves of its timesteps",
            meaning="The sequences have a single timestep, or one half adds nothing at all.",
            action="Audit longer sequences, with a loss above zero.",
            samples=trace.sizes["sample"],
        )
    place = min(conflicts, key=lambda other: conflicts[other].value)
    found, mean = conflicts[place], mean_conflict(trace, place)
    severity = at_least(found, limits.conflict)
    meaning, action = _MEANING[severity], "None."
    if found.samples < limits.min_samples:
        severity = Severity.INCONCLUSIVE
        meaning, action = _too_few(found, limits)
    elif severity is Severity.WARN:
        action = _SEPARATE
    return finding(
        severity=severity,
        message="what the first and the second half of a sample's timesteps add to a weight agrees "
        f"least for {trace['weight'].to_numpy()[place]}: cosine {found.value:.2g}, median over "
        f"samples; {_of_the_mean(mean, coherence(trace, place), limits)}",
        meaning=meaning,
        action=action,
        value=found.value,
        low=found.low,
        high=found.high,
        samples=found.samples,
        where=(str(trace["layer"].to_numpy()[place]),),
    )


def _of_the_mean(mean: Estimate, size: float, limits: TimestepContributionLimits) -> str:
    """Say the same of the mean gradient, unless it cannot be told from zero."""
    if not size >= limits.coherence:
        return (
            "the mean gradient over samples cannot be told from zero, as after training, where the "
            "halves cancel by necessity"
        )
    if isnan(mean.low):
        return (
            f"{mean.value:.2g} for the mean gradient, of an unknown interval: without one of the "
            "samples next to nothing is left of a half"
        )
    return f"{mean.value:.2g} [{mean.low:.2g}, {mean.high:.2g}] for the mean gradient"


_MEANING = {
    Severity.PASS: "Early and late timesteps do not undo each other's training.",
    Severity.WARN: "Early and late timesteps pull the weight they share in opposite directions: "
    "one rule has to serve two purposes.",
    Severity.INCONCLUSIVE: "The samples disagree too much to tell.",
}

_SEPARATE = (
    "Give the network the position in time as an input, let different cells read the beginning and "
    "the end, or weigh the losses of early and late timesteps."
)
