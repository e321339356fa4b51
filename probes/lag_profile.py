"""Which inputs, by their distance from the end, the last output of a model uses.

Shapes: B sample, W window of lags.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import xarray as xr
from torch import Tensor

from probes.base import Progress, Subject, silent, variable
from probes.errors import AnalyzerError
from probes.loss.replacement import Replacement, grid
from probes.model.taps import untouched
from probes.recurrent.watching.resumption import Resumption

REST = 0.05
"""Share of the change of the loss over all lags that is left beyond the oldest one in use."""


@dataclass(frozen=True)
class LagProfile:
    """What the input at one lag is worth to the last output, all others being intact.

    The inputs of a sample at one lag, counted from the end, are replaced by what another sample of
    the audit set has in their place. Measured is the excess loss of the last position; without a
    loss, half the mean square distance of the output from the intact one. Sequences of more than
    ``points`` timesteps are cut into windows of lags, single lags at first and wider ones further
    back, whose inputs are replaced together: no lag is left out. Windows are halved where 95 % of
    the change of the loss is reached, and where it is largest. Works for any model with time in its
    inputs.

    It shows which inputs the model uses one at a time; an input whose content is also in others
    shows little. How far back the output depends on its inputs says
    :class:`probes.memory_horizon.MemoryHorizon`.

    Costs up to about ``points * donors / 3`` forward and backward passes of the samples (the
    replacements are forward passes). Recurrent layers in one direction resume where the inputs
    begin like earlier ones; where their states are all that a model remembers, which is tried, it
    is run on the inputs from there on alone: a fifth of the cost. Keeps one copy of the inputs, and
    the states in one run of them in up to 256 MiB.

    Parameters
    ----------
    points : int
        Replacements: two thirds of them for windows on a geometric scale, the rest to halve some.
    donors : int
        Donors per sample, whose excess losses are averaged.
    samples : int
        The first batches that hold as many samples are measured.

    References
    ----------
    .. [1] Zeiler & Fergus, Visualizing and Understanding Convolutional Networks (2014), for
       occlusion.
    """

    name: ClassVar[str] = "lag_profile"
    passes: ClassVar[float] = 7
    points: int = 16
    donors: int = 1
    samples: int = 512

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        if self.points < 2 or self.donors < 1 or self.samples < 2:
            raise AnalyzerError(
                f"lag_profile needs points >= 2, donors >= 1 and samples >= 2: they are "
                f"{self.points}, {self.donors} and {self.samples}"
            )
        replacement = Replacement.of(subject, self.donors, self.samples, Resumption(subject.model))
        with untouched(subject.model):
            replacement = replacement.intact()
            windows, excess_BW = self._profile(replacement, progress)
        return _trace(replacement, windows, excess_BW)

    def _profile(self, replacement: Replacement, progress: Progress) -> tuple[list[range], Tensor]:
        """Replace the inputs of one window after the other; halve the windows that matter."""
        windows = first_windows(replacement.timesteps, self.points)
        excess_BW = replacement.excess(windows)
        done = len(windows)
        progress(done, self.points)
        while done + 2 <= self.points:
            at = _widest(windows, excess_BW)
            if at is None:
                break
            halves = halved(windows[at])
            windows[at : at + 1] = halves
            found_B2 = replacement.excess(halves)
            excess_BW = torch.cat([excess_BW[:, :at], found_B2, excess_BW[:, at + 1 :]], 1)
            done += 2
            progress(done, self.points)
        progress(self.points, self.points)
        return windows, excess_BW


def first_windows(timesteps: int, points: int) -> list[range]:
    """Cut the lags into windows: single ones if they are few, else wider further back."""
    few = timesteps <= points
    edges = grid(timesteps, timesteps + 1 if few else max(points - points // 3, 1) + 1)
    return [range(first, stop) for first, stop in pairwise(edges)]


def halved(window: range) -> list[range]:
    """Cut a window of at least two lags into two."""
    middle = (window.start + window.stop) // 2
    return [range(window.start, middle), range(middle, window.stop)]


def _widest(windows: list[range], excess_BW: Tensor) -> int | None:
    """Choose the window to halve: of the oldest lag in use, then the one that changes most."""
    total_W = excess_BW.abs().sum(0)
    left_W = total_W.flip(0).cumsum(0).flip(0)
    if not left_W[0] > 0:
        return None
    oldest = int((left_W > REST * left_W[0]).nonzero()[-1])
    for at in (oldest, int(total_W.argmax())):
        if len(windows[at]) > 1:
            return at
    return None


def _trace(replacement: Replacement, windows: list[range], excess_BW: Tensor) -> xr.Dataset:
    """Label what was measured."""
    first_W = torch.tensor([window.start for window in windows])
    width_W = torch.tensor([len(window) for window in windows])
    missing_BW = replacement.lengths[:, None] <= first_W
    return xr.Dataset(
        {
            "excess_loss": variable(
                excess_BW.masked_fill(missing_BW, torch.nan),
                ("sample", "lag"),
                "loss of the last position with the inputs at these lags replaced, less the intact",
                "loss",
            ),
            "width": variable(width_W, ("lag",), "lags replaced together, from this", "timestep"),
            **replacement.by_sample("are put in place"),
        },
        {"lag": first_W.numpy()},
        replacement.facts(),
    )
