"""Which layers are followed back in time together, and where their time is.

Shapes: B sample, K lag.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from probes.recurrent.backward.record import StateGradients
from probes.samples.layout import Layout


def stacks(states: Sequence[StateGradients]) -> dict[str, list[StateGradients]]:
    """Put together what is followed in lock-step, by label."""
    calls: dict[tuple[str, int], list[StateGradients]] = {}
    for state in states:
        calls.setdefault((state.site.module, state.site.sequence), []).append(state)
    found: dict[str, list[StateGradients]] = {}
    for group in calls.values():
        if any(state.site.reverse for state in group):
            found |= {state.site.label: [state] for state in group}
            continue
        kind = group[0].site.kind.partition("_")[0].upper()
        found[group[0].site.label.removesuffix("l0").removesuffix(".") or kind] = group
    return found


def obstacle(
    states: Sequence[StateGradients],
    modules: Mapping[str, nn.Module],
    layout: Layout,
) -> str:
    """Say why a stack cannot be followed; empty if it can."""
    if not isinstance(modules.get(states[0].site.module), nn.RNNBase | nn.RNNCellBase):
        return "its weights belong to no recurrent module"
    if any(state.measured.trajectory is None for state in states):
        return "the output does not depend on all of its calls"
    if len(states[0].lengths) != layout.samples:
        return f"it reads {len(states[0].lengths)} sequences for {layout.samples} samples"
    return ""


def valid_lengths(state: StateGradients, layout: Layout) -> Tensor:
    """Count the valid timesteps of each sample: (B,)."""
    if layout.lengths is None:
        return state.lengths
    timesteps, known = len(state.measured.hidden), layout.timesteps
    padded = timesteps == known if known is not None else timesteps >= int(layout.lengths.max())
    # Where a layer reads another number of timesteps, the lengths of the inputs are not its own.
    return torch.minimum(state.lengths, layout.lengths) if padded else state.lengths


def read_at(length_B: Tensor, count: int, reverse: bool) -> Tensor:
    """Timestep in the data of every lag: (K, B); clamped to the first one that is read."""
    lag_K1 = torch.arange(count)[:, None]
    if reverse:
        return torch.minimum(lag_K1, length_B - 1)
    return (length_B - 1 - lag_K1).clamp_min(0)
