"""Verdicts on what a network makes of sequences of other lengths."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, isinf, isnan, nan
from typing import ClassVar

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
    yield _Shorter(trace, limits).finding()
    yield _Longer(trace, limits).finding()


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
    name: ClassVar[str]
    sign: ClassVar[int]
    """1 where longer is further from the own length, else -1."""
    superlative: ClassVar[str]
    """Also the name of the limit that says which length the user needs."""

    @property
    def own(self) -> int:
        """Length of the audited sequences."""
        return int(self.trace.attrs["sequence_length"])

    @property
    def needed(self) -> float:
        """Length that the user needs; nan if none was named."""
        return float(getattr(self.limits, self.superlative))

    def length(self) -> int | None:
        """Choose the length to judge: the nearest that goes as far as needed, if there is one."""
        away = [self.sign * int(length) for length in self.trace["length"].to_numpy()]
        beyond = [one for one in away if one > self.sign * self.own]
        if not isnan(self.needed):
            beyond = [one for one in beyond if one >= self.sign * self.needed]
        return self.sign * min(beyond) if beyond else None

    def finding(self) -> Finding:
        """Word the verdict."""
        length = self.length()
        if self.sign * self.needed <= self.sign * self.own:
            return self._told(
                Severity.PASS,
                f"the audited sequences are of {self.own} timesteps, and {self.needed:g} are "
                "needed",
                "Nothing is lost on what was audited itself.",
                "None.",
                Estimate(0.0, 0.0, 0.0, self.trace.sizes["sample"]),
            )
        if length is None:
            return self._untried()
        if told := reason(self.trace, length):
            return self._unknown(length, told)
        found = lost(self.trace, length)
        return self._told(*self._judged(found, length), found)

    def _told(
        self, severity: Severity, message: str, meaning: str, action: str, found: Estimate
    ) -> Finding:
        """Put a verdict together."""
        judged = not isnan(self.needed)
        return Finding(
            f"{self.name}-sequences",
            PROBE,
            severity,
            f"{self.name.capitalize()} sequences",
            message,
            meaning,
            action,
            value=found.value,
            low=found.low,
            high=found.high,
            limit=self.limits.lost if judged else nan,
            relation="<=" if judged else "",
            limit_source=source_of(self.limits, "lost") if judged else "",
            samples=found.samples,
        )

    def _untried(self) -> Finding:
        """Say that no length was tried that goes as far as needed."""
        needed = not isnan(self.needed)
        return self._told(
            Severity.INCONCLUSIVE if needed else Severity.INFO,
            f"no sequences {self.name} than {self.own} timesteps were tried"
            + (f" that are of {self.needed:g} or {self.name}" if needed else ""),
            "Whether the network takes them is not known.",
            f"Raise the setting sequence_length.{self.name}.",
            Estimate(),
        )

    def _unknown(self, length: int, why: str) -> Finding:
        """Say why there is no loss at a length."""
        needed = not isnan(self.needed)
        if refused(self.trace, length):
            return self._told(
                Severity.WARN if needed else Severity.INFO,
                f"the network takes no sequences of {length} timesteps: {why}",
                f"It is made for sequences of {self.own} timesteps.",
                f"Cut or pad sequences to {self.own} timesteps.",
                Estimate(),
            )
        return self._told(
            Severity.INCONCLUSIVE if needed else Severity.INFO,
            f"sequences of {length} timesteps have nothing to compare: {why}",
            "The network takes them; what it makes of them is not known.",
            "Give a loss and targets, or name the output that is to be judged.",
            Estimate(),
        )

    def _judged(self, found: Estimate, length: int) -> tuple[Severity, str, str, str]:
        """Severity, message, meaning and action."""
        if isnan(found.value):
            return (
                Severity.INCONCLUSIVE,
                "replacing the whole input by another sample's does not raise the loss for "
                f"certain ({found.samples} samples)",
                "The output may not depend on the input, or the samples are too few or alike.",
                "Audit more samples, with targets if there are any.",
            )
        message = self.message(found, length)
        if found.samples < self.limits.min_samples:
            meaning = f"{found.samples} samples are too few to tell what other lengths cost."
            action = f"Audit at least {self.limits.min_samples:g} samples."
            return Severity.INCONCLUSIVE, message, meaning, action
        severity = at_most(found, self.limits.lost)
        meaning, action = self.meaning(severity, length)
        if isnan(self.needed):
            action = f"Set the limit sequence_length.{self.superlative} to have it judged."
            return Severity.INFO, message, meaning, action
        return severity, message, meaning, action

    def message(self, found: Estimate, length: int) -> str:
        """Say what was seen."""
        raise NotImplementedError

    def meaning(self, severity: Severity, length: int) -> tuple[str, str]:
        """Say what it means, and what to do."""
        raise NotImplementedError


class _Shorter(_Side):
    """The last inputs alone."""

    name, sign, superlative = "shorter", -1, "shortest"

    def message(self, found: Estimate, length: int) -> str:
        replaced = lost(self.trace, length, "replaced_loss")
        return (
            f"from the last {length} of {self.own} inputs alone the final loss "
            f"{_moves(found.value)} of what all inputs are worth; where others stand in place of "
            f"the older ones it {_moves(replaced.value)}"
        )

    def meaning(self, severity: Severity, length: int) -> tuple[str, str]:
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


class _Longer(_Side):
    """With another sample's inputs in front."""

    name, sign, superlative = "longer", 1, "longest"

    def message(self, found: Estimate, length: int) -> str:
        return (
            f"with {length - self.own} inputs of another sample in front, {length} timesteps in "
            f"all, the final loss {_moves(found.value)} of what all inputs are worth"
        )

    def meaning(self, severity: Severity, length: int) -> tuple[str, str]:
        if severity is Severity.PASS:
            return "A longer past does not harm it.", "None."
        if severity is Severity.INCONCLUSIVE:
            return "Whether a longer past harms it is uncertain.", "Audit more samples."
        return (
            "A longer past harms it: it reads the whole sequence, or its state leaves the range "
            "that it was trained in.",
            f"Start anew every {self.own} timesteps, or train on longer sequences.",
        )
