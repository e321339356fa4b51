"""A second way to the field: put nan at one input position after the other and see where it goes.

Not a number times zero is not a number, so that what comes out is the structure of the network,
whatever its weights. Only the clipped interval of the centre unit can be seen.
"""

import torch
from torch import Tensor, nn

from probes.field.survey import is_layer


def intervals(model: nn.Module, x: Tensor, dims: tuple[int, ...]) -> dict[str, list]:
    """First and last position that reaches the centre unit of each layer, per axis.

    Spatial dimensions of an output are those behind channels, the second; others are pooled.
    """
    found: dict[str, list] = {}
    calls: dict[str, int] = {}
    hit: dict[str, bool] = {}

    def keep(name: str):
        def hook(_module, _args, output) -> None:
            output = next(t for t in tree(output) if t.is_floating_point())
            calls[name] = calls.get(name, 0) + 1
            label = name if calls[name] == 1 else f"{name}#{calls[name]}"
            spatial = len(dims) if output.dim() == len(dims) + 2 else 0
            centre = tuple(size // 2 for size in output.shape[output.dim() - spatial :])
            hit[label] = bool(output[(..., *centre)].isnan().any())

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if is_layer(module)
    ]
    with torch.no_grad():
        for axis, dim in enumerate(dims):
            for position in range(x.shape[dim]):
                probe = x.clone()
                probe.select(dim, position).fill_(torch.nan)
                calls.clear()
                hit.clear()
                model(probe)
                for label, reached in hit.items():
                    spans = found.setdefault(label, [[] for _ in dims])
                    spans[axis] += [position] * reached
    for handle in handles:
        handle.remove()
    return {
        label: [(seen[0], seen[-1]) if seen else None for seen in spans]
        for label, spans in found.items()
    }


def tree(output) -> list[Tensor]:
    """Tensors of what a module returned."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = output.values()
    return [tensor for part in output if part is not None for tensor in tree(part)]
