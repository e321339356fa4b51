"""The first articles of the Universal Declaration of Human Rights, cut into stretches."""

import json
from pathlib import Path

_TEXTS: dict[str, str] = json.loads(
    (Path(__file__).parent / "human_rights.json").read_text(encoding="utf-8")
)
"""Language -> text."""


def windows(language: str, length: int, step: int) -> list[str]:
    """Cut a text into overlapping stretches of one length."""
    text = _TEXTS[language]
    return [text[at : at + length] for at in range(0, len(text) - length + 1, step)]
