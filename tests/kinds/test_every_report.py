"""What every report promises, whatever the network: see ``reported``."""

import pytest
from kinds_of_network import QUICK, SLOW
from reported import complaints


@pytest.mark.parametrize("kind", QUICK)
def test_every_report_is_whole(kind, audited):
    assert complaints(audited(kind)) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", SLOW)
def test_every_slow_report_is_whole(kind, audited):
    assert complaints(audited(kind)) == []
