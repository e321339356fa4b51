"""Checkpoint files, good and bad: every test reads a real file that it wrote itself."""

import hashlib
import json
import pickle
import shutil
import struct
import tarfile
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from analyzer.checkpoint import Checkpoint, describe, load_into, read
from probes.errors import AnalyzerError

ADVICE = "copy or save it again"
EXECUTE = "execute whatever the file asks for with --trust-checkpoint"


class Net(nn.Module):
    """A model with parameters, buffers, nested modules and an attribute that is not saved."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(2, width, 3), nn.BatchNorm1d(width))
        self.lstm = nn.LSTM(width, 4)
        self.head = nn.Linear(4, 2)
        self.register_buffer("scale", torch.rand(2))
        self.not_saved = torch.rand(5)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(self.conv(x).transpose(1, 2))
        return self.head(out) * self.scale + self.not_saved.sum()


class Payload:
    """Creates a file if the pickle it is in is executed."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return shutil.copyfile, (__file__, self.path)


def save_zip(state: Any, path: Path) -> None:
    torch.save(state, path)


def save_legacy(state: Any, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_safetensors(state: dict[str, Tensor], path: Path) -> None:
    save_file(dict(state), path)


SAVERS = {
    "torch.save": save_zip,
    "torch.save before 1.6": save_legacy,
    "safetensors": save_safetensors,
}


def save_script(model: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(model).save(str(path))


def failure(path: Path, **options: Any) -> str:
    """What reading a file is refused with, without its path; always one line that names it."""
    with pytest.raises(AnalyzerError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(left[key].equal(right[key]) for key in left)


def checkpoint(tensors: dict[str, Tensor], path: Path) -> Checkpoint:
    torch.save(tensors, path / "net.pt")
    return read(path / "net.pt")


def renamed(state: dict[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    return {rename(name): value for name, value in state.items()}


# Formats


@pytest.mark.parametrize("name", ["weights", "weights.pt", "weights.safetensors", "weights.onnx"])
@pytest.mark.parametrize("form", SAVERS)
def test_every_format_is_told_by_content_whatever_the_suffix(
    form: str, name: str, tmp_path: Path
) -> None:
    state = Net().state_dict()
    SAVERS[form](state, tmp_path / name)
    found = read(tmp_path / name)
    assert found.format == form
    assert same(dict(sorted(found.tensors.items())), dict(sorted(state.items())))
    assert (found.wrapper, found.others, found.optimizer, found.nonfinite) == ((), (), None, ())


def test_torchscript_gives_the_state_dict_without_its_code(tmp_path: Path) -> None:
    model = Net()
    save_script(model, tmp_path / "net.pt")
    found = read(tmp_path / "net.pt")
    assert found.format == "TorchScript"
    assert same(found.tensors, dict(model.state_dict()))
    assert "not_saved" not in found.tensors


def test_traced_torchscript_loads_into_the_eager_model(tmp_path: Path) -> None:
    model, other, x = Net().eval(), Net().eval(), torch.rand(1, 2, 9)
    other.not_saved = model.not_saved
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, x).save(str(tmp_path / "net"))
    assert load_into(other, read(tmp_path / "net"), partial=True) == ((), False)
    assert other(x).equal(model(x))


def test_sha256_and_size_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    save_file({"weight": torch.ones(1)}, path)
    data = path.read_bytes()
    found = read(path)
    assert (found.sha256, found.size) == (hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize("legacy", [False, True])
def test_files_saved_on_a_gpu_are_read_without_one(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
    (save_legacy if legacy else save_zip)({"w": torch.arange(4.0)}, tmp_path / "net.pt")
    assert b"cuda:3" in (tmp_path / "net.pt").read_bytes()
    assert read(tmp_path / "net.pt").tensors["w"].equal(torch.arange(4.0))


def test_archives_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "net.pt")
        save_script(nn.Linear(2, 3), tmp_path / "script.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read(tmp_path / "net.pt").tensors["w"].equal(torch.ones(3))
    assert list(read(tmp_path / "script.pt").tensors) == ["weight", "bias"]


# Code in files


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("save", [torch.save, save_legacy, "pickle"])
def test_code_in_a_file_is_named_and_not_executed(save: Any, protocol: int, tmp_path: Path) -> None:
    path, proof = tmp_path / "net.pt", tmp_path / "executed"
    held = {"model": {"w": torch.ones(2)}, "extra": Payload(proof)}
    wish = "it asks to import shutil.copyfile"
    if save == "pickle":
        path.write_bytes(pickle.dumps(Payload(proof), protocol))
        expected = f"a pickle that torch.save did not write; {wish}: {EXECUTE}"
    else:
        zipped = save is torch.save
        torch.save(held, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        expected = (
            f"more than plain weights; {wish}: save the state_dict() alone, "
            f"allow each name with --allow-global NAME, or {EXECUTE}"
        )
    assert failure(path) == expected
    assert not proof.exists()
    # The payload is live: trusted, it does run.
    if save == "pickle":
        failure(path, trust=True)
    else:
        assert read(path, trust=True).tensors["w"].equal(torch.ones(2))
    assert proof.exists()


@pytest.mark.parametrize("trust", [False, True])
def test_code_in_a_torchscript_archive_is_never_executed(trust: bool, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    save_script(nn.Linear(2, 3), tmp_path / "good")
    with ZipFile(tmp_path / "good") as good, ZipFile(tmp_path / "bad", "w") as bad:
        for name in good.namelist():
            data = pickle.dumps(Payload(proof), 2) if name.endswith("/data.pkl") else None
            bad.writestr(name, data or good.read(name))
    message = failure(tmp_path / "bad", trust=trust)
    assert message == (
        "damaged, or more than plain weights (it calls shutil.copyfile): save the state_dict() "
        "alone"
    )
    assert not proof.exists()


def test_a_pickled_network_lists_its_classes_and_loads_when_they_are_allowed(
    tmp_path: Path,
) -> None:
    path, model = tmp_path / "net.pt", nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 4))
    torch.save(model, path)
    names = [
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.rnn.LSTM",
    ]
    assert failure(path) == (
        f"more than plain weights; it asks to import {', '.join(names)}: save the state_dict() "
        f"alone, allow each name with --allow-global NAME, or {EXECUTE}"
    )
    assert failure(path, allow_globals=names[1:]).startswith(
        f"more than plain weights; it asks to import {names[0]}: "
    )
    assert same(read(path, allow_globals=names).tensors, dict(model.state_dict()))
    assert same(read(path, trust=True).tensors, dict(model.state_dict()))


def test_allowed_names_are_forgotten_afterwards(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "best": np.float64(0.5)}, tmp_path / "net.pt")
    scalar = np.float64(0).__reduce__()[0]
    names = [f"{scalar.__module__}.scalar", "numpy.dtype"]
    assert read(tmp_path / "net.pt", allow_globals=names).extras == {"best": "0.5"}
    assert failure(tmp_path / "net.pt").startswith(
        f"more than plain weights; it asks to import {names[0]}, {names[1]}: "
    )


def test_a_name_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "net.pt")
    with pytest.raises(AnalyzerError) as caught:
        read(tmp_path / "net.pt", allow_globals=["no_such_module.Net"])
    assert str(caught.value) == (
        "importing no_such_module raised ModuleNotFoundError: No module named 'no_such_module'"
    )


def test_system_calls_cannot_be_allowed(tmp_path: Path) -> None:
    payload = b"cposix\nsystem\n(X\x04\x00\x00\x00truetR."
    torch.save({"w": torch.ones(2)}, tmp_path / "good")
    replace(tmp_path / "good", tmp_path / "net.pt", "/data.pkl", b"\x80\x02" + payload)
    assert failure(tmp_path / "net.pt", allow_globals=["posix.system"]) == (
        "torch cannot read it as plain weights (Trying to load unsupported GLOBAL posix.system "
        "whose module posix is blocked.): save it again with the defaults of torch.save, or "
        f"{EXECUTE}"
    )


def test_a_newer_pickle_protocol_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"w": torch.ones(2)}, path, pickle_protocol=4)
    assert failure(path) == (
        "torch cannot read it as plain weights (it uses more of the pickle format, as a newer "
        f"pickle_protocol does): save it again with the defaults of torch.save, or {EXECUTE}"
    )
    assert read(path, trust=True).tensors["w"].equal(torch.ones(2))


def test_what_trusted_code_raises_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(b"\x80\x02cbuiltins\nint\n(X\x03\x00\x00\x00a\nbtR.")
    assert failure(path, trust=True) == (
        "executing it, as --trust-checkpoint asks, raised ValueError: invalid literal for int() "
        "with base 10: 'a\\nb'"
    )


def replace(source: Path, target: Path, ending: str, data: bytes) -> None:
    """Copy a zip archive with one entry replaced."""
    with ZipFile(source) as old, ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name.endswith(ending) else old.read(name))


# Files that are not checkpoints


def zipped(**entries: bytes) -> bytes:
    stream = BytesIO()
    with ZipFile(stream, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return stream.getvalue()


def archived() -> bytes:
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return stream.getvalue()


def arrays() -> bytes:
    stream = BytesIO()
    np.savez(stream, inputs=np.ones(3))
    return stream.getvalue()


FOREIGN = {
    "a JPEG image": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(50),
    "a PNG image": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "an HDF5 file (Keras, netCDF-4)": b"\x89HDF\r\n\x1a\n" + bytes(50),
    "a netCDF file": b"CDF\x01" + bytes(50),
    "a numpy array (.npy)": b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'",
    "a GGUF or GGML file of llama.cpp": b"GGUF\x03\x00\x00\x00" + bytes(50),
    "a TensorFlow Lite model": b"\x1c\x00\x00\x00TFL3" + bytes(50),
    "a TensorFlow SavedModel": b"\x08\x01\x12\xe4\x02\x0a",
    "an ONNX model": b"\x08\x08\x12\x07pytorch\x1a\x052.3.1:",
    "the index of a TensorFlow checkpoint": b"\x00\x00\x02\x08\x01"
    + bytes(50)
    + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
    "a tar archive, as torch wrote before 0.1.10: save it again with torch.save": archived(),
    "a compressed file: decompress it first": b"\x1f\x8b\x08\x00" + bytes(50),
    "a Git LFS pointer to the checkpoint: run git lfs pull": b"version https://git-lfs.github.com",
    "a file that begins with zeros: the copy or download did not finish": bytes(4096),
    "a web page: the download failed": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "JSON text": b'{"weight_map": {"a.weight": "model-00001-of-00002.safetensors"}}',
    "text": ("PK " + "\u00e4" * 1000).encode(),  # byte 1024 is half a character
    "numpy arrays (.npz)": arrays(),
    "a Keras archive": zipped(**{"model.weights.h5": b"\x89HDF", "config.json": b"{}"}),
    "a torch.export program: save the state_dict() of the eager model": zipped(
        **{"net/archive_format": b"pt2", "net/models/model.json": b"{}"}
    ),
    "a zip archive that torch.save did not write": zipped(**{"report.docx": b"text"}),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_other_files_are_named(what: str, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(FOREIGN[what])
    advice = "" if ": " in what else ": give a torch.save, safetensors or TorchScript file"
    assert failure(tmp_path / "net.pt") == f"not a checkpoint but {what}{advice}"


def test_a_json_list_is_not_taken_for_safetensors(tmp_path: Path) -> None:
    (tmp_path / "net").write_bytes(b'[1, 2,  {"a": 3}]')
    assert failure(tmp_path / "net").startswith("not a checkpoint but JSON text: ")


def test_unknown_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(bytes(range(255, 100, -1)))
    assert failure(tmp_path / "net.pt") == (
        "in no known format: give a torch.save, safetensors or TorchScript file"
    )


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert failure(tmp_path / "absent") == "no such file"
    assert failure(tmp_path / "empty") == "empty: the copy or download did not finish"
    assert failure(tmp_path) == "a folder: give the file inside it"
    assert failure(Path("/dev/null")) == "not a regular file"
    assert failure(tmp_path / "empty" / "net.pt") == "no such file"


def test_a_distributed_checkpoint_says_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / ".metadata").touch()
    assert failure(tmp_path) == (
        "a folder: give the file inside it; a distributed checkpoint becomes one with "
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
    )


def test_an_unreadable_file_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "net.pt").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", forbidden)
    assert failure(tmp_path / "net.pt") == "cannot be read: Permission denied"


def test_a_name_with_a_line_break_stays_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(AnalyzerError) as caught:
        read(tmp_path / "a\nb\x1b[31m")
    assert str(caught.value) == f"{tmp_path}/a\\nb\\x1b[31m: no such file"


# Files cut off and damaged


CUTS = [0.0005, 0.005, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999]


@pytest.mark.parametrize("share", CUTS)
@pytest.mark.parametrize("form", [*SAVERS, "TorchScript"])
def test_a_cut_file_is_refused_at_every_length(form: str, share: float, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    if form == "TorchScript":
        save_script(Net(), whole)
    else:
        SAVERS[form](Net().state_dict(), whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: max(1, int(share * len(data)))])
    failure(cut)


def test_cut_files_say_that_they_are(tmp_path: Path) -> None:
    state = Net().state_dict()
    path = tmp_path / "net.pt"
    expected = {
        "torch.save": f"cut off or damaged zip archive (File is not a zip file): {ADVICE}",
        "safetensors": f"cut off or damaged safetensors file (Error while deserializing header: "
        f"incomplete metadata, file not fully covered): {ADVICE}",
    }
    for form, message in expected.items():
        SAVERS[form](state, path)
        path.write_bytes(path.read_bytes()[:-9])
        assert failure(path) == message
    # One tensor: this format orders several by where they are in memory.
    save_legacy({"weight": torch.ones(5, 4)}, path)
    path.write_bytes(path.read_bytes()[:-9])
    assert failure(path).startswith(
        "cut off or damaged torch.save before 1.6 file (unexpected EOF, expected 9 more bytes."
    )


@pytest.mark.parametrize("form", [*SAVERS, "TorchScript"])
def test_damaged_bytes_never_raise_anything_else(form: str, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole", tmp_path / "net.pt"
    if form == "TorchScript":
        save_script(nn.Linear(2, 3), whole)
    else:
        SAVERS[form]({"w": torch.ones(3, 2), "b": torch.ones(2)}, whole)
    data = np.frombuffer(whole.read_bytes(), dtype=np.uint8)
    random = np.random.default_rng(0)
    messages = []
    for _ in range(60):
        broken = data.copy()
        broken[random.integers(0, len(data), 3)] = random.integers(0, 256, 3)
        path.write_bytes(broken.tobytes())
        try:
            read(path)
        except AnalyzerError as error:
            messages.append(str(error))
    assert all(message.isprintable() for message in messages)
    assert len(messages) > 5


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    path, values = tmp_path / "net.pt", torch.arange(100.0)
    torch.save({"w": values}, path)
    data = bytearray(path.read_bytes())
    data[data.index(values.numpy().tobytes()) + 7] ^= 1
    path.write_bytes(data)
    assert failure(path) == (
        f"cut off or damaged zip archive (Bad CRC-32 for file 'net/data/0'): {ADVICE}"
    )


def test_an_archive_that_unpacks_to_much_more_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", bytes(3_000_000))
    assert failure(path) == (
        f"a zip archive of {path.stat().st_size} bytes that unpacks to 3000000, which torch never "
        "writes: not read"
    )


def test_a_safetensors_header_may_not_lie_about_its_length(tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_bytes(struct.pack("<Q", 2**62) + b'{"w":{}}')
    assert failure(path) == (
        f"cut off or damaged safetensors file (it announces a header of {2**62} bytes and holds "
        f"8): {ADVICE}"
    )


@pytest.mark.parametrize("length", [0x120108, 0x8B18])
def test_a_safetensors_header_may_begin_like_another_format(length: int, tmp_path: Path) -> None:
    # The first of these lengths begins a TensorFlow SavedModel.
    text = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    data = struct.pack("<Q", length) + text.ljust(length) + struct.pack("<f", 2.5)
    (tmp_path / "net").write_bytes(data)
    assert read(tmp_path / "net").tensors["w"].equal(torch.tensor([2.5]))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, "incomplete metadata"),
        ({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, "invalid shape"),
        ({"w": {"dtype": "F32"}}, "invalid JSON in header"),
    ],
)
def test_a_safetensors_header_may_not_lie_about_its_tensors(
    header: Any, reason: str, tmp_path: Path
) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "net").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    message = failure(tmp_path / "net")
    assert message.startswith("cut off or damaged safetensors file (Error while deserializing")
    assert reason in message


# Files without weights


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"epoch": 3, "loss": 0.5}, "only entries epoch (3), loss (0.5)"),
        ({}, "only dict of 0"),
        ("hello", "only 'hello'"),
        (torch.ones(2, 3), "only tensor (2, 3)"),
        ([torch.ones(2), torch.ones(3)], "only entries 0 (tensor (2,)), 1 (tensor (3,))"),
        ({0: torch.ones(2)}, "only entries 0 (tensor (2,))"),
        ({"step": torch.tensor(3)}, "only entries step (tensor ())"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(held: Any, words: str, tmp_path: Path) -> None:
    torch.save(held, tmp_path / "net.pt")
    assert failure(tmp_path / "net.pt") == (
        f"no weights by name in it, {words}: save model.state_dict() with torch.save"
    )


def test_an_optimizer_alone_is_no_model(tmp_path: Path) -> None:
    torch.save(trained(Net())[1], tmp_path / "optimizer.pt")
    assert failure(tmp_path / "optimizer.pt") == (
        "the state of an optimizer, without weights: give the checkpoint of the model"
    )


def test_weights_without_values_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.empty(10**13, device="meta")}, tmp_path / "net.pt")
    assert failure(tmp_path / "net.pt") == (
        "w saved from the meta device, without values: save it again"
    )


