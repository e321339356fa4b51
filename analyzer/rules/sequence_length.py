"""Verdicts on what a network makes of sequences of other lengths."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import inf, isinf, isnan, nan

import numpy as np
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import SequenceLengthLimits, source_of
from analyzer.rules.verdicts import Estimate, at_most
from analyzer.statistics import Values, bootstrap_interval

PROBE = "sequence_length"

LARGE = 1e300
"""In the place of infinite losses."""

SMALL = 0.001
"""Shares below this are not told from nothing in words."""


def sequence_length(trace: xr.Dataset, limits: SequenceLengthLimits) -> Iterator[Finding]:
    """Judge what is lost on shorter and on longer sequences, if the user needs them.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.sequence_length.SequenceLength`.
    limits : SequenceLengthLimits
        All are used.

    Yields
    ------
    Finding
        One for shorter sequences, one for longer ones.
    """
    yield _Side(trace, limits, "shorter").finding()
    yield _Side(trace, limits, "longer").finding()


def lost(trace: xr.Dataset, length: int, variable: str = "excess_loss") -> Estimate:
    """Loss added at a length, as a share of what all inputs are worth.

    That is what is added when every input is another sample's; nan where that is not above zero for
    certain, or nothing is known at this length; infinite where a loss is undefined there.
    """
    excess = trace[variable].sel(length=length).to_numpy()
    worth = trace["whole_loss"].to_numpy()
    known = ~np.isnan(excess) & np.isfinite(worth)
    # Intervals are undefined between infinities, not between numbers as large as they get.
    paired = np.stack([np.minimum(excess[known], LARGE), worth[known]], 1)
    if not bootstrap_interval(paired[:, 1], np.mean)[0] > 0:
        return Estimate(samples=len(paired))
    found = [float(_share(paired, 0)), *map(float, bootstrap_interval(paired, _share))]
    # Divided by the samples and what their inputs are worth, such a number is still beyond others.
    value, low, high = (inf if share > LARGE**0.9 else share for share in found)
    return Estimate(value, low, high, len(paired))


def _share(paired: Values, axis: int) -> Values:
    """Set the sum of the first column against that of the second."""
    sums = paired.sum(axis=axis)
    return np.asarray(sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], nan))


def warmed(trace: xr.Dataset, length: int) -> Estimate:
    """Find what is lost with nothing before the last inputs beyond that with others before."""
    both = trace["excess_loss"] - trace["replaced_loss"]
    return lost(trace.assign(difference=both), length, "difference")


def refused(trace: xr.Dataset, length: int) -> bool:
    """Whether the model does not take sequences of this length."""
    return not bool(trace["taken"].sel(length=length))


def reason(trace: xr.Dataset, length: int) -> str:
    """Say why there is no loss at this length; empty if there is one."""
    return str(trace["reason"].sel(length=length).item())


def _moves(share: float) -> str:
    """Say by how much of what all inputs are worth a loss rises or falls."""
    if isinf(share):
        return "is infinite or undefined, beyond any share"
    if abs(share) < SMALL:
        return f"changes by less than {SMALL:.1%}"
    return f"{'rises' if share > 0 else 'falls'} by {abs(share):.1%}"


@dataclass(frozen=True)
class _Side:
    """Sequences shorter, or longer, than those of the audit."""

    trace: xr.Dataset
    limits: SequenceLengthLimits
    name: str

    @property
    def own(self) -> int:
        """Length of the audited sequences."""
        return int(self.trace.attrs["sequence_length"])

    @property
    def required(self) -> float:
        """Length that the user needs, nan if none was named."""
        return self.limits.shortest if self.name == "shorter" else self.limits.longest

    def lengths(self) -> list[int]:
        """List the lengths on this side, the nearest first."""
        every = [int(length) for length in self.trace["length"].to_numpy()]
        if self.name == "shorter":
            return [length for length in every if length < self.own][::-1]
        return [length for length in every if length > self.own]

    def judged(self) -> int | None:
        """Choose the length to judge: the first that goes as far as needed; None if none does."""
        for length in self.lengths():
            beyond = length <= self.required if self.name == "shorter" else length >= self.required
            if beyond or isnan(self.required):
                return length
        return None

    def finding(self) -> Finding:
        """Word the verdict."""
        finding = partial(
            Finding,
            code=f"{self.name}-sequences",
            probe=PROBE,
            title=f"{self.name.capitalize()} sequences",
            limit=nan if isnan(self.required) else self.limits.lost,
            relation="" if isnan(self.required) else "<=",
            limit_source="" if isnan(self.required) else source_of(self.limits, "lost"),
        )
        length = self.judged()
        if self._within():
            return finding(
                severity=Severity.PASS,
                message=f"the audited sequences are of {self.own} timesteps, and {self.required:g} "
                "are needed",
                meaning="Nothing is lost on what was audited itself.",
                value=0.0,
                low=0.0,
                high=0.0,
                samples=self.trace.sizes["sample"],
            )
        if length is None:
            return finding(
                severity=Severity.INCONCLUSIVE,
                message=f"no sequences as {self._degree()} as {self.required:g} timesteps were "
                "tried",
                meaning="Whether the network takes them is not known.",
                action=f"Raise the setting sequence_length.{self.name}.",
            )
        if refused(self.trace, length):
            return finding(
                severity=Severity.INFO if isnan(self.required) else Severity.WARN,
                message=f"the network takes no sequences of {length} timesteps: "
                f"{reason(self.trace, length)}",
                meaning=f"It is made for sequences of {self.own} timesteps.",
                action=f"Cut or pad sequences to {self.own} timesteps.",
            )
        if told := reason(self.trace, length):
            return finding(
                severity=Severity.INFO if isnan(self.required) else Severity.INCONCLUSIVE,
                message=f"sequences of {length} timesteps have nothing to compare: {told}",
                meaning="The network takes them; what it makes of them is not known.",
                action="Give a loss and targets, or name the output that is to be judged.",
            )
        found = lost(self.trace, length)
        severity, meaning, action = self._judgement(found, length)
        return finding(
            severity=severity,
            message=self._message(found, length),
            meaning=meaning,
            action=action,
            value=found.value,
            low=found.low,
            high=found.high,
            samples=found.samples,
        )

    def _within(self) -> bool:
        """Whether the needed length is that of the audited sequences, or less far."""
        return self.required >= self.own if self.name == "shorter" else self.required <= self.own

    def _degree(self) -> str:
        """Name the direction."""
        return "short" if self.name == "shorter" else "long"

    def _message(self, found: Estimate, length: int) -> str:
        """Say what was seen."""
        if isnan(found.value):
            return (
                "replacing the whole input by another sample's does not raise the loss for "
                f"certain ({found.samples} samples)"
            )
        if self.name == "longer":
            return (
                f"with {length - self.own} inputs of another sample in front, {length} timesteps "
                f"in all, the final loss {_moves(found.value)} of what all inputs are worth"
            )
        replaced = lost(self.trace, length, "replaced_loss")
        return (
            f"from the last {length} of {self.own} inputs alone the final loss "
            f"{_moves(found.value)} of what all inputs are worth; where others stand in place of "
            f"the older ones it {_moves(replaced.value)}"
        )

    def _judgement(self, found: Estimate, length: int) -> tuple[Severity, str, str]:
        """Severity, meaning and action."""
        if isnan(found.value):
            return (
                Severity.INCONCLUSIVE,
                "The output may not depend on the input, or the samples are too few or alike.",
                "Audit more samples, with targets if there are any.",
            )
        if found.samples < self.limits.min_samples:
            meaning = f"{found.samples} samples are too few to tell what other lengths cost."
            action = f"Audit at least {self.limits.min_samples:g} samples."
            return Severity.INCONCLUSIVE, meaning, action
        severity = at_most(found, self.limits.lost)
        meaning, action = getattr(self, f"_{self.name}")(severity, length)
        if not isnan(self.required):
            return severity, meaning, action
        ask = "shortest" if self.name == "shorter" else "longest"
        return Severity.INFO, meaning, f"Set the limit sequence_length.{ask} to have it judged."

    def _shorter(self, severity: Severity, length: int) -> tuple[str, str]:
        """Meaning and action for shorter sequences."""
        if severity is Severity.PASS:
            return "The network takes shorter sequences as well as its own.", "None."
        if severity is Severity.INCONCLUSIVE:
            return "Whether shorter sequences cost it much is uncertain.", "Audit more samples."
        if warmed(self.trace, length).low > self.limits.lost:
            return (
                "It does worse with nothing before than with another sample's inputs before: it "
                "counts on a state that the start of a sequence does not give.",
                "Run it on some inputs before those that count, or train on shorter sequences too.",
            )
        return (
            "It misses what the older inputs tell, not their number.",
            f"Give it more than {length} timesteps.",
        )

    def _longer(self, severity: Severity, length: int) -> tuple[str, str]:
        """Meaning and action for longer sequences."""
        if severity is Severity.PASS:
            return "A longer past does not harm it.", "None."
        if severity is Severity.INCONCLUSIVE:
            return "Whether a longer past harms it is uncertain.", "Audit more samples."
        return (
            "A longer past harms it: it reads the whole sequence, or its state leaves the range "
            "that it was trained in.",
            f"Start anew every {self.own} timesteps, or train on longer sequences.",
        )
