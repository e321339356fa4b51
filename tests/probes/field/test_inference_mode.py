"""Forwards that switch to inference mode, where torch hides views and composite operators."""

import numpy as np
import pytest
import torch
from test_oracle import NETS, Functional
from torch import Tensor, nn

from probes.base import Subject
from probes.receptive_field import ReceptiveField


def inferring(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.inner(x)


@pytest.mark.parametrize(
    "name", ["channels last", "shifted", "unfolded", "windows", "written over"]
)
def test_inference_mode_changes_no_field(name: str) -> None:
    make, shape = NETS[name]
    inner, x = make().eval(), torch.rand(1, *shape)
    plain = ReceptiveField()(Subject(inner, [x]))
    trace = ReceptiveField()(Subject(Functional(inferring, inner=inner), [x]))
    assert trace.attrs["tensors"] == "symbolic"
    for name in ("size", "size_without_gates", "start", "stop", "jump", "minimal", "status"):
        np.testing.assert_array_equal(trace[name], plain[name])
