"""Outputs are the old file or the new one, never half."""

import pytest

from analyzer.files import replacing, sha256
from probes.errors import AnalyzerError


def test_the_new_file_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [*tmp_path.iterdir()] == [path]


def test_an_exception_keeps_the_old_file(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        _fail_after(temporary.write_text("half"))
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def _fail_after(written: int) -> float:
    return written / 0


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "out.txt"
    with pytest.raises(AnalyzerError) as raised, replacing(path):
        raise AssertionError("not reached")
    assert str(raised.value) == f"cannot write {path}: File exists"


def test_others_may_read_the_file_as_any_other(tmp_path):
    ordinary, path = tmp_path / "ordinary", tmp_path / "out.txt"
    ordinary.write_text("")
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.stat().st_mode == ordinary.stat().st_mode


def test_sha256_of_abc(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
