"""Do layers that add no context add anything else? Fields and ablations on the same layers."""

from collections.abc import Iterator, Mapping

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import Limits, source_of
from analyzer.rules.depth_contribution import contributions
from analyzer.rules.idle import described
from analyzer.rules.receptive_field import by, past_input
from analyzer.rules.verdicts import Estimate, at_least, listed

PROBE = "receptive_field"


def unproductive_depth(traces: Mapping[str, xr.Dataset], limits: Limits) -> Iterator[Finding]:
    """Set what blocks contribute beside the fields of the convolutions in them.

    A block is past the input if every convolution in it only reads values that already depend on
    the whole input. Two signals of three convict it: past the input, idle for certain when it is
    left out, output like what it reads.

    Parameters
    ----------
    traces : mapping
        Those of receptive_field and depth_contribution are used.
    limits : Limits
        ``depth_contribution.idle``, ``depth_contribution.min_samples`` and
        ``unproductive_depth.similar`` are used.

    Yields
    ------
    Finding
        One, or none where no block is past the input or one of the traces is missing.
    """
    if "receptive_field" not in traces or "depth_contribution" not in traces:
        return
    fields, depth = traces["receptive_field"], traces["depth_contribution"]
    past = _past(fields, depth)
    if past:
        yield _judged(past, fields, depth, limits)


def _past(fields: xr.Dataset, depth: xr.Dataset) -> list[str]:
    """Name the blocks all of whose convolutions are past the input."""
    convolutions, whole = past_input(fields)
    names = convolutions["layer"].to_numpy().astype(str)
    over, found = {*names[whole]}, []
    for block, layers in zip(depth["block"].to_numpy(), depth["layers"].to_numpy(), strict=True):
        inside = {*names} & {*str(layers).split(", ")}
        if inside and inside <= over:
            found.append(str(block))
    return found


def _judged(past: list[str], fields: xr.Dataset, depth: xr.Dataset, limits: Limits) -> Finding:
    """Judge the blocks that are past the input by what they contribute."""
    parts = contributions(depth)
    low = depth["similarity_low"].to_series()
    idle = [name for name in past if _is_idle(parts[name], limits)]
    alike = [name for name in past if low[name] >= limits.unproductive_depth.similar]
    at_work = [
        name
        for name in past
        if at_least(parts[name], limits.depth_contribution.idle) is Severity.PASS
    ]
    convicted = [name for name in past if name in {*idle, *alike} - {*at_work}]
    severity = Severity.FAIL if idle else Severity.WARN if convicted else Severity.INCONCLUSIVE
    if set(at_work) == {*past}:
        severity = Severity.INFO
    chosen = idle or convicted or at_work or past
    worst = min((parts[name] for name in chosen), key=lambda part: np.nan_to_num(part.value))
    return Finding(
        code="unproductive-depth",
        probe=PROBE,
        severity=severity,
        title="Unproductive depth",
        message=_message(past, idle, convicted, at_work, parts, limits),
        meaning=_MEANING[severity],
        action=_action(severity, fields, convicted),
        value=worst.value,
        low=worst.low,
        high=worst.high,
        unit="1",
        limit=limits.depth_contribution.idle,
        relation=">=",
        limit_source=source_of(limits.depth_contribution, "idle"),
        samples=worst.samples,
        where=tuple(chosen),
    )


def _is_idle(part: Estimate, limits: Limits) -> bool:
    """Whether the whole interval is below the limit, on enough samples."""
    enough = part.samples >= limits.depth_contribution.min_samples
    return enough and at_least(part, limits.depth_contribution.idle) is Severity.WARN


def _message(
    past: list[str],
    idle: list[str],
    convicted: list[str],
    at_work: list[str],
    parts: Mapping[str, Estimate],
    limits: Limits,
) -> str:
    """Say which signals agree on which blocks."""
    told = f"{len(past)} blocks lie past the point where the field covers the input"
    alike = [name for name in convicted if name not in idle]
    said = [
        f"{len(idle)} of them also cost nothing to leave out: {described(parts, idle)} of the loss"
        if idle
        else "",
        f"{listed(alike)} return nearly what they read (similarity of "
        f"{limits.unproductive_depth.similar:g} or more)"
        if alike
        else "",
        f"{len(at_work)} contribute all the same: {described(parts, at_work)} of the loss"
        if at_work
        else "",
    ]
    others = [name for name in past if name not in {*convicted, *at_work}]
    undecided = f"of {listed(others)} leaving out does not tell" if others else ""
    return "; ".join(part for part in [told, *said, undecided] if part)


_MEANING = {
    Severity.FAIL: "The network is deeper than this input can use: these blocks add no context, "
    "and the output does without them.",
    Severity.WARN: "The network is probably deeper than this input can use.",
    Severity.INFO: "They add no context, but something else that the output needs.",
    Severity.INCONCLUSIVE: "They add no context; whether they add anything else is not certain.",
}


def _action(severity: Severity, fields: xr.Dataset, convicted: list[str]) -> str:
    """Say which input size, or which depth, would use the network fully."""
    convolutions, whole = past_input(fields)
    if severity is Severity.INFO:
        return "None."
    most = convolutions["minimal_input"].max("layer").to_numpy()
    size = (
        f"Inputs of more than {by(most)} positions would give all {len(whole)} convolutions "
        "context to add"
    )
    inputs = by(fields["input_size"].to_numpy())
    depth = f"for {inputs}, {int((~whole).sum())} convolutions are enough"
    if severity in (Severity.FAIL, Severity.WARN):
        return f"{size}; {depth}: remove {listed(convicted)}, train and compare."
    return f"{size}; {depth}. Audit more samples to decide."
