"""Verdicts on what the blocks of a network contribute."""

from collections.abc import Iterator, Mapping
from functools import partial
from math import isnan

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import DepthContributionLimits, source_of
from analyzer.rules.idle import described, judged, rank_correlation, shares
from analyzer.rules.verdicts import Estimate, listed
from analyzer.statistics import bootstrap_interval

PROBE = "depth_contribution"

COMPARABLE = 5
"""Blocks without which two rankings cannot be compared."""


def depth_contribution(trace: xr.Dataset, limits: DepthContributionLimits) -> Iterator[Finding]:
    """Name blocks that can be left out, and say how far the estimate can be trusted.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.depth_contribution.DepthContribution`.
    limits : DepthContributionLimits
        ``idle`` and ``min_samples`` are used.

    Yields
    ------
    Finding
        Idle blocks; how many blocks can be left out together, and the rank correlation of the
        estimate with the ablation, where these were measured.
    """
    blocks = contributions(trace)
    left_out = {name: block for name, block in blocks.items() if block.samples}
    yield _idle(trace, left_out, limits) if left_out else _nothing_left_out(trace)
    if trace.sizes["removed"]:
        yield _removable(trace, limits)
    if len(left_out) >= COMPARABLE:
        yield _ranking(trace, left_out)


def contributions(trace: xr.Dataset) -> dict[str, Estimate]:
    """Change of the loss without each block, as a share of the loss; nan where not left out."""
    names = [str(name) for name in trace["block"].to_numpy()]
    return dict(zip(names, shares(trace["loss_change"], trace["intact_loss"]), strict=True))


def _idle(
    trace: xr.Dataset, blocks: Mapping[str, Estimate], limits: DepthContributionLimits
) -> Finding:
    """Judge the blocks that were left out."""
    verdict = judged(blocks, limits.idle, limits.min_samples)
    samples, total = verdict.estimate.samples, int(trace.attrs["removable"])
    finding = partial(
        Finding,
        code="idle-blocks",
        probe=PROBE,
        severity=verdict.severity,
        title="Idle blocks",
        value=verdict.estimate.value,
        low=verdict.estimate.low,
        high=verdict.estimate.high,
        unit="1",
        limit=limits.idle,
        relation=">=",
        limit_source=source_of(limits, "idle"),
        samples=samples,
        where=verdict.named,
    )
    tried = f"{len(blocks)} blocks" if len(blocks) == total else f"{len(blocks)} of {total} blocks"
    if verdict.severity is Severity.PASS:
        least = min(blocks, key=lambda name: blocks[name].value)
        return finding(
            message=f"{tried} were left out one at a time; each raises the loss by more than "
            f"{limits.idle:.0%}: least {described(blocks, [least])}",
            meaning="Every block that was left out contributes.",
            action="None.",
        )
    said = f"{len(verdict.named)} of the {tried} that were left out one at a time"
    loss = described(blocks, verdict.named)
    if verdict.severity is Severity.WARN:
        return finding(
            message=f"without {said} the loss rises by less than {limits.idle:.0%} or falls: "
            f"{loss}{_decisions(trace, verdict.named)}",
            meaning="These blocks add nothing that the output needs on these data: the shortcut "
            "alone does as well.",
            action=f"Remove {listed([*verdict.named])} and compare, after some further training; "
            "if the accuracy holds, the network can be shallower.",
        )
    few = samples < limits.min_samples
    return finding(
        message=f"{said} may add nothing: {loss} of the loss",
        meaning=f"{samples} samples are too few to judge an ablation."
        if few
        else "Their intervals reach from less to more than the limit.",
        action=f"Audit at least {limits.min_samples:g} samples." if few else "Audit more samples.",
    )


def _decisions(trace: xr.Dataset, names: tuple[str, ...]) -> str:
    """Say how many decisions change without the blocks, where the loss knows classes."""
    changed = trace["decision_change"].sel(block=[*names]).mean("sample").to_numpy()
    return "" if np.isnan(changed).any() else f"; at most {changed.max():.1%} of decisions change"


def _nothing_left_out(trace: xr.Dataset) -> Finding:
    """Say why no block was left out."""
    reasons = [str(reason) for reason in trace["reason"].to_numpy() if str(reason)]
    names = [str(name) for name in trace["block"].to_numpy()]
    why = (
        f"each layer of {listed(names)} changes the shape of what it reads or is part of a "
        "recurrence, and there is no shortcut around any"
        if len(reasons) == len(names)
        else "ablation was turned off"
    )
    return Finding(
        code="idle-blocks",
        probe=PROBE,
        severity=Severity.NOT_APPLICABLE,
        title="Idle blocks",
        message=f"no block could be left out: {why}",
        meaning="Only the similarity of consecutive layers was measured."
        if reasons
        else "Only the estimate was measured.",
        samples=trace.sizes["sample"],
        where=tuple(names),
    )


def _removable(trace: xr.Dataset, limits: DepthContributionLimits) -> Finding:
    """Report how many blocks can be left out together."""
    counts, total = trace["removed"].to_numpy(), int(trace.attrs["removable"])
    changes = dict(zip(counts, shares(trace["joint_change"], trace["intact_loss"]), strict=True))
    fitting = [count for count, change in changes.items() if change.high <= limits.idle]
    most = int(max(fitting, default=0))
    shown = changes[most] if most else changes[counts[0]]
    order = np.argsort(trace["rank"].to_numpy())
    names = [str(name) for name in trace["block"].to_numpy()[order][:most]]
    at_all = (
        f"the {most} of {total} blocks with the smallest estimates can be left out at once"
        if most
        else f"not even the {counts[0]} of {total} blocks with the smallest estimates can be left "
        "out at once"
    )
    return Finding(
        code="removable-blocks",
        probe=PROBE,
        severity=Severity.INFO,
        title="Removable blocks",
        message=f"{at_all}: the loss changes by {shown.value:+.1%} [{shown.low:+.1%}, "
        f"{shown.high:+.1%}] (tried: {', '.join(str(count) for count in counts)})",
        meaning="This is how much depth the network does not use as it is, without training again."
        if most
        else "The network uses its depth as a whole.",
        value=float(most),
        unit="blocks",
        samples=shown.samples,
        where=tuple(names),
    )


def _ranking(trace: xr.Dataset, blocks: Mapping[str, Estimate]) -> Finding:
    """Compare the ranking by the estimate with that by ablation."""
    pairs = trace[["estimate", "loss_change"]].sel(block=[*blocks]).to_array("which")
    values = pairs.transpose("sample", "which", "block").to_numpy()
    values = values[~np.isnan(values).any((1, 2))]
    value = float(rank_correlation(values, axis=0)) if len(values) else np.nan
    low, high = bootstrap_interval(values, rank_correlation)
    unsure = isnan(value)
    return Finding(
        code="depth-ranking",
        probe=PROBE,
        severity=Severity.INCONCLUSIVE if unsure else Severity.INFO,
        title="Estimate against ablation",
        message="the first-order estimate is undefined for some block"
        if unsure
        else f"the first-order estimate ranks {len(blocks)} blocks like leaving them out, with "
        f"a correlation of {value:.2f} [{low:.2f}, {high:.2f}]",
        meaning="Blocks that were not left out are known by the estimate alone: trust it as far as "
        "this correlation goes. Blocks that are all worth about nothing have no order to agree on.",
        value=value,
        low=low,
        high=high,
        unit="1",
        samples=len(values),
    )
