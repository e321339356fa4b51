"""Verdicts on what carries over from data that a network was trained on to data that it was not."""

from collections.abc import Iterator
from functools import partial
from math import isinf, isnan
from typing import NamedTuple

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import GeneralizationLimits, source_of
from analyzer.rules.sides import (
    HELD_OUT,
    TRAINED,
    WHOLE,
    Values,
    alignment,
    ceiling,
    coherence,
    noise_scale,
    of_side,
    ratio,
    sides,
    stiffness_across,
    stiffness_within,
)
from analyzer.rules.verdicts import Estimate, at_most, listed
from analyzer.statistics import RESAMPLES, bootstrap_interval

PROBE = "generalization"

_TAILS = (2.5, 97.5)


class Gap(NamedTuple):
    """What was learnt and what of it carries over."""

    learnt: Estimate
    """Share of the error with other samples' targets that is gone, on data trained on."""
    lost: Estimate
    """Share of it that is missing on data held out."""


def generalization(trace: xr.Dataset, limits: GeneralizationLimits) -> Iterator[Finding]:
    """Judge the gap between both sides; tell what their gradients have in common.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.generalization.Generalization`.
    limits : GeneralizationLimits
        All are used.

    Yields
    ------
    Finding
        The gap, then four about gradients, or one that says why they are not there.
    """
    yield _gap(trace, limits)
    few = min(_counts(trace)) < limits.min_samples
    if "square" not in trace or few:
        yield _unknown(trace, limits)
        return
    yield _aligned(trace)
    yield _sizes(trace)
    yield _coherent(trace)


def quality(trace: xr.Dataset) -> str:
    """Name what is judged: the score where there are classes, else the loss."""
    return "score" if "score" in trace else "loss"


def mean(trace: xr.Dataset, name: str, side: str) -> Estimate:
    """Mean of a number over the samples of one side."""
    values = of_side(trace, name, side)
    low, high = bootstrap_interval(values, np.mean)
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def gap(trace: xr.Dataset) -> Gap:
    """Estimate what was learnt, and the share of it that is lost on data held out.

    Learnt is what the targets tell: one minus the error (the loss, or the share that is wrong) over
    that with the targets of other samples, 0 by chance and 1 without error. All nan where targets
    cannot be exchanged, or the loss can be negative.
    """
    pairs = [_errors(trace, side) for side in (TRAINED, HELD_OUT)]
    if min(map(len, pairs)) < 2 or not all((pair.mean(0) >= [0, 1e-300]).all() for pair in pairs):
        return Gap(Estimate(), Estimate())
    random = np.random.default_rng(0)
    drawn = [
        _learnt(pair[random.integers(len(pair), size=(RESAMPLES, len(pair)))]) for pair in pairs
    ]
    trained, held = (float(_learnt(pair)) for pair in pairs)
    count = len(pairs[0]) + len(pairs[1])
    learnt = _estimate(trained, drawn[0], count)
    if not learnt.low > 0:
        return Gap(learnt, Estimate(samples=count))
    return Gap(learnt, _estimate(1 - held / trained, 1 - drawn[1] / drawn[0], count))


def _errors(trace: xr.Dataset, side: str) -> Values:
    """Error of every sample with its own targets and with others', where known: (sample, 2)."""
    name = quality(trace)
    pair = np.stack([of_side(trace, name + end, side) for end in ("", "_null")], 1)
    pair = pair[~np.isnan(pair).any(1)]
    return np.asarray(1 - pair if name == "score" else pair)


