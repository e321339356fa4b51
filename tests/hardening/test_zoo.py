"""Every small network with every probe: numbers, a reason, or a refusal; nothing is touched."""

import json
import re

import pytest
from surroundings import changes, surroundings
from whole_zoo import REFUSED, ZOO, audited, made, shortened
from zoo_outcomes import OUTCOMES

from analyzer.record import ERROR, NOT_APPLICABLE

EXPECTED = json.loads(OUTCOMES.read_text(encoding="utf-8"))

REWRITE = "python tests/hardening/zoo_outcomes.py writes it again"

OURS = re.compile(r"\(in probes\.")
"""What the reason of an exception says that no probe raises on purpose."""


@pytest.mark.parametrize("name", ZOO)
def test_every_probe_comes_to_what_is_written_down(name: str) -> None:
    subject = made(name)
    before = surroundings(subject)
    found = audited(subject)
    assert changes(before, surroundings(subject)) == []
    assert [outcome for outcome in found.values() if OURS.search(outcome)] == []
    assert all(
        len(outcome) > len("not_applicable: ") and outcome.isprintable()
        for outcome in found.values()
        if outcome.startswith((NOT_APPLICABLE, ERROR))
    )
    assert shortened(found) == EXPECTED[name], REWRITE


def test_the_list_is_of_these_networks() -> None:
    assert list(EXPECTED) == list(ZOO), REWRITE
    assert sum(any(REFUSED in key for key in row) for row in EXPECTED.values()) < len(ZOO) / 3
