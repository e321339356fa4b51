"""legere 0.11.0 (MIT): depthwise-separable convolutions and a BiGRU that read lines of text.

Shapes: B line, W column of the image, T timestep, K character.
"""

from difflib import SequenceMatcher

import numpy as np
import torch
from legere.charset import encode_text
from legere.model import CompactCRNN, decode_indices
from passage import PASSAGE
from PIL import Image, ImageDraw, ImageFont
from shipped import shipped
from torch import Tensor, nn
from torch.nn import functional

FILE = shipped("legere", "data/model.pt")

WIDTH, HEIGHT, LINES = 240, 32, 64


def lines() -> list[str]:
    """Return three words a line."""
    words = PASSAGE.split()
    return [" ".join(words[place : place + 3])[:18] for place in range(0, 2 * LINES, 2)]


def drawn(text: str) -> np.ndarray:
    """Draw a line of text in black on white."""
    image = Image.new("L", (WIDTH, HEIGHT), 255)
    ImageDraw.Draw(image).text((6, 3), text, font=ImageFont.load_default(size=22), fill=0)
    return np.asarray(image, np.float32) / 127.5 - 1


def batches() -> list[tuple[Tensor, Tensor]]:
    """Return images of lines, and their characters, padded with the blank."""
    images = torch.from_numpy(np.stack([drawn(line) for line in lines()]))[:, None]
    characters = [torch.tensor(encode_text(line)) for line in lines()]
    return [(images, nn.utils.rnn.pad_sequence(characters, batch_first=True))]


def loss(logits_BTK: Tensor, characters_BC: Tensor) -> Tensor:
    """Connectionist temporal classification of each line; 0 is the blank."""
    timesteps = torch.full((len(logits_BTK),), logits_BTK.shape[1])
    count_B = (characters_BC > 0).sum(1)
    log_TBK = logits_BTK.log_softmax(-1).transpose(0, 1)
    found: Tensor = functional.ctc_loss(
        log_TBK, characters_BC, timesteps, count_B, reduction="none"
    )
    return found


def model() -> nn.Module:
    """Return the network of the package."""
    network: nn.Module = CompactCRNN()
    return network


def score(network: nn.Module) -> float:
    """How alike what is read is to what is printed; the font is none that it was trained with."""
    ((images, _),) = batches()
    alike = []
    for line, best_T in zip(lines(), network(images).argmax(-1).tolist(), strict=True):
        kept = [v for t, v in enumerate(best_T) if v and (not t or v != best_T[t - 1])]
        alike.append(SequenceMatcher(None, line, decode_indices(kept)).ratio())
    return sum(alike) / LINES
