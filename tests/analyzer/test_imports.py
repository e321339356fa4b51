"""The user's callables are found, and what they raise is told in one line."""

import sys

import pytest

from analyzer.imports import import_callable, told
from probes.errors import AnalyzerError


@pytest.fixture(autouse=True)
def clean_path(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])


def refusal(reference: str) -> str:
    with pytest.raises(AnalyzerError) as raised:
        import_callable(reference)
    return str(raised.value)


def test_a_callable_of_a_file_that_imports_its_sibling(tmp_path):
    (tmp_path / "width_of_net.py").write_text("WIDTH = 7\n")
    path = tmp_path / "net.py"
    path.write_text("from width_of_net import WIDTH\ndef net():\n    return WIDTH\n")
    assert import_callable(f"{path}:net")() == 7


def test_a_callable_of_a_module():
    assert import_callable("os.path:join")("a", "b") == "a/b"


def test_a_method_of_a_class(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("class Net:\n    @staticmethod\n    def small():\n        return 1\n")
    assert import_callable(f"{path}:Net.small")() == 1


def test_what_is_no_reference_is_refused():
    assert refusal("net") == "'net' is not package.module:callable or path/to/file.py:callable"


def test_a_missing_file_is_named(tmp_path):
    assert refusal(f"{tmp_path}/no.py:net") == f"{tmp_path}/no.py: no such Python file"


def test_a_missing_module_is_named():
    assert refusal("no_such_package:net") == (
        "importing no_such_package raised ModuleNotFoundError: No module named 'no_such_package'"
    )


def test_a_broken_file_says_what_it_raised(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("raise ValueError('first\\nsecond')\n")
    assert refusal(f"{path}:net") == f"{path}: importing it raised ValueError: first"


def test_a_missing_callable_is_named_with_the_nearest(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("def network(): ...\ndef _hidden(): ...\n")
    assert refusal(f"{path}:netwrk") == f"{path} has no callable 'netwrk'; it has: network"


def test_told_keeps_our_own_errors():
    with pytest.raises(AnalyzerError) as raised, told("doing it"):
        raise AnalyzerError("as it is")
    assert str(raised.value) == "as it is"


def test_told_names_an_exception_without_message():
    with pytest.raises(AnalyzerError) as raised, told("doing it"):
        raise KeyError
    assert str(raised.value) == "doing it raised KeyError"