def test_lists_that_hold_each_other_do_not_take_forever(tmp_path: Path) -> None:
    held: list[Any] = []
    for _ in range(30):
        held = [held] * 50
    torch.save(held, tmp_path / "net.pt")
    assert failure(tmp_path / "net.pt").endswith(
        "7 (list of 50) and 42 more: save model.state_dict() with torch.save"
    )


# Where the weights are


def trained(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(torch.rand(2, 2, 9)).sum().backward()
    optimizer.step()
    return model.state_dict(), optimizer.state_dict()


@pytest.mark.parametrize(
    "name",
    [
        "model",
        "model_state",
        "model_state_dict",
        "state_dict",
        "stat_dict",
        "net",
        "network",
        "module",
        "weights",
        "params",
        "ema",
        "my_own_name",
    ],
)
def test_weights_are_found_in_wrappers(name: str, tmp_path: Path) -> None:
    state, moments = trained(Net())
    held = {"epoch": 7, name: state, "optimizer": moments, "vocabulary": {"a": 0, "b": 1}}
    torch.save(held, tmp_path / "net.pt")
    found = read(tmp_path / "net.pt")
    assert found.wrapper == (name,)
    assert same(found.tensors, dict(state))
    assert found.extras == {
        "epoch": "7",
        "optimizer": "dict of 2",
        "vocabulary": "dict of 2",
    }
    assert found.optimizer is not None
    assert found.optimizer["param_groups"][0]["lr"] == 0.01


def test_the_well_known_name_wins_and_the_others_are_told(tmp_path: Path) -> None:
    state = Net().state_dict()
    teacher = renamed(Net().state_dict(), str)
    held = {"ema": teacher, "model": state, "mean": torch.ones(2), "std": torch.ones(2)}
    torch.save(held, tmp_path / "net.pt")
    found = read(tmp_path / "net.pt")
    assert same(found.tensors, dict(state))
    # The file itself is half tensors, but not mostly.
    assert (found.wrapper, found.others) == (("model",), ("ema",))
    assert load_into(Net(), found).notes == (
        "took the weights at 'model' in the file",
        "left the weights at ema (--state-key chooses)",
    )
    assert same(read(tmp_path / "net.pt", state_key="ema").tensors, teacher)


def test_statistics_beside_a_wrapper_are_not_taken_for_weights(tmp_path: Path) -> None:
    state = Net().state_dict()
    held = {"model": state, "mean": torch.ones(2), "std": torch.ones(2)}
    torch.save(held, tmp_path / "net.pt")
    assert read(tmp_path / "net.pt").wrapper == ("model",)


def test_random_states_beside_an_unknown_name_are_not_taken_for_weights(tmp_path: Path) -> None:
    rng = torch.get_rng_state()
    torch.save({"mine": Net().state_dict(), "rng": rng, "cuda_rng": rng}, tmp_path / "net.pt")
    assert read(tmp_path / "net.pt").wrapper == ("mine",)


def test_weights_in_the_file_itself_come_before_their_average(tmp_path: Path) -> None:
    state = Net().state_dict()
    torch.save({**state, "ema": Net().state_dict()}, tmp_path / "net.pt")
    assert same(read(tmp_path / "net.pt").tensors, dict(state))


def test_a_state_dict_with_a_few_other_entries_is_one(tmp_path: Path) -> None:
    torch.save({**Net().state_dict(), "epoch": 3, "classes": ["a", "b"]}, tmp_path / "net.pt")
    found = read(tmp_path / "net.pt")
    assert list(found.tensors) == list(Net().state_dict())
    assert (found.wrapper, found.extras) == ((), {"epoch": "3", "classes": "list of 2"})


def test_several_weights_without_a_well_known_name_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "gan.pt"
    one, two = nn.Linear(2, 3), nn.Linear(3, 1, bias=False)
    moments = trained(Net())[1]
    torch.save({"generator": one.state_dict(), "judge": two.state_dict()}, path)
    assert failure(path) == (
        "weights in 2 places: generator (2 tensors), judge (1 tensor): choose with --state-key "
        "NAME, or join all of them with --state-key ."
    )
    assert same(read(path, state_key="judge").tensors, dict(two.state_dict()))
    assert list(read(path, state_key=".").tensors) == [
        "generator.weight",
        "generator.bias",
        "judge.weight",
    ]
    torch.save({"generator": one.state_dict(), "judge": two.state_dict(), "solver": moments}, path)
    assert len(read(path, state_key=".").tensors) == 3
    assert failure(path, state_key="critic") == (
        "no weights at --state-key critic; there are weights at: generator (2 tensors), judge "
        "(1 tensor)"
    )


def test_a_list_of_layers_is_joined_and_matched_by_order(tmp_path: Path) -> None:
    # As fcd_torch 1.0.7 ships it: (layer, (state dict, arguments, information)).
    path, model, other = tmp_path / "layers.pt", nn.Sequential(), nn.Sequential()
    for target in (model, other):
        target.add_module("first", nn.Conv1d(2, 3, 3))
        target.add_module("second", nn.LSTM(3, 4))
    layers = [(type(layer).__name__, (layer.state_dict(), {"bias": True}, {})) for layer in model]
    torch.save(layers, path)
    assert failure(path) == (
        "weights in 2 places: 0.1.0 (2 tensors), 1.1.0 (4 tensors): choose with --state-key NAME, "
        "or join all of them with --state-key ."
    )
    assert load_into(other, read(path, state_key=".")).notes == (
        "matched the 6 tensors of the file, which have positions for names, to the model's by "
        "order, last name and shape",
    )
    assert same(other.state_dict(), dict(model.state_dict()))


def test_optimizers_are_found_under_every_usual_name(tmp_path: Path) -> None:
    state, moments = trained(Net())
    second = {"state": {}, "param_groups": []}
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"optimizer_state_dict": moments}, True),
        ({"optimizer_states": [moments]}, True),
        ({"training": {"solver": moments}}, True),
        ({"optim": moments, "solver": second}, True),
        ({"optim": moments, "optimizer": second}, False),
        ({"solver": moments, "other": second}, False),
        ({}, False),
    ]
    for held, found in cases:
        torch.save({"model": state, **held}, tmp_path / "net.pt")
        optimizer = read(tmp_path / "net.pt").optimizer
        assert (optimizer is not None) is found
        if optimizer is not None:
            assert optimizer["state"][0]["exp_avg"].equal(moments["state"][0]["exp_avg"])


