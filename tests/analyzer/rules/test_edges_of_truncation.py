"""Chunk lengths at the limits: exactly enough, never enough, as many samples as are asked for."""

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Severity
from analyzer.limits import TruncationLimits
from analyzer.rules.truncation import Curve, cosine, error, sufficient, truncation

LENGTHS = [1, 2, 4, 8]


def trace(cosines: list[float], samples: int = 64) -> xr.Dataset:
    values = np.array(cosines)
    errors = np.sqrt(2 - 2 * values)
    groups = np.zeros((16, 1))
    return xr.Dataset(
        {
            "cosine_all": ("chunk_length", values),
            "error_all": ("chunk_length", errors),
            "cosine_without_all": (("group", "chunk_length"), values + groups),
            "error_without_all": (("group", "chunk_length"), errors + groups),
            "cosine": (("layer", "chunk_length"), values[None]),
            "group_size": ("group", np.full(16, samples // 16)),
        },
        {"chunk_length": LENGTHS, "layer": ["lstm.l0"]},
        {"sequence_length": 8, "samples": samples},
    )


@pytest.mark.parametrize(("limit", "length"), [(0.5, 2), (0.5001, 8), (0.25, 1), (1.0, 8)])
def test_a_cosine_of_exactly_the_limit_is_enough(limit: float, length: int) -> None:
    values = np.array([0.25, 0.5, 0.5, 1.0])
    curve = Curve(values, values, values)
    found = sufficient(trace([0.25, 0.5, 0.5, 1.0]), curve, limit)
    assert (found.value, found.low, found.high) == (length, length, length)


def test_intervals_stay_within_what_is_possible() -> None:
    dataset = trace([-0.999, 0.0, 0.999, 1.0])
    noise = np.linspace(-0.01, 0.01, 16)[:, None]
    dataset["cosine_without_all"] = dataset["cosine_without_all"] + noise
    dataset["error_without_all"] = dataset["error_without_all"] + noise
    found, lost = cosine(dataset), error(dataset)
    assert found.low[0] == -1
    assert found.high[3] == 1
    assert found.high[1] > 0 > found.low[1]
    assert lost.low[3] == 0
    assert lost.low[1] > 1
    assert lost.high[0] > 1.999


@pytest.mark.parametrize("missing", [0, 1])
def test_as_many_samples_as_the_limit_asks_for_are_enough(missing: int) -> None:
    limits = TruncationLimits(min_samples=64.0 + missing, trained_with=2.0)
    (finding,) = truncation(trace([0.2, 0.5, 0.9, 1.0]), limits)
    assert ("too few" in finding.meaning) is bool(missing)
    assert (finding.severity is Severity.INCONCLUSIVE) is bool(missing)