def _learnt(pairs: Values) -> Values:
    """One minus mean error over mean error with others' targets: (..., sample, 2) -> (...)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1 - pairs[..., 0].mean(-1) / pairs[..., 1].mean(-1))


def _estimate(value: float, drawn: Values, count: int) -> Estimate:
    """Put a value and its bootstrap interval together."""
    low, high = np.percentile(drawn, _TAILS)
    return Estimate(value, float(low), float(high), count)


def _counts(trace: xr.Dataset) -> tuple[int, int]:
    """Count the samples of both sides."""
    trained, held = (len(of_side(trace, "loss", side)) for side in (TRAINED, HELD_OUT))
    return trained, held


def _gap(trace: xr.Dataset, limits: GeneralizationLimits) -> Finding:
    """Judge the share of what was learnt that is lost."""
    learnt, lost = gap(trace)
    finding = partial(
        Finding,
        code="generalization-gap",
        probe=PROBE,
        title="Generalization",
        message=_seen(trace, lost),
        samples=sum(_counts(trace)),
    )
    needed = int(limits.min_samples)
    if min(_counts(trace)) < needed:
        return finding(
            severity=Severity.INCONCLUSIVE,
            meaning=f"So few samples cannot show a gap: {needed} of each side are needed.",
            action=f"Give at least {needed} samples of each side.",
        )
    if isnan(learnt.value):
        return finding(
            severity=Severity.INFO,
            meaning="There is nothing to hold the gap against: the loss can be negative, or no "
            "sample could be given another one's targets.",
            action="None.",
        )
    if isnan(lost.value):
        return finding(
            severity=Severity.INCONCLUSIVE,
            meaning="On the data that it was trained on the network meets its targets no better "
            "than those of other samples: nothing was learnt that could carry over.",
            action="Check that these are the data it was trained on, prepared in the same way.",
        )
    severity = at_most(lost, limits.warn_lost, limits.fail_lost)
    return finding(
        severity=severity,
        meaning=_MEANING[severity],
        action=_ACTION.get(severity, "None."),
        value=lost.value,
        low=lost.low,
        high=lost.high,
        unit="share of what was learnt",
        limit=limits.warn_lost,
        relation="<=",
        limit_source=source_of(limits, "warn_lost"),
    )


_MEANING = {
    Severity.PASS: "Most of what was learnt carries over to data that the network has not seen. "
    "A larger loss alone can also be one of too much confidence.",
    Severity.WARN: "A good part of what was learnt holds for the training data only: the network "
    "over-fits, or the two sides are different kinds of data.",
    Severity.FAIL: "Most of what was learnt holds for the training data only, as in a network that "
    "has memorised its samples.",
    Severity.INCONCLUSIVE: "The samples are too few to tell on which side of the limit it is.",
}

_REMEDY = (
    "Rule out first that both sides differ in kind or preparation; then more data or "
    "augmentation, weight decay or dropout, fewer weights, or an earlier checkpoint."
)

_ACTION = {
    Severity.WARN: _REMEDY,
    Severity.FAIL: _REMEDY,
    Severity.INCONCLUSIVE: "Measure more samples (--set generalization.samples=1024).",
}


def _seen(trace: xr.Dataset, lost: Estimate) -> str:
    """Say what the losses and scores of both sides are."""
    trained, held = (mean(trace, "loss", side).value for side in (TRAINED, HELD_OUT))
    factor = f" ({held / trained:.3g} times)" if trained > 0 else ""
    text = (
        f"the loss is {trained:.3g} on data that the network was trained on and {held:.3g} on data "
        f"held out{factor}"
    )
    if "score" in trace:
        right = [100 * mean(trace, "score", side).value for side in (TRAINED, HELD_OUT)]
        text += f"; right are {right[0]:.3g} % and {right[1]:.3g} %"
    if isnan(lost.value):
        return text
    return text + f": {100 * lost.value:.2g} % of what was learnt is lost"


def _unknown(trace: xr.Dataset, limits: GeneralizationLimits) -> Finding:
    """Say why nothing is known of the gradients."""
    needed = int(limits.min_samples)
    trained, held = _counts(trace)
    reason = str(trace.attrs["refusal"]) or str(trace.attrs["not_measured"])
    message, action = reason or "no gradient reaches a weight", "None."
    if "square" in trace:
        message = f"{trained} samples trained on and {held} held out: {needed} of each are needed"
        action = f"Give at least {needed} samples of each side."
    return Finding(
        code="gradient-alignment",
        probe=PROBE,
        severity=Severity.INCONCLUSIVE,
        title="Alignment of gradients",
        message=message,
        meaning="What the gradients of both sides have in common cannot be told.",
        action=action,
        samples=trained + held,
    )


def _aligned(trace: xr.Dataset) -> Finding:
    """Say whether both sides ask for the same change of the weights."""
    trained, held = sides(trace, WHOLE)
    found = alignment(trained, held, np.array([dimensions(trace)]))[0]
    most = float(ceiling(trained, held)[0])
    by_chance = null_alignment(trace)
    text = (
        f"the mean gradients of both sides have a cosine of {found.value:.2f} "
        f"[{found.low:.2f}, {found.high:.2f}]; at these numbers of samples two of one direction "
        f"would reach {most:.2f}"
    )
    if not isnan(by_chance.value):
        text += (
            f", and with each other's targets those held out have one of {by_chance.value:.2f} "
            f"[{by_chance.low:.2f}, {by_chance.high:.2f}]"
        )
    return Finding(
        code="gradient-alignment",
        probe=PROBE,
        severity=Severity.INFO,
        title="Alignment of gradients",
        message=text,
        meaning=f"{_direction(found, by_chance, most)} {_CAUTION}",
        action="Compare with checkpoints from before: the last one whose cosine is above zero is "
        "where plain training stopped helping."
        if found.high < 0
        else "None.",
        value=found.value,
        low=found.low,
        high=found.high,
        samples=found.samples,
    )


_CAUTION = (
    "It is about a small step of plain gradient descent without dropout from here, and about the "
    "loss, which can rise from too much confidence while the answers stay as they are."
)

_NOISE = 0.3
"""Cosine that a common direction would reach, below which its lack tells nothing."""


def _direction(found: Estimate, by_chance: Estimate, most: float) -> str:
    """Say what a cosine means."""
    if isnan(found.value):
        return "A gradient is zero: there is no direction to compare."
    if found.high < 0:
        return (
            "A step that lowers the loss of the training data raises that of the data held out: "
            "training further over-fits."
        )
    if found.low <= 0:
        if most < _NOISE:
            return (
                "The gradients of samples cancel so far that their mean is mostly noise, as at a "
                "minimum: there is hardly a direction to compare."
            )
        return (
            "A few samples make up so much of the mean gradients that their directions cannot be "
            "compared."
            if found.high - found.low > 1
            else "What the training data still ask for has little to do with what the data held "
            "out ask for, as where single samples are memorised."
        )
    text = "A step that lowers the loss of the training data lowers that of the data held out, too"
    if isnan(by_chance.value):
        return f"{text}."
    if found.low > by_chance.high:
        return f"{text}, and because of their targets: it is more than with each other's."
    return (
        f"{text}; with each other's targets it is not clearly less, so that it tells nothing of "
        "what was learnt."
    )


def dimensions(trace: xr.Dataset) -> float:
    """Fewest dimensions of the projections of layers, 0 where none was projected."""
    kept = trace["dimensions"].to_numpy().astype(np.float64)
    return float(kept[kept > 0].min(initial=np.inf)) if (kept > 0).any() else 0.0


def null_alignment(trace: xr.Dataset, suffix: str = WHOLE) -> Estimate:
    """Alignment of the training data with held-out samples that have each other's targets."""
    trained, held = sides(trace, suffix, null=True)
    if held.samples < 2:
        return Estimate()
    return alignment(trained, held, np.array([dimensions(trace)]))[0]


