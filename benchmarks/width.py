"""The probe of the width of layers, beside delve, and what looking at some positions costs."""

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from analyzer import load_subject
from analyzer.demo import SPECS
from benchmarks.networks import PreactResNet, ResNet18, plain, settled
from benchmarks.timing import BARE, Function, Row, compare, installed
from probes.base import Subject
from probes.features.layers import layers_of
from probes.features.observation import Plan, observe
from probes.features.summary import plain as directions
from probes.width import Width
from tests.real.real_networks import NETWORKS, missing, spec_of

FORWARD = "forward (no gradients)"
SAME = "directions of all layers"
COVARIANCE = "width, no copies, no loss"
DELVE = "delve saturation"
NOTES = {
    SAME: "what delve does, as for each untrained copy: at 64 positions, in float32",
    COVARIANCE: "also: intervals over 10 groups, copied and idle units, independent positions",
    "width": "also: two untrained copies, and the loss with restricted layers",
    DELVE: "covariance and eigenvalues at all positions, in float64",
}
RECURRENT = {
    **NOTES,
    DELVE: "given all timesteps by hand: on its own it takes the last one",
}
POSITIONS = 64
REAL = ("digit-recognizer", "facenet O-Net", "facenet R-Net", "legere")


class Chain(nn.Module):
    """Two recurrent layers, each a module of its own, and a decision at every timestep."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.first = nn.LSTM(units, units, batch_first=True)
        self.second = nn.LSTM(units, units, batch_first=True)
        self.head = nn.Linear(units, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.second(self.first(x)[0])[0])
        return y.transpose(1, 2)


class Case:
    """A network with a batch, and everything that is timed on it."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model, x, y
        self.subject = Subject(model, [(x, y)], "cross_entropy")

    @classmethod
    def images(cls, model: nn.Module, samples: int, size: int) -> "Case":
        """Random images for a network of convolutions."""
        x = torch.randn(samples, 3, size, size)
        return cls(settled(model, x), x, torch.randint(10, (samples,)))

    @classmethod
    def sequences(cls, samples: int, timesteps: int, hidden: int) -> "Case":
        """Random sequences for two LSTM layers."""
        x, y = torch.randn(samples, timesteps, hidden), torch.randint(10, (samples, timesteps))
        return cls(Chain(hidden).eval(), x, y)

    def bare(self) -> None:
        """Forward, backward, and the gradients of all parameters."""
        self.model.zero_grad()
        functional.cross_entropy(self.model(self.x), self.y).backward()

    def forward(self) -> None:
        """Forward only."""
        with torch.no_grad():
            self.model(self.x)

    def same(self) -> None:
        """Directions and effective rank of every layer, and nothing else."""
        layers = layers_of(self.model)
        plan = Plan(layers, dict.fromkeys(layers, 1), POSITIONS, len(self.x), 0, rough=True)
        found = observe(self.subject, range(len(self.x)), plan, lambda _: None)
        for moments in found.layers.values():
            directions(moments, 0.99)

    def width(self) -> None:
        """Measure with the default settings."""
        Width()(self.subject)

    def covariance(self) -> None:
        """Measure the network as it is, and no loss."""
        Width(null_seeds=0, tested=0)(self.subject)

    def delve(self) -> Function:
        """Forward, with delve's saturation of every layer."""
        if isinstance(self.model, Chain):
            return self._delve_by_hand()
        from delve import SaturationTracker

        model = copy.deepcopy(self.model)

        def run() -> None:
            # It makes a folder, whatever it is told to save.
            with tempfile.TemporaryDirectory() as folder:
                tracker = SaturationTracker(
                    folder, "csv", model, device="cpu", nosave=True, stats=["lsat"]
                )
                with torch.no_grad():
                    model(self.x)
                tracker.add_saturations()
                tracker.close()

        return run

    def _delve_by_hand(self) -> Function:
        """Forward, with delve's covariance and saturation of the states at every timestep."""
        from delve.metrics import compute_saturation
        from delve.torch_utils import TorchCovarianceMatrix

        def run() -> None:
            sums = {name: TorchCovarianceMatrix(device="cpu") for name in layers_of(self.model)}
            with torch.no_grad():
                x = self.x
                for name, layer in zip(sums, self.model.children(), strict=True):
                    output = layer(x)
                    x = output[0] if isinstance(output, tuple) else output
                    sums[name].update(x.flatten(0, 1), False)
            for one in sums.values():
                compute_saturation(one.fix())

        return run

    def functions(self) -> dict[str, Function]:
        """List what is timed."""
        return {
            BARE: self.bare,
            FORWARD: self.forward,
            SAME: self.same,
            COVARIANCE: self.covariance,
            "width": self.width,
            DELVE: installed("delve", self.delve),
        }


def rows(rounds: int, large: bool) -> list[Row]:
    """Time everything on every network, and compare some positions with all of them."""
    cases = {
        "ResNet-18, 64 x 32x32": Case.images(ResNet18(), 64, 32),
        "ResNet-18, 8 x 224x224": Case.images(ResNet18(small=False), 8, 224),
        "3 conv + 3 linear, 64 x 32x32": Case.images(plain(), 64, 32),
        "preact ResNet-164, 16 x 32x32": Case.images(PreactResNet(164), 16, 32),
        "2 LSTM of 128, 64 x 100": Case.sequences(64, 100, 128),
    }
    if large:
        cases["preact ResNet-1001, 16 x 32x32"] = Case.images(PreactResNet(1001), 16, 32)
    found: list[Row] = []
    for name, case in cases.items():
        notes = RECURRENT if isinstance(case.model, Chain) else NOTES
        found += compare(name, case.functions(), rounds, notes)
    return found + [_accuracy(name, subject) for name, subject in _trained().items()]


def _trained() -> Mapping[str, Subject]:
    """Load trained networks with their data: the one of the demo, and those installed."""
    specs = {"demo ecg_cnn": SPECS["ecg_cnn"]}
    specs |= {name: spec_of(NETWORKS[name]) for name in REAL if not missing(NETWORKS[name])}
    return {name: load_subject(spec).subject for name, spec in specs.items()}


def _accuracy(name: str, subject: Subject) -> Row:
    """Compare the effective rank from 64 positions of each sample with that from all of them."""
    every = _ranks(subject, 10**9)
    errors = [100 * np.abs(_ranks(subject, POSITIONS, seed) / every - 1) for seed in range(10)]
    drawn = [error[~np.isnan(error) & (error > 0)] for error in errors]
    per_draw = [float(np.median(error)) for error in drawn]
    together = np.concatenate(drawn)
    note = (
        f"error of the effective rank of {len(drawn[0])} layers with more positions, 10 draws: "
        f"median {np.median(together):.2f} %, of single draws up to {max(per_draw):.2f} %, "
        f"largest of a layer {together.max():.1f} %"
    )
    return Row(name, f"{POSITIONS} positions against all", note=note)


def _ranks(
    subject: Subject, positions: int, seed: int = 0
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Effective rank of every layer."""
    probe = Width(null_seeds=0, tested=0, samples=256, positions=positions)
    found: np.ndarray[tuple[int], np.dtype[np.float64]] = probe(replace(subject, seed=seed))[
        "effective_rank"
    ].to_numpy()
    return found
