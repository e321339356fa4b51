"""What is measured because a limit is going to judge it."""

import json
import math

import pytest
import torch
from torch import nn

from analyzer.conduct import audit, with_limits
from analyzer.limits import Limits, TruncationLimits
from probes.base import Subject


def limits(used: float) -> Limits:
    return Limits(truncation=TruncationLimits(trained_with=used))


@pytest.mark.parametrize("used", [math.nan, 0.5, -3.0, math.inf])
def test_without_a_chunk_length_of_training_the_settings_stay(used: float) -> None:
    assert with_limits({}, limits(used)) == {}
    given = {"truncation": {"samples": 9}, "width": {"samples": 8}}
    assert with_limits(given, limits(used)) == given


def test_the_chunk_length_of_training_is_handed_to_the_probe_unless_it_is_told() -> None:
    given = {"truncation": {"samples": 9}, "width": {"samples": 8}}
    assert with_limits(given, limits(20.0)) == {
        "truncation": {"samples": 9, "trained_with": 20},
        "width": {"samples": 8},
    }
    told = {"truncation": {"trained_with": 12}}
    assert with_limits(told, limits(20.0)) == told
    assert given == {"truncation": {"samples": 9}, "width": {"samples": 8}}


def test_an_audit_judges_at_exactly_this_length(tmp_path) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 4, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0][:, -1]

    subject = Subject(Last(), [torch.randn(12, 14, 3)])
    found = audit(subject, tmp_path, probes=["truncation"], limits=limits(5))
    trace = found.record["truncation"]
    assert trace["chunk_length"].values.tolist() == [1, 2, 4, 5, 8, 16]
    assert json.loads(trace.attrs["settings"])["trained_with"] == 5
    (finding,) = found.findings
    assert finding.message.startswith("with the chunks of 5 timesteps of the training the gradient")
    assert finding.value == float(trace["cosine_all"].sel(chunk_length=5))