def _sizes(trace: xr.Dataset) -> Finding:
    """Say in which layers the gradients of samples held out are larger."""
    whole, layers = ratio(*sides(trace, WHOLE))[0], ratio(*sides(trace))
    names = [str(name) for name in trace["layer"].to_numpy()]
    clear = [i for i, one in enumerate(layers) if one.low > whole.high]
    values = np.array([one.value for one in layers])
    if np.isnan(values).all():
        where, spread = "", ""
    else:
        low, high = int(np.nanargmin(values)), int(np.nanargmax(values))
        where = f"least in {names[low]} ({values[low]:.3g}), most in {names[high]} "
        spread = f": {where}({values[high]:.3g})" if len(names) > 1 else ""
    chosen = sorted(clear, key=lambda i: -values[i])
    above = f"; clearly above the whole network in {listed([names[i] for i in chosen])}"
    return Finding(
        code="gradient-ratio",
        probe=PROBE,
        severity=Severity.INFO,
        title="Gradients held out against trained on",
        message=f"the gradient of a sample held out is {whole.value:.3g} times that of one trained "
        f"on{spread}{above if chosen else ''}",
        meaning="Samples that were fitted closely have small gradients. Where the ratio is far "
        "above 1, the weights fit the training samples more closely than others.",
        value=whole.value,
        low=whole.low,
        high=whole.high,
        samples=whole.samples,
        where=tuple(names[i] for i in chosen),
    )


def _coherent(trace: xr.Dataset) -> Finding:
    """Say how far the gradients of single samples agree within and across the sides."""
    trained, held = sides(trace, WHOLE)
    across = stiffness_across(trained, held)[0]
    inside = [stiffness_within(side)[0].value for side in (trained, held)]
    helped = [coherence(side)[0].value for side in (trained, held)]
    text = (
        f"the gradients of two samples have a cosine of {inside[0]:.2f} within the training data, "
        f"{inside[1]:.2f} within those held out and {across.value:.2f} across"
    )
    null = sides(trace, WHOLE, null=True)
    if null[1].samples > 1:
        text += f" ({stiffness_across(*null)[0].value:.2f} with each other's targets)"
    text += f"; a sample helps {helped[0]:.3g} of {trained.samples} and {helped[1]:.3g} of "
    text += f"{held.samples} on average, itself included; {_noise(noise_scale(trained)[0])}"
    return Finding(
        code="gradient-coherence",
        probe=PROBE,
        severity=Severity.INFO,
        title="Coherence of gradients",
        message=text,
        meaning="Where samples help each other, also across the sides, what is learnt is common to "
        "them; a network that memorises has gradients of single samples that have nothing to do "
        "with each other.",
        value=across.value,
        low=across.low,
        high=across.high,
        samples=across.samples,
    )


def _noise(scale: float) -> str:
    """Say how noisy the gradient of the training data is."""
    if isinf(scale) or isnan(scale):
        return "no common direction of the training data is to be seen"
    return f"a batch of {scale:.3g} training samples has as much noise as signal"
