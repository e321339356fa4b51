"""What is given in the place of a checkpoint: other formats, folders, links, forbidden files."""

import gzip
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from checkpoint_corpus import good
from reading import refusal

from analyzer.checkpoint import read

Writer = Callable[[Path], object]


def jpeg(path: Path) -> None:
    path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01" + bytes(range(256)))


def onnx(path: Path) -> None:
    """A ModelProto: version 8, producer, then an empty graph."""
    path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.3.1:\x00" + bytes(30))


def gguf(path: Path) -> None:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 291, 19) + bytes(64))


def hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["dense/kernel:0"] = np.ones((3, 2))


def netcdf(path: Path) -> None:
    xr.Dataset({"w": ("x", [1.0])}).to_netcdf(path, engine="scipy")


def arrays(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez_compressed(stream, w=np.ones(3))


def array(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.ones(3))


def keras(path: Path) -> None:
    with ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n")


def exported(path: Path) -> None:
    program = torch.export.export(torch.nn.Linear(2, 3), (torch.ones(1, 2),))
    torch.export.save(program, path)


def zipped(path: Path) -> None:
    path.write_bytes(gzip.compress(good("zip")))


def tarred(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))


def saved_model(path: Path) -> None:
    path.write_bytes(b"\x08\x01\x12\x84\x05\x0a\x40" + bytes(60))


def tensorflow_lite(path: Path) -> None:
    path.write_bytes(struct.pack("<I", 28) + b"TFL3" + bytes(64))


def tensorflow_index(path: Path) -> None:
    path.write_bytes(b"\x00\x00\x02\x08\x01" + bytes(50) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb")


def python(path: Path) -> None:
    path.write_text("import torch\n\nmodel = torch.nn.LSTM(3, 4)\n")


def unfinished(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(10**9)


ADVICE = ": give a torch.save, safetensors or TorchScript file"

OTHERS: dict[Writer, str] = {
    jpeg: f"a JPEG image{ADVICE}",
    onnx: f"an ONNX model{ADVICE}",
    gguf: f"a GGUF or GGML file of llama.cpp{ADVICE}",
    hdf5: f"an HDF5 file (Keras, netCDF-4){ADVICE}",
    netcdf: f"a netCDF file{ADVICE}",
    arrays: f"numpy arrays (.npz){ADVICE}",
    array: f"a numpy array (.npy){ADVICE}",
    keras: f"a Keras archive{ADVICE}",
    exported: "a torch.export program: save the state_dict() of the eager model",
    zipped: "a compressed file: decompress it first",
    tarred: "a tar archive, as torch wrote before 0.1.10: save it again with torch.save",
    saved_model: f"a TensorFlow SavedModel{ADVICE}",
    tensorflow_lite: f"a TensorFlow Lite model{ADVICE}",
    tensorflow_index: f"the index of a TensorFlow checkpoint{ADVICE}",
    python: f"text{ADVICE}",
    unfinished: "a file that begins with zeros: the copy or download did not finish",
}


@pytest.mark.parametrize("write", OTHERS)
def test_other_formats_are_named(write: Writer, tmp_path: Path) -> None:
    for name in ("net.pt", "net.safetensors", "net"):
        write(tmp_path / name)
        assert refusal(tmp_path / name) == f"not a checkpoint but {OTHERS[write]}"


def test_no_byte(tmp_path: Path) -> None:
    (tmp_path / "net.pt").touch()
    assert refusal(tmp_path / "net.pt") == "empty: the copy or download did not finish"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 9, 10, 16])
def test_a_few_bytes_of_a_good_file(size: int, tmp_path: Path) -> None:
    for form in ("zip", "legacy", "safetensors"):
        (tmp_path / "net.pt").write_bytes(good(form)[:size])
        refusal(tmp_path / "net.pt")


def test_folders_and_what_is_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "a folder: give the file inside it"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "not a regular file"
    assert refusal(Path("/dev/zero")) == "not a regular file"
    assert refusal(tmp_path / "absent") == "no such file"
    assert refusal(tmp_path / ("a" * 300)) == "cannot be read: File name too long"


def test_links(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(good("zip"))
    (tmp_path / "link").symlink_to("good")
    assert read(tmp_path / "link").tensors
    (tmp_path / "hanging").symlink_to("absent")
    assert refusal(tmp_path / "hanging") == "a link that leads to no file"
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    assert refusal(tmp_path / "loop") == "a link that leads to no file"


READ = """
import os, sys
from analyzer.checkpoint import read
from probes.errors import AnalyzerError
if os.getuid() == 0:
    os.setuid(65534)
try:
    read(sys.argv[1])
except AnalyzerError as error:
    print(error)
"""


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(good("zip"))
    path.chmod(0)
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{path}: cannot be read: Permission denied\n", "")
