"""Audit data from files: read, cut, hashed; what does not fit is named."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from analyzer.data import data_hashes, data_sha256, file_batches
from probes.base import Batch, Subject
from probes.errors import AnalyzerError

INPUTS = np.arange(30, dtype=np.float32).reshape(5, 3, 2)
TARGETS = np.array([4, 0, 3, 1, 2])


def refusal(path, **arrays) -> str:
    np.savez(path, **arrays)
    with pytest.raises(AnalyzerError) as raised:
        file_batches(path, 2)
    return str(raised.value)


def test_batches_of_an_npz_file(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, inputs=INPUTS.astype(np.float16), targets=TARGETS)
    batches = file_batches(path, 2)
    assert [batch.inputs.shape[0] for batch in batches] == [2, 2, 1]
    assert batches[0].inputs.dtype is torch.float32
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), torch.tensor(INPUTS))
    assert torch.equal(torch.cat([batch.targets for batch in batches]), torch.tensor(TARGETS))


def test_at_most_so_many_samples(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, inputs=INPUTS, lengths=TARGETS)
    batches = file_batches(path, 2, limit=3)
    assert [batch.inputs.shape[0] for batch in batches] == [2, 1]
    assert torch.equal(batches[1].lengths, torch.tensor([3]))
    assert batches[0].targets is None


def test_time_first_inputs_are_cut_along_the_batch_axis(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, inputs=INPUTS.transpose(1, 0, 2), targets=TARGETS)
    second = file_batches(path, 2, axis=1)[1]
    assert torch.equal(second.inputs, torch.tensor(INPUTS.transpose(1, 0, 2)[:, 2:4]))
    assert torch.equal(second.targets, torch.tensor(TARGETS[2:4]))


def test_other_formats(tmp_path):
    tensors = {"inputs": torch.tensor(INPUTS), "targets": torch.tensor(TARGETS)}
    torch.save(tensors, tmp_path / "data.pt")
    torch.save(tensors["inputs"], tmp_path / "bare.pt")
    save_file(tensors, tmp_path / "data.safetensors")
    for name in ("data.pt", "data.safetensors"):
        (batch,) = file_batches(tmp_path / name, 9)
        assert torch.equal(batch.inputs, tensors["inputs"])
        assert torch.equal(batch.targets, tensors["targets"])
    (batch,) = file_batches(tmp_path / "bare.pt", 9)
    assert torch.equal(batch.inputs, tensors["inputs"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AnalyzerError) as raised:
        file_batches(tmp_path / "no.npz", 2)
    assert str(raised.value) == f"{tmp_path}/no.npz: no such data file"


def test_missing_inputs_are_named(tmp_path):
    path = tmp_path / "data.npz"
    assert refusal(path, x=INPUTS, y=TARGETS) == f"{path}: no array 'inputs'; it has: x, y"


def test_empty_inputs_are_named(tmp_path):
    path = tmp_path / "data.npz"
    assert refusal(path, inputs=INPUTS[:0]) == (
        f"{path}: 'inputs' of shape (0, 3, 2) holds no samples"
    )


def test_different_counts_are_named(tmp_path):
    path = tmp_path / "data.npz"
    assert refusal(path, inputs=INPUTS, targets=TARGETS[:4]) == (
        f"{path}: 'inputs' (5, 3, 2) has 5 samples, 'targets' is (4,)"
    )


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff\xe0JFIF", b"PK\x03\x04broken"])
def test_broken_files_are_named(tmp_path, suffix, content):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(content)
    with pytest.raises(AnalyzerError) as raised:
        file_batches(path, 2)
    assert str(raised.value).startswith(f"{path}: not a readable data file: ")
    assert "\n" not in str(raised.value)


def test_pickled_arrays_are_not_executed(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, inputs=np.array([object()], dtype=object))
    with pytest.raises(AnalyzerError, match="Object arrays cannot be loaded"):
        file_batches(path, 2)


def test_the_hash_sees_values_types_and_shapes():
    x = torch.tensor(INPUTS)
    variants = [[x], [x + 1], [x.double()], [x.reshape(3, 5, 2)], [Batch(x, torch.ones(5))]]
    hashes = [data_sha256(variant) for variant in variants]
    assert len(set(hashes)) == len(hashes)
    assert hashes[0] == data_sha256([x.clone()])


def test_both_sides_have_hashes_of_their_own():
    x, y = torch.tensor(INPUTS), torch.tensor(INPUTS) + 1
    alone = {"data_sha256": data_sha256([x])}
    assert data_hashes(Subject(nn.Identity(), [x])) == alone
    for side in ("held_out", "trained_on"):
        both = data_hashes(Subject(nn.Identity(), [x], **{side: [y]}))
        assert both == alone | {f"{side}_sha256": data_sha256([y])}