def test_a_trusted_file_may_hold_whole_modules(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    torch.save({"model": model, "ema": None}, tmp_path / "net.pt")
    found = read(tmp_path / "net.pt", trust=True)
    assert found.wrapper == ("model",)
    assert same(found.tensors, dict(model.state_dict()))


def test_text_in_a_safetensors_file_is_an_entry(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "net", metadata={"format": "pt"})
    found = read(tmp_path / "net")
    assert (list(found.tensors), found.extras) == (["w"], {"__metadata__": "dict of 1"})


def test_tensors_that_are_not_numbers_are_named(tmp_path: Path) -> None:
    tensors = {
        "nan": torch.tensor([1.0, float("nan")]),
        "inf": torch.tensor([-float("inf")], dtype=torch.bfloat16),
        "fine": torch.ones(2),
        "count": torch.tensor([1]),
        "eight": torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn),
        "eight_fine": torch.ones(2).to(torch.float8_e4m3fn),
        "complex": torch.tensor([complex(0, float("inf"))]),
        "sparse": torch.tensor([0.0, float("nan")]).to_sparse(),
        "repeated": torch.tensor([2.0]).expand(10**14),
        "repeated_nan": torch.tensor([float("nan")]).expand(10**14),
        "empty": torch.ones(0),
    }
    found = checkpoint(tensors, tmp_path)
    assert found.nonfinite == ("nan", "inf", "eight", "complex", "sparse", "repeated_nan")


