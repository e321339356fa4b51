"""uzmorph-nn 0.1.0 (MIT): two-layer BiLSTM that takes Uzbek words apart, letter by letter."""

import json

import torch
from shipped import shipped
from torch import Tensor, nn

from analyzer import Batch

FILE = shipped("uzmorph_nn", "data/morph_bilstm.pth")

_WORDS = "kitob maktab bola daraxt shahar odam qalam daftar gul til ish kun yil baliq qush dengiz"
STEMS = _WORDS.split()
SUFFIXES = ("larimizdan", "ga", "larni", "da")
LENGTH = 30
"""Letters that the package pads every word to."""


def _vocabulary(name: str) -> dict[str, int]:
    """Read what the integers stand for."""
    found: dict[str, int] = json.loads(
        shipped("uzmorph_nn", f"data/{name}_vocab.json").read_text(encoding="utf-8")
    )
    return found


class Uzmorph(nn.Module):
    """Network of the package, whose own module needs an old setuptools."""

    def __init__(self) -> None:
        super().__init__()
        self.char_embeddings = nn.Embedding(len(_vocabulary("char")), 64)
        self.lstm = nn.LSTM(64, 64, num_layers=2, bidirectional=True, batch_first=True)
        self.hidden2tag = nn.Linear(128, len(_vocabulary("tag")))

    def forward(self, letters_BT: Tensor) -> Tensor:
        states, _ = self.lstm(self.char_embeddings(letters_BT))
        logits: Tensor = self.hidden2tag(states)
        return logits


def batches() -> list[Batch]:
    """Return stems with suffixes, padded as the package does, which reads the padding too."""
    known = _vocabulary("char")
    words = [stem + suffix for stem in STEMS for suffix in SUFFIXES]
    rows = [[known[letter] for letter in word] for word in words]
    padded = torch.tensor([row + [known["PAD"]] * (LENGTH - len(row)) for row in rows])
    return [Batch(padded, lengths=torch.tensor([len(word) for word in words]))]


def score(model: nn.Module) -> float:
    """Share of the stems' letters that are tagged as stems."""
    tags = {number: tag for tag, number in _vocabulary("tag").items()}
    best = iter(model(batches()[0].inputs).argmax(-1).tolist())
    right = [
        "ROOT" in tags[tag] for stem in STEMS for _ in SUFFIXES for tag in next(best)[: len(stem)]
    ]
    return sum(right) / len(right)
