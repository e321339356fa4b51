"""LanguageIdentifier 1.1.1 (MIT): two-layer BiLSTM over characters that tells 20 languages."""

from typing import Any

import torch
from LanguageIdentifier.LSTMLID import LSTMLIDModel
from shipped import shipped
from texts import windows
from torch import Tensor, nn

FILE = shipped("LanguageIdentifier", "LID_mixed_model.pkl")

LANGUAGES = ("da", "de", "en", "es", "fi", "fr", "it", "nl", "pt", "sv")


def _facts() -> dict[str, Any]:
    """Read what the file says beside the weights, which the factory of the model needs."""
    found: dict[str, Any] = torch.load(FILE, map_location="cpu", weights_only=True)
    return found


def model() -> nn.Module:
    """Return the network of the package."""
    facts = _facts()
    names = ("char_to_idx", "lang_to_idx", "embedding_dim", "hidden_dim", "layers")
    network: nn.Module = LSTMLIDModel(*(facts[name] for name in names))
    return network


def batches() -> list[tuple[Tensor, Tensor]]:
    """Return stretches of 48 characters in several languages, and the languages."""
    facts = _facts()
    known, number = facts["char_to_idx"], facts["lang_to_idx"]
    texts = [(text, number[name]) for name in LANGUAGES for text in windows(name, 48, 16)]
    rows = [[known.get(character, len(known)) for character in text] for text, _ in texts]
    return [(torch.tensor(rows), torch.tensor([language for _, language in texts]))]


def score(network: nn.Module) -> float:
    """Share of the stretches whose language is told rightly."""
    ((texts, languages),) = batches()
    return float((network(texts).argmax(1) == languages).float().mean())
