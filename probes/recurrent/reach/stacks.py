"""Which layers are followed back in time together."""

from collections.abc import Iterable

from probes.recurrent.watching.reading import Reading


def stacks(readings: Iterable[Reading]) -> dict[str, list[Reading]]:
    """Put together what is followed in lock-step, by label."""
    calls: dict[tuple[str, int], list[Reading]] = {}
    for reading in readings:
        calls.setdefault((reading.site.module, reading.site.sequence), []).append(reading)
    found: dict[str, list[Reading]] = {}
    for group in calls.values():
        if any(reading.site.reverse for reading in group):
            found |= {reading.site.label: [reading] for reading in group}
            continue
        found[group[0].site.label.removesuffix("l0").removesuffix(".") or group[0].kind] = group
    return found