# Into the model


@pytest.mark.parametrize("form", SAVERS)
def test_weights_are_copied(form: str, tmp_path: Path) -> None:
    model, other = Net(), Net()
    SAVERS[form](model.state_dict(), tmp_path / "net")
    assert load_into(other, read(tmp_path / "net")).notes == ()
    assert same(other.state_dict(), dict(model.state_dict()))


@pytest.mark.parametrize(
    ("prefix", "note"),
    [
        ("module.", "left 'module.' out of the names in the file"),
        ("_orig_mod.", "left '_orig_mod.' out of the names in the file"),
        ("model.", "left 'model.' out of the names in the file"),
        ("net.", "left 'net.' out of the names in the file"),
        ("my.own.", "left 'my.own.' out of the names in the file"),
        ("module.module.", "left 'module.' out of the names in the file"),
        (
            "module._orig_mod.model.",
            "left '_orig_mod.' and 'module.' and 'model.' out of the names in the file",
        ),
    ],
)
def test_prefixes_are_stripped(prefix: str, note: str, tmp_path: Path) -> None:
    model, other = Net(), Net()
    found = checkpoint(renamed(model.state_dict(), lambda name: prefix + name), tmp_path)
    assert load_into(other, found).notes == (note,)
    assert same(other.state_dict(), dict(model.state_dict()))


