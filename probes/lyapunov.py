"""Whether small changes of a recurrent state grow or fade: Lyapunov exponents of every layer."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import xarray as xr
from torch import Tensor

from probes.base import Progress, Subject, silent, variable
from probes.errors import AnalyzerError
from probes.recurrent.reach.tangent import spectrum
from probes.recurrent.watching.reading import Reading
from probes.recurrent.watching.table import Tables, measured


@dataclass(frozen=True)
class Lyapunov:
    """Largest Lyapunov exponents of the driven state map of every recurrent layer and direction.

    The state map takes the state (h_t, or h_t and c_t of an LSTM) from one timestep to the next
    while the layer reads its inputs. An exponent is the mean logarithm by which a small change of
    the state grows per timestep, in the direction of strongest growth, the next one orthogonal to
    it, and so on: below zero changes fade, above zero they grow and the state is chaotic. The
    inputs of a layer are taken as they were. In a stack that loses nothing: the derivative of the
    whole stack's state is block triangular, so its exponents are those of its layers. Feedback of
    outputs into later inputs by the model's own code is not followed.

    The exponents are limits for endless time; here they are averages over the sequences there are,
    after a transient. Padding does not count.

    Costs one forward pass of the samples, and for each layer about 0.8 forward and backward passes
    of 32 samples, however many there are; keeps the inputs and outputs of all recurrent layers for
    one batch.

    Parameters
    ----------
    count : int
        Exponents per layer, the largest.
    samples : int
        Sequences that are followed, the first of the audit data.
    transient : float
        Share of every sequence that is left out of the average, in [0, 1).

    References
    ----------
    .. [1] Engelken, Wolf and Abbott, Lyapunov spectra of chaotic recurrent neural networks (2023).
    .. [2] Vogt et al., On Lyapunov exponents for RNNs: understanding information propagation using
       dynamical systems tools (2022).
    """

    name: ClassVar[str] = "lyapunov"
    passes: ClassVar[float] = 20
    count: int = 8
    samples: int = 8
    transient: float = 0.25

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        if self.count < 1 or self.samples < 1 or not 0 <= self.transient < 1:
            raise AnalyzerError(
                "lyapunov needs count >= 1, samples >= 1 and transient in [0, 1): they are "
                f"{self.count}, {self.samples} and {self.transient:g}"
            )
        generator = subject.generator()

        def follow(reading: Reading) -> dict[str, Tensor]:
            # Of a batch that is one sample there may be more rows.
            reading = reading.rows(0, self.samples)
            replay = reading.replay()
            found = spectrum(reading, replay, self.count, self.transient, generator)
            return {
                "exponent": found.exponents,
                "first_half": found.first_half[:, 0],
                "steps": found.steps,
                "residual": torch.full_like(found.exponents[:, 0], replay.residual),
            }

        return _trace(measured(subject, self.samples, follow, progress))


def _trace(tables: Tables) -> xr.Dataset:
    """Label what was measured."""
    dims = ("sample", "layer", "exponent")
    exponent_BLV = tables.table("exponent")
    unit = "1 / timestep"
    variables = {
        "exponents": variable(exponent_BLV, dims, "Lyapunov exponent", unit),
        "first_half": variable(
            tables.table("first_half"),
            dims[:2],
            "largest exponent from the first half of the timesteps",
            unit,
        ),
        "steps": variable(tables.table("steps"), dims[:2], "timesteps averaged over", "timestep"),
    }
    places = {**tables.coordinates(), "exponent": range(1, exponent_BLV.shape[2] + 1)}
    return xr.Dataset(variables, places).assign_attrs(
        replay_residual=tables.worst("residual"), **tables.remarks
    )
