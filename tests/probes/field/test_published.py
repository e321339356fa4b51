"""Receptive fields that were published, or that have a closed form.

Araujo, Norris and Sim, Computing Receptive Fields of Convolutional Neural Networks (Distill 2019):
AlexNet v2, VGG-16, ResNets, Inception v3, MobileNet v1. ResNet-50 and -101 are given there with the
stride on the 1x1 convolution. Minimal fields: Richter et al., Should You Go Deeper? (2021), with
rfa_toolbox.
"""

import numpy as np
import pytest
import torch
import xarray as xr
import zoo
from torch import nn

from analyzer.findings import Finding
from analyzer.limits import ReceptiveFieldLimits
from analyzer.rules.receptive_field import receptive_field
from probes.base import Subject
from probes.receptive_field import ReceptiveField

IMAGE = (3, 224, 224)


def measure(model: nn.Module, shape: tuple[int, ...]) -> xr.Dataset:
    trace = ReceptiveField()(Subject(model.eval(), [torch.zeros(1, *shape)]))
    assert trace.attrs["tensors"] == "symbolic"
    assert "UNKNOWN" not in trace["status"]
    return trace


def convolutions(trace: xr.Dataset) -> xr.Dataset:
    return trace.isel(layer=trace["kind"].str.startswith("Conv").to_numpy())


def largest(trace: xr.Dataset, prefix: str = "") -> list[float]:
    """Largest exact field among layers whose name starts so, along each axis."""
    named = trace["layer"].str.startswith(prefix) & (trace["status"] == "EXACT")
    return trace["size"].to_numpy()[named.to_numpy()].max(0).tolist()


def test_alexnet():
    trace = measure(zoo.alexnet(), (3, 227, 227))
    sliding = trace.isel(layer=trace["kind"].isin(["Conv2d", "MaxPool2d"]).to_numpy())
    assert sliding["size"].to_numpy()[:, 0].tolist() == [11, 19, 51, 67, 99, 131, 163, 195]
    assert sliding["jump"].to_numpy()[:, 1].tolist() == [4, 8, 8, 16, 16, 16, 16, 32]


def test_vgg16():
    trace = measure(zoo.vgg16(), IMAGE)
    pooled = trace.isel(layer=(trace["kind"] == "MaxPool2d").to_numpy())
    assert pooled["size"].to_numpy()[:, 0].tolist() == [6, 16, 44, 100, 212]


STAGES = {
    "resnet18": (zoo.resnet18, [43, 99, 211, 435]),
    "resnet34": (zoo.resnet34, [59, 179, 547, 899]),
    "resnet50, stride on the 3x3": (zoo.resnet50, [35, 91, 267, 427]),
    "resnet50, stride on the 1x1": (lambda: zoo.resnet50(first=True), [35, 99, 291, 483]),
    "resnet101, stride on the 3x3": (zoo.resnet101, [35, 91, 811, 971]),
    "resnet101, stride on the 1x1": (lambda: zoo.resnet101(first=True), [35, 99, 835, 1027]),
}


@pytest.mark.parametrize("name", STAGES)
def test_resnet_stages(name):
    make, expected = STAGES[name]
    trace = measure(make(), IMAGE)
    found = [largest(trace, f"stages.{stage}.") for stage in range(4)]
    assert found == [[size, size] for size in expected]


FINAL = {
    "vgg11": (lambda: zoo.vgg16(counts=(1, 1, 2, 2, 2))[:-3], IMAGE, [150, 150]),
    "densenet121": (zoo.densenet121, IMAGE, [2071, 2071]),
    "mobilenet v1": (zoo.mobilenet_v1, IMAGE, [315, 315]),
    "inception v3": (zoo.inception_v3, (3, 299, 299), [1311, 1311]),
    "wide resnet 16": (
        lambda: nn.Sequential(zoo.wide_resnet16(), nn.AvgPool2d(8)),
        (3, 32, 32),
        [81, 81],
    ),
    "resnet110": (zoo.resnet110, (3, 32, 32), [501, 501]),
    "tcn": (zoo.tcn, (1, 100), [1021]),
    "unet": (zoo.UNet, (3, 64, 64), [188, 188]),
    "unet, bilinear": (lambda: zoo.UNet(bilinear=True), (3, 64, 64), [220, 220]),
    "resnet3d18": (zoo.resnet3d18, (3, 8, 56, 56), [109, 219, 219]),
}  # fmt: skip