def test_the_prefix_that_fits_most_names_is_stripped(tmp_path: Path) -> None:
    # "model.1." would fit as well, but only the first layer.
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3)))

    model, other = network(), network()
    found = checkpoint(renamed(model.state_dict(), lambda name: f"model.{name}"), tmp_path)
    assert load_into(other, found).notes == ("left 'model.' out of the names in the file",)
    assert same(other.state_dict(), dict(model.state_dict()))


def test_a_compiled_part_in_the_middle_of_names(tmp_path: Path) -> None:
    model, other = Net(), Net()
    tensors = renamed(model.state_dict(), lambda name: name.replace("conv.", "conv._orig_mod."))
    assert load_into(other, checkpoint(tensors, tmp_path)).notes == (
        "left '_orig_mod.' out of the names in the file",
    )
    assert same(other.state_dict(), dict(model.state_dict()))


def test_a_prefix_of_the_model_is_added(tmp_path: Path) -> None:
    model = Net()
    outer = nn.ModuleDict({"network": Net()})
    assert load_into(outer, checkpoint(model.state_dict(), tmp_path)).notes == (
        "put 'network.' before the names in the file",
    )
    assert same(outer["network"].state_dict(), dict(model.state_dict()))


def test_a_model_that_is_itself_wrapped_takes_plain_names(tmp_path: Path) -> None:
    model, other = Net(), Net()
    found = checkpoint(model.state_dict(), tmp_path)
    assert load_into(nn.DataParallel(other), found).notes == ()
    assert same(other.state_dict(), dict(model.state_dict()))


