"""What to audit, in plain text and numbers; importable without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from analyzer.names import known

DATA_FILES = (".npz", ".pt", ".safetensors")
"""Data files that can be read; anything else is a reference to a callable."""

NULLS = "null_seeds"
"""Setting of all probes that compare with untrained copies, as a flag and a key of [probes]."""

BATCH = 128
"""Samples that go through the model together when the data come from a file."""


@dataclass(frozen=True)
class Spec:
    """What to audit, in plain text and numbers, as flags and TOML files give it.

    Parameters
    ----------
    checkpoint : path
        The trained weights. Unset, the model is audited as the factory returns it.
    model : str
        ``package.module:callable`` or ``path/to/file.py:callable`` that returns the module.
    model_args : mapping
        Keyword arguments of that callable.
    data, held_out, trained_on : str
        A callable that returns an iterable of batches, or a ``.npz``, ``.pt`` or ``.safetensors``
        file with ``inputs`` and, optionally, ``targets`` and ``lengths``. Data that the model was
        not trained on, or was, are compared with the audit data, as :class:`probes.base.Subject`
        says.
    loss : str
        Name of a loss in ``torch.nn.functional``, or a callable like ``model``.
    output : int or str
        Which part of the model's outputs is the prediction.
    batch_size, max_samples : int
        How many samples of a data file go through together, and how many are used at most.
    batch_axis, time_axis, sample_rate, seed
        As in :class:`probes.base.Subject`.
    device, dtype : str
        ``auto`` takes a GPU where there is one; ``float32`` or ``float64``.
    allow_global : tuple of str
        Python names that reading the checkpoint may import.
    trust_checkpoint, allow_partial : bool
        Execute what the checkpoint asks for; go on when keys are missing.
    state_key : str
        Where in the file the weights are, when that is not clear.
    """

    checkpoint: Path | None = None
    model: str = ""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    held_out: str = ""
    trained_on: str = ""
    loss: str = ""
    output: int | str | None = None
    batch_size: int = BATCH
    max_samples: int | None = None
    batch_axis: int = 0
    time_axis: int | None = None
    sample_rate: float | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    allow_global: tuple[str, ...] = ()
    trust_checkpoint: bool = False
    allow_partial: bool = False
    state_key: str | None = None

    @classmethod
    def of(cls, table: Mapping[str, Any], folder: Path) -> "Spec":
        """Read the ``[subject]`` table of a TOML file; relative paths start from ``folder``.

        Raises
        ------
        AnalyzerError
            A key is unknown.
        """
        known(table, [entry.name for entry in fields(cls)], "key in [subject]")
        values = dict(table)
        if "checkpoint" in values:
            values["checkpoint"] = folder / values["checkpoint"]
        for key in ("model", "data", "held_out", "trained_on", "loss"):
            values[key] = from_folder(str(values.get(key, "")), folder)
        values["allow_global"] = tuple(values.get("allow_global", ()))
        return cls(**values)


def from_folder(reference: str, folder: Path) -> str:
    """Let a relative path in a TOML file start from the file's folder."""
    home, colon, name = reference.rpartition(":")
    path = home if colon else reference
    if Path(path).suffix in (".py", *DATA_FILES) and (folder / path).exists():
        return f"{folder / path}{colon}{name if colon else ''}"
    return reference
