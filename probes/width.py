"""How much of the width of every layer is used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import xarray as xr
from torch import Tensor

from probes.base import Progress, Subject, silent
from probes.effective_field import MOST_KEPT, listed
from probes.errors import AnalyzerError, NotApplicable
from probes.features.labels import Found, Nulls, labelled, loss_changes
from probes.features.layers import Layer, layers_of
from probes.features.observation import Observed, Plan, observe
from probes.features.parameters import parameters
from probes.features.restriction import Subspace, restricted
from probes.features.summary import Rules, plain, summary
from probes.loss import objective
from probes.model.nulls import untrained
from probes.model.taps import untouched
from probes.samples.selection import rows, spread

BUDGET = 2**29
"""Bytes for covariances that are kept at the same time, unless a single layer needs more."""


@dataclass(frozen=True)
class Width:
    """Directions that the features of every layer fill, against its width, and idle units.

    Measured is what every convolution, linear and recurrent layer returns (both directions of a
    recurrent layer as one), at up to ``positions`` random positions of each sample, over all calls
    of the layer. Of the covariance of its units: the fewest principal directions that hold
    ``level`` of the variance, the effective rank (exponential of the entropy of the shares of
    variance), and the participation ratio. All are undefined with fewer than ``power`` independent
    positions per unit.

    Also: units whose correlation with another one exceeds ``correlated``, those that do not vary,
    those never above zero behind a ReLU (at any position of any sample), those at one end of a
    tanh or sigmoid; the parameters that a network as wide as these directions would do without;
    and the loss with all layers but the output restricted to their directions at once, each fitted
    on the half of the samples that it is not tested on. Of a recurrent layer the states that it
    passes on are restricted, its recurrence is not. Copies of the network with new
    random weights say what of it is the architecture's.

    The saturation of delve is the same count over the width, but for two faults of its version
    0.1.50: it counts one direction too few, and of several batches it keeps the last one only.

    Costs a forward pass of ``samples`` samples and one for each copy, two of ``tested`` samples,
    and for each layer three eigendecompositions and one for each copy: together 0.5 to 3.5 forward
    and backward passes, most in networks of small layers. Sums are kept in float64; those of the
    copies are made of products in float32, which leaves four digits. Keeps 8 bytes
    times the square of the width for every group and layer, up to 512 MiB or two groups of the
    widest layer (more layers: further passes), two bases of the directions of every layer, and the
    features of ``together`` samples at ``positions`` positions.

    Parameters
    ----------
    samples : int
        How many samples are measured, evenly spread over the audit data.
    positions : int
        Of each sample, at most.
    level : float
        Share of the variance that counts as all of it.
    correlated : float
        Magnitude of a correlation above which two units say the same.
    power : int
        Independent positions per unit that are needed.
    groups : int
        Groups of samples that are left out in turn for intervals; even.
    widest : int
        Layers with more units have no covariance.
    tested : int
        Samples on which the loss with restricted layers is measured; 0 leaves it out.
    null_seeds : int
        Copies of the network with new random weights that are measured for comparison.
    together : int
        Samples that run at the same time.

    References
    ----------
    .. [1] Roy and Vetterli, The Effective Rank: A Measure of Effective Dimensionality, EUSIPCO
       (2007); here of the eigenvalues of the covariance.
    .. [2] Richter, Shenk, Byttner, Arpteg and Huss, Feature Space Saturation During Training
       (2021).
    .. [3] Gao, Trautmann, Yu, Santhanam, Ryu, Shenoy and Ganguli, A theory of multineuronal
       dimensionality, dynamics and measurement, bioRxiv 214262 (2017): the participation ratio.
    """

    name: ClassVar[str] = "width"
    passes: ClassVar[float] = 2.5
    samples: int = 4096
    positions: int = 64
    level: float = 0.99
    correlated: float = 0.99
    power: int = 10
    groups: int = 10
    widest: int = 4096
    tested: int = 256
    null_seeds: int = 2
    together: int = 64

    def __post_init__(self) -> None:
        for setting in ("samples", "positions", "power", "widest", "together"):
            if getattr(self, setting) < 1:
                raise AnalyzerError(f"width.{setting} is less than 1")
        for setting in ("tested", "null_seeds"):
            if getattr(self, setting) < 0:
                raise AnalyzerError(f"width.{setting} is negative")
        for setting in ("level", "correlated"):
            if not 0 < getattr(self, setting) < 1:
                raise AnalyzerError(f"width.{setting} is not between 0 and 1")
        if self.groups < 2 or self.groups % 2:
            raise AnalyzerError("width.groups is not an even number of 2 or more")

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        layers = layers_of(subject.model)
        if not layers:
            raise NotApplicable("the model has no convolution, linear or recurrent layer of torch")
        with untouched(subject.model):
            chosen = rows(subject, self.samples)
            rounds = _rounds(layers, self.groups, self.widest)
            tested = _tested(chosen, self.tested)
            passes = len(rounds) * (1 + self.null_seeds)
            steps = _Steps(progress, passes * len(chosen) + len(tested))
            found = self._measured(subject, chosen, layers, rounds, steps)
            if not found.summaries:
                raise NotApplicable(_APART if found.observed.apart else _NONE)
            changes = None
            if found.halves and tested:
                changes = restricted(
                    subject, tested, layers, found.halves, self.together, steps.advance
                )
            nulls = self._nulls(subject, chosen, layers, rounds, found, steps)
            steps.finish()
            own = parameters(subject.model, layers)
        trace = labelled(found, layers, own, nulls).merge(loss_changes(changes, sorted(tested)))
        return trace.assign_attrs(
            objective=objective.describe(subject),
            samples=len(chosen),
            power=self.power,
            level=self.level,
            correlated=self.correlated,
            not_called=", ".join(layer for layer in layers if layer not in found.seen),
            not_per_sample=", ".join(sorted(found.observed.apart)),
            restricted=", ".join(found.halves),
        )

    def _measured(
        self,
        subject: Subject,
        chosen: Sequence[int],
        layers: Mapping[str, Layer],
        rounds: Sequence[Mapping[str, int]],
        steps: "_Steps",
    ) -> Found:
        """Measure the trained network, some layers at a time."""
        rules = Rules(self.level, self.correlated, self.power)
        found = Found(Observed(), {}, {}, len(chosen), self.groups)
        for at, groups in enumerate(rounds):
            plan = Plan(layers, groups, self.positions, self.together, 0 if at else self.groups)
            observed = observe(subject, chosen, plan, steps.advance)
            found.observed = observed if not at else found.observed
            for label, moments in observed.layers.items():
                summary_ = found.summaries[label] = summary(moments, rules)
                powered = len(summary_.variances) > 0 and self.tested > 0
                if powered and found.is_read(label):
                    halves = moments.pooled(slice(0, None, 2)), moments.pooled(slice(1, None, 2))
                    first, second = (Subspace.of(half, self.level) for half in halves)
                    found.halves[label] = first, second
        return found

    def _nulls(
        self,
        subject: Subject,
        chosen: Sequence[int],
        layers: Mapping[str, Layer],
        rounds: Sequence[Mapping[str, int]],
        found: Found,
        steps: "_Steps",
    ) -> Nulls:
        """Measure copies with new random weights; say why where there can be none."""
        seeds = range(subject.seed, subject.seed + self.null_seeds)
        nulls = Nulls()
        powered = [label for label, one in found.summaries.items() if len(one.variances)]
        try:
            for twin in untrained(subject.model, seeds) if seeds and powered else ():
                nulls.kept = listed(twin.kept)
                if twin.kept_share > MOST_KEPT:
                    return Nulls(reason=f"no module initialises {nulls.kept}")
                row: dict[str, Tensor] = {}
                for groups in rounds:
                    own = {label: 1 for label in groups if label in powered}
                    plan = Plan(layers, own, self.positions, self.together, 0, rough=True)
                    observed = observe(subject, chosen, plan, steps.advance, twin.model)
                    row |= {
                        label: plain(moments, self.level)
                        for label, moments in observed.layers.items()
                    }
                nulls.copies.append(row)
        except NotApplicable as reason:
            return Nulls(reason=str(reason))
        return nulls


_NONE = "the model calls none of its convolutions, linear and recurrent layers as modules"
_APART = "no layer keeps the samples of a batch apart"


def _rounds(layers: Mapping[str, Layer], groups: int, widest: int) -> list[dict[str, int]]:
    """Split layers into rounds that fit into memory; each with its number of groups, even."""
    rounds: list[dict[str, int]] = [{}]
    used = 0
    for label, layer in layers.items():
        square = 8 * layer.width**2
        if layer.width > widest:
            continue
        own = max(min(groups, BUDGET // square // 2 * 2), 2)
        if rounds[-1] and used + own * square > BUDGET:
            rounds.append({})
            used = 0
        rounds[-1][label] = own
        used += own * square
    return rounds


def _tested(chosen: Sequence[int], most: int) -> dict[int, int]:
    """Choose places for the loss, as many out of each half: place -> half."""
    picked = spread(len(chosen), most) if most else []
    # Sample number n of those chosen is in the half n modulo 2.
    numbers = [min(at - at % 2 + order % 2, len(chosen) - 1) for order, at in enumerate(picked)]
    return {chosen[number]: number % 2 for number in numbers}


class _Steps:
    """Counts the samples that are done, for the progress."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def advance(self, samples: int) -> None:
        """Report samples."""
        self._done += samples
        if self._done < self._total:
            self._progress(self._done, self._total)

    def finish(self) -> None:
        """Report that nothing is left to do."""
        self._progress(self._total, self._total)
