"""Networks without recurrence, each with a property that is known beforehand.

Topologies are those of the papers; widths are a few channels, which changes no field and no depth.

Shapes: B sample, C channel, T timestep.
"""

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

import analyzer
from analyzer.demo import SPECS

CLASSES = 4

DEAD_BLOCK = "stages.2.1"
"""The block of ``residual_18`` that adds nothing to its shortcut."""

DEAD_BLOCK_110 = "stages.1.9"
"""The same of ``residual_110``."""

DELAY = 24
"""Lag of the only input that ``signal_filter`` reads [timestep]."""


def he(model: nn.Module) -> nn.Module:
    """Initialize so that a ReLU network keeps the size of its gradient (He et al. 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def classified(model: nn.Module, inputs: Tensor) -> analyzer.Subject:
    """Subject with random classes, its normalization fitted to the inputs."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(inputs)
    targets = torch.randint(CLASSES, (len(inputs),))
    return analyzer.Subject(model.eval(), [(inputs, targets)], loss="cross_entropy")


def alexnet() -> analyzer.Subject:
    """AlexNet on the images it is made for: every convolution adds context."""
    widths = (3, 8, 12, 12, 12, 12)
    sizes = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
    layers: list[nn.Module] = []
    for place, ((before, after), (kernel, stride, padding)) in enumerate(
        zip(pairwise(widths), sizes, strict=True)
    ):
        layers += [nn.Conv2d(before, after, kernel, stride, padding), nn.ReLU(inplace=True)]
        if place in (0, 1, 4):
            layers.append(nn.MaxPool2d(3, 2))
    head = [nn.Flatten(), nn.Dropout(), nn.Linear(12 * 36, 32), nn.ReLU(inplace=True)]
    head += [nn.Dropout(), nn.Linear(32, 32), nn.ReLU(inplace=True), nn.Linear(32, CLASSES)]
    return classified(he(nn.Sequential(*layers, *head)), torch.randn(16, 3, 224, 224))


VGG16 = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0)
"""Width of each convolution in units of the narrowest; 0 is a pooling layer."""


def vgg() -> analyzer.Subject:
    """VGG-16 on images seven times too small for it: its last convolutions add no context."""
    layers: list[nn.Module] = []
    before = 3
    for width in VGG16:
        if not width:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(before, 4 * width, 3, padding=1), nn.ReLU(inplace=True)]
        before = 4 * width
    head = [nn.Flatten(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, CLASSES)]
    return classified(he(nn.Sequential(*layers, *head)), torch.randn(12, 3, 32, 32))


class Block(nn.Module):
    """Residual block of two 3x3 convolutions (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += self.shortcut(x)
        out: Tensor = self.relu(y)
        return out


class Preactivation(nn.Module):
    """Residual bottleneck whose shortcut nothing interrupts (He et al. 2016, identity mappings)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        inner = after // 4
        self.body = nn.Sequential(
            nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, inner, 1, bias=False),
            nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
            nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, after, 1, bias=False),
        )  # fmt: skip
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + self.shortcut(x)
        return y


class Residual(nn.Module):
    """Residual network: a stem, stages of blocks, a mean over positions, a classifier."""

    def __init__(
        self, stem: nn.Module, width: int, blocks: tuple[int, ...], block: type, widen: int = 1
    ) -> None:
        super().__init__()
        self.stem = stem
        before, stages = width, []
        for place, count in enumerate(blocks):
            after, stage = width * widen * 2**place, []
            for index in range(count):
                stage.append(block(before, after, 2 if place and not index else 1))
                before = after
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(before, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.stages(self.stem(x))).flatten(1))
        return logits


def plain_stem(width: int) -> nn.Module:
    """Stem for images of 32 pixels."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )


def switched_off(model: nn.Module, block: str) -> None:
    """Let a block add nothing to its shortcut, as a block that has learnt nothing does."""
    nn.init.zeros_(model.get_submodule(f"{block}.norm2").weight)


def residual_18() -> analyzer.Subject:
    """Residual network of 18 layers, one block of which adds nothing."""
    stem = nn.Sequential(
        nn.Conv2d(3, 4, 7, 2, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    )
    model = Residual(stem, 4, (2, 2, 2, 2), Block)
    switched_off(model, DEAD_BLOCK)
    return classified(he(model), torch.randn(12, 3, 64, 64))


def residual_110() -> analyzer.Subject:
    """Residual network of 110 layers for small images, one block of which adds nothing."""
    model = Residual(plain_stem(4), 4, (18, 18, 18), Block)
    switched_off(model, DEAD_BLOCK_110)
    return classified(he(model), torch.randn(8, 3, 32, 32))


def residual_1001() -> analyzer.Subject:
    """Residual network of 1001 layers: 333 bottlenecks of three convolutions."""
    model = Residual(nn.Conv2d(3, 8, 3, 1, 1, bias=False), 8, (111, 111, 111), Preactivation)
    return classified(he(model), torch.randn(4, 3, 32, 32))


def wide_residual() -> analyzer.Subject:
    """Wide residual network of 16 layers, 8 times as wide as its stem."""
    model = Residual(plain_stem(2), 2, (2, 2, 2), Block, widen=8)
    return classified(he(model), torch.randn(16, 3, 32, 32))


def one_wide_layer() -> analyzer.Subject:
    """One hidden layer of 2000 units: no time, no positions, no depth to lose gradient over."""
    model = nn.Sequential(nn.Linear(20, 2000), nn.ReLU(), nn.Linear(2000, CLASSES))
    return classified(he(model), torch.randn(64, 20))


def deep_sigmoid() -> analyzer.Subject:
    """Twelve layers of sigmoids, each of which leaves a quarter of the gradient at most."""
    layers: list[nn.Module] = []
    for _ in range(12):
        layers += [nn.Linear(32, 32), nn.Sigmoid()]
        nn.init.orthogonal_(layers[-2].weight)
        nn.init.zeros_(layers[-2].bias)
    return classified(nn.Sequential(*layers, nn.Linear(32, CLASSES)), torch.randn(64, 32))


class SignalFilter(nn.Module):
    """Twelve causal convolutions, each of which hands on its oldest input: a delay."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv1d(1, 1, 3, bias=False) for _ in range(DELAY // 2)))
        for layer in self.layers:
            layer.weight = nn.Parameter(torch.tensor([[[1.0, 0.0, 0.0]]]))

    def forward(self, x_BT1: Tensor) -> Tensor:
        padded = nn.functional.pad(x_BT1.transpose(1, 2), (DELAY, 0))
        y: Tensor = self.layers(padded)[:, :, -1]
        return y


def signal_filter() -> analyzer.Subject:
    """1-D CNN whose output is the input of ``DELAY`` timesteps ago."""
    inputs = torch.randn(64, 40, 1)
    return analyzer.Subject(
        SignalFilter(), [(inputs, inputs[:, -1 - DELAY] + 0.1)], loss="mse_loss", time_axis=1
    )


def heartbeat_cnn() -> analyzer.Subject:
    """Bundled 1-D CNN of 12 convolutions, trained on electrocardiograms."""
    return analyzer.load_subject(replace(SPECS["ecg_cnn"], max_samples=64)).subject
