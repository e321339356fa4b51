"""How much of the gradient truncated backpropagation through time loses, by its length.

Shapes: B sample.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
import xarray as xr

from probes.base import Batch, Progress, Subject, call, silent, variable
from probes.errors import AnalyzerError, NotApplicable
from probes.loss.objective import describe, final_losses, sample_losses
from probes.model.taps import untouched
from probes.recurrent.backward.bptt import Factor
from probes.recurrent.backward.record import Site
from probes.recurrent.backward.recordings import Recordings
from probes.recurrent.truncation.comparison import Gradients, Key, compared
from probes.recurrent.truncation.loops import stepwise
from probes.recurrent.truncation.truncated import truncated, truncated_at
from probes.recurrent.watching.naming import recurrent_modules
from probes.recurrent.watching.split import recorded
from probes.samples.layout import Layout
from probes.samples.selection import pieces, rows

CountedFrom = Literal["auto", "start", "end"]


@dataclass(frozen=True)
class Truncation:
    """Weight gradients with the recurrent state detached every K timesteps, against the whole.

    For every power of two K up to the length of the sequences, the gradient of the mean loss by
    the weights of each recurrent layer, and of all together, as training with truncated
    backpropagation computes it: the state is handed on from chunk to chunk, its gradient is not.
    Told are |G_K - G| / |G| and the cosine of G_K with G, and both again without each group of
    samples, for jackknife intervals. Exact, but for the groups: their gradients are compared by
    random projections of weights with more than 64 rows or columns.

    Chunks are counted from the first timestep, as trainers do; from the last where only one output
    per sequence is judged, so that K is how far the gradient goes back from it. A reverse direction
    is cut in its own order. What one module hands to another (an encoder's state to a decoder) is
    not cut, and only the weights of recurrent layers are compared.

    Costs about 5 forward and backward passes of the samples measured, for all K together. It is one
    backward pass for every K where a layer is called timestep by timestep, unless it is a cell that
    is handed its own state unchanged and whose inputs depend on no other recurrent layer but such
    cells; the attribute ``one_pass_each`` names these. Keeps about 12 times the states of all
    recurrent layers for one batch of them, and the gradient for every K.

    Parameters
    ----------
    samples : int
        Audit samples that are measured, spread evenly over all of them.
    groups : int
        Into how many groups they are put, at least about half of it.
    counted_from : "auto", "start" or "end"
        Where chunks are counted from.
    trained_with : int
        Timesteps of the chunks in training, to be measured too; 0 if unknown. Unless it is a power
        of two it costs a backward pass more. The limit of this name sets it.

    References
    ----------
    .. [1] Williams and Peng, An efficient gradient-based algorithm for on-line training of
       recurrent network trajectories (1990).
    .. [2] Aicher, Foti and Fox, Adaptively Truncating Backpropagation Through Time to Control
       Gradient Bias (2019).
    """

    name: ClassVar[str] = "truncation"
    passes: ClassVar[float] = 6
    samples: int = 64
    groups: int = 32
    counted_from: CountedFrom = "auto"
    trained_with: int = 0

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        if self.samples < 2 or self.groups < 2 or self.counted_from not in get_args(CountedFrom):
            raise AnalyzerError(
                "truncation needs samples >= 2, groups >= 2 and counted_from auto, start or end: "
                f"they are {self.samples}, {self.groups} and {self.counted_from}"
            )
        if self.trained_with < 0:
            raise AnalyzerError(
                f"truncation needs trained_with >= 0, or 0 if unknown: it is {self.trained_with}"
            )
        chosen = rows(subject, self.samples)
        size = -(-len(chosen) // self.groups)
        # Powers of two are measured anyway.
        own = self.trained_with if self.trained_with.bit_count() > 1 else 0
        run = _Run(Gradients(subject.generator()), own)
        for places, batch in pieces(subject, chosen, len(chosen)):
            with untouched(subject.model):
                run = _measured(subject, batch, run, size, self.counted_from)
            progress(places[-1] + 1, chosen[-1] + 1)
        if run.timesteps == 1:
            raise NotApplicable("the sequences have one timestep: there is nothing to truncate")
        if not run.gradients.layers:
            raise AnalyzerError(
                f"{run.others[0].label} reads another number of sequences than there are samples, "
                "so that it cannot be told which are whose: check batch_first and batch_axis"
            )
        found = _trace(run, len(chosen)).assign_attrs(
            objective=describe(subject), **_remarks(subject, run)
        )
        return found.assign_attrs(trained_with=self.trained_with) if self.trained_with else found


class _Run(NamedTuple):
    """What was found so far."""

    gradients: Gradients
    own: int = 0
    """A chunk length that is measured first, and is no power of two; 0 if there is none."""
    timesteps: int = 0
    from_end: bool | None = None
    called: tuple[Site, ...] = ()
    stepwise: tuple[Site, ...] = ()
    """Layers that are differentiated once for every chunk length."""
    others: tuple[Site, ...] = ()
    """Layers that read another number of sequences than there are samples."""

    def sites(self) -> list[Site]:
        """List the layers in the order of running, each once."""
        first = {_key(site): site for site in reversed(self.called)}
        return [first[key] for key in dict.fromkeys(_key(site) for site in self.called)]


def _key(site: Site) -> Key:
    """Say what has weights of its own: several sequences of a module have the same ones."""
    return site.module, site.layer, site.reverse


def _measured(
    subject: Subject, batch: Batch, run: _Run, size: int, counted_from: CountedFrom
) -> _Run:
    """Run one piece of the data forwards once, and backwards for every chunk length."""
    with recorded(subject.model, pulses=True) as recordings:
        outputs = call(subject.model, batch.inputs)
    losses_B = sample_losses(subject, outputs, batch)
    from_end = run.from_end
    # A single timestep tells nothing about the others.
    if from_end is None and recordings.longest > 1:
        alike = _same_length(recordings) and Layout.of(subject, batch).lengths is None
        single = alike and torch.equal(losses_B, final_losses(subject, outputs, batch))
        from_end = {"auto": single, "start": False, "end": True}[counted_from]
    samples = len(losses_B)
    others: list[Site] = []

    def add(site: Site, factors: tuple[Factor, ...]) -> None:
        if factors[0].left.shape[1] == samples:
            run.gradients.add(_key(site), factors)
        else:
            others.append(site)

    apart = stepwise(recordings)
    run.gradients.begin(samples, size)
    if run.own:
        truncated_at(recordings, losses_B, add, run.own, from_end=bool(from_end))
        run.gradients.next()
        run.gradients.again()
    for _ in truncated(recordings, losses_B, add, from_end=bool(from_end)):
        run.gradients.next()
    run.gradients.end()
    sites = tuple(dict.fromkeys(segment.site for segment in recordings.segments))
    return _Run(
        run.gradients,
        run.own,
        max(run.timesteps, recordings.longest),
        from_end,
        (*run.called, *sites),
        (*run.stepwise, *apart),
        (*run.others, *others),
    )


def _same_length(recordings: Recordings) -> bool:
    """Whether all samples have all timesteps."""
    return all(bool((s.lengths == s.timesteps).all()) for s in recordings.segments)


def _trace(run: _Run, samples: int) -> xr.Dataset:
    """Label what was measured."""
    sites = [site for site in run.sites() if _key(site) in run.gradients.layers]

    layers, whole = compared(run.gradients, [_key(site) for site in sites])

    def both(field: str, name: str, dims: tuple[str, ...]) -> dict[str, xr.DataArray]:
        by_layer = torch.stack([getattr(one, field) for one in layers], -2)
        layered = (*dims[:-1], "layer", dims[-1])
        return {
            field: variable(by_layer, layered, f"{name}, by layer", "1"),
            f"{field}_all": variable(getattr(whole, field), dims, f"{name}, all layers", "1"),
        }

    cosine, error = "cosine of the truncated with the whole gradient", "relative error"
    variables = {
        **both("cosine", cosine, ("chunk_length",)),
        **both("error", f"{error} of the truncated gradient", ("chunk_length",)),
        **both("cosine_without", f"{cosine}, without the group", ("group", "chunk_length")),
        **both("error_without", f"{error}, without the group", ("group", "chunk_length")),
        "gradient": variable(
            torch.stack([one.norm for one in layers]) / samples,
            ("layer",),
            "norm of the whole gradient of the mean loss",
            "loss / weight",
        ),
        "group_size": variable(
            torch.tensor(run.gradients.sizes), ("group",), "samples of the group", "1"
        ),
    }
    found = xr.Dataset(
        variables, _coordinates(sites, _lengths(run, len(whole.cosine))), _facts(run, samples)
    )
    # Chunks longer than the sequences cut nothing.
    kept = found["chunk_length"] if run.own < run.timesteps else found["chunk_length"][1:]
    return found.sel(chunk_length=kept).sortby("chunk_length")


def _lengths(run: _Run, count: int) -> list[int]:
    """List the chunk lengths in the order in which they were measured."""
    first = [run.own] if run.own else []
    return first + [1 << power for power in range(count - len(first))]


def _coordinates(sites: list[Site], lengths: list[int]) -> dict[str, Any]:
    """Name layers and chunk lengths."""
    return {
        "layer": [site.label for site in sites],
        "kind": ("layer", [site.kind.partition("_")[0].upper() for site in sites]),
        "direction": ("layer", ["reverse" if site.reverse else "forward" for site in sites]),
        "chunk_length": lengths,
    }


def _facts(run: _Run, samples: int) -> dict[str, str | int]:
    """Say how it was measured."""
    return {
        "sequence_length": run.timesteps,
        "samples": samples,
        "counted_from": "end" if run.from_end else "start",
    }


def _remarks(subject: Subject, run: _Run) -> dict[str, str]:
    """Say what was not measured."""
    called = {site.module for site in run.called}
    known = [*run.gradients.layers, *(_key(site) for site in run.others)]
    unreached = [site.label for site in run.sites() if _key(site) not in known]
    missing = [name for name in recurrent_modules(subject.model) if name not in called]
    return {
        "not_called": ", ".join(missing),
        "without_gradient": ", ".join(unreached),
        "not_per_sample": ", ".join(dict.fromkeys(site.label for site in run.others)),
        "one_pass_each": ", ".join(dict.fromkeys(site.label for site in run.stepwise)),
    }
