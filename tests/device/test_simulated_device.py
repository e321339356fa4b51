"""Every probe gives on another device what it gives on the CPU, without a tensor on the wrong one."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "hardening")]

from simulated import moved, simulated_device
from whole_zoo import ZOO, made

from analyzer import record as records
from analyzer.pipeline import measure
from probes.errors import AnalyzerError

QUICK = ["projected both ways", "cells", "packs", "residual in place", "integers in", "branches"]
"""What the fast tests try; the others are slow."""

LAZY = ["lazy", "lazy normalisation"]
"""Nothing of theirs can be moved yet."""

OF_THE_DEVICE = {"memory_footprint": None, "attribution": ["delta"], "layer_conductance": ["delta"]}
"""Variables that are of the device or of rounding alone; None: all."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in ZOO
        if name not in LAZY
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_probe_measures_the_same_there(name: str) -> None:
    here, there = outcomes(name, away=False), outcomes(name, away=True)
    assert here.keys() == there.keys()
    for probe, trace in here.items():
        assert reason(there[probe]) == reason(trace)
        if OF_THE_DEVICE.get(probe, ()) is not None:
            left_out = OF_THE_DEVICE.get(probe, ())
            same(there[probe].drop_vars(left_out, errors="ignore"), trace)


def outcomes(name: str, *, away: bool) -> dict[str, xr.Dataset]:
    """Audit a network of the zoo; what cannot be audited gives its refusal."""
    subject = made(name)
    try:
        if not away:
            return records.traces(measure(subject))
        with simulated_device():
            moved(subject.model)
            return records.traces(measure(subject))
    except AnalyzerError as refusal:
        return {"refused": xr.Dataset(attrs={"outcome": "refused", "reason": str(refusal)})}


def reason(trace: xr.Dataset) -> tuple[str, str]:
    """Say what a probe came to; torch names the kinds of its tensors."""
    why = str(trace.attrs.get("reason", ""))
    return trace.attrs["outcome"], why.partition("[Meta")[0].partition("[torch.")[0]


def same(found: xr.Dataset, expected: xr.Dataset) -> None:
    """Compare two traces up to the rounding of another implementation of the same layers."""
    for name, variable in found.variables.items():
        values, wanted = variable.to_numpy(), expected[name].to_numpy()
        if values.dtype.kind != "f":
            assert (values == wanted).all(), name
            continue
        scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
        np.testing.assert_allclose(values, wanted, rtol=1e-2, atol=1e-4 * scale, err_msg=name)


def test_tensors_on_two_devices_are_refused() -> None:
    with simulated_device():
        there = torch.ones(3).to("meta")
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="indices of the device"):
            torch.ones(3)[there.long()]
        with pytest.raises(RuntimeError, match="generator of the CPU"):
            torch.rand(3, device="meta", generator=torch.Generator())
        assert (there + torch.tensor(1.0)).sum().item() == 6


def test_what_waits_is_counted() -> None:
    with simulated_device() as device:
        there = torch.ones(3).to("meta")
        assert bool(there.sum() > 2)
        there[there > 0].cpu()
    assert sum(device.waits.values()) == 3
