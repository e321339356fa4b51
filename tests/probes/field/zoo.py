"""Published architectures, narrow: a receptive field does not depend on the width."""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 4


def unit(
    before: int,
    after: int,
    kernel: int | tuple[int, ...],
    stride=1,
    padding=None,
    conv=nn.Conv2d,
    **more,
) -> nn.Sequential:
    """Convolution (same padding unless given), batch norm, ReLU in place."""
    sides = kernel if isinstance(kernel, tuple) else (kernel,)
    same = tuple(side // 2 for side in sides)
    padding = (same if len(same) > 1 else same[0]) if padding is None else padding
    norm = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}[conv]
    layer = conv(before, after, kernel, stride, padding, bias=False, **more)
    return nn.Sequential(layer, norm(after), nn.ReLU(inplace=True))


def linear_stack(
    count: int, kernel: int, strides=None, dilations=None, channels=1
) -> nn.Sequential:
    """Convolutions with all weights one, without bias; padded."""
    layers = []
    for index in range(count):
        dilation = dilations[index] if dilations else 1
        stride = strides[index] if strides else 1
        layer = nn.Conv2d(
            channels, channels, kernel, stride, kernel // 2 * dilation, dilation, bias=False
        )
        nn.init.ones_(layer.weight)
        layers.append(layer)
    return nn.Sequential(*layers)


def alexnet() -> nn.Sequential:
    pool = partial(nn.MaxPool2d, 3, 2)
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 11, 4), nn.ReLU(), pool()),
        *(nn.Conv2d(4, 4, 5, padding=2), nn.ReLU(), pool()),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), pool()),
        *(nn.AdaptiveAvgPool2d((6, 6)), nn.Flatten(), nn.Linear(144, 10)),
    )


def vgg16(classes: int = 10, counts=(2, 2, 3, 3, 3)) -> nn.Sequential:
    layers: list[nn.Module] = []
    before = 3
    for count in counts:
        for _ in range(count):
            layers += [nn.Conv2d(before, WIDTH, 3, padding=1), nn.ReLU(inplace=True)]
            before = WIDTH
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(49 * WIDTH, classes)
    )


class Residual(nn.Module):
    """Body plus shortcut, then ReLU; the shortcut is projected where the shape changes."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += x if self.shortcut is None else self.shortcut(x)
        return self.relu(y)


def basic(before: int, after: int, stride: int, conv=nn.Conv2d) -> Residual:
    """Two 3x3 convolutions."""
    kernel = {nn.Conv2d: 3, nn.Conv3d: (3, 3, 3)}[conv]
    point = {nn.Conv2d: 1, nn.Conv3d: (1, 1, 1)}[conv]
    body = nn.Sequential(
        unit(before, after, kernel, stride, conv=conv), unit(after, after, kernel, conv=conv)[:2]
    )
    same = stride == 1 and before == after
    return Residual(body, None if same else unit(before, after, point, stride, conv=conv)[:2])


def bottleneck(before: int, after: int, stride: int, first: bool) -> Residual:
    """1x1, 3x3, 1x1; the stride is on the first of them, or on the second."""
    body = nn.Sequential(
        unit(before, WIDTH, 1, stride if first else 1),
        unit(WIDTH, WIDTH, 3, 1 if first else stride),
        unit(WIDTH, after, 1)[:2],
    )
    same = stride == 1 and before == after
    return Residual(body, None if same else unit(before, after, 1, stride)[:2])


class ResNet(nn.Module):
    """ResNet for ImageNet: a stem, then stages of blocks."""

    def __init__(self, block, counts) -> None:
        super().__init__()
        self.stem = nn.Sequential(unit(3, WIDTH, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential()
        before = WIDTH
        for index, count in enumerate(counts):
            after = WIDTH * (index + 1)
            blocks = [block(before, after, 2 if index else 1)]
            blocks += [block(after, after, 1) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(*blocks))
            before = after
        self.head = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def resnet18() -> ResNet:
    return ResNet(basic, (2, 2, 2, 2))


def resnet34() -> ResNet:
    return ResNet(basic, (3, 4, 6, 3))


def resnet50(first: bool = False) -> ResNet:
    return ResNet(partial(bottleneck, first=first), (3, 4, 6, 3))


def resnet101(first: bool = False) -> ResNet:
    return ResNet(partial(bottleneck, first=first), (3, 4, 23, 3))


def resnet110() -> nn.Sequential:
    """ResNet for CIFAR-10 with three stages of 18 blocks."""
    layers: list[nn.Module] = [unit(3, WIDTH, 3)]
    before = WIDTH
    for stage in range(3):
        after = WIDTH * (stage + 1)
        layers.append(basic(before, after, 2 if stage else 1))
        layers += [basic(after, after, 1) for _ in range(17)]
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def preactivation(before: int, after: int, stride: int) -> nn.Module:
    """Wide ResNet block: norm and ReLU come before each convolution."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU(inplace=True))
            self.body = nn.Sequential(
                unit(before, after, 3, stride), nn.Conv2d(after, after, 3, 1, 1, bias=False)
            )
            same = stride == 1 and before == after
            self.shortcut = None if same else nn.Conv2d(before, after, 1, stride, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(x.clone())
            return self.body(h) + (x if self.shortcut is None else self.shortcut(h))

    return Block()


def wide_resnet16(width: int = 8) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, 1, 1)]
    before = WIDTH
    for stage in range(3):
        after = width * (stage + 1)
        layers += [preactivation(before, after, 2 if stage else 1), preactivation(after, after, 1)]
        before = after
    return nn.Sequential(*layers)


