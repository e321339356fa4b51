"""The model and all around it are as before: after a probe, after an exception, after Ctrl-C."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from surroundings import changes, surroundings
from torch import nn
from whole_zoo import ZOO, audited, made

from probes import PROBES, probe_class
from probes.base import Subject
from probes.errors import AnalyzerError, NotApplicable

FEW = ("residual in place", "buffers changed", "packs")
"""Networks that every run looks at; all others are slow."""

PREPARED = {
    *("scripted", "data parallel", "lazy", "lazy normalisation", "no data", "no samples"),
    "input in place",
}
"""Networks that an audit unwraps, refuses or gives copies of the data before any probe runs."""


class Broken(Exception):
    """What the model raises."""


@contextmanager
def failing(model: nn.Module, at: float, error: BaseException) -> Iterator[list[int]]:
    """Raise in the call of the model with this number; count the calls."""
    calls, forward = [0], model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > at:
            raise error
        return forward(*args, **kwargs)

    # Not by assignment, which a model may refuse.
    vars(model)["forward"] = counted
    try:
        yield calls
    finally:
        del vars(model)["forward"]


def ran(name: str, subject: Subject) -> BaseException | None:
    """Run a probe, and return what it raises."""
    with warnings.catch_warnings():
        # Torch has something to say of several of these networks.
        warnings.simplefilter("ignore", UserWarning)
        try:
            probe_class(name)()(subject)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is
            return error
    return None


def left(
    name: str, network: str, at: float, error: BaseException
) -> tuple[list[str], int, BaseException | None]:
    """What is changed when the model raises at a call; its calls; what the probe raised."""
    subject = made(network)
    with failing(subject.model, at, error) as calls:
        before = surroundings(subject)
        raised = ran(name, subject)
        return changes(before, surroundings(subject)), calls[0], raised


def check(name: str, network: str) -> None:
    """Let a probe run, then raise at its first, a middle and its last call of the model."""
    found, calls, raised = left(name, network, float("inf"), Broken())
    assert found == []
    assert raised is None or isinstance(raised, NotApplicable | AnalyzerError | RuntimeError)
    for at in {0, calls // 2, calls - 1} if calls else ():
        for error in (Broken("broken"), KeyboardInterrupt()):
            found, _, raised = left(name, network, at, error)
            assert found == []
            assert raised is not None
            assert isinstance(error, Broken) or raised is error


@pytest.mark.parametrize("network", FEW)
@pytest.mark.parametrize("name", PROBES)
def test_the_model_is_left_alone(name: str, network: str) -> None:
    check(name, network)


@pytest.mark.slow
@pytest.mark.parametrize("network", sorted(set(ZOO) - set(FEW) - PREPARED))
@pytest.mark.parametrize("name", PROBES)
def test_every_model_is_left_alone(name: str, network: str) -> None:
    check(name, network)


@pytest.mark.parametrize("at", [0, 1, 2, 5, 40])
@pytest.mark.parametrize("network", ["input in place", "dictionaries"])
def test_an_interrupted_audit_leaves_the_model_alone(network: str, at: int) -> None:
    subject = made(network)
    with failing(subject.model, at, KeyboardInterrupt()):
        before = surroundings(subject)
        with pytest.raises(KeyboardInterrupt):
            audited(subject)
        assert changes(before, surroundings(subject)) == []
