"""Convolutional networks to measure on, with random weights.

References
----------
.. [1] He et al., Deep Residual Learning for Image Recognition (2016).
.. [2] He et al., Identity Mappings in Deep Residual Networks (2016).
"""

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut, as torchvision writes it: in place."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.short: nn.Module = nn.Identity()
        if stride > 1 or inputs != channels:
            conv = nn.Conv2d(inputs, channels, 1, stride, bias=False)
            self.short = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        h += self.short(x)
        y: Tensor = self.relu(h)
        return y


class ResNet18(nn.Module):
    """ResNet-18 [1]_; for small images with the stem of the CIFAR networks."""

    def __init__(self, width: int = 64, classes: int = 10, *, small: bool = True) -> None:
        super().__init__()
        self.stem: nn.Module = nn.Sequential(
            nn.Conv2d(3, width, *((3, 1, 1) if small else (7, 2, 3)), bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Identity() if small else nn.MaxPool2d(3, 2, 1),
        )
        sizes = [width * 2 ** (index // 2) for index in range(8)]
        strides = [2 if index in (2, 4, 6) else 1 for index in range(8)]
        self.blocks = nn.Sequential(
            *map(BasicBlock, [width, *sizes[:-1]], sizes, strides),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)))
        return y


class Bottleneck(nn.Module):
    """Normalization first, three convolutions, and a shortcut that nothing is applied to."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.short: nn.Module | None = None
        if stride > 1 or inputs != 4 * channels:
            self.short = nn.Conv2d(inputs, 4 * channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(x).relu_()
        skip = x if self.short is None else self.short(h)
        h = self.conv2(self.bn2(self.conv1(h)).relu_())
        y: Tensor = self.conv3(self.bn3(h).relu_())
        return y + skip


class PreactResNet(nn.Module):
    """ResNet-164 or ResNet-1001 [2]_: depth = 9 n + 2 with n blocks in each of three stages."""

    def __init__(self, depth: int = 1001, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        count, inputs = (depth - 2) // 9, width
        stages = []
        for channels, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            blocks = [Bottleneck(inputs, channels, stride)]
            blocks += [Bottleneck(4 * channels, channels, 1) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            inputs = 4 * channels
        self.stage1, self.stage2, self.stage3 = stages
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.stage3(self.stage2(self.stage1(self.stem(x))))).relu_()
        y: Tensor = self.head(h.mean((2, 3)))
        return y


def plain(classes: int = 10) -> nn.Module:
    """Three convolutions and three linear layers, after BackPACK's examples: no shortcuts."""
    layers: list[nn.Module] = []
    for inputs, outputs, size in ((3, 64, 5), (64, 96, 3), (96, 128, 3)):
        layers += [nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2, 1)]
    layers += [nn.Flatten(), nn.Linear(2048, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, classes))


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """Give normalization the statistics of a network in use, and evaluate it.

    Shortcuts add up: without this a thousand layers overflow.
    """
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval()
