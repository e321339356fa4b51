"""Long sequences: bounded memory; ``python tests/kinds/long_sequences.py`` prints the figures."""

import pytest
from long_sequences import BARE, LENGTHS, SAMPLES, alone

from probes import PROBES

MULTIPLE = 4
"""Memory of a probe at its peak, in that of a plain forward and backward pass of the same data."""

LARGER = {"memory_footprint": 16 / SAMPLES}
"""Probes that run larger batches than those of the data, and by how much."""


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
def test_memory_stays_bounded_over_5000_timesteps(probe):
    found, bare = (alone(name, LENGTHS[-1]) for name in (probe, BARE))
    assert not found.outcome.startswith("error")
    assert found.bytes <= MULTIPLE * LARGER.get(probe, 1) * bare.bytes
