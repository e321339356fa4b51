"""g2p-en 2.1.0 (Apache-2.0): GRU encoder and decoder from English letters to phonemes.

Shapes: B word, T letter or phoneme.
"""

from collections import defaultdict

import numpy as np
import torch
from passage import PASSAGE
from shipped import shipped
from torch import Tensor, nn

FILE = shipped("g2p_en", "checkpoint20.npz")
"""Arrays without a pickle; the factory reads them, as no checkpoint reader does."""

LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
_LISTED = """
<pad> <unk> <s> </s> AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 B CH D
DH EH0 EH1 EH2 ER0 ER1 ER2 EY0 EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K L M N NG OW0 OW1 OW2 OY0
OY1 OY2 P R S SH T TH UH0 UH1 UH2 UW UW0 UW1 UW2 V W Y Z ZH
"""
PHONEMES = _LISTED.split()
START, END = PHONEMES.index("<s>"), PHONEMES.index("</s>")
IGNORED = -100
"""Target that cross entropy leaves out."""

WRITTEN = 8
"""Phonemes that are written."""


class G2p(nn.Module):
    """The decoder is fed with the phoneme that it wrote last."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_emb, self.dec_emb = nn.Embedding(29, 256), nn.Embedding(74, 256)
        self.enc = nn.GRU(256, 256, batch_first=True)
        self.dec = nn.GRU(256, 256, batch_first=True)
        self.fc = nn.Linear(256, 74)

    def forward(self, letters_BT: Tensor) -> Tensor:
        _, state = self.enc(self.enc_emb(letters_BT))
        symbol_B1, logits = torch.full_like(letters_BT[:, :1], START), []
        for _ in range(WRITTEN):
            out, state = self.dec(self.dec_emb(symbol_B1), state)
            logits.append(self.fc(out))
            symbol_B1 = logits[-1].argmax(-1)
        return torch.cat(logits, 1)


def model() -> G2p:
    """Return the network with its weights."""
    with np.load(FILE) as arrays:
        held = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    weights = {"enc_emb.weight": held["enc_emb"], "dec_emb.weight": held["dec_emb"]}
    weights |= {"fc.weight": held["fc_w"], "fc.bias": held["fc_b"]}
    for side in ("enc", "dec"):
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            weights[f"{side}.{part}_l0"] = held[
                f"{side}_{part.replace('weight', 'w').replace('bias', 'b')}"
            ]
    network = G2p()
    network.load_state_dict(weights)
    return network


def words() -> dict[int, list[str]]:
    """Return the words of the passage by their number of letters."""
    found: dict[int, set[str]] = defaultdict(set)
    for word in PASSAGE.split():
        letters = "".join(character for character in word.lower() if character in LETTERS)
        found[len(letters)].add(letters)
    return {length: sorted(found[length]) for length in range(3, 9)}


def batches() -> list[tuple[Tensor, Tensor]]:
    """Return words of one length after the other; targets are what the network says itself."""
    network = model().eval()
    cut = []
    for spelled in words().values():
        letters = torch.tensor([[LETTERS.index(c) for c in word] + [2] for word in spelled])
        with torch.no_grad():
            said = network(letters).argmax(-1)
        ended = (said == END).cumsum(1) - (said == END).long()
        cut.append((letters, said.masked_fill(ended > 0, IGNORED)))
    return cut


def score(network: nn.Module) -> float:
    """Share of a few words that are pronounced as in a dictionary."""
    known = {"king": "K IH1 NG", "face": "F EY1 S", "jaw": "JH AO1", "light": "L AY1 T"}
    right = 0
    for word, phonemes in known.items():
        letters = torch.tensor([[LETTERS.index(c) for c in word] + [2]])
        said = [PHONEMES[number] for number in network(letters).argmax(-1)[0].tolist()]
        right += " ".join(said[: said.index("</s>")]) == phonemes
    return right / len(known)
