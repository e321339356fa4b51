"""From a few measured batches to batches of any size: memory of training and of serving."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf, isnan, nan

import numpy as np
import numpy.typing as npt
import xarray as xr

Values = npt.NDArray[np.float64]

GIB = 2.0**30
"""Bytes in a GiB."""

SIZES = (8.0, 16.0, 24.0, 40.0, 80.0)
"""Memory of common devices [GiB]."""

STRAIGHT = 0.01
"""Growth is called affine where the middle point is off the line between its neighbours by less."""

MOST = 2.0**40
"""Sizes above this are not told apart."""


@dataclass(frozen=True)
class Parts:
    """What a budget is made of at one size of the batch [byte]."""

    parameters: float
    buffers: float
    moments: float
    inputs: float
    gradients: float
    """Those that are there at the peak."""
    activations: float
    """Saved for backward, those that are there at the peak; of serving, all that is alive."""
    passing: float
    """Gradients of activations at the peak, or what the optimizer's step makes."""

    @property
    def total(self) -> float:
        """The budget."""
        held = self.parameters + self.buffers + self.moments + self.inputs
        return held + self.gradients + self.activations + self.passing


@dataclass(frozen=True)
class Growth:
    """Memory by the number of samples and timesteps, as a trace of the footprint has it.

    Parameters
    ----------
    trace : Dataset
        Measured by :class:`probes.memory_footprint.MemoryFootprint`.
    """

    trace: xr.Dataset

    @property
    def timesteps(self) -> float:
        """Timesteps of the audit data; nan where their number was not varied."""
        return float(self.trace["timesteps"][2]) if self.trace.sizes["pass"] > 3 else nan

    @property
    def samples(self) -> int:
        """Samples of a batch of the audit data."""
        return int(self.trace.attrs["batch"])

    @cached_property
    def degrees(self) -> tuple[int, int]:
        """Degree of the polynomials in the number of samples, and of timesteps."""
        saved = self.trace["saved"].sum("layer").to_numpy()
        found = []
        for places, axis in ((_BATCHES, "samples"), (_LENGTHS, "timesteps")):
            if isnan(self.timesteps) and axis == "timesteps":
                found.append(0)
                continue
            low, middle, high = saved[places]
            x = self.trace[axis].to_numpy()[places]
            straight = low + (high - low) * (x[1] - x[0]) / (x[2] - x[0])
            found.append(1 if abs(middle - straight) <= STRAIGHT * middle else 2)
        return found[0], found[1]

    def _at(self, name: str, samples: float, timesteps: float) -> Values:
        """Extrapolate a variable, never below zero: (L,), (M,) or ()."""
        values = self.trace[name].to_numpy()
        degree, longer = self.degrees
        x, y = self._x("samples", _BATCHES), values[_BATCHES]
        found = _fitted(x, y, degree, samples)
        if longer and timesteps != self.timesteps:
            steps, sizes = self._x("timesteps", _LENGTHS), values[_LENGTHS]
            # What does not grow with the batch, such as copies of weights, does not with time.
            still = np.clip(_fitted(x, y, degree, 0.0), 0.0, sizes.min(0))
            growing, whole = _fitted(steps, sizes, longer, timesteps) - still, sizes[2] - still
            times = np.divide(growing, whole, out=np.ones_like(whole), where=whole > 0)
            found = still + (found - still) * times
        return np.maximum(found, 0.0)

    def _x(self, axis: str, places: list[int]) -> Values:
        """Sizes of some passes."""
        return np.asarray(self.trace[axis].to_numpy()[places], np.float64)

    def _held(self, name: str) -> float:
        """Sum of what does not depend on the batch."""
        return float(self.trace[name].sum())

    def training(self, samples: float, timesteps: float = nan) -> Parts:
        """Work out the budget of training.

        In the backward pass the gradients of the parameters come as the saved activations go: at
        each layer there are the activations saved up to it, the gradients of its own parameters
        and of those of all layers after it, and the gradients of its output and input. The
        optimizer's step follows with all gradients. And while forward runs there may be more than
        it saves. The largest of the three is the peak.
        """
        steps = self.timesteps if isnan(timesteps) else timesteps
        saved_L = self._at("saved", samples, steps).cumsum()
        gradients_L = self.trace["gradients"].to_numpy()[::-1].cumsum()[::-1]
        passing_L = self._at("passing", samples, steps)
        peak = int(np.argmax(saved_L + gradients_L + passing_L))
        found = float(gradients_L[peak]), float(saved_L[peak]), float(passing_L[peak])
        step = self._held("gradients"), 0.0, float(self.trace.attrs["step"])
        forward = 0.0, float(self._at("forward_live", samples, steps).max()), 0.0
        return Parts(
            self._held("parameters"),
            self._held("buffers"),
            self._held("moments"),
            float(self._at("inputs", samples, steps)),
            *max(found, step, forward, key=sum),
        )

    def serving(self, samples: float, timesteps: float = nan) -> Parts:
        """Work out the budget of serving: the most that is alive at once, whichever module runs."""
        steps = self.timesteps if isnan(timesteps) else timesteps
        return Parts(
            self._held("parameters"),
            self._held("buffers"),
            0.0,
            float(self._at("inputs", samples, steps)),
            0.0,
            float(self._at("serving_live", samples, steps).max()),
            0.0,
        )

    def place(self, samples: float) -> str:
        """Name the module that runs when the most is alive in serving."""
        live_M = self._at("serving_live", samples, self.timesteps)
        return str(self.trace["module"].to_numpy()[int(np.argmax(live_M))])

    def measured(self, place: int) -> float:
        """Peak of a measured training pass, by the allocator where there is one [byte]."""
        allocated = float(self.trace["training_allocated"][place])
        live = float(self.trace["training_live"][place])
        inside = live if isnan(allocated) else allocated
        step = self._held("gradients") + float(self.trace.attrs["step"])
        held = sum(map(self._held, ("parameters", "buffers", "moments")))
        return held + float(self.trace["inputs"][place]) + max(inside, step)

    def error(self) -> float:
        """Largest relative difference of the estimate and the peak over the measured passes."""
        return max(
            abs(self.estimated(place) / self.measured(place) - 1)
            for place in range(self.trace.sizes["pass"])
        )

    def estimated(self, place: int) -> float:
        """Budget of training at the size of a measured pass [byte]."""
        samples, timesteps = (float(self.trace[name][place]) for name in ("samples", "timesteps"))
        return self.training(samples, timesteps).total

    def largest_batch(self, budget: float, kind: str = "training") -> float:
        """Find the most samples whose ``kind`` of budget is within ``budget`` bytes.

        Zero where not even one is; infinity where it does not grow.
        """
        return _largest(lambda samples: getattr(self, kind)(samples).total, budget)

    def longest(self, budget: float, kind: str = "training", samples: float = nan) -> float:
        """Find the most timesteps of a batch of ``samples``; nan where they were not varied."""
        if isnan(self.timesteps):
            return nan
        batch = self.samples if isnan(samples) else samples
        return _largest(lambda steps: getattr(self, kind)(batch, steps).total, budget)


_BATCHES, _LENGTHS = [0, 1, 2], [3, 4, 0]
"""Passes with more and more samples, and with more and more timesteps."""


def _fitted(x: Values, y: Values, degree: int, at: float) -> Values:
    """Lay a polynomial through the points, and go to another one; a line is a least-squares one."""
    shape = y.shape[1:]
    coefficients = np.polyfit(x / x[-1], y.reshape(len(x), -1), degree)
    powers = (at / x[-1]) ** np.arange(degree, -1, -1)
    found: Values = (powers @ coefficients).reshape(shape)
    return found


def _largest(total: Callable[[float], float], budget: float) -> float:
    """Find the largest whole number for which a growing size is within the budget."""
    if total(1.0) > budget:
        return 0.0
    low, high = 1.0, 2.0
    while total(high) <= budget:
        low, high = high, 2 * high
        if high > MOST:
            return inf
    while high - low > 1:
        middle = float((low + high) // 2)
        low, high = (middle, high) if total(middle) <= budget else (low, middle)
    return low
