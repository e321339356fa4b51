"""How large the gradient of the loss is at every state of recurrent layers, over time.

Shapes: B sample, T timestep, L layer; in the engine's results time comes first.
"""

import math
from dataclasses import dataclass
from operator import length_hint
from typing import Any, ClassVar, NamedTuple

import torch
import xarray as xr
from torch import Tensor, nn

from probes.base import Batch, Progress, Subject, call, silent, variable
from probes.errors import AnalyzerError
from probes.loss.objective import describe, final_losses, sample_losses
from probes.model.taps import first_float, untouched
from probes.recurrent.backward.record import Measured, Site, StateGradients
from probes.recurrent.watching.naming import recurrent_modules
from probes.recurrent.watching.split import recorded
from probes.samples.layout import Layout

QUANTITIES = {
    "hidden_gradient": "rms gradient of the sample's loss at the hidden state",
    "cell_gradient": "rms gradient of the sample's loss at the cell state",
    "hidden_gradient_final": "rms gradient of the loss of the last position at the hidden state",
    "cell_gradient_final": "rms gradient of the loss of the last position at the cell state",
}
"""Variables of the trace, and what they are called."""


@dataclass(frozen=True)
class TimestepGradient:
    """Exact gradient at every hidden and cell state, per sample, layer, direction and timestep.

    The total derivative of each sample's loss with respect to h_t and c_t, over every path: later
    timesteps, layers above, outputs. Once for the loss over all positions, once for that of the
    last position alone. Timesteps are those of the data, in a reverse direction too, from 0; past
    the end of a sample all is nan. Of a cell that is called in a loop the calls are the timesteps.

    Costs about one forward and backward pass in recurrent layers, and 1.3 to 1.6 where the two
    losses differ: one pass is run for both, or two in a model that torch cannot differentiate for
    both at once. Keeps the inputs and outputs of all recurrent layers for one batch, and about ten
    times the states of one layer while that is measured: smaller batches need less.
    Gradients below 1e-38 are zero in float32; a float64 model shows them.

    References
    ----------
    .. [1] Pascanu et al., On the difficulty of training recurrent neural networks (2013).
    """

    name: ClassVar[str] = "timestep_gradient"
    passes: ClassVar[float] = 2

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        passes: list[_Pass] = []
        for batch in subject:
            with untouched(subject.model):
                passes.append(_measured(subject, batch))
            progress(len(passes), max(length_hint(subject.batches), len(passes)))
        if not passes:
            raise AnalyzerError("there are no batches to measure with")
        return _trace(passes).assign_attrs(
            objective=describe(subject), **_remarks(subject.model, passes)
        )


class _Row(NamedTuple):
    """One layer and direction in one batch."""

    units: int
    values: dict[str, Tensor]
    """Of every quantity (B, T), nan where it is not defined; empty if not told per sample."""
    lengths: Tensor
    """Valid timesteps of each sample: (B,)."""
    reached: bool
    residual: float


class _Pass(NamedTuple):
    """One batch."""

    samples: int
    rows: dict[Site, _Row]


def _measured(subject: Subject, batch: Batch) -> _Pass:
    """Run one batch forwards, and backwards once or twice."""
    layout = Layout.of(subject, batch)
    with recorded(subject.model) as recordings:
        outputs = call(subject.model, batch.inputs)
    losses_B = sample_losses(subject, outputs, batch)
    final_B = final_losses(subject, outputs, batch)
    if torch.equal(losses_B, final_B) and _is_single(outputs, layout):
        total = final = recordings.gradients(losses_B)
    else:
        total, final = recordings.each([losses_B, final_B])
    rows = {
        state.site: _row(state, last.measured, layout)
        for state, last in zip(total, final, strict=True)
    }
    if not any(row.values for row in rows.values()):
        site, row = next(iter(rows.items()))
        raise AnalyzerError(
            f"{site.label} reads {len(row.lengths)} sequences for the {layout.samples} samples of "
            "a batch, so that it cannot be told which are whose: check batch_first and batch_axis, "
            "or give batches of one sample"
        )
    return _Pass(layout.samples, rows)


def _is_single(outputs: Any, layout: Layout) -> bool:
    """Whether the model surely returned one output per sample, so that its loss is the last too."""
    output = first_float(outputs)
    if output is None or output.dim() > 2 or len(output) != layout.samples:
        return False
    return not layout.has_time(output)