def mobilenet_v1() -> nn.Sequential:
    layers: list[nn.Module] = [unit(3, WIDTH, 3, 2)]
    for stride in (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1):
        layers += [unit(WIDTH, WIDTH, 3, stride, groups=WIDTH), unit(WIDTH, WIDTH, 1)]
    return nn.Sequential(*layers)


class Branches(nn.Module):
    """Inception module: the same input through several bodies, concatenated."""

    def __init__(self, *bodies: nn.Module) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([body(x) for body in self.bodies], 1)


def inception_v3() -> nn.Sequential:
    """Inception v3 up to the pooling, with the padding of the original."""
    w = WIDTH

    def chain(before: int, *kernels) -> nn.Sequential:
        return nn.Sequential(
            *(unit(before if index == 0 else w, w, kernel) for index, kernel in enumerate(kernels))
        )

    def pooled(before: int) -> nn.Sequential:
        return nn.Sequential(nn.AvgPool2d(3, 1, 1), unit(before, w, 1))

    def a(before: int) -> Branches:
        return Branches(
            chain(before, 1), chain(before, 1, 5), chain(before, 1, 3, 3), pooled(before)
        )

    def b(before: int) -> Branches:
        return Branches(
            unit(before, w, 3, 2, 0),
            nn.Sequential(chain(before, 1, 3), unit(w, w, 3, 2, 0)),
            nn.MaxPool2d(3, 2),
        )

    def c(before: int) -> Branches:
        row, column = (1, 7), (7, 1)
        return Branches(
            chain(before, 1),
            chain(before, 1, row, column),
            chain(before, 1, column, row, column, row),
            pooled(before),
        )

    def d(before: int) -> Branches:
        return Branches(
            nn.Sequential(chain(before, 1), unit(w, w, 3, 2, 0)),
            nn.Sequential(chain(before, 1, (1, 7), (7, 1)), unit(w, w, 3, 2, 0)),
            nn.MaxPool2d(3, 2),
        )

    def e(before: int) -> Branches:
        return Branches(
            chain(before, 1),
            nn.Sequential(chain(before, 1), Branches(chain(w, (1, 3)), chain(w, (3, 1)))),
            nn.Sequential(chain(before, 1, 3), Branches(chain(w, (1, 3)), chain(w, (3, 1)))),
            pooled(before),
        )

    wide, reduced = 4 * w, 6 * w
    return nn.Sequential(
        *(unit(3, w, 3, 2, 0), unit(w, w, 3, 1, 0), unit(w, w, 3), nn.MaxPool2d(3, 2)),
        *(unit(w, w, 1), unit(w, w, 3, 1, 0), nn.MaxPool2d(3, 2)),
        *(a(w), a(wide), a(wide), b(wide)),
        *(c(reduced), c(wide), c(wide), c(wide), d(wide)),
        *(e(reduced), e(6 * w)),
    )


class UNet(nn.Module):
    """U-Net of depth four; the way up by transposed convolutions or by interpolation."""

    def __init__(self, depth: int = 4, bilinear: bool = False) -> None:
        super().__init__()
        sizes = [WIDTH * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            nn.Sequential(unit(before, after, 3), unit(after, after, 3))
            for before, after in pairwise([3, *sizes])
        )
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        for after, before in reversed([*pairwise(sizes)]):
            resize = nn.Upsample(scale_factor=2, mode="bilinear")
            smooth = nn.Sequential(resize, nn.Conv2d(before, after, 1))
            self.up.append(smooth if bilinear else nn.ConvTranspose2d(before, after, 2, 2))
            self.merge.append(nn.Sequential(unit(2 * after, after, 3), unit(after, after, 3)))
        self.out = nn.Conv2d(WIDTH, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for level, body in enumerate(self.down):
            x = body(functional.max_pool2d(x, 2) if level else x)
            skipped.append(x)
        skipped.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skipped.pop()], 1))
        return self.out(x)


