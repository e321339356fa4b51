"""Networks that others trained, audited with every probe; see README.md in this folder."""

import json
from collections.abc import Callable
from functools import cache

import pytest
from outcome_table import DOCUMENT, OUTCOMES, audited, document
from real_networks import NETWORKS, missing, scored, spec_of
from reported import Reported, complaints

from analyzer import load_subject

pytestmark = pytest.mark.real

EXPECTED = json.loads(OUTCOMES.read_text(encoding="utf-8"))

REWRITE = "python tests/real/outcome_table.py writes it again"


@pytest.fixture(params=NETWORKS)
def name(request) -> str:
    """Name of a network whose packages are installed."""
    absent = missing(NETWORKS[request.param])
    if absent:
        pytest.skip(absent)
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="session")
def audit(tmp_path_factory) -> Callable[[str], Reported]:
    """``audit(name)`` is the audit of that network, run when first asked for."""

    @cache
    def run(name: str) -> Reported:
        return audited(NETWORKS[name], tmp_path_factory.mktemp("real"))

    return run


def test_the_weights_are_where_they_belong(name):
    network = NETWORKS[name]
    model = load_subject(spec_of(network)).subject.model
    assert sum(weight.numel() for weight in model.parameters()) == network.parameters
    assert scored(network, model.eval()) >= network.score


def test_the_report_is_whole(name, audit):
    assert complaints(audit(name)) == []


def test_every_probe_comes_to_what_is_written_down(name, audit):
    assert audit(name).outcomes() == EXPECTED[name]["outcomes"], REWRITE


def test_the_document_is_the_table():
    assert DOCUMENT.read_text(encoding="utf-8") == document(EXPECTED), REWRITE
    assert list(EXPECTED) == list(NETWORKS), REWRITE
