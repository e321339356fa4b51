"""Measure: a trained model in, labelled arrays out.

A probe is a frozen dataclass with a ``name``; its fields are its settings, and calling it with a
:class:`probes.base.Subject` returns one :class:`xarray.Dataset`. ``PROBES`` names them all in the
order in which they run; they are imported only when asked for, so that nothing here needs torch.
"""

from importlib import import_module

PROBES = {
    "gradient_flow": "GradientFlow",
    "timestep_gradient": "TimestepGradient",
    "timestep_contribution": "TimestepContribution",
    "truncation": "Truncation",
    "memory_horizon": "MemoryHorizon",
    "lag_profile": "LagProfile",
    "sequence_length": "SequenceLength",
    "state_reach": "StateReach",
    "gates": "Gates",
    "lyapunov": "Lyapunov",
    "memory_capacity": "MemoryCapacity",
    "stacked_layers": "StackedLayers",
    "receptive_field": "ReceptiveField",
    "effective_field": "EffectiveField",
    "depth_contribution": "DepthContribution",
    "attribution": "Attribution",
    "layer_conductance": "LayerConductance",
    "generalization": "Generalization",
    "width": "Width",
    "memory_footprint": "MemoryFootprint",
    "update_ratio": "UpdateRatio",
}
"""Probe name (also its module in this folder) -> class name."""


def probe_class(name: str) -> type:
    """Import the class of the probe called ``name``."""
    found: type = getattr(import_module(f"probes.{name}"), PROBES[name])
    return found