@pytest.mark.parametrize("name", FINAL)
def test_last_field(name):
    make, shape, expected = FINAL[name]
    trace = measure(make(), shape)
    assert largest(trace) == expected


def test_efficientnet_sees_everything_through_its_gates():
    trace = measure(zoo.efficientnet_b0(), IMAGE)
    last = trace.isel(layer=int(np.flatnonzero(trace["kind"].str.startswith("Conv"))[-1]))
    assert str(last["status"].item()) == "WHOLE_INPUT"
    assert last["size"].to_numpy().tolist() == [224, 224]
    assert last["size_without_gates"].to_numpy().tolist() == [851, 851]


def test_attacut():
    model = zoo.AttaCut().eval()
    trace = ReceptiveField()(Subject(model, [torch.randint(139, (2, 40))]))
    assert trace["axis"].to_numpy().tolist() == ["time"]
    assert trace["size"].to_numpy()[:, 0].tolist() == [1, 3, 13, 17, 17, 17]
    assert set(trace["status"].to_numpy().tolist()) == {"EXACT"}


STACKS = {
    "3x3, 5": ((5, 3), 11),
    "3x3, 10": ((10, 3), 21),
    "3x3, 20": ((20, 3), 41),
    "3x3, 40": ((40, 3), 81),
    "5x5, 10": ((10, 5), 41),
    "7x7, 10": ((10, 7), 61),
    "dilated": ((4, 3, None, (1, 2, 4, 8)), 31),
    "strided": ((4, 3, (2, 1, 2, 1)), 19),
}


@pytest.mark.parametrize("name", STACKS)
def test_uniform_stacks(name):
    arguments, expected = STACKS[name]
    assert largest(measure(zoo.linear_stack(*arguments), (1, 24, 24))) == [expected, expected]


def test_minimal_fields_of_resnet18():
    trace = convolutions(measure(zoo.resnet18(), IMAGE))
    minimal = trace["minimal"].to_numpy()[:10, 0].tolist()
    # The eighth is the projection on the shortcut of the second stage.
    assert minimal == [7, 19, 27, 19, 27, 19, 35, 11, 27, 43]


@pytest.mark.parametrize(
    ("make", "size", "expected"),
    [
        (zoo.vgg16, 32, 7),
        (zoo.resnet18, 32, 3),
        (zoo.resnet50, 32, 8),
        (zoo.mobilenet_v1, 224, 3),
    ],
    ids=["vgg16", "resnet18", "resnet50", "mobilenet"],
)
def test_unproductive_convolutions(make, size, expected):
    unproductive = judged(measure(make(), (3, size, size)), "unproductive-layers")
    assert unproductive.value == expected
    assert len(unproductive.where) == expected


def judged(trace: xr.Dataset, code: str) -> Finding:
    findings = receptive_field(trace, ReceptiveFieldLimits())
    return next(finding for finding in findings if finding.code == code)


def test_convolutions_wider_than_their_map():
    """The border rule of rfa_toolbox counts these too: on the 2x2 and 1x1 maps of ResNet-18."""
    assert judged(measure(zoo.resnet18(), (3, 32, 32)), "window-wider-than-map").value == 7


def test_inputs_that_use_all_of_a_network():
    """One position more than told is enough, the number told is not."""
    needed = int(measure(zoo.vgg16(), (3, 32, 32))["minimal_input"].sel(layer="28")[0])
    meaning = judged(measure(zoo.vgg16(), (3, 32, 32)), "unproductive-layers").meaning
    assert f"more than {needed} x {needed} positions" in meaning
    found = [
        judged(measure(zoo.vgg16(), (3, size, size)), "unproductive-layers").value
        for size in (needed, needed + 1)
    ]
    assert found == [1, 0]


def test_the_field_of_the_centre_of_an_even_map_is_beside_the_centre():
    trace = measure(zoo.resnet18(), IMAGE)
    last = trace.isel(layer=int(np.flatnonzero(trace["status"] == "EXACT")[-1]))
    # 7 x 7 positions, 32 apart: the centre is the fourth, at 3 x 32, clipped to the image.
    assert last["jump"].to_numpy().tolist() == [32, 32]
    assert last["start"].to_numpy().tolist() == [0, 0]
    assert last["stop"].to_numpy().tolist() == [223, 223]
