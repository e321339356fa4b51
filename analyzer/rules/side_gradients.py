"""What the gradients of data trained on and of data held out have in common, in words."""

from collections.abc import Iterator
from math import isinf, isnan

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.rules.sides import (
    HELD_OUT,
    TRAINED,
    WHOLE,
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
from analyzer.rules.verdicts import Estimate, listed

PROBE = "generalization"


def side_gradients(trace: xr.Dataset, min_samples: float) -> Iterator[Finding]:
    """Tell how gradients are aligned, how large they are, and how far single samples agree.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.generalization.Generalization`.
    min_samples : float
        Of each side.

    Yields
    ------
    Finding
        Three, or one that says why nothing is known.
    """
    if "square" not in trace or min(counts(trace)) < min_samples:
        yield _unknown(trace, int(min_samples))
        return
    yield _aligned(trace)
    yield _sizes(trace)
    yield _coherent(trace)


def counts(trace: xr.Dataset) -> tuple[int, int]:
    """Count the samples of both sides."""
    trained, held = (len(of_side(trace, "loss", side)) for side in (TRAINED, HELD_OUT))
    return trained, held


def _unknown(trace: xr.Dataset, needed: int) -> Finding:
    """Say why nothing is known of the gradients."""
    trained, held = counts(trace)
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
