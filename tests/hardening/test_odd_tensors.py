"""Tensors that are no plain float32: loaded with a note, or refused with the reason."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_corpus import saved
from reading import outcome
from torch import Tensor, nn

from analyzer.checkpoint import describe, load_into, read
from probes.errors import AnalyzerError

CONVERTED = ["float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
REFUSED = ["complex64", "int8", "int64", "uint8", "bool", "uint16"]


def matrix() -> Tensor:
    return torch.arange(12.0).reshape(3, 4) / 8


def quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


def by_channel(x: Tensor) -> Tensor:
    return torch.quantize_per_channel(x, torch.ones(3), torch.zeros(3), 0, torch.qint8)


KINDS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sparse": (lambda x: x.to_sparse(), "weight sparse_coo in the file, dense in the model"),
    "compressed": (
        lambda x: x.to_sparse_csr(), "weight sparse_csr in the file, dense in the model",
    ),
    "quantised": (quantized, "weight qint8 in the file, float32 in the model"),
    "quantised by channel": (by_channel, "weight qint8 in the file, float32 in the model"),
    "transposed": (lambda x: x.t(), "weight (4, 3) in the file, (3, 4) in the model"),
    "no axis": (lambda x: x.sum(), "weight () in the file, (3, 4) in the model"),
    **{
        dtype: (
            lambda x, dtype=dtype: x.to(getattr(torch, dtype)),
            f"weight {dtype} in the file, float32 in the model",
        )
        for dtype in REFUSED
    },
}  # fmt: skip


def write(path: Path, weight: Tensor, *, zipped: bool = True) -> None:
    path.write_bytes(saved({"weight": weight, "bias": torch.zeros(3)}, zipped=zipped))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.pt"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_named(kind: str, zipped: bool, path: Path) -> None:
    if kind == "uint16" and not zipped:
        pytest.skip("torch writes such a file and does not read it")
    make, reason = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(path, make(matrix()), zipped=zipped)
    found = read(path)
    assert describe(found)["tensors"] == 2
    with pytest.raises(AnalyzerError) as caught:
        load_into(nn.Linear(4, 3), found)
    assert str(caught.value) == (
        f"{path}: does not fit the model (1 unlike the model's: {reason}): check --model and its "
        "arguments, or load what fits with --allow-partial"
    )


@pytest.mark.parametrize("dtype", CONVERTED)
def test_precisions_are_converted_and_told(dtype: str, path: Path) -> None:
    kind = getattr(torch, dtype)
    write(path, matrix().to(kind))
    model = nn.Linear(4, 3)
    assert load_into(model, read(path)).notes == (f"converted 1 tensor from {dtype} to float32",)
    assert model.weight.equal(matrix().to(kind).float())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float64"])
def test_values_that_are_no_numbers_are_named(dtype: str, path: Path) -> None:
    kind = getattr(torch, dtype)
    for value in (float("nan"), float("inf"), -float("inf")):
        broken = matrix()
        broken[1, 2] = value
        write(path, broken.to(kind))
        # float8_e4m3fn has no infinity: it saturates, or becomes nan.
        held = broken.to(kind).float().isfinite().all()
        assert read(path).nonfinite == (() if held else ("weight",))
    write(path, matrix().to(kind))
    assert read(path).nonfinite == ()


def test_sparse_values_that_are_no_numbers_are_named(path: Path) -> None:
    broken = matrix()
    broken[1, 2] = float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in (broken.to_sparse(), broken.to_sparse_csr()):
            write(path, kind)
            assert read(path).nonfinite == ("weight",)


def test_values_that_repeat_are_looked_at_once(path: Path) -> None:
    row = torch.tensor([1.0, float("inf"), 2.0, 3.0])
    write(path, row.expand(3, 4))
    assert read(path).nonfinite == ("weight",)
    write(path, row.as_strided((2, 3), (1, 1)))
    assert read(path).nonfinite == ("weight",)
    write(path, row.as_strided((3, 4), (0, 0), 2))
    assert read(path).nonfinite == ()


def test_numbers_of_four_bits(path: Path) -> None:
    if not hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip("newer than this torch")
    write(path, torch.zeros(3, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))
    assert read(path).nonfinite == ()
    assert outcome(path) == "misfit"


def test_tensors_without_values(path: Path) -> None:
    write(path, matrix().to("meta"))
    with pytest.raises(AnalyzerError, match="weight saved from the meta device, without values"):
        read(path)
