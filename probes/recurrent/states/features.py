"""What the states of every recurrent layer look like over many samples.

Shapes: T timestep, B sample, I input feature, E output feature, N position, S position of one
sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from probes.algebra.spectrum import Covariance
from probes.base import Batch, call
from probes.recurrent.watching.bypass import Layers, Reading
from probes.samples.layout import Layout


@dataclass(eq=False)
class Features:
    """States of one layer, both directions together.

    Parameters
    ----------
    kind : str
        "lstm", "gru", "rnn_tanh" or "rnn_relu".
    reads, units : int
        I and E.
    weights : tuple of int
        Identities of its parameters.
    joint : tuple of Covariance
        Of what it reads and returns, for each half of the samples.
    states : Covariance
        Of what it returns.
    inputs, outputs : list of Tensor
        One position of every sample: what it reads (B, I) and returns (B, E).
    lagged, variance : Tensor, scalar
        Products of deviations of neighbouring timesteps, and their squares, summed.
    lengths : list of Tensor
        Timesteps of every sample.
    """

    kind: str
    reads: int
    units: int
    weights: tuple[int, ...]
    joint: tuple[Covariance, Covariance] = field(
        default_factory=lambda: (Covariance(), Covariance())
    )
    states: Covariance = field(default_factory=Covariance)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    lagged: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    variance: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    lengths: list[Tensor] = field(default_factory=list)

    def add(self, reading: Reading, half: int, drawn: "Draw") -> None:
        """Add what one forward pass of some samples of a half showed."""
        x_TBI, y_TBE, length_B = reading.x.detach(), reading.y.detach(), reading.lengths
        valid_TB = torch.arange(len(x_TBI))[:, None] < length_B
        at_BS = drawn.places(len(x_TBI), len(length_B))
        row_N, place_N = (at_BS < length_B.cpu()[:, None]).nonzero(as_tuple=True)
        at_N = at_BS[row_N, place_N].to(y_TBE.device)
        row_N = row_N.to(y_TBE.device)
        x_NI, y_NE = x_TBI[at_N, row_N], y_TBE[at_N, row_N]
        self.joint[half].add(torch.cat([x_NI, y_NE], 1))
        self.states.add(y_NE)
        if len(length_B) == len(drawn.share):
            place_B = (drawn.share * length_B).long().to(y_TBE.device)
            rows_B = torch.arange(len(length_B), device=y_TBE.device)
            self.inputs.append(x_TBI[place_B, rows_B].cpu())
            self.outputs.append(y_TBE[place_B, rows_B].cpu())
        self.lengths.append(length_B)
        self._correlate(y_TBE.double(), valid_TB.to(y_TBE.device))

    def _correlate(self, y_TBE: Tensor, valid_TB: Tensor) -> None:
        """Add products of neighbouring timesteps."""
        centred_TBE = (y_TBE - y_TBE[valid_TB].mean(0)) * valid_TB[..., None]
        pairs_TB1 = valid_TB[1:, :, None]
        before_TBE, after_TBE = centred_TBE[:-1] * pairs_TB1, centred_TBE[1:]
        self.lagged = self.lagged.to(y_TBE.device) + (before_TBE * after_TBE).sum()
        squares = before_TBE.square().sum() + after_TBE.square().sum()
        self.variance = self.variance.to(y_TBE.device) + squares / 2

    def independent(self) -> float:
        """Positions that count as independent: timesteps in correlation times, one at least.

        The correlation time of a first-order process: (1 + r) / (1 - r), r the correlation of
        neighbouring timesteps.
        """
        length_B = torch.cat(self.lengths).double()
        correlation = float(self.lagged / self.variance) if self.variance > 0 else 0.0
        correlation = min(max(correlation, 0.0), 1.0)
        return float((length_B * (1 - correlation) / (1 + correlation)).clamp_min(1).sum())


@dataclass(eq=False)
class Draw:
    """Random positions, the same for all layers of a forward pass, others in every sample.

    Parameters
    ----------
    share : Tensor, shape (B,)
        Place of one position of every sample, as a share of its length.
    order : Tensor, shape (most,)
        Random numbers that positions are chosen by.
    most : int
        Positions at most.
    """

    share: Tensor
    order: Tensor
    most: int

    @classmethod
    def of(cls, samples: int, most: int, generator: torch.Generator) -> "Draw":
        """Draw for one forward pass."""
        share = torch.rand(samples, generator=generator)
        return cls(share, torch.rand(most, generator=generator), most)

    def places(self, count: int, rows: int) -> Tensor:
        """Choose positions of ``count`` in every row: all if they are few, else one a stretch.

        Stretches need not be whole positions, so that every position is as likely as any other.
        In layers that run with more rows than samples, the rows take the samples' turns.

        Returns
        -------
        Tensor, shape (rows, S)
            Ascending.
        """
        if count <= self.most:
            return torch.arange(count).expand(rows, count)
        share_B1 = self.share[torch.arange(rows) % len(self.share), None]
        within_BS = (self.order + share_B1).double() % 1
        at_BS = (torch.arange(self.most) + within_BS) * (count / self.most)
        return at_BS.long().clamp_max(count - 1)


def read(model: nn.Module, batch: Batch, layout: Layout) -> list[Reading]:
    """Run ``model`` once and join what each of its recurrent layers showed along time.

    Calls with another number of rows than the first of their layer are left out; padding is what
    lies past the lengths of the batch where a layer reads as many timesteps as the model.
    """
    seen: dict[str, list[Reading]] = {}

    def watch(reading: Reading) -> None:
        seen.setdefault(reading.label, []).append(reading)

    with Layers(model, watch=watch), torch.no_grad():
        call(model, batch.inputs)
    return [_masked(_joined(readings), layout) for readings in seen.values()]


def _joined(readings: Sequence[Reading]) -> Reading:
    """Put the calls of one layer one after the other."""
    first = readings[0]
    same = [reading for reading in readings if reading.x.shape[1] == first.x.shape[1]]
    if len(same) == 1:
        return first
    whole = all(bool((part.lengths == len(part.x)).all()) for part in same)
    # Ragged calls do not join into one sequence: the first stands for all.
    if not whole:
        return first
    return first._replace(
        x=torch.cat([part.x for part in same]),
        y=torch.cat([part.y for part in same]),
        lengths=torch.stack([part.lengths for part in same]).sum(0),
    )


def _masked(reading: Reading, layout: Layout) -> Reading:
    """Shorten what is padded."""
    timesteps, samples = reading.x.shape[:2]
    if layout.lengths is None or (timesteps, samples) != (layout.timesteps, layout.samples):
        return reading
    lengths = torch.as_tensor(layout.lengths).to(reading.lengths)
    return reading._replace(lengths=torch.minimum(reading.lengths, lengths))


def last_states(readings: Sequence[Reading]) -> Mapping[str, Tensor]:
    """States of every layer at the last timestep of each sample: (B, E)."""
    found = {}
    for reading in readings:
        rows_B = torch.arange(reading.y.shape[1], device=reading.y.device)
        found[reading.label] = reading.y[reading.lengths.to(rows_B.device) - 1, rows_B].double()
    return found
