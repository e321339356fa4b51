"""A residual network of 1001 layers, as in He et al. (2016), narrower."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from probes.base import Subject
from probes.gradient_flow import GradientFlow

BLOCKS = 111


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        sizes = (inputs, channels, channels, 4 * channels)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes[:3])
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False)
            for a, b, kernel, step in zip(sizes, sizes[1:], (1, 3, 1), (1, stride, 1), strict=False)
        )
        same = stride == 1 and inputs == sizes[3]
        self.short = None if same else nn.Conv2d(inputs, sizes[3], 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norms[0](x).relu_()
        skip = x if self.short is None else self.short(h)
        h = self.norms[1](self.convs[0](h)).relu_()
        h = self.convs[2](self.norms[2](self.convs[1](h)).relu_())
        h += skip
        return h


def network(width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False)]
    inputs = width
    for channels, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        for index in range(BLOCKS):
            layers.append(Bottleneck(inputs, channels, stride if index == 0 else 1))
            inputs = 4 * channels
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, 3))


@pytest.mark.slow
def test_a_thousand_layers_are_measured_sample_by_sample() -> None:
    model = network(4)
    x, y = torch.randn(6, 3, 16, 16), torch.tensor([0, 2, 1, 1, 0, 2])
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    model(x)
    trace = GradientFlow()(
        Subject(model.double(), [(x[:4], y[:4]), (x[4:], y[4:])], "cross_entropy")
    )
    weighted = [kind in ("Conv2d", "Linear") for kind in trace["kind"].to_numpy()]
    # 1001 as the depth of the network is counted, and three shortcuts that change the size.
    assert sum(weighted) == 1 + 9 * BLOCKS + 1 + 3
    assert set(trace["not_per_sample"].to_numpy()) == {""}
    for name in ("activation_gradient", "activation", "parameter_gradient_per_sample"):
        assert np.isfinite(trace[name]).all()
    assert np.isfinite(trace["gain"].isel(layer=np.flatnonzero(weighted))).all()
    assert trace.sizes["sample"] == 6
    first, last = model[0].weight, model[-1].weight
    for sample in (1, 4):
        output = model.eval()(x[sample : sample + 1].double())
        loss = functional.cross_entropy(output, y[sample : sample + 1])
        expected = [float(g.norm()) for g in torch.autograd.grad(loss, [first, last])]
        found = trace["parameter_gradient_per_sample"].isel(sample=sample)
        names = ["0.weight", f"{len(model) - 1}.weight"]
        assert found.sel(parameter=names).to_numpy() == pytest.approx(expected, rel=1e-9)
