"""Gradients of data that a model was trained on and of others, labelled.

Shapes: N sample of both sides, then those of the held-out side with each other's targets; L layer;
S set of data: trained on, held out, with each other's targets.
"""

from collections.abc import Mapping, Sequence

import torch
import xarray as xr
from torch import Tensor

from probes.base import variable
from probes.sides.agreement import Agreement, agreement, whole_agreement
from probes.weight_gradient.sketch import Sketches

NULL = "with each other's targets"

_SQUARE = "loss^2 / weight^2"
_LABELS = {
    "square": ("square norm of the gradient of the sample's loss", _SQUARE),
    "own": ("inner product of the gradient with the mean one of its own side", _SQUARE),
    "other": ("inner product of the gradient with the mean one of the other side", _SQUARE),
    "cosine_own": ("mean cosine with the gradients of the other samples of its side", "1"),
    "cosine_other": ("mean cosine with the gradients of the samples of the other side", "1"),
}


def gradients_of_sides(
    sketches: Sketches,
    layers: Mapping[str, Mapping[str, Tensor]],
    trained: int,
    held: int,
    exchanged: Sequence[int],
) -> xr.Dataset:
    """Compare the gradients of every layer that was measured whole, and of all of them.

    Variables that end in ``_null`` are those of held-out samples with each other's targets; what
    samples that were trained on have in common with those stands in their places.

    Parameters
    ----------
    sketches : Sketches
        Of the samples trained on, of those held out, and of some of these with exchanged targets.
    layers : mapping of str to mapping of str to Tensor
        Parameters by name, for every layer.
    trained, held : int
        Samples of both sides.
    exchanged : sequence of int
        Which of those held out have exchanged targets.
    """
    reasons = sketches.reasons
    broken = [name for name, owned in layers.items() if any(part in reasons for part in owned)]
    idle = [name for name, owned in layers.items() if not sketches.reached & {*owned}]
    known = [name for name in layers if name not in broken and name not in idle]
    remarks = {
        "not_measured": ", ".join(f"{name} ({_why(layers[name], reasons)})" for name in broken),
        "without_gradient": ", ".join(name for name in idle if name not in broken),
    }
    if not known:
        return xr.Dataset(attrs=remarks)
    both = trained + held
    sets = [slice(0, trained), slice(trained, both), slice(both, both + len(exchanged))]
    parts = [agreement(sketches.of(name), sets) for name in known]
    whole = whole_agreement((sketches.of(name) for name in known), parts, sets)
    by_layer = Agreement(*(torch.stack(values, 1) for values in zip(*parts, strict=True)))
    at = torch.tensor([trained + place for place in exchanged], dtype=torch.long)
    return xr.Dataset(
        _labelled(_named(by_layer, trained, both, at), ("sample", "layer"), "", "")
        | _labelled(_named(whole, trained, both, at), ("sample",), "_all", ", all layers"),
        {
            "layer": known,
            "parameters": ("layer", [_size(layers[name]) for name in known]),
            "dimensions": (
                "layer",
                [0 if sketches.exact(n) else sketches.dimensions[n] for n in known],
            ),
        },
        remarks,
    )


def _why(owned: Mapping[str, Tensor], reasons: Mapping[str, str]) -> str:
    """Say why a layer was not measured."""
    return next(reasons[name] for name in owned if name in reasons)


def _size(owned: Mapping[str, Tensor]) -> int:
    """Count the elements of a layer's parameters."""
    return sum(weight.numel() for weight in owned.values())


def _labelled(
    values: Mapping[str, Tensor], dims: tuple[str, ...], suffix: str, which: str
) -> dict[str, xr.DataArray]:
    """Label what was found."""
    found = {}
    for name, tensor in values.items():
        label, unit = _LABELS[name.removesuffix("_null")]
        label += f", {NULL}" if name.endswith("_null") else ""
        found[name + suffix] = variable(tensor, dims, label + which, unit)
    return found


def _named(found: Agreement, trained: int, both: int, at: Tensor) -> dict[str, Tensor]:
    """Tell what samples have in common with their own side, with the other, and with the null."""
    named: dict[str, Tensor] = {}
    square, null = _apart(found.square, both, at)
    named["square"], named["square_null"] = square, null
    for prefix, of_sets in (("", found.product), ("cosine_", found.cosine)):
        to_trained, to_held, to_null = of_sets.unbind(-1)
        own = torch.cat([to_trained[:trained], to_held[trained:both], to_null[both:]])
        other = torch.cat([to_held[:trained], to_trained[trained:]])
        named[f"{prefix}own"], named[f"{prefix}own_null"] = _apart(own, both, at)
        named[f"{prefix}other"], null = _apart(other, both, at)
        null[:trained] = to_null[:trained]
        named[f"{prefix}other_null"] = null
    return named


def _apart(values: Tensor, both: int, at: Tensor) -> tuple[Tensor, Tensor]:
    """Tell the samples of both sides from those with exchanged targets, in the same places."""
    null = torch.full_like(values[:both], torch.nan)
    null[at.to(values.device)] = values[both:]
    return values[:both], null
