"""The section of every probe: what it shows and how it is drawn.

To add a probe: one module here with ``section(trace, findings)``, one line in :data:`SECTIONS`, and
an entry under the probe's name in ``reports/template/prose.typ``.
"""

from collections.abc import Sequence
from importlib import import_module

import xarray as xr

from analyzer.findings import Finding
from reports.section import Section

SECTIONS = (
    "gradient_flow",
    "timestep_gradient",
    "timestep_contribution",
    "truncation",
    "memory_horizon",
    "lag_profile",
    "sequence_length",
    "state_reach",
    "gates",
    "lyapunov",
    "memory_capacity",
    "stacked_layers",
    "receptive_field",
    "effective_field",
    "depth_contribution",
    "attribution",
    "layer_conductance",
    "generalization",
    "width",
    "memory_footprint",
    "update_ratio",
)
"""Probes in the order of their sections; each has a module of the same name in this folder."""


def section(probe: str, trace: xr.Dataset, findings: Sequence[Finding]) -> Section:
    """Lay out what ``probe`` measured; a probe without a module here shows its findings alone."""
    if probe not in SECTIONS:
        return Section()
    laid_out: Section = import_module(f"reports.figures.{probe}").section(trace, findings)
    return laid_out
