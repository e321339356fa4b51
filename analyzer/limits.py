"""Every number that turns a measurement into a verdict, and where it comes from.

A user's TOML overrides any of them (``[limits.gradient_flow] warn_decades = 4``); the report prints
those in force and marks the overrides.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import nan
from typing import Any

from analyzer.names import known
from probes.errors import AnalyzerError


def _limit(default: float, source: str) -> Any:
    """Declare a limit with its source."""
    return field(default=default, metadata={"source": source})


@dataclass(frozen=True)
class GradientFlowLimits:
    """Limits of :mod:`analyzer.rules.gradient_flow`."""

    warn_decades: float = _limit(
        2.0, "torchmortem: first-to-last-layer gradient ratio of 100; here on the robust trend"
    )
    fail_decades: float = _limit(3.0, "torchmortem: first-to-last-layer gradient ratio of 1000")


@dataclass(frozen=True)
class TimestepGradientLimits:
    """Limits of :mod:`analyzer.rules.timestep_gradient`."""

    warn_decades: float = _limit(
        3.0,
        "ours: a step with a thousandth of the last step's gradient adds 0.1 % to the weight's",
    )


@dataclass(frozen=True)
class LayersOrTimeLimits:
    """Limits of :mod:`analyzer.rules.layers_or_time`."""

    balanced: float = _limit(
        1.0, "ours: an axis that loses less than a factor of ten is no bottleneck"
    )


@dataclass(frozen=True)
class MemoryHorizonLimits:
    """Limits of :mod:`analyzer.rules.memory_horizon`."""

    share: float = _limit(
        0.01, "Khandelwal et al. 2018: context whose loss costs at most 1 % is not used"
    )
    required: float = _limit(
        nan, "the user: longest dependency of the task [timestep]; not judged while unset"
    )
    min_samples: float = _limit(
        64, "ours: drawing 64 of 1024 sequences again moved a 1 % horizon between 6 and 64 steps"
    )


@dataclass(frozen=True)
class ReceptiveFieldLimits:
    """Limits of :mod:`analyzer.rules.receptive_field`."""

    unproductive: float = _limit(
        0, "Richter et al. 2021: a layer whose inputs already see the whole input adds no context"
    )


@dataclass(frozen=True)
class EffectiveFieldLimits:
    """Limits of :mod:`analyzer.rules.effective_field`."""

    required: float = _limit(
        nan, "the user: size of the objects to be seen [input position]; not judged while unset"
    )
    convergence: float = _limit(
        0.1, "ours: half of the samples must give the same field within 10 %"
    )


@dataclass(frozen=True)
class Limits:
    """One group per rule module."""

    gradient_flow: GradientFlowLimits = field(default_factory=GradientFlowLimits)
    timestep_gradient: TimestepGradientLimits = field(default_factory=TimestepGradientLimits)
    layers_or_time: LayersOrTimeLimits = field(default_factory=LayersOrTimeLimits)
    memory_horizon: MemoryHorizonLimits = field(default_factory=MemoryHorizonLimits)
    receptive_field: ReceptiveFieldLimits = field(default_factory=ReceptiveFieldLimits)
    effective_field: EffectiveFieldLimits = field(default_factory=EffectiveFieldLimits)

    @classmethod
    def of(cls, overrides: Mapping[str, Mapping[str, float]]) -> "Limits":
        """Read the ``[limits]`` tables of a TOML file.

        Raises
        ------
        AnalyzerError
            A group or limit is unknown, or a value is not a number.
        """
        limits = cls()
        for group, values in overrides.items():
            known([group], [entry.name for entry in fields(cls)], "limit group")
            current = getattr(limits, group)
            known(values, [entry.name for entry in fields(current)], f"limit in {group}")
            for name, value in values.items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise AnalyzerError(f"limit {group}.{name} is {value!r}: a number is needed")
            limits = replace(limits, **{group: replace(current, **values)})
        return limits

    def table(self) -> dict[str, dict[str, Any]]:
        """List every limit in force: name -> value, source, and whether the user set it."""
        defaults = Limits()
        rows = {}
        for group in fields(self):
            ours, theirs = getattr(defaults, group.name), getattr(self, group.name)
            for entry in fields(theirs):
                value = asdict(theirs)[entry.name]
                rows[f"{group.name}.{entry.name}"] = {
                    "value": value,
                    "source": entry.metadata["source"],
                    "overridden": repr(value) != repr(asdict(ours)[entry.name]),
                }
        return rows


def source_of(limits: object, name: str) -> str:
    """Return where the limit called ``name`` comes from."""
    (entry,) = (entry for entry in fields(limits) if entry.name == name)  # type: ignore[arg-type]
    if repr(getattr(limits, name)) != repr(entry.default):
        return f"set by the user (default {entry.default:g}: {entry.metadata['source']})"
    return str(entry.metadata["source"])
