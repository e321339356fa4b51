"""facenet-pytorch 2.6.0 (MIT): the three networks of MTCNN, which find faces.

Their layers are declared again here: the package insists on torchvision.

Shapes: B crop of a photo, C channel, Y X pixel.
"""

import numpy as np
import torch
from PIL import Image
from shipped import shipped
from torch import Tensor, nn

SIDES = {"pnet": 36, "rnet": 24, "onet": 48}
"""Pixels of the crops that each network is given; P-Net slides over theirs."""

FACE, FLAG = (170, 60, 280, 190), (0, 300, 110, 410)
"""Where the photo has a face, and where it has none."""


def file(name: str) -> str:
    """Return where the weights are."""
    return str(shipped("facenet_pytorch", f"data/{name}.pt"))


class PNet(nn.Module):
    """Proposes faces; fully convolutional."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.prelu2(self.conv2(self.pool1(self.prelu1(self.conv1(x)))))
        x = self.prelu3(self.conv3(x))
        return self.conv4_2(x), self.conv4_1(x).softmax(1)


def _flat(x: Tensor) -> Tensor:
    """Flatten as the first version of these networks, in Caffe, did."""
    return x.permute(0, 3, 2, 1).reshape(len(x), -1)


class RNet(nn.Module):
    """Refines the proposals."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.prelu3(self.conv3(self.pool2(self.prelu2(self.conv2(x)))))
        x = self.prelu4(self.dense4(_flat(x)))
        return self.dense5_2(x), self.dense5_1(x).softmax(1)


class ONet(nn.Module):
    """Says where eyes, nose and mouth are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2 = nn.Linear(256, 2), nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.pool2(self.prelu2(self.conv2(self.pool1(self.prelu1(self.conv1(x))))))
        x = self.prelu4(self.conv4(self.pool3(self.prelu3(self.conv3(x)))))
        x = self.prelu5(self.dense5(_flat(x)))
        return self.dense6_2(x), self.dense6_3(x), self.dense6_1(x).softmax(1)


def _crops(places: list[tuple[int, int, int, int]], side: int) -> Tensor:
    """Cut crops out of the photo of Eileen Collins (NASA) that scikit-image ships."""
    with Image.open(shipped("skimage", "data/astronaut.png")) as photo:
        cut = [photo.convert("RGB").crop(place).resize((side, side)) for place in places]
    pixels = np.stack([np.asarray(crop, np.float32) for crop in cut])
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2) - 127.5) / 128


def batches(side: int) -> list[Tensor]:
    """Return 64 crops, eight by eight over the photo."""
    corners = [(x, y) for y in range(0, 386, 55) for x in range(0, 386, 55)]
    return [_crops([(x, y, x + 127, y + 127) for x, y in corners], side)]


def pnet_batches() -> list[Tensor]:
    """Return crops for P-Net."""
    return batches(SIDES["pnet"])


def rnet_batches() -> list[Tensor]:
    """Return crops for R-Net."""
    return batches(SIDES["rnet"])


def onet_batches() -> list[Tensor]:
    """Return crops for O-Net."""
    return batches(SIDES["onet"])


def score(model: nn.Module) -> float:
    """How much more probable a face is where there is one."""
    side = SIDES[type(model).__name__.lower()]
    face, flag = model(_crops([FACE, FLAG], side))[-1][:, 1]
    return float(face.max() - flag.max())
