"""Verdicts on what carries over from data that a network was trained on to data that it was not."""

from collections.abc import Iterator
from functools import partial
from math import isnan
from typing import NamedTuple

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import GeneralizationLimits, source_of
from analyzer.rules.side_gradients import PROBE, counts, side_gradients
from analyzer.rules.sides import HELD_OUT, TRAINED, Values, of_side
from analyzer.rules.verdicts import Estimate, at_most
from analyzer.statistics import RESAMPLES, bootstrap_interval

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
        The gap, then three about gradients, or one that says why they are not there.
    """
    yield _gap(trace, limits)
    yield from side_gradients(trace, limits.min_samples)


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


def _gap(trace: xr.Dataset, limits: GeneralizationLimits) -> Finding:
    """Judge the share of what was learnt that is lost."""
    learnt, lost = gap(trace)
    finding = partial(
        Finding,
        code="generalization-gap",
        probe=PROBE,
        title="Generalization",
        message=_seen(trace, lost),
        samples=sum(counts(trace)),
    )
    needed = int(limits.min_samples)
    if min(counts(trace)) < needed:
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
