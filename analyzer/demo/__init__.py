"""Two trained networks and the heartbeats they are audited with, offline.

Made by ``examples/ecg/train.py``; origin and licence of the data are in ``NOTICE``.
"""

from pathlib import Path

from analyzer.spec import Spec

_HERE = Path(__file__).parent

SPECS = {
    name: Spec(
        checkpoint=_HERE / f"{name}.pt",
        model=f"analyzer.demo.networks:{network}",
        data=str(_HERE / "heartbeats.npz"),
        trained_on="analyzer.demo.beats:trained_on",
        loss="cross_entropy",
        time_axis=1,
    )
    for name, network in {"ecg_lstm": "EcgLSTM", "ecg_cnn": "EcgCNN"}.items()
}
"""Name of each bundled network -> what to audit."""

SETTINGS = {
    "lag_profile": {"samples": 256},
    "memory_horizon": {"samples": 256},
    "sequence_length": {"samples": 256},
    "stacked_layers": {"samples": 128},
}
"""Fewer samples than by default where many passes are needed: a minute on two cores for both."""