def test_names_that_match_are_left_alone(tmp_path: Path) -> None:
    # "module" is the user's own name here, and so are both of "w" and "module.w".
    model = nn.ModuleDict({"module": nn.Linear(2, 3), "w": nn.Linear(2, 3)})
    model["module"].register_module("w", nn.Linear(2, 3))
    other = nn.ModuleDict({"module": nn.Linear(2, 3), "w": nn.Linear(2, 3)})
    other["module"].register_module("w", nn.Linear(2, 3))
    backwards = dict(reversed(model.state_dict().items()))
    assert load_into(other, checkpoint(backwards, tmp_path)).notes == ()
    assert same(other.state_dict(), dict(model.state_dict()))


def test_differences_are_listed(tmp_path: Path) -> None:
    tensors = dict(Net(width=5).state_dict())
    del tensors["head.bias"]
    tensors["extra.weight"] = torch.ones(1)
    found = checkpoint(tensors, tmp_path)
    with pytest.raises(AnalyzerError) as caught:
        load_into(Net(), found)
    assert str(caught.value) == (
        f"{tmp_path}/net.pt: does not fit the model (1 missing from the file: head.bias; "
        "1 in the file but not in the model: extra.weight; 7 unlike the model's: "
        "conv.0.weight (5, 2, 3) in the file, (3, 2, 3) in the model, "
        "conv.0.bias (5,) in the file, (3,) in the model, "
        "conv.1.weight (5,) in the file, (3,) in the model, "
        "conv.1.bias (5,) in the file, (3,) in the model, "
        "conv.1.running_mean (5,) in the file, (3,) in the model, "
        "conv.1.running_var (5,) in the file, (3,) in the model, "
        "lstm.weight_ih_l0 (16, 5) in the file, (16, 3) in the model): check --model and its "
        "arguments, or load what fits with --allow-partial"
    )