def _row(state: StateGradients, final: Measured, layout: Layout) -> _Row:
    """Turn norms of time-first batches into root mean squares of samples."""
    lengths_B, rows = state.lengths, len(state.lengths)
    if rows != layout.samples and layout.samples > 1:
        return _Row(state.units, {}, lengths_B, state.reached, float(state.measured.residual))
    timesteps = len(state.measured.hidden)
    if layout.lengths is not None and rows == layout.samples and _is_padded(timesteps, layout):
        lengths_B = torch.minimum(lengths_B, layout.lengths.to(lengths_B))
    past_BT = torch.arange(timesteps) >= lengths_B[:, None]

    def rms(norms_TB: Tensor | None, units: int) -> Tensor:
        if norms_TB is None:
            return torch.full((layout.samples, timesteps), torch.nan, dtype=torch.float64)
        values_BT = (norms_TB.T / math.sqrt(units)).masked_fill(past_BT, torch.nan)
        # The rows of a batch that is one single sample are that sample.
        return values_BT if rows == layout.samples else _together(values_BT)

    parts = (
        rms(state.measured.hidden, state.units),
        rms(state.measured.cell, state.cells),
        rms(final.hidden, state.units),
        rms(final.cell, state.cells),
    )
    values = dict(zip(QUANTITIES, parts, strict=True))
    lengths_B = lengths_B if rows == layout.samples else lengths_B.amax().expand(1)
    return _Row(state.units, values, lengths_B, state.reached, float(state.measured.residual))


def _is_padded(timesteps: int, layout: Layout) -> bool:
    """Whether a layer reads the time axis of the inputs, padding included."""
    assert layout.lengths is not None
    known = layout.timesteps
    return timesteps == known if known is not None else timesteps >= int(layout.lengths.max())


def _together(values_BT: Tensor) -> Tensor:
    """Root mean square over the rows that have each timestep: (1, T)."""
    return values_BT.square().nanmean(0, keepdim=True).sqrt()


def _trace(passes: list[_Pass]) -> xr.Dataset:
    """Label what was measured: batch after batch, aligned at the first timestep."""
    rows: dict[Site, _Row] = {}
    for one in passes:
        rows |= {site: row for site, row in one.rows.items() if site not in rows}
    lengths = torch.cat([_lengths(one) for one in passes])
    dims = ("sample", "layer", "timestep")
    variables = {
        name: variable(_table(passes, list(rows), name), dims, long_name, "loss / state")
        for name, long_name in QUANTITIES.items()
    }
    variables["length"] = variable(lengths, ("sample",), "valid timesteps", "timestep")
    return xr.Dataset(
        variables,
        {
            "layer": [site.label for site in rows],
            "kind": ("layer", [site.kind.partition("_")[0].upper() for site in rows]),
            "units": ("layer", [row.units for row in rows.values()]),
            "direction": ("layer", ["reverse" if site.reverse else "forward" for site in rows]),
            "timestep": range(variables["hidden_gradient"].sizes["timestep"]),
        },
    )


def _lengths(one: _Pass) -> Tensor:
    """Count the timesteps of each sample in the layer that reads most of them: (B,)."""
    told = [row.lengths for row in one.rows.values() if row.values]
    return torch.stack(told).amax(0).double() if told else torch.full((one.samples,), torch.nan)


def _table(passes: list[_Pass], sites: list[Site], name: str) -> Tensor:
    """Join one quantity over all batches: (B, L, T), nan where it was not measured."""
    parts = [row.values[name] for one in passes for row in one.rows.values() if row.values]
    timesteps = max((part.shape[1] for part in parts), default=0)
    tables = []
    for one in passes:
        table_BLT = torch.full((one.samples, len(sites), timesteps), torch.nan).double()
        for site, row in one.rows.items():
            if row.values:
                values_BT = row.values[name]
                table_BLT[:, sites.index(site), : values_BT.shape[1]] = values_BT
        tables.append(table_BLT)
    return torch.cat(tables)


def _remarks(model: nn.Module, passes: list[_Pass]) -> dict[str, str | float]:
    """Say what was not measured, and how well the replay of the layers fits."""
    rows = [(site, row) for one in passes for site, row in one.rows.items()]
    called = {site.module for site, _ in rows}
    reached = {site for site, row in rows if row.reached}
    told = {site for site, row in rows if row.values}
    residuals = [row.residual for _, row in rows if row.reached]

    def without(kept: set[Site]) -> str:
        return ", ".join(dict.fromkeys(site.label for site, _ in rows if site not in kept))

    return {
        "replay_residual": max(residuals),
        "not_called": ", ".join(name for name in recurrent_modules(model) if name not in called),
        "without_gradient": without(reached),
        "not_per_sample": without(told),
    }
