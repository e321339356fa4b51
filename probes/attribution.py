"""Which part of its input a decision comes from: by time back from its end, or by distance.

Shapes: B sample, P position, W window.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import xarray as xr
from captum.attr import FeatureAblation, IntegratedGradients
from torch import Tensor

from probes.base import Progress, Subject, silent, variable
from probes.decision.places import PADDING, Place, Timeline, by_place, place_of
from probes.decision.samples import Draw
from probes.decision.score import describe
from probes.decision.source import BASELINES, Source, means
from probes.errors import AnalyzerError
from probes.loss.replacement import grid
from probes.model.taps import differentiable_recurrence, untouched


@dataclass(frozen=True)
class Attribution:
    """Contributions of the inputs to the decision, by lag or by distance from the centre.

    The decision is the log-odds of the class that the model itself finds most probable, or, without
    a classifying loss, its output along the change from the baseline to the sample; that of the
    last position in time, or of the central unit of a map. Contributions are integrated
    gradients: they add up to the score of the decision less that at the baseline, and the rest
    that they miss is kept as ``delta``. As a second opinion, windows of the input are replaced by
    the baseline one at a time (occlusion), which needs no gradient.

    Inputs with time are ordered by lag, 0 being the last valid timestep of each sample; images by
    distance from the centre. Integer inputs are attributed to at the output of the embedding.
    Everything is relative to the baseline, and a position at its baseline is worth nothing.

    Costs ``steps`` forward and backward passes and ``windows`` forward passes of ``samples``
    samples, whatever the size of the audit set: 2 to 5 of an audit set of 1,000. Memory: the graph
    of ``chunk`` samples.

    Parameters
    ----------
    samples : int
        Samples drawn from the audit set at random, all if there are fewer.
    steps : int
        Points of the Gauss-Legendre rule on the path from the baseline to the sample.
    windows : int
        Windows that are occluded, at most: in time, half of them of equal length and the rest
        shorter towards the end; of images, rings of equal width.
    baseline : str
        "mean": each feature at its mean over these samples and positions; "zero".
    chunk : int
        Samples that go through the model together, at most; never more than in a batch.

    References
    ----------
    .. [1] Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks (2017).
    .. [2] Zeiler and Fergus, Visualizing and Understanding Convolutional Networks (2014), for
       occlusion.
    """

    name: ClassVar[str] = "attribution"
    passes: ClassVar[float] = 72
    samples: int = 32
    steps: int = 64
    windows: int = 24
    baseline: str = "mean"
    chunk: int = 64

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        self._check()
        place, draw = place_of(subject), Draw.of(subject, self.samples, self.chunk)
        with untouched(subject.model), differentiable_recurrence(subject.model):
            pieces = (Source.of(subject, piece, place) for piece in draw.pieces())
            values = means(pieces, self.baseline)
            places = 1 + max(
                int(Source.of(subject, piece, place).index().max()) for piece in draw.pieces()
            )
            edges = _edges(place, places, self.windows)
            found: list[_Piece] = []
            for piece in draw.pieces():
                found.append(self._piece(subject, Source.of(subject, piece, place), values, edges))
                progress(sum(len(one.delta) for one in found), len(draw.rows))
        return self._trace(subject, draw, place, found, edges)

    def _check(self) -> None:
        """Refuse settings that mean nothing."""
        if min(self.samples, self.steps, self.chunk) < 1 or self.windows < 2:
            raise AnalyzerError(
                "attribution needs samples, steps and chunk >= 1 and windows >= 2: they are "
                f"{self.samples}, {self.steps}, {self.chunk} and {self.windows}"
            )
        if self.baseline not in BASELINES:
            raise AnalyzerError(
                f"attribution has no baseline {self.baseline!r}: use {' or '.join(BASELINES)}"
            )

    def _piece(
        self, subject: Subject, source: Source, values: list[Tensor], edges: list[int]
    ) -> "_Piece":
        """Attribute the decisions on a few samples."""
        index_BP = source.index()
        baselines = source.baselines(values, index_BP)
        decision, difference_B = source.decision(subject, baselines)
        score = source.scorer(decision)
        leaves, start = tuple(source.leaves), tuple(baselines)
        found, delta_B = IntegratedGradients(score).attribute(
            leaves,
            start,
            n_steps=self.steps,
            # One point of the path at a time, so that a piece bounds the memory.
            internal_batch_size=len(leaves[0]),
            return_convergence_delta=True,
        )
        window_BP = _window(index_BP, edges)
        masks = tuple(source.place.spread(window_BP, leaf) for leaf in leaves)
        occluded = FeatureAblation(score).attribute(leaves, start, feature_mask=masks)
        split = [source.place.positions(value) for value in found]
        places = edges[-1]
        return _Piece(
            by_place(index_BP, torch.cat(split, 2).sum(2), places),
            by_place(index_BP, torch.cat(split, 2).abs().sum(2), places),
            by_place(index_BP, torch.ones_like(index_BP), places),
            _by_window(window_BP, source.place.positions(occluded[0])[:, :, 0], index_BP, edges),
            delta_B,
            difference_B,
        )

    def _trace(
        self,
        subject: Subject,
        draw: Draw,
        place: Place,
        found: list["_Piece"],
        edges: list[int],
    ) -> xr.Dataset:
        """Label what was measured."""
        joined = _Piece(
            *(torch.cat([part.cpu() for part in parts]) for parts in zip(*found, strict=True))
        )
        counted = ("sample", place.dim)
        unit = "score"
        trace = xr.Dataset(
            {
                "contribution": variable(
                    joined.contribution, counted, "integrated gradients, summed", unit
                ),
                "magnitude": variable(
                    joined.magnitude, counted, "integrated gradients, sum of magnitudes", unit
                ),
                "positions": variable(joined.positions, counted, "input positions", "1"),
                "occlusion": variable(
                    joined.occlusion,
                    ("sample", "window"),
                    "score less that with the window at the baseline",
                    unit,
                ),
                "delta": variable(
                    joined.delta, ("sample",), "sum of contributions less the difference", unit
                ),
                "difference": variable(
                    joined.difference, ("sample",), "score less that at the baseline", unit
                ),
            },
            {
                "sample": draw.rows.numpy(),
                place.dim: np.arange(edges[-1]),
                "start": ("window", edges[:-1]),
                "stop": ("window", edges[1:]),
            },
        )
        return trace.assign_attrs(
            decision=describe(subject),
            baseline=self.baseline,
            steps=self.steps,
            audit_samples=draw.total,
            extent=edges[-1],
        )


class _Piece(NamedTuple):
    """What was measured on a few samples, float64."""

    contribution: Tensor
    magnitude: Tensor
    positions: Tensor
    occlusion: Tensor
    delta: Tensor
    difference: Tensor


def _edges(place: Place, places: int, windows: int) -> list[int]:
    """Choose where windows begin and end, in places, from 0 to all."""
    if not isinstance(place, Timeline) or places <= windows:
        return _even(places, windows)
    return sorted({*_even(places, windows // 2), *grid(places, windows - windows // 2)})


def _even(places: int, windows: int) -> list[int]:
    """Edges of windows of about equal length."""
    return sorted({round(edge) for edge in np.linspace(0, places, min(windows, places) + 1)})


def _window(index_BP: Tensor, edges: list[int]) -> Tensor:
    """Window of each position: (B, P); padding, which is never changed, counts to the first."""
    inner = torch.tensor(edges[1:-1], device=index_BP.device)
    return torch.bucketize(index_BP.contiguous(), inner, right=True)


def _by_window(window_BP: Tensor, values_BP: Tensor, index_BP: Tensor, edges: list[int]) -> Tensor:
    """Take the one value that all positions of a window share: (B, W); nan without any."""
    windows = len(edges) - 1
    target_BP = torch.where(index_BP == PADDING, windows, window_BP)
    shape = (len(values_BP), windows + 1)
    found_BW = torch.full(shape, torch.nan, dtype=torch.float64, device=values_BP.device)
    return found_BW.scatter_(1, target_BP, values_BP.double())[:, :windows]
