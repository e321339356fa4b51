"""The probe of the width of layers, beside delve."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks import PreactResNet, ResNet18, plain, settled
from benchmarks.recurrent import Tagger
from benchmarks.timing import BARE, Function, Row, compare, installed
from probes.base import Subject
from probes.width import Width

COVARIANCE = "width, no copies, no loss"
NOTES = {
    "width": "with two untrained copies, and the loss with restricted layers",
    COVARIANCE: "covariance at 64 positions, 10 groups, all eigenvalues",
    "delve saturation": "covariance at all positions, all eigenvalues; no interval",
}


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
        return cls(Tagger(nn.LSTM, hidden, hidden, 2).eval(), x, y)

    def bare(self) -> None:
        """Forward, backward, and the gradients of all parameters."""
        self.model.zero_grad()
        functional.cross_entropy(self.model(self.x), self.y).backward()

    def width(self) -> None:
        """Measure with the default settings."""
        Width()(self.subject)

    def covariance(self) -> None:
        """Measure the network as it is, and no loss."""
        Width(null_seeds=0, tested=0)(self.subject)

    def delve(self) -> Function:
        """Forward, with delve's saturation of every layer."""
        from delve import SaturationTracker

        model = copy.deepcopy(self.model)

        def run() -> None:
            tracker = SaturationTracker(
                "benchmark", "csv", model, device="cpu", nosave=True, stats=["lsat"]
            )
            with torch.no_grad():
                model(self.x)
            tracker.add_saturations()
            tracker.close()

        return run

    def functions(self) -> dict[str, Function]:
        """List what is timed."""
        return {
            BARE: self.bare,
            COVARIANCE: self.covariance,
            "width": self.width,
            "delve saturation": installed("delve", self.delve),
        }


def rows(rounds: int, large: bool) -> list[Row]:
    """Time everything on every network."""
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
        found += compare(name, case.functions(), rounds, NOTES)
    return found
