"""Rows of layers from several calls and several batches, filled in by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from probes.weight_gradient.rows import Pass, Row, table


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def called_thrice() -> Pass:
    """Two samples; a layer whose third call returned nothing, and one that is called once."""
    rows = {
        "a": Row("a", column(3, 1), None, 5, column(1, 2)),
        "b": Row("b", column(8, 9), column(6, 7), column(4, 3)),
        "a, call 2": Row("a", column(1, 7), None, 7, column(7, 2)),
        "a, call 3": Row("a"),
    }
    return Pass(2, 0, rows=rows, calls={"a": 3, "b": 1})


def test_calls_of_a_layer_that_is_called_often_become_one_row() -> None:
    modules, measured = table([called_thrice()], 2)
    assert modules == {"a": "a", "b": "b"}
    assert measured["activation"][:, 0].tolist() == pytest.approx([5**0.5, 5])
    assert measured["elements"].tolist() == [[12, 4], [12, 3]]
    assert measured["gain"][:, 0].tolist() == [5, 2]
    assert measured["gradient"][:, 1].tolist() == [6, 7]
    for kind, place in (("gradient", 0), ("gain", 1)):
        assert measured[kind][:, place].isnan().all()


def test_calls_up_to_the_limit_have_rows_of_their_own() -> None:
    modules, measured = table([called_thrice()], 3)
    assert [*modules] == ["a", "b", "a, call 2", "a, call 3"]
    assert modules["a, call 3"] == "a"
    assert measured["elements"][0, :3].tolist() == [5, 4, 7]
    assert measured["elements"][:, 3].isnan().all()


def test_a_layer_that_is_crowded_in_one_batch_is_one_row_in_all() -> None:
    once = Pass(3, 0, rows={"a": Row("a", column(1, 2, 4), elements=6)}, calls={"a": 1})
    modules, measured = table([called_thrice(), once], 2)
    assert [*modules] == ["a", "b"]
    assert measured["elements"][:, 0].tolist() == [12, 12, 6, 6, 6]
    assert measured["activation"][2:, 0].tolist() == [1, 2, 4]
    assert measured["activation"][:2, 1].tolist() == [8, 9]
    assert measured["activation"][2:, 1].isnan().all()
    assert measured["activation"].dtype == torch.float64


def test_a_layer_that_never_returned_anything_has_no_size() -> None:
    empty = Pass(2, 0, rows={"": Row(""), "again": Row("")}, calls={"": 2})
    modules, measured = table([empty], 1)
    assert [*modules.values()] == [""]
    assert len(modules) == 1
    assert all(values.isnan().all() for values in measured.values())


def recurrent(module: str, reached: bool) -> Any:
    """One layer of a recurrent module: states of three units, of samples of two and one steps."""
    norms = SimpleNamespace(state=torch.tensor([[3.0, 6.0], [4.0, 0.0]]), hidden=torch.ones(2, 2))
    return SimpleNamespace(
        site=SimpleNamespace(module=module, label=f"{module}.l0"),
        lengths=torch.tensor([2, 1]),
        units=3,
        measured=norms,
        reached=reached,
    )


def test_recurrent_layers_stand_where_their_module_ran_or_else_at_the_end() -> None:
    rows = {
        "rnn": Row("rnn", column(3, 4)),
        "head": Row("head", column(8, 9)),
        "rnn, call 2": Row("rnn", column(1, 0)),
    }
    one = Pass(2, 0, rows=rows, calls={"rnn": 2, "head": 1})
    one.place((recurrent("rnn", reached=False), recurrent("cell", reached=True)))
    assert [*one.rows] == ["rnn.l0", "head", "cell.l0"]
    assert one.calls == {"rnn": 1, "head": 1, "cell": 1}
    unreached, reached = one.rows["rnn.l0"].activation, one.rows["cell.l0"].activation
    # What no loss reaches has no states to measure: its activation is that of what it returned.
    assert unreached is not None
    assert unreached.tolist() == pytest.approx([5**0.5, 8**0.5])
    assert reached is not None
    assert reached.tolist() == pytest.approx([5 / 6**0.5, 6 / 3**0.5])
    assert one.rows["cell.l0"].elements.tolist() == [6, 3]  # type: ignore[union-attr]
