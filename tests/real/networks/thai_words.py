"""attacut 1.0.6 (MIT): three parallel convolutions over characters that find Thai words.

Shapes: B stretch of text, T character.
"""

import json

import torch
from shipped import shipped
from texts import windows
from torch import Tensor, nn

FILE = shipped("attacut", "artifacts/attacut-c/model.pth")

KERNELS = ((3, 1), (5, 3), (9, 2))
"""Width and dilation of each convolution; the first two of the last field are 3 and 13."""


class Wrapped(nn.Module):
    """Convolution under the name that it has in the file."""

    def __init__(self, kernel: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(48, 196, kernel, dilation=dilation, padding=dilation * (kernel // 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class Attacut(nn.Module):
    """Network of the package, whose import needs a dozen others."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(139, 48, padding_idx=0)
        self.conv1, self.conv2, self.conv3 = (Wrapped(*size) for size in KERNELS)
        self.linear1, self.linear2 = nn.Linear(196, 32), nn.Linear(32, 1)

    def forward(self, characters_BT: Tensor) -> Tensor:
        x = self.embeddings(characters_BT).transpose(1, 2)
        parts = torch.stack([conv(x) for conv in (self.conv1, self.conv2, self.conv3)])
        features = parts.amax(0).transpose(1, 2)
        logits: Tensor = self.linear2(torch.relu(self.linear1(features))).squeeze(-1)
        return logits


def _encoded(texts: list[str]) -> Tensor:
    """Turn characters into integers."""
    path = shipped("attacut", "artifacts/attacut-c/characters.json")
    known = json.loads(path.read_text(encoding="utf-8"))
    return torch.tensor([[known.get(character, 1) for character in text] for text in texts])


def batches() -> list[Tensor]:
    """Return stretches of Thai."""
    return [_encoded(windows("th", 40, 4))]


def score(model: nn.Module) -> float:
    """Share of the first word of the text, "human beings", whose first letter begins a word."""
    starts = model(_encoded(windows("th", 40, 4)[:1]))[0, :10] > 0
    return float(bool(starts[0]) and int(starts.sum()) <= 4)