@pytest.mark.parametrize("more", [1, 3])
def test_long_lists_of_differences_are_cut(more: int, tmp_path: Path) -> None:
    model = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(9 + more))
    found = checkpoint({"0.weight": torch.ones(1, 1)}, tmp_path)
    with pytest.raises(AnalyzerError) as caught:
        load_into(model, found)
    names = ", ".join(f"{index}.weight" for index in range(1, 9))
    assert str(caught.value) == (
        f"{tmp_path}/net.pt: does not fit the model ({8 + more} missing from the file: {names} and "
        f"{more} more): check --model and its arguments, or load what fits with --allow-partial"
    )


@pytest.mark.parametrize("partial", [False, True])
def test_a_file_of_another_model_is_refused_even_in_part(partial: bool, tmp_path: Path) -> None:
    found = checkpoint({"encoder.kernel": torch.ones(2)}, tmp_path)
    before = Net()
    with pytest.raises(AnalyzerError) as caught:
        load_into(before, found, partial=partial)
    assert str(caught.value).startswith(
        f"{tmp_path}/net.pt: none of the model's parameters is in it (13 missing from the "
        "file: scale, conv.0.weight, "
    )


def test_counters_alone_are_not_a_part(tmp_path: Path) -> None:
    found = checkpoint(
        {"conv.1.num_batches_tracked": torch.tensor(3), "scale": torch.ones(2)}, tmp_path
    )
    with pytest.raises(AnalyzerError):
        load_into(Net(), found, partial=True)


