"""What an optimizer kept for each parameter, matched to the parameters of a model.

A saved optimizer knows its parameters by number, not by name. They are counted in the order in
which the optimizer was given them, so that a match has to be tried, and is checked by shapes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from probes.errors import NotApplicable

WRAPPERS = ("module", "_orig_mod")
"""Parts of names that come from what wrapped the model in training."""


@dataclass(frozen=True)
class Kept:
    """What an optimizer kept for one parameter.

    Parameters
    ----------
    name : str
        Of the parameter in the model.
    state : mapping
        Moments and counts by name; empty where the parameter had no update.
    settings : mapping
        Of the group that the parameter is in: learning rate and others.
    """

    name: str
    state: Mapping[str, Any]
    settings: Mapping[str, Any]

    def moments(self) -> dict[str, Tensor]:
        """Return what is kept but the number of updates."""
        return {k: v for k, v in self.state.items() if isinstance(v, Tensor) and k != "step"}

    def size(self) -> int:
        """Size of all that is kept [byte]."""
        tensors = [value for value in self.state.values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def kept_by(optimizer: Mapping[str, Any] | None, model: nn.Module) -> list[Kept]:
    """Match the state of an optimizer to the parameters of a model.

    By name where it holds names. Else by number: in the order of the model's parameters, in that of
    those that are trained, or with all matrices before all vectors, as scripts do that spare the
    vectors weight decay; the first order in which all shapes fit is taken.

    Parameters
    ----------
    optimizer : mapping, optional
        What :meth:`torch.optim.Optimizer.state_dict` returned.
    model : Module
        Whose parameters it updated.

    Raises
    ------
    NotApplicable
        There is no state, or it does not fit; the message names the first parameter that does not.
    """
    if optimizer is None:
        raise NotApplicable(
            "no state of the optimizer: save optimizer.state_dict() beside the weights"
        )
    listed = [*_listed(optimizer)]
    misfits = []
    for order in _orders(listed, model):
        misfit = _misfit(listed, order)
        if not misfit:
            return [replace(kept, name=name) for kept, (name, _) in zip(listed, order, strict=True)]
        misfits.append(misfit)
    raise NotApplicable(f"the optimizer's state does not fit the model: {misfits[0]}")


def _listed(optimizer: Mapping[str, Any]) -> Iterator[Kept]:
    """Yield what is kept, named by name or number, as the groups list it."""
    state = optimizer["state"] if isinstance(optimizer["state"], Mapping) else {}
    groups = optimizer["param_groups"]
    for group in groups if isinstance(groups, list | tuple) else ():
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), list | tuple):
            raise NotApplicable("the optimizer's state lists no parameters in its groups")
        members, names = group["params"], group.get("param_names")
        if not isinstance(names, list | tuple) or len(names) != len(members):
            names = members
        settings = {key: value for key, value in group.items() if key != "params"}
        for member, name in zip(members, names, strict=True):
            known = isinstance(member, int | str) and isinstance(state.get(member), Mapping)
            yield Kept(str(name), state[member] if known else {}, settings)


def _misfit(listed: list[Kept], order: list[tuple[str, Tensor]]) -> str:
    """Name the first parameter that has another shape than its moments; empty if none has."""
    if len(listed) != len(order):
        return f"it is for {len(listed)} parameters, and the model has {len(order)}"
    for kept, (name, weight) in zip(listed, order, strict=True):
        for key, moment in kept.moments().items():
            if moment.dim() and moment.shape != weight.shape:
                return (
                    f"{key} of its parameter {kept.name} has shape {tuple(moment.shape)}, and "
                    f"{name} in that place {tuple(weight.shape)}"
                )
    return ""


def _orders(listed: list[Kept], model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield the orders of parameters in which the optimizer may have been given them."""
    weights: dict[str, Tensor] = dict(model.named_parameters())
    bare = {_bare(name): name for name in weights}
    names = [_bare(kept.name) for kept in listed]
    if all(name in bare for name in names):
        yield [(bare[name], weights[bare[name]]) for name in names]
        return
    everything = [*weights.items()]
    yield everything
    yield [(name, weight) for name, weight in everything if weight.requires_grad]
    yield sorted(everything, key=lambda item: item[1].dim() < 2)


def _bare(name: str) -> str:
    """Leave out of a name what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
