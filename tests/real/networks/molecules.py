"""fcd-torch 1.0.7 (MIT): ChemNet, two convolutions and two LSTMs that read molecules backwards."""

import warnings
from pathlib import Path

import numpy as np
import torch
from shipped import shipped
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # RDKit is not needed for this
    from fcd_torch.torch_layers import IndexTensor, IndexTuple, Reverse, SamePadding1d, Transpose
    from fcd_torch.utils import get_one_hot

FILE = shipped("fcd_torch", "ChemNet_v0.13_pretrained.pt")

LENGTH = 350
"""Symbols that the package pads every molecule to."""

MOLECULES = (Path(__file__).parent / "molecules.txt").read_text(encoding="utf-8").split()
"""Drugs, amino acids, solvents, in the notation SMILES."""


def model() -> nn.Module:
    """Build the network of the package, layer by layer as its own loader does."""
    return nn.Sequential(
        SamePadding1d(4, 2), nn.Conv1d(35, 32, 4, 2, bias=False), nn.SELU(),
        SamePadding1d(4, 2), nn.Conv1d(32, 32, 4, 2, bias=False), nn.SELU(),
        Transpose(),
        Reverse(), nn.LSTM(32, 128, batch_first=True), IndexTuple(0),
        Reverse(), nn.LSTM(128, 512, batch_first=True), IndexTuple(0), IndexTensor(-1, 1),
    )  # fmt: skip


def batches() -> list[Tensor]:
    """Return molecules, one symbol a timestep: (molecule, symbol, timestep)."""
    encoded = np.stack([get_one_hot(molecule, LENGTH) for molecule in MOLECULES])
    return [torch.from_numpy(encoded).float().transpose(1, 2).contiguous() / LENGTH]


def score(network: nn.Module) -> float:
    """Similarity of phenol to toluene, less that of phenol to glycine: neighbours are alike."""
    (inputs,) = batches()
    features = network(inputs)
    phenol, toluene, glycine = (
        features[MOLECULES.index(name)] for name in ("Oc1ccccc1", "Cc1ccccc1", "NCC(=O)O")
    )
    alike = torch.cosine_similarity(phenol, toluene, 0)
    return float(alike - torch.cosine_similarity(phenol, glycine, 0))
