"""The wrong edits that tests are tried on."""

import ast
from pathlib import Path

import pytest
from mutants import mutants


@pytest.mark.parametrize(
    ("code", "edits"),
    [
        ("a < b", {"a <= b", "a >= b"}),
        ("a + 1", {"a - 1", "a + 2", "a + 0"}),
        ("a and not b", {"a or not b", "a and b"}),
        ("-a", {"a"}),
        ("a if b else c", {"a if not b else c"}),
        ("max(a, b)", {"min(a, b)"}),
        ("a.abs().sum()", {"a.sum()", "a.abs().mean()"}),
        ("np.sqrt(a)", {"a"}),
        ("f'{a:.2f}'", set()),
    ],
)
def test_every_edit_of_an_expression(code: str, edits: set[str]) -> None:
    found = {ast.unparse(mutant.tree.body[0]) for mutant in mutants(f"def f():\n    return {code}")}
    assert found == {f"def f():\n    return {edit}" for edit in edits}


def test_calls_and_sums_are_left_out() -> None:
    source = "def f(a):\n    a.add_(b)\n    a += b\n"
    assert {mutant.after for mutant in mutants(source)} == {"pass", "a -= b"}


def test_what_is_said_or_stands_outside_functions_is_left_alone() -> None:
    source = "A = 1\n\ndef f(a: int=2):\n    assert a > 3\n    raise ValueError(4)\n"
    assert [*mutants(source)] == []


def test_each_edit_changes_one_place_of_a_real_module() -> None:
    source = (Path(__file__).parents[2] / "analyzer" / "rules" / "verdicts.py").read_text()
    every = [*mutants(source)]
    assert len({str(mutant) for mutant in every}) > 10
    for mutant in every:
        compile(mutant.tree, "verdicts.py", "exec")
