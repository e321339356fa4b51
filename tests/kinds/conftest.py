"""Every kind of network audited once a session, as a user would, and read back from its files."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from kinds_of_network import KINDS, SLOW
from reported import Reported, reported


@pytest.fixture(scope="session")
def audits(tmp_path_factory) -> Callable[[str], Reported]:
    """``audits(kind)`` audits that kind of network when first asked for."""

    @cache
    def audit(kind: str) -> Reported:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        return reported(KINDS[kind](), tmp_path_factory.mktemp(kind))

    return audit


@pytest.fixture
def audited(audits, request) -> Callable[[str], Reported]:
    """As ``audits``; only tests that are marked slow may ask for slow kinds."""

    def audit(kind: str) -> Reported:
        assert kind not in SLOW or request.node.get_closest_marker("slow")
        return audits(kind)

    return audit
