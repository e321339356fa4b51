"""Verdicts on the gradient over the timesteps of recurrent layers."""

from collections.abc import Iterator, Mapping

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import TimestepGradientLimits, source_of
from analyzer.rules.verdicts import Estimate, at_most
from analyzer.statistics import bootstrap_interval

PROBE = "timestep_gradient"

ENDS = 0.05
"""Share of the sequence that stands for its first and for its last steps."""

SMALLEST = -38.0
"""Decades that stand for a gradient of exactly zero: none in single precision is smaller."""

NOTHING = 30.0
"""Decades from which on a loss is called a loss of everything."""

REVERSE = ".reverse"
"""How the name of a layer ends that reads the sequence backwards."""


def timestep_gradient(trace: xr.Dataset, limits: TimestepGradientLimits) -> Iterator[Finding]:
    """Judge how much of the last step's gradient arrives at the first.

    Judged is the layer where the input enters: what the first timesteps say can only be learned
    through it. Layers above may lose more, which only says that they learn from recent steps.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.timestep_gradient.TimestepGradient`.
    limits : TimestepGradientLimits
        ``warn_decades`` is used.

    Yields
    ------
    Finding
        One.
    """
    losses = time_decades(trace)
    layer = entrance(losses)
    yield _over_time(layer, losses, trace, limits) if layer else _undecided(trace, losses)


def _undecided(trace: xr.Dataset, losses: Mapping[str, Estimate]) -> Finding:
    """Say why no layer can be judged."""
    if trace.sizes["timestep"] < 2:
        message = "every recurrent layer is called with one timestep"
        meaning = "Cells with weights of their own for every timestep are layers, not time."
        action = "Read the gradient over depth, where each of them has its place."
    else:
        message = "no sample has a non-zero gradient at the last timestep"
        meaning = "The final output does not depend on the recurrent state, or its loss is zero."
        action = "Audit on samples with a loss above zero, or choose another output."
    return Finding(
        code="gradient-over-time",
        probe=PROBE,
        severity=Severity.INCONCLUSIVE,
        title="Gradient over time",
        message=message,
        meaning=meaning,
        action=action,
        samples=trace.sizes["sample"],
        where=tuple(losses),
    )


def entrance(losses: Mapping[str, Estimate]) -> str:
    """Name the layer through which the inputs enter the recurrence; empty where none is known.

    The first layer of a stack, in the direction that loses less; of several stacks, the one that
    loses most.
    """
    best: dict[str, str] = {}
    for name, loss in losses.items():
        stack, _, place = name.removesuffix(REVERSE).rpartition(".l")
        if np.isnan(loss.value) or place != "0":
            continue
        rival = best.setdefault(stack, name)
        if abs(loss.value) < abs(losses[rival].value):
            best[stack] = name
    return max(best.values(), key=lambda name: abs(losses[name].value), default="")


def time_decades(trace: xr.Dataset) -> dict[str, Estimate]:
    """Decades that each layer's state gradient loses from the last timestep to the first.

    The cell gradient where there is one (it is what an LSTM's gradient travels in), else the
    hidden one, both of the final output's loss. Positive means vanishing. A layer that runs in
    reverse is followed in its own order of time.
    """
    losses = {}
    for index, name in enumerate(trace["layer"].to_numpy().astype(str)):
        values = state_gradient(trace).isel(layer=index).transpose("sample", "timestep").to_numpy()
        if name.endswith(REVERSE):
            values = values[:, ::-1]
        losses[name] = _decades(values)
    return losses


def state_gradient(trace: xr.Dataset) -> xr.DataArray:
    """Cell gradient of the final output's loss; hidden gradient in layers without a cell."""
    cell, hidden = trace["cell_gradient_final"], trace["hidden_gradient_final"]
    return cell.where(~cell.isnull().all(["sample", "timestep"]), hidden)


def _decades(values: np.ndarray) -> Estimate:
    """Decades lost between the ends of (sample, timestep), nan past the end of a sample.

    A sample without gradient at its last steps says nothing; zero at its first ones is a loss.
    """
    logs = np.where(np.isnan(values), np.nan, SMALLEST)
    np.log10(values, where=values > 10**SMALLEST, out=logs)
    first, last = np.full(len(logs), np.nan), np.full(len(logs), np.nan)
    for row, sample in enumerate(logs):
        steps = np.flatnonzero(~np.isnan(sample))
        width = max(1, int(ENDS * len(steps)))
        if len(steps) < 2 or (sample[steps[-width:]] <= SMALLEST).any():
            continue
        first[row] = sample[steps[:width]].mean()
        last[row] = sample[steps[-width:]].mean()
    decades = (last - first)[~np.isnan(last - first)]
    if not len(decades):
        return Estimate()
    low, high = bootstrap_interval(decades)
    return Estimate(float(np.median(decades)), low, high, len(decades))


def _over_time(
    layer: str, losses: Mapping[str, Estimate], trace: xr.Dataset, limits: TimestepGradientLimits
) -> Finding:
    """Judge the layer where the input enters, and name the one that loses most."""
    loss, steps = losses[layer], int(np.nanmax(trace["length"].to_numpy()))
    most = max(losses, key=lambda name: np.nan_to_num(losses[name].value, nan=-np.inf))
    beyond = losses[most].value - loss.value
    others = f"; most in {most}, {10 ** losses[most].value:.3g}" if beyond > 0.5 else ""
    vanishes = loss.value >= 0
    size = loss if vanishes else Estimate(-loss.value, -loss.high, -loss.low, loss.samples)
    severity = at_most(size, limits.warn_decades)
    change = f"{'shrinks' if vanishes else 'grows'} by a factor of {10**size.value:.3g} ("
    if vanishes and size.value >= NOTHING:
        change = f"shrinks to nothing (by {NOTHING:g} decades or more, "
    return Finding(
        code="gradient-over-time",
        probe=PROBE,
        severity=severity,
        title="Gradient over time",
        message=f"from the last to the first of {steps} timesteps the state gradient of {layer} "
        f"{change}{size.value / (steps - 1):.2g} decades a step){others}",
        meaning=_MEANING[severity, vanishes],
        action=_ACTION[vanishes] if severity is Severity.WARN else "None.",
        value=size.value,
        low=size.low,
        high=size.high,
        unit="decades",
        limit=limits.warn_decades,
        relation="<=",
        limit_source=source_of(limits, "warn_decades"),
        samples=size.samples,
        where=(layer,),
    )


_MEANING = {
    (Severity.PASS, True): "Training signals from the end reach the first timesteps.",
    (Severity.PASS, False): "Training signals keep their size over the sequence.",
    (Severity.WARN, True): "The first timesteps hardly train: what happens there is not learned "
    "from the final output.",
    (Severity.WARN, False): "The gradient explodes over time: early steps dominate the weights' "
    "gradient.",
    (Severity.INCONCLUSIVE, True): "The samples disagree too much to tell.",
    (Severity.INCONCLUSIVE, False): "The samples disagree too much to tell.",
}

_ACTION = {
    True: "Raise the forget-gate bias, shorten the sequences, or add outputs along the sequence.",
    False: "Clip the gradient, or constrain the recurrent weights.",
}
