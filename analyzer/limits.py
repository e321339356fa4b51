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
    min_samples: float = _limit(
        16, "ours: the share of samples behind half of the gradient comes in steps of 6 %"
    )


@dataclass(frozen=True)
class TimestepGradientLimits:
    """Limits of :mod:`analyzer.rules.timestep_gradient`."""

    warn_decades: float = _limit(
        4.0,
        "ours, calibrated: 97.5 % of healthy LSTMs of each kind lose at most 3.3, planted ones at "
        "least 21; 90 and 30 networks",
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
    coarse: float = _limit(
        0.05, "ours: steadier; drawing 64 of 1024 sequences again moved it between 4 and 12 steps"
    )
    required: float = _limit(
        nan, "the user: longest dependency of the task [timestep]; not judged while unset"
    )
    min_samples: float = _limit(
        64, "ours: drawing 64 of 1024 sequences again moved a 1 % horizon between 6 and 64 steps"
    )


@dataclass(frozen=True)
class LagProfileLimits:
    """Limits of :mod:`analyzer.rules.lag_profile`."""

    mass: float = _limit(
        0.95, "ours: found the known delay of trained recall, latch and adding networks exactly"
    )
    min_samples: float = _limit(
        64, "ours: drawing 64 of 1000 heartbeats again moved it between 35 and 58 of 140 steps"
    )


@dataclass(frozen=True)
class SequenceLengthLimits:
    """Limits of :mod:`analyzer.rules.sequence_length`."""

    lost: float = _limit(
        0.05, "ours: the share of what all inputs are worth at which the coarse horizon is read"
    )
    shortest: float = _limit(
        nan, "the user: shortest sequence to be read [timestep]; not judged while unset"
    )
    longest: float = _limit(
        nan, "the user: longest sequence to be read [timestep]; not judged while unset"
    )
    min_samples: float = _limit(64, "ours: as of the memory horizon, on whose scale it is")


@dataclass(frozen=True)
class StateReachLimits:
    """Limits of :mod:`analyzer.rules.state_reach`."""

    clear: float = _limit(
        0.8, "ours: named the wrong law for at most 5 % of simulated profiles of 16 or more samples"
    )
    min_samples: float = _limit(
        16,
        "ours: simulated 95 % intervals of the decay time held it in 85 % of cases with 8 "
        "samples, in 90 % with 16, in 94 % with 32",
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
    elongation: float = _limit(
        1.2, "ours: mentioned where one axis is longer than another by a fifth for certain"
    )
    untrained: float = _limit(
        0.1, "ours: fields that differ from those of untrained copies by less are called unchanged"
    )
    outside: float = _limit(
        1e-6,
        "ours, calibrated: what rounding in float32 can put there, with a wide margin; healthy 0, "
        "planted at least 0.019; 30 networks each",
    )
    border: float = _limit(
        0.75,
        "ours: a Gaussian field of this share of the input loses 3 % of its size to the borders",
    )
    growth_layers: float = _limit(4, "ours: fewer points do not show a power law")
    growth_range: float = _limit(
        4.0, "ours: over a smaller range the powers 1/2 and 1 differ by less than a factor of 2"
    )
    growth_evenness: float = _limit(
        2.0, "ours: growth per layer in the second half against the first, at most"
    )


@dataclass(frozen=True)
class AttributionLimits:
    """Limits of :mod:`analyzer.rules.attribution`."""

    tolerance: float = _limit(
        0.05, "Sundararajan et al. 2017: contributions add up to the difference within 5 %"
    )
    agreement: float = _limit(
        0.3,
        "ours, calibrated: at least 0.36 in 60 healthy CNNs and LSTMs of delayed recall, -1 in 30 "
        "planted ones; in 60 LSTMs on heartbeats the methods differ, -0.02 to 0.92; rank "
        "correlation as in Krishna et al. 2022",
    )
    min_samples: float = _limit(16, "ours: a bootstrap over fewer samples is narrower than it says")


@dataclass(frozen=True)
class LayerConductanceLimits:
    """Limits of :mod:`analyzer.rules.layer_conductance`."""

    tolerance: float = _limit(
        0.05, "Sundararajan et al. 2017: contributions add up to the difference within 5 %"
    )
    min_samples: float = _limit(16, "ours: a bootstrap over fewer samples is narrower than it says")


@dataclass(frozen=True)
class GatesLimits:
    """Limits of :mod:`analyzer.rules.gates`."""

    stuck_time: float = _limit(
        0.99, "ours: a gate at one end, as Karpathy et al. 2015 draw it, in 99 % of all timesteps"
    )
    stuck_units: float = _limit(
        0.5,
        "ours, calibrated: most units of a layer do not use the gate; healthy 0, planted at least "
        "0.62; 90 and 30 networks",
    )
    min_samples: float = _limit(
        8, "ours: what one sample in ten would move is missed in 43 % of draws of 8"
    )


@dataclass(frozen=True)
class LyapunovLimits:
    """Limits of :mod:`analyzer.rules.lyapunov`."""

    growth: float = _limit(
        1.0,
        "Mikhaeil et al. 2022: gradients explode where the exponent is above 0; ours: by a factor "
        "of e over the timesteps at least, calibrated: healthy at most -1.7, planted at least 12; "
        "60 and 30 networks",
    )
    min_steps: float = _limit(
        20,
        "ours: the largest exponent of random LSTMs and GRUs was off by at most 0.03 over 20 "
        "timesteps, by up to 0.08 over 6",
    )
    min_samples: float = _limit(4, "ours: the interval is over trajectories")


@dataclass(frozen=True)
class MemoryCapacityLimits:
    """Limits of :mod:`analyzer.rules.memory_capacity`."""

    min_rows: float = _limit(
        10,
        "ours: timesteps per unit of the state; linear reservoirs of capacity 20 measured 18.5 to "
        "19.1 with 10, 17.3 to 18.4 with 5",
    )
    min_samples: float = _limit(16, "ours: half of them fit a readout that the other half tests")


@dataclass(frozen=True)
class DepthContributionLimits:
    """Limits of :mod:`analyzer.rules.depth_contribution`."""

    idle: float = _limit(
        0.05,
        "ours, calibrated: training a 12-layer CNN with four seeds moved its loss by 5 %; healthy "
        "at least 0.06, planted at most 0; 120 and 30 networks",
    )
    min_samples: float = _limit(
        32, "ours: a bootstrap over fewer paired losses is narrower than it says"
    )


@dataclass(frozen=True)
class StackedLayersLimits:
    """Limits of :mod:`analyzer.rules.stacked_layers`."""

    idle: float = _limit(
        0.05,
        "ours: as depth_contribution.idle; calibration: planted 0, but a linear map also does in "
        "5 of 30 stacks of two LSTMs that nothing was planted in",
    )
    min_samples: float = _limit(
        32, "ours: a bootstrap over fewer paired losses is narrower than it says"
    )


@dataclass(frozen=True)
class UnproductiveDepthLimits:
    """Limits of :mod:`analyzer.rules.unproductive_depth`."""

    similar: float = _limit(
        0.9999,
        "ours, calibrated: 97.5 % of healthy networks of each kind have blocks of at most 0.9998, "
        "planted ones of 1; 120 and 30 networks",
    )


@dataclass(frozen=True)
class TimestepContributionLimits:
    """Limits of :mod:`analyzer.rules.timestep_contribution`."""

    held: float = _limit(0.95, "ours: the last timesteps that hold 95 % of a gradient train it")
    required: float = _limit(
        nan,
        "the user: last timesteps that have to train the weights [timestep]; not judged while "
        "unset",
    )
    conflict: float = _limit(
        -0.5,
        "ours, calibrated: two halves of one size at this cosine add up to no more than either; "
        "healthy at least -0.41, planted at most -0.99; 90 and 30 networks",
    )
    coherence: float = _limit(
        4.0,
        "ours: independent samples with a mean gradient of zero exceed it in fewer than 5 % of "
        "audits (chi-square with one degree of freedom: 3.84)",
    )
    min_samples: float = _limit(
        6, "order statistics: a 95 % interval of a median needs 6 samples or more"
    )


@dataclass(frozen=True)
class TruncationLimits:
    """Limits of :mod:`analyzer.rules.truncation`."""

    cosine: float = _limit(
        0.99,
        "ours, calibrated: a gradient turned by more than 8 degrees trains in another direction; "
        "healthy at least 0.9996, planted at most 0.73; 30 networks each",
    )
    trained_with: float = _limit(
        nan,
        "the user: timesteps between two detachments of the state in training [timestep]; not "
        "judged while unset",
    )
    min_samples: float = _limit(
        8, "ours: a jackknife over fewer groups has an interval more than a fifth too wide"
    )


@dataclass(frozen=True)
class GeneralizationLimits:
    """Limits of :mod:`analyzer.rules.generalization`."""

    warn_lost: float = _limit(
        0.25,
        "ours, calibrated: healthy at most 0.04, planted at least 0.38; 30 and 60 networks; those "
        "of Zhang et al. 2017 (table 1, CIFAR-10) lost 12 to 27 % (CNN), 52 to 55 % (perceptron)",
    )
    fail_lost: float = _limit(
        0.7,
        "ours, calibrated: random labels known by heart lose at least 0.73, healthy at most 0.04; "
        "30 networks each",
    )
    min_samples: float = _limit(
        32, "ours: of each side; a bootstrap over fewer samples is narrower than it says"
    )


@dataclass(frozen=True)
class WidthLimits:
    """Limits of :mod:`analyzer.rules.width`."""

    filled: float = _limit(
        0.5, "torchmortem: rank below half of the width; here of the directions that hold 99 %"
    )
    layers: float = _limit(
        0.5,
        "ours: a network is called too wide where most of its layers are; calibration does not "
        "tell healthy networks apart, which are too wide as well",
    )
    idle: float = _limit(0.05, "ours: as depth_contribution.idle; calibration: as width.layers")
    redundant: float = _limit(
        0.45,
        "ours, calibrated: 97.5 % of healthy ones of each kind have at most 0.47 (tanh; others "
        "0.42), planted ones 0.5; 210 and 30 networks",
    )
    dead: float = _limit(0.5, "SageMaker Debugger and torchmortem: half of the units of a layer")
    most_dead: float = _limit(0.8, "torchmortem: four fifths of the units of a layer")
    rare: float = _limit(
        0.05,
        "ours: a unit active in fewer samples than this is called dead; by the rule of three "
        "(Hanley and Lippman-Hand 1983) 60 samples without it are needed",
    )
    stuck_time: float = _limit(0.99, "ours: as gates.stuck_time")
    stuck_units: float = _limit(
        0.5, "ours, calibrated: as gates.stuck_units; healthy 0, planted 1; 30 networks each"
    )
    min_samples: float = _limit(32, "ours: a jackknife over ten groups of three samples or more")


@dataclass(frozen=True)
class MemoryFootprintLimits:
    """Limits of :mod:`analyzer.rules.memory_footprint`."""

    budget_gib: float = _limit(
        nan, "the user: memory of the device [GiB = 2^30 byte]; not judged while unset"
    )
    margin: float = _limit(
        0.1,
        "ours: estimates of training were within 5 % of the peak of a process for five networks",
    )
    serving_margin: float = _limit(
        0.1,
        "ours: estimates of serving were within 5 % of the peak of a process for five networks",
    )


@dataclass(frozen=True)
class UpdateRatioLimits:
    """Limits of :mod:`analyzer.rules.update_ratio`."""

    low: float = _limit(
        1e-5,
        "torchmortem: warns below it, of the median over training; here of one update. CS231n "
        "names no limit: somewhere around 1e-3, as a rough heuristic",
    )
    high: float = _limit(
        1e-1,
        "torchmortem: critical above it, of the median over training; here of one update, so a "
        "warning. CS231n names no limit: somewhere around 1e-3, as a rough heuristic; calibration: "
        "told 30 of 30 planted faults, alarmed in none of 30 healthy perceptrons",
    )
    decayed: float = _limit(
        0.01, "ours: below 1 % of its start a learning rate is at the end of its schedule"
    )


@dataclass(frozen=True)
class Limits:
    """One group per rule module."""

    gradient_flow: GradientFlowLimits = field(default_factory=GradientFlowLimits)
    timestep_gradient: TimestepGradientLimits = field(default_factory=TimestepGradientLimits)
    layers_or_time: LayersOrTimeLimits = field(default_factory=LayersOrTimeLimits)
    memory_horizon: MemoryHorizonLimits = field(default_factory=MemoryHorizonLimits)
    lag_profile: LagProfileLimits = field(default_factory=LagProfileLimits)
    sequence_length: SequenceLengthLimits = field(default_factory=SequenceLengthLimits)
    state_reach: StateReachLimits = field(default_factory=StateReachLimits)
    receptive_field: ReceptiveFieldLimits = field(default_factory=ReceptiveFieldLimits)
    effective_field: EffectiveFieldLimits = field(default_factory=EffectiveFieldLimits)
    attribution: AttributionLimits = field(default_factory=AttributionLimits)
    layer_conductance: LayerConductanceLimits = field(default_factory=LayerConductanceLimits)
    gates: GatesLimits = field(default_factory=GatesLimits)
    lyapunov: LyapunovLimits = field(default_factory=LyapunovLimits)
    memory_capacity: MemoryCapacityLimits = field(default_factory=MemoryCapacityLimits)
    depth_contribution: DepthContributionLimits = field(default_factory=DepthContributionLimits)
    stacked_layers: StackedLayersLimits = field(default_factory=StackedLayersLimits)
    unproductive_depth: UnproductiveDepthLimits = field(default_factory=UnproductiveDepthLimits)
    timestep_contribution: TimestepContributionLimits = field(
        default_factory=TimestepContributionLimits
    )
    truncation: TruncationLimits = field(default_factory=TruncationLimits)
    width: WidthLimits = field(default_factory=WidthLimits)
    generalization: GeneralizationLimits = field(default_factory=GeneralizationLimits)
    memory_footprint: MemoryFootprintLimits = field(default_factory=MemoryFootprintLimits)
    update_ratio: UpdateRatioLimits = field(default_factory=UpdateRatioLimits)

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
