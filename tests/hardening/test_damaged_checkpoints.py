"""Checkpoints cut off, flipped, overwritten: read or refused in one line, whatever is left."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_corpus import FORMS, ZIPPED, cuts, damaged, damaged_within, good
from reading import outcome, refusal

FEW, MANY = 50, 1500
"""Cases of each format and kind of damage."""


def outcomes(path: Path, form: str, damage: Callable[[bytes, int], bytes], count: int) -> Counter:
    found: Counter = Counter()
    for seed in range(count):
        path.write_bytes(damage(good(form), seed))
        found[outcome(path)] += 1
    return found


@pytest.mark.parametrize("form", FORMS)
def test_whole_files_are_read(form: str, tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_bytes(good(form))
    assert outcome(path) == "read"


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_off_anywhere_is_refused(form: str, tmp_path: Path) -> None:
    path = tmp_path / "net"
    for data in cuts(good(form)):
        path.write_bytes(data)
        # Of a word or two of its beginning nobody can tell what the file was.
        assert refusal(path).startswith(("cut off or damaged", "in no known format", "not a"))


@pytest.mark.parametrize("form", FORMS)
def test_damaged_bytes(form: str, tmp_path: Path) -> None:
    assert outcomes(tmp_path / "net", form, damaged, FEW)["refused"] > FEW / 2


@pytest.mark.parametrize("form", ZIPPED)
def test_damaged_entries_whose_checksums_are_right(form: str, tmp_path: Path) -> None:
    found = outcomes(tmp_path / "net", form, damaged_within, FEW)
    assert min(found["refused"], found["read"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_damaged_bytes_many_times(form: str, tmp_path: Path) -> None:
    assert outcomes(tmp_path / "net", form, damaged, MANY)["refused"] > MANY / 2


@pytest.mark.slow
@pytest.mark.parametrize("form", ZIPPED)
def test_damaged_entries_many_times(form: str, tmp_path: Path) -> None:
    found = outcomes(tmp_path / "net", form, damaged_within, MANY)
    # The code of TorchScript may be damaged, as nobody runs it.
    assert min(found["refused"], found["read"]) > MANY / 20
