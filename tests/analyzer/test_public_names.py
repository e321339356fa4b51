"""The names that users import stay what they are, whatever is imported beside them."""

import subprocess
import sys

import pytest

import analyzer

ASKED_AGAIN = """
import importlib, analyzer
first = analyzer.{name}
importlib.import_module({home!r})
assert analyzer.{name} is first, analyzer.{name}
"""


def test_every_public_name_is_there():
    assert all(getattr(analyzer, name) is not None for name in analyzer.__all__)
    assert analyzer.__all__ == sorted(analyzer._HOMES)


def test_no_public_name_is_that_of_a_module():
    # A module takes the place of what the package has under its name when it is imported.
    modules = {home.rpartition(".")[2] for home in analyzer._HOMES.values()}
    assert not modules & set(analyzer.__all__)


@pytest.mark.parametrize("name", ["audit", "render"])
def test_a_name_is_the_same_once_its_module_is_imported(name):
    code = ASKED_AGAIN.format(name=name, home=analyzer._HOMES[name])
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'analyzer' has no attribute 'nothing'"):
        getattr(analyzer, "nothing")  # noqa: B009
