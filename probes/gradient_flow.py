"""How large the gradient of the loss is in every layer and in every parameter.

Shapes: B sample, P parameter.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from operator import length_hint
from typing import ClassVar

import xarray as xr
from torch import nn

from probes.base import Batch, Progress, Subject, call, silent, variable
from probes.errors import AnalyzerError, NotApplicable
from probes.loss.objective import describe, sample_losses
from probes.model.labels import WHOLE
from probes.model.taps import leaf_modules, untouched, with_leaves
from probes.weight_gradient.interception import ApartError, SampleGradients, differentiate
from probes.weight_gradient.ledger import Ledger
from probes.weight_gradient.parameters import ParameterGradients
from probes.weight_gradient.recurrent import RecurrentWeights, factors_recorded
from probes.weight_gradient.rows import Pass, table


@dataclass(frozen=True)
class GradientFlow:
    """Size of the gradient in every layer and in every parameter, for every sample.

    A layer is measured at what it returns, before anything overwrites it in place. Recurrent
    layers are measured at their hidden states over all timesteps, which is not the gradient of
    what they return. Outputs without one entry per sample are nan. Parameters that were frozen
    are measured like the others.

    The gradient of a parameter is measured for every sample in convolutions, linear and recurrent
    layers, embeddings and normalization layers, after summing over all uses of the parameter.
    Where it does not come apart by sample it is nan, and the coordinate ``not_per_sample`` says
    why.

    The gain of a layer with weights is the norm of the gradient that it passes back to its input,
    over the norm of that at its output: what other paths bring to either place does not count.

    Costs 1.1 to 1.3 forward and backward passes, up to 1.8 in hundreds of narrow layers and 2.5 in
    recurrent ones. Memory is that of one forward and backward pass of a batch, and beside it: two
    copies of the weights; four numbers per layer and one per parameter for every sample; at a time
    2 MiB of gradients of single samples, or that of one; for parameters that are used more than
    once those of all samples, up to 1 GiB.

    Parameters
    ----------
    calls : int
        A layer called more often than this in one pass has one row for all its calls together.

    References
    ----------
    .. [1] Dangel et al., BackPACK: Packing more into Backprop (2020).
    """

    name: ClassVar[str] = "gradient_flow"
    passes: ClassVar[float] = 2
    calls: int = 16

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        parameters, aliases = _parameters(subject.model)
        if not parameters:
            raise NotApplicable("the model has no trainable parameters")
        gradients = ParameterGradients(parameters)
        passes: list[Pass] = []
        with untouched(subject.model, weights=True):
            for batch in subject:
                passes.append(_measured(subject, batch, gradients))
                progress(len(passes), max(length_hint(subject.batches), len(passes)))
            layers = _layers(subject.model, passes, self.calls)
            trace = layers.merge(gradients.labelled())
        called = {name for one in passes for name in one.calls}
        idle = [name for name in leaf_modules(subject.model) if name not in called]
        owners = {name.rpartition(".")[0] for name in gradients.totals}
        return trace.assign_attrs(
            objective=describe(subject),
            not_called=", ".join(name or WHOLE for name in idle if name not in owners),
            not_observed=", ".join(name or WHOLE for name in idle if name in owners),
            without_gradient=", ".join(gradients.missing()),
            aliases=", ".join(aliases),
        )


def _measured(subject: Subject, batch: Batch, gradients: ParameterGradients) -> Pass:
    """Run one batch forward and backward; add the gradients of the parameters."""
    if not gradients.refusal:
        try:
            return _run(subject, batch, gradients)
        except ApartError as reason:
            gradients.refusal = str(reason)
    return _run(subject, batch, gradients)


def _run(subject: Subject, batch: Batch, gradients: ParameterGradients) -> Pass:
    """As :func:`_measured`; by sample unless that was refused."""
    samples, axis = subject.batch_size(batch), subject.batch_axis
    ledger = Ledger(gradients.parameters, samples)
    one = Pass(samples, axis, ledger.latest)
    mode = nullcontext() if gradients.refusal else SampleGradients(ledger, axis)
    # Leaves, so that layers before the first weight have a gradient too.
    inputs, leaves = with_leaves(batch.inputs)
    with (
        mode,
        factors_recorded(subject.model) as recordings,
        one.watching(subject.model),
    ):
        outputs = call(subject.model, inputs)
    recurrent = RecurrentWeights(subject.model, ledger, recordings)
    loss = sample_losses(subject, outputs, batch).sum()
    if not loss.requires_grad:
        raise AnalyzerError(
            "the loss has no gradient: the model runs under torch.no_grad, or it or the loss "
            "detaches its result"
        )
    ledger.forward = False
    wanted = [*gradients.parameters.values(), *leaves, ledger.anchor]
    found = differentiate(loss, wanted, mode)
    states = () if recordings is None else recordings.take()
    one.weigh()
    one.place(states)
    recurrent.deposit(states)
    gradients.add(ledger, found)
    return one


def _parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], list[str]]:
    """Return the floating-point parameters, each once, and "alias = name" for every other name."""
    first = {id(weight): name for name, weight in reversed([*model.named_parameters()])}
    everywhere = model.named_parameters(remove_duplicate=False)
    aliases = [f"{name} = {first[id(w)]}" for name, w in everywhere if first[id(w)] != name]
    return {n: w for n, w in model.named_parameters() if w.is_floating_point()}, aliases


_LABELS = {
    "activation_gradient": (
        "gradient",
        "rms gradient of the sample's loss at the output of the layer",
        "loss / activation",
    ),
    "activation": ("activation", "rms output of the layer", "activation"),
    "elements": ("elements", "size of the output of the layer", "element"),
    "gain": (
        "gain",
        "norm of the gradient passed back by the layer, over that at its output",
        "activation / input",
    ),
}
"""Variable of the trace -> quantity of a row, long name, unit."""


def _layers(model: nn.Module, passes: list[Pass], calls: int) -> xr.Dataset:
    """Label what was measured of the layers."""
    rows, measured = table(passes, calls)
    modules = dict(model.named_modules())
    kinds, weighted = [], []
    for name in rows.values():
        owner = modules.get(name)
        kinds.append((name if owner is None else type(owner).__name__).removeprefix("Parametrized"))
        weighted.append(int(owner is not None and any(True for _ in owner.parameters())))
    known = {n for one in passes for n, row in one.rows.items() if row.activation is not None}
    return xr.Dataset(
        {
            name: variable(measured[quantity], ("sample", "layer"), long_name, unit)
            for name, (quantity, long_name, unit) in _LABELS.items()
        },
        {
            "layer": list(rows),
            "kind": ("layer", kinds),
            "weighted": ("layer", weighted),
            "per_sample": ("layer", [int(label in known) for label in rows]),
        },
    )
