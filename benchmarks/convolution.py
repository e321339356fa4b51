"""Probes of convolutional networks, beside other tools that measure something comparable."""

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from benchmarks.networks import PreactResNet, ResNet18, plain, settled
from benchmarks.timing import BARE, Function, Row, compare, installed
from probes.base import Subject
from probes.effective_field import EffectiveField
from probes.gradient_flow import GradientFlow
from probes.receptive_field import ReceptiveField


class Case:
    """A network with a batch, and everything that is timed on it."""

    def __init__(self, model: nn.Module, samples: int, size: int) -> None:
        self.x = torch.randn(samples, 3, size, size)
        self.y = torch.randint(10, (samples,))
        self.model = settled(model, self.x)
        self.subject = Subject(self.model, [(self.x, self.y)], "cross_entropy")

    def bare(self) -> None:
        """Forward, backward, and the gradients of all parameters."""
        self.model.zero_grad()
        functional.cross_entropy(self.model(self.x), self.y).backward()

    def flow(self) -> None:
        """Measure the gradients of all layers and parameters for every sample."""
        GradientFlow()(self.subject)

    def field(self, *, deep: bool = False) -> None:
        """Measure the effective field: of all layers, or of those the probe chooses by itself."""
        most = {} if deep else {"max_layers": 1000}
        EffectiveField(null_seeds=0, **most)(self.subject)

    def receptive(self) -> None:
        """Work out the theoretical field of every layer."""
        ReceptiveField()(self.subject)

    def mapped(self) -> None:
        """Gradient of every sample by torch.func, which is then squared."""
        weights = {name: weight.detach() for name, weight in self.model.named_parameters()}

        def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            output = functional_call(self.model, weights, (x.unsqueeze(0),))
            return functional.cross_entropy(output, y.unsqueeze(0))

        gradients = vmap(grad(loss), (None, 0, 0))(weights, self.x, self.y)
        for gradient in gradients.values():
            gradient.flatten(1).square().sum(1)

    def backpack(self) -> Function:
        """Square norms of every sample's gradient by BackPACK, on a model made ready for it."""
        from backpack import backpack, extend
        from backpack.extensions import BatchL2Grad

        chain = isinstance(self.model, nn.Sequential)
        model = extend(copy.deepcopy(self.model).eval(), use_converter=not chain)
        loss = extend(nn.CrossEntropyLoss(reduction="sum"))

        def run() -> None:
            model.zero_grad()
            with backpack(BatchL2Grad()):
                loss(model(self.x), self.y).backward()

        return run

    def delve(self) -> Function:
        """Forward, with delve's saturation of every layer."""
        from delve import SaturationTracker

        model = copy.deepcopy(self.model)

        def run() -> None:
            tracker = SaturationTracker(
                "benchmark", "csv", model, device="cpu", nosave=True, stats=["lsat"]
            )
            with torch.no_grad():
                model(self.x)
            tracker.add_saturations()
            tracker.close()

        return run

    def torchlens(self) -> Function:
        """Forward and backward, with torchlens keeping every output and its gradient."""
        import torchlens

        model = copy.deepcopy(self.model)
        options = torchlens.options.CaptureOptions(save_grads=True, unwrap_when_done=True)

        def run() -> None:
            trace = torchlens.trace(model, self.x, capture=options)
            output = trace[trace.output_layers[0]].out
            trace.log_backward(functional.cross_entropy(output, self.y))
            trace.cleanup()

        return run

    def neuron_gradient(self) -> None:
        """Gradient of the centre unit of every convolution by captum: one effective field each."""
        from captum.attr import NeuronGradient

        for layer in self.model.modules():
            if isinstance(layer, nn.Conv2d):
                gradient = NeuronGradient(self.model, layer)
                gradient.attribute(self.x.requires_grad_(), neuron_selector=_centre)
        self.x = self.x.detach()


def _centre(output: Tensor) -> Tensor:
    """Sum of the channels of the unit in the middle: (B,)."""
    return output[:, :, output.shape[2] // 2, output.shape[3] // 2].sum(1)


FLOW = "gradient_flow"
NOTES = {
    FLOW: "layers and parameters, every sample",
    "BackPACK BatchL2Grad": "parameters, every sample; no layers",
    "torch.func vmap(grad)": "parameters, every sample; no layers",
    "torchlens, gradients": "all outputs and gradients kept; no norms",
    "delve saturation": "forward only; covariance of the outputs",
    "effective_field": "all convolutions, no nulls",
    "captum NeuronGradient": "the same convolutions and samples; no sizes",
    "receptive_field": "one symbolic pass, whatever the batch",
}


def _gradients(case: Case) -> dict[str, Function]:
    """List what measures gradients."""
    return {
        BARE: case.bare,
        FLOW: case.flow,
        "BackPACK BatchL2Grad": installed("backpack", case.backpack),
        "torch.func vmap(grad)": case.mapped,
        "torchlens, gradients": installed("torchlens", case.torchlens),
        "delve saturation": installed("delve", case.delve),
    }


def _fields(case: Case) -> dict[str, Function]:
    """List what measures fields."""
    return {
        BARE: case.bare,
        "effective_field": case.field,
        "captum NeuronGradient": case.neuron_gradient,
        "receptive_field": case.receptive,
    }


def _deep(case: Case) -> dict[str, Function]:
    """List what a very deep network goes through."""
    return {
        BARE: case.bare,
        FLOW: case.flow,
        "effective_field": partial(case.field, deep=True),
        "receptive_field": case.receptive,
    }


def rows(rounds: int, large: bool) -> list[Row]:
    """Time everything on every network."""
    found: list[Row] = []
    for name, model, samples, size in (
        ("ResNet-18, 64 x 32x32", ResNet18(), 64, 32),
        ("ResNet-18, 8 x 224x224", ResNet18(small=False), 8, 224),
        ("3 conv + 3 linear, 64 x 32x32", plain(), 64, 32),
        ("preact ResNet-164, 16 x 32x32", PreactResNet(164), 16, 32),
    ):
        found += compare(name, _gradients(Case(model, samples, size)), rounds, NOTES)
    fields = Case(ResNet18(), 16, 32)
    found += compare("fields of ResNet-18, 16 x 32x32", _fields(fields), rounds, NOTES)
    if large:
        notes = NOTES | {"effective_field": "10 of 1004 convolutions, no nulls"}
        deep = Case(PreactResNet(1001), 16, 32)
        found += compare("preact ResNet-1001, 16 x 32x32", _deep(deep), min(rounds, 2), notes)
    return found
