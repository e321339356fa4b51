"""Does a network over-fit with width that it does not need? From what other rules concluded."""

from collections.abc import Iterable, Iterator

from analyzer.findings import Finding, Severity

ALARM = (Severity.WARN, Severity.FAIL)


def spare_capacity(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Set the verdict on generalization beside that on width.

    Parameters
    ----------
    findings : iterable of Finding
        ``generalization-gap`` and ``width-wasted`` are used.

    Yields
    ------
    Finding
        One, or none where either verdict is missing or undecided, or neither is an alarm.
    """
    found = {finding.code: finding for finding in findings}
    gap, width = found.get("generalization-gap"), found.get("width-wasted")
    if gap is None or width is None:
        return
    if Severity.INCONCLUSIVE in (gap.severity, width.severity):
        return
    alarms = gap.severity in ALARM, width.severity in ALARM
    if not any(alarms):
        return
    severity, message, meaning, action = _SAID[alarms]
    yield Finding(
        code="spare-capacity",
        probe="width",
        severity=severity,
        title="Capacity and over-fitting",
        message=f"{message}: {gap.value:.0%} of what was learnt is lost on data not trained on",
        meaning=meaning,
        action=action,
        value=gap.value,
        low=gap.low,
        high=gap.high,
        unit=gap.unit,
        limit=gap.limit,
        relation=gap.relation,
        limit_source=gap.limit_source,
        samples=min(gap.samples, width.samples),
        where=width.where if alarms[1] else (),
    )


_SAID = {
    (True, True): (
        Severity.WARN,
        "the network over-fits, and most layers are wider than the loss needs",
        "Width that the loss does not need on these data may be what memorizes them.",
        "Train a network as wide as its directions on the same data, and compare both losses.",
    ),
    (True, False): (
        Severity.INFO,
        "the network over-fits although it uses its width",
        "Spare width is not why it over-fits.",
        "More data, augmentation or weight decay come before fewer units.",
    ),
    (False, True): (
        Severity.INFO,
        "most layers are wider than the loss needs, without over-fitting",
        "The spare width costs memory and time, not generalization.",
        "Make it narrower where memory or time matter.",
    ),
}
"""Whether it over-fits, and whether width is wasted -> severity, message, meaning, action."""