class CausalBlock(nn.Module):
    """Block of a temporal convolutional network: padded on both sides, then cut at the end."""

    def __init__(self, before: int, after: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.cut = (kernel - 1) * dilation
        make = partial(nn.Conv1d, kernel_size=kernel, padding=self.cut, dilation=dilation)
        self.first, self.second = make(before, after), make(after, after)
        self.shortcut = nn.Conv1d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.first(x)[:, :, : -self.cut])
        h = functional.relu(self.second(h)[:, :, : -self.cut])
        return functional.relu(h + self.shortcut(x))


def tcn(levels: int = 8, kernel: int = 3) -> nn.Sequential:
    blocks = [
        CausalBlock(WIDTH if level else 1, WIDTH, kernel, 2**level) for level in range(levels)
    ]
    return nn.Sequential(*blocks, nn.Conv1d(WIDTH, 1, 1))


def resnet3d18() -> nn.Sequential:
    """Build a video ResNet: three-dimensional everywhere, no pooling in the stem."""
    layers: list[nn.Module] = [unit(3, WIDTH, (3, 7, 7), (1, 2, 2), conv=nn.Conv3d)]
    before = WIDTH
    for stage in range(4):
        after = WIDTH * (stage + 1)
        layers.append(basic(before, after, 2 if stage else 1, nn.Conv3d))
        layers.append(basic(after, after, 1, nn.Conv3d))
        before = after
    return nn.Sequential(*layers)


class DenseLayer(nn.Module):
    """Bottleneck whose output is appended to its input."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(unit(before, WIDTH, 1), unit(WIDTH, growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet121(growth: int = 2) -> nn.Sequential:
    layers: list[nn.Module] = [unit(3, WIDTH, 7, 2), nn.MaxPool2d(3, 2, 1)]
    before = WIDTH
    for stage, count in enumerate((6, 12, 24, 16)):
        if stage:
            layers += [unit(before, WIDTH, 1), nn.AvgPool2d(2)]
            before = WIDTH
        layers += [DenseLayer(before + growth * index, growth) for index in range(count)]
        before += growth * count
    return nn.Sequential(*layers)


class AttaCut(nn.Module):
    """Thai word segmentation by characters: three parallel convolutions, then their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(139, 8, padding_idx=0)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(8, 6, kernel, dilation=dilation, padding=dilation * (kernel // 2))
            for kernel, dilation in ((3, 1), (5, 3), (9, 2))
        )
        self.linear1, self.linear2 = nn.Linear(6, 4), nn.Linear(4, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings(ids).transpose(1, 2)
        x = torch.stack([layer(x) for layer in self.convolutions]).amax(0).transpose(1, 2)
        return self.linear2(torch.relu(self.linear1(x))).squeeze(-1)


class SqueezeExcite(nn.Module):
    """Channel gates computed from the mean of the whole map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.excite(functional.relu(self.squeeze(pooled))))


class Inverted(nn.Module):
    """Inverted residual block of EfficientNet: expand, depthwise, squeeze-excite, project."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expand: bool) -> None:
        super().__init__()
        inner = 2 * before if expand else before
        self.body = nn.Sequential(
            unit(before, inner, 1) if expand else nn.Identity(),
            unit(inner, inner, kernel, stride, groups=inner),
            SqueezeExcite(inner),
            unit(inner, after, 1)[:2],
        )
        self.same = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


def efficientnet_b0() -> nn.Sequential:
    layers: list[nn.Module] = [unit(3, WIDTH, 3, 2)]
    stages = ((1, 3, 1), (2, 3, 2), (2, 5, 2), (3, 3, 2), (3, 5, 1), (4, 5, 2), (1, 3, 1))
    before = WIDTH
    for index, (count, kernel, stride) in enumerate(stages):
        after = WIDTH + index
        for block in range(count):
            steps = 1 if block else stride
            layers.append(Inverted(after if block else before, after, kernel, steps, index > 0))
        before = after
    return nn.Sequential(*layers, unit(before, WIDTH, 1))
