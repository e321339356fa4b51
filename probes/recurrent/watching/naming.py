"""Which module a recurrent operation belongs to, told by the weights it is called with."""

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from probes.recurrent.backward.record import Site


class Names:
    """Names of the recurrent modules of a model.

    Parameters
    ----------
    model : Module
        Only read.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = recurrent_modules(model)
        self._owners: dict[int, str] = {
            id(weight): name
            for name, module in reversed([*model.named_modules()])
            for weight in module.parameters(recurse=False)
        }

    def of(self, weights: Sequence[Tensor], kind: str) -> str:
        """Name the module that owns ``weights``; the kind of layer if none does."""
        for name, module in self._layers.items():
            if getattr(module, "_flat_weights", None) is weights:
                return name
        for weight in weights:
            if id(weight) in self._owners:
                return self._owners[id(weight)]
        # torch.func.functional_call and parametrizations put other tensors in their place.
        used = {id(weight) for weight in weights}
        for name, module in self._layers.items():
            if any(id(weight) in used for weight in module.parameters(recurse=False)):
                return name
        return kind


def recurrent_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Find torch's recurrent modules and cells by name."""
    kinds = (nn.RNNBase, nn.RNNCellBase)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def parameter_name(site: Site, weight: str, known: Collection[str]) -> str:
    """Name a weight of a layer and direction as ``named_parameters()`` does.

    Parameters
    ----------
    site : Site
        Layer and direction.
    weight : str
        Its name without these, such as "weight_ih".
    known : collection of str
        Names of the parameters of the model. Cells do not number their layer.
    """
    prefix = f"{site.module}." if site.module else ""
    numbered = f"{prefix}{weight}_l{site.layer}" + ("_reverse" if site.reverse else "")
    return numbered if numbered in known else prefix + weight
