"""sleepecg 0.6.0 (BSD-3): two-layer BiGRU over a night, which Keras saved; its weights ported.

Shapes: B night, T epoch of 30 s, F feature.
"""

import io
import zipfile

import h5py
import numpy as np
import torch
from shipped import shipped
from torch import Tensor, nn

FILE = shipped("sleepecg", "classifiers/wrn-gru-mesa.zip")
"""HDF5 in two archives; the factory reads it, as no checkpoint reader does."""

NIGHTS, EPOCHS, FEATURES, UNITS = 64, 960, 36, 8


class Sleep(nn.Module):
    """Normalization, a linear layer, and a BiGRU; four stages for every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(FEATURES, eps=1e-3)
        self.fc = nn.Linear(FEATURES, 64)
        self.gru = nn.GRU(64, UNITS, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * UNITS, 4)

    def forward(self, x_BTF: Tensor) -> Tensor:
        normed = self.bn(x_BTF.transpose(1, 2)).transpose(1, 2)
        states, _ = self.gru(torch.relu(self.fc(normed)))
        logits: Tensor = self.out(states)
        return logits


def _arrays() -> dict[str, Tensor]:
    """Read all weights by their place in the file."""
    with zipfile.ZipFile(FILE) as outer:
        inner = zipfile.ZipFile(io.BytesIO(outer.read("classifier.keras")))
    found: dict[str, Tensor] = {}

    def keep(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset):
            found[name] = torch.from_numpy(np.asarray(node))

    with h5py.File(io.BytesIO(inner.read("model.weights.h5"))) as file:
        file["layers"].visititems(keep)
    return found


def _reordered(weight: Tensor) -> Tensor:
    """Keras orders gates z, r, n; torch r, z, n."""
    update, reset, candidate = weight.split(UNITS)
    return torch.cat([reset, update, candidate])


def model() -> Sleep:
    """Return the network with its weights."""
    held, network = _arrays(), Sleep()
    parts = ("weight", "bias", "running_mean", "running_var")
    weights = {f"bn.{n}": held[f"batch_normalization/vars/{i}"] for i, n in enumerate(parts)}
    weights["bn.num_batches_tracked"] = torch.tensor(0)
    for name, source in (("fc", "dense"), ("out", "dense_1")):
        weights[f"{name}.weight"] = held[f"{source}/vars/0"].T
        weights[f"{name}.bias"] = held[f"{source}/vars/1"]
    for layer, source in enumerate(("bidirectional", "bidirectional_1")):
        for direction, suffix in (("forward_layer", ""), ("backward_layer", "_reverse")):
            inputs, states, bias = (held[f"{source}/{direction}/cell/vars/{i}"] for i in range(3))
            tail = f"l{layer}{suffix}"
            weights[f"gru.weight_ih_{tail}"] = _reordered(inputs.T)
            weights[f"gru.weight_hh_{tail}"] = _reordered(states.T)
            weights[f"gru.bias_ih_{tail}"] = _reordered(bias[0])
            weights[f"gru.bias_hh_{tail}"] = _reordered(bias[1])
    network.load_state_dict(weights)
    return network


def batches() -> list[Tensor]:
    """Return nights of eight hours.

    Drawn: features of real nights need their electrocardiograms. They have the mean and variance
    that the network was trained with, and change slowly, as stages of sleep do.
    """
    network, generator = model(), torch.Generator().manual_seed(0)
    noise = torch.randn(NIGHTS, EPOCHS, FEATURES, generator=generator)
    x = torch.empty_like(noise)
    x[:, 0] = noise[:, 0]
    for epoch in range(1, EPOCHS):
        x[:, epoch] = 0.95 * x[:, epoch - 1] + (1 - 0.95**2) ** 0.5 * noise[:, epoch]
    mean, variance = network.bn.running_mean, network.bn.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return [mean + variance.sqrt() * x]


def score(network: nn.Module) -> float:
    """Share of the most frequent stage: below 1 where the network tells stages at all."""
    stages = network(batches()[0][:4]).argmax(-1).flatten().bincount(minlength=4)
    return float(1 - stages.max() / stages.sum())