def test_a_part_is_loaded_on_request_and_all_that_is_left_out_is_told(tmp_path: Path) -> None:
    model, other = Net(), Net()
    head = other.head.bias.detach().clone()
    tensors = dict(model.state_dict())
    del tensors["head.bias"]
    tensors |= {"extra": torch.ones(1), "scale": torch.ones(3)}
    note = (
        "loaded in part: 12 of the model's 14 tensors, 186 of 190 values, the rest being as the "
        "factory made it; 1 missing from the file: head.bias; 1 in the file but not in the model: "
        "extra; 1 unlike the model's: scale (3,) in the file, (2,) in the model"
    )
    assert load_into(other, checkpoint(tensors, tmp_path), partial=True) == ((note,), True)
    assert other.head.bias.equal(head)
    assert other.head.weight.equal(model.head.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_and_told(dtype: torch.dtype, tmp_path: Path) -> None:
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    found = checkpoint(model.to(dtype).state_dict(), tmp_path)
    name = str(dtype).removeprefix("torch.")
    assert load_into(other, found).notes == (f"converted 2 tensors from {name} to float32",)
    assert other.weight.dtype == torch.float32
    assert other.weight.equal(model.weight.float())


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    found = checkpoint(
        {"weight": torch.ones(3, 2, dtype=torch.int8), "bias": torch.ones(3)}, tmp_path
    )
    with pytest.raises(AnalyzerError, match="1 unlike the model's: weight int8 in the file, float"):
        load_into(nn.Linear(2, 3), found)


class Tied(nn.Module):
    """Two names for one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_a_tied_weight_saved_once_is_not_missing(tmp_path: Path) -> None:
    # safetensors keep one name of each tensor.
    values = torch.rand(5, 3)
    model = Tied()
    notes = load_into(model, checkpoint({"embed.weight": values}, tmp_path)).notes
    assert notes == ("filled head.weight by sharing",)
    assert model.head.weight.equal(values)


def test_names_of_older_torch_are_translated_by_the_modules(tmp_path: Path) -> None:
    # weight_g and weight_v of weight_norm, and no num_batches_tracked before torch 0.4.1.
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), nn.BatchNorm1d(3))
    new = {"parametrizations.weight.original0": "weight_g"}
    new |= {"parametrizations.weight.original1": "weight_v"}
    tensors = {
        name.replace(name[2:], new.get(name[2:], name[2:])): value + 1
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    expected = model[0].parametrizations.weight.original0 + 1
    assert load_into(model, checkpoint(tensors, tmp_path)).notes == ()
    assert model[0].parametrizations.weight.original0.equal(expected)


def test_lazy_layers_are_told(tmp_path: Path) -> None:
    found = checkpoint({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, tmp_path)
    with pytest.raises(AnalyzerError) as caught:
        load_into(nn.LazyLinear(3), found)
    assert str(caught.value) == (
        f"{tmp_path}/net.pt: the model has lazy layers without a shape yet (weight, bias): let its "
        "factory run it once on an example before returning it"
    )


def test_models_without_memory_are_told(tmp_path: Path) -> None:
    found = checkpoint({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, tmp_path)
    with pytest.raises(AnalyzerError) as caught:
        load_into(nn.Linear(2, 3, device="meta"), found)
    assert str(caught.value) == (
        f"{tmp_path}/net.pt: the model is on the meta device, where weights have no values "
        "(weight, bias): let its factory build it on the CPU"
    )


# Described


def test_describe_is_plain_data(tmp_path: Path) -> None:
    state, moments = trained(Net())
    tensors = {**state, "scale": torch.tensor([1.0, float("nan")], dtype=torch.float16)}
    torch.save({"epoch": 3, "net": tensors, "optimizer": moments}, tmp_path / "net.pt")
    found = describe(read(tmp_path / "net.pt"))
    entries = found.pop("entries")
    assert entries[0] == ("scale", [2], "float16")
    assert entries[1] == ("conv.0.weight", [3, 2, 3], "float32")
    assert len(found.pop("sha256")) == 64
    assert found == {
        "path": str(tmp_path / "net.pt"),
        "format": "torch.save",
        "size": (tmp_path / "net.pt").stat().st_size,
        "wrapper": ["net"],
        "others": [],
        "tensors": 14,
        "parameters": 190,
        "dtypes": {"float16": 1, "float32": 12, "int64": 1},
        "nonfinite": ["scale"],
        "optimizer": {
            "moments": ["exp_avg", "exp_avg_sq", "step"],
            "parameters": 10,
            "groups": 1,
            "rates": [0.01],
        },
        "extras": {"epoch": "3", "optimizer": "dict of 2"},
    }
    assert json.loads(json.dumps(found)) == found


def test_entries_of_a_file_cannot_break_a_line_or_fill_a_page(tmp_path: Path) -> None:
    held = {"w": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2), "a\nb": "x\n" * 500}
    torch.save({**held, "huge": 10**500}, tmp_path / "net.pt")
    extras = read(tmp_path / "net.pt").extras
    assert list(extras) == ["a\\nb", "huge"]
    assert len(extras["a\\nb"]) == 200
    assert extras["huge"] == "int"
