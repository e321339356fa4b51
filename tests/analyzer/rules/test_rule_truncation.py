"""Chunk lengths that are long enough, on traces in which the loss is known."""

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Severity
from analyzer.limits import TruncationLimits
from analyzer.rules.truncation import cosine, error, sufficient, truncation

LENGTHS = [1, 2, 4, 8, 16, 32, 64]
COSINES = [0.2, 0.5, 0.8, 0.97, 0.992, 0.999, 1.0]
ERRORS = [1.0, 0.9, 0.6, 0.2, 0.1, 0.05, 0.0]
RNG = np.random.default_rng(7)


def trace(
    cosines: list[float] = COSINES, spread: float = 1e-4, groups: int = 16, length: int = 50
) -> xr.Dataset:
    """Two layers; what all samples give is moved by ``spread`` without a group."""
    noise = RNG.normal(0, spread, (groups, len(cosines)))
    noise[:, -1] = 0
    values = np.array(cosines)
    return xr.Dataset(
        {
            "cosine_all": ("chunk_length", values),
            "error_all": ("chunk_length", np.array(ERRORS)),
            "cosine_without_all": (("group", "chunk_length"), values + noise),
            "error_without_all": (("group", "chunk_length"), ERRORS + noise),
            "cosine": (("layer", "chunk_length"), np.stack([values - 0.1, values])),
            "group_size": ("group", np.full(groups, 2)),
        },
        {"chunk_length": LENGTHS, "layer": ["lstm.l0", "lstm.l1"]},
        {"sequence_length": length, "samples": 2 * groups},
    )


def judged(dataset: xr.Dataset, **limits: float):
    (finding,) = truncation(dataset, TruncationLimits(**limits))
    assert finding.code == "truncation-loss"
    return finding


def test_the_shortest_chunks_that_keep_the_direction():
    found = sufficient(trace(), cosine(trace()), 0.99)
    assert (found.value, found.low, found.high, found.samples) == (16, 16, 16, 32)
    wide = trace(spread=0.01)
    found = sufficient(wide, cosine(wide), 0.99)
    assert found.low == 8
    assert found.high == 64


def test_a_cosine_that_falls_again_counts_from_its_last_fall():
    falling = trace([0.2, 0.5, 0.995, 0.97, 0.992, 0.999, 1.0])
    assert sufficient(falling, cosine(falling), 0.99).value == 16


def test_intervals_stay_within_what_is_possible():
    wide = trace(spread=0.2)
    assert cosine(wide).high.max() <= 1
    assert cosine(wide).low.min() >= -1
    assert error(wide).low.min() >= 0


def test_without_a_length_of_training_it_is_reported():
    finding = judged(trace())
    assert finding.severity is Severity.INFO
    assert finding.message == (
        "detaching the state every 16 of 50 timesteps keeps the direction of the recurrent "
        "weights' gradient (cosine 0.992, at least 0.99 from there on), and differs by 10 % of its "
        "norm; every 8: cosine 0.97"
    )
    assert finding.meaning == (
        "Shorter chunks train in another direction. What the network remembers is another "
        "question: its state is handed on from chunk to chunk, so that its memory can reach "
        "further back than the chunks."
    )
    assert (finding.value, finding.unit) == (16, "timesteps")
    assert finding.action == (
        "If training is truncated, use chunks of 16 timesteps or more; set the limit "
        "truncation.trained_with to have the length used judged."
    )


def test_sequences_too_short_to_see_it_are_censored():
    finding = judged(trace([0.2, 0.3, 0.4, 0.5, 0.6, 0.98, 1.0]))
    assert finding.severity is Severity.INFO
    assert finding.value == 64
    assert finding.message == (
        "detaching the state even every 32 of 50 timesteps turns the gradient of the recurrent "
        "weights (cosine below 0.99): how long chunks have to be is beyond these sequences"
    )
    assert finding.action == ("Do not truncate, and audit longer sequences to see where it ends.")


@pytest.mark.parametrize(
    ("used", "severity"),
    [
        (8, Severity.WARN),
        (15, Severity.WARN),
        (16, Severity.PASS),
        (49, Severity.PASS),
        (50, Severity.INCONCLUSIVE),
        (0.5, Severity.INCONCLUSIVE),
        (1, Severity.WARN),
    ],
)
def test_both_sides_of_the_length_of_training(used, severity):
    finding = judged(trace(), trained_with=used)
    assert finding.severity is severity
    assert finding.limit == 0.99


def test_what_is_said_of_the_length_of_training():
    finding = judged(trace(), trained_with=10)
    assert finding.message == (
        "with the chunks of 10 timesteps of the training (measured with 8) the gradient of the "
        "recurrent weights has a cosine of 0.97 with the whole one, and differs by 20 % of its "
        "norm; least in lstm.l0, 0.87"
    )
    assert finding.meaning.startswith("Dependencies longer than the chunks are not trained. What ")
    assert finding.action == "Train with chunks of 16 timesteps or more, if memory allows."
    assert finding.value == 0.97
    assert finding.low < 0.97 < finding.high
    assert finding.where == ("lstm.l0", "lstm.l1")
    exact = trace().interp(chunk_length=[*LENGTHS[:4], 10, *LENGTHS[4:]])
    finding = judged(exact.assign_attrs(trace().attrs), trained_with=10)
    assert finding.value == pytest.approx(0.9755)
    assert finding.message.startswith(
        "with the chunks of 10 timesteps of the training the gradient of the recurrent weights has "
        "a cosine of 0.976 with the whole one, and differs by 18 % of its norm"
    )
    longer = judged(trace(), trained_with=80)
    assert longer.message == "the sequences have 50 timesteps, so that chunks of 80 cut nothing"
    assert longer.action == "Audit sequences longer than the chunks of the training."


def test_groups_that_disagree_are_inconclusive():
    finding = judged(trace(spread=0.01), trained_with=16)
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.action == "Audit more samples."


def test_too_few_samples_are_inconclusive():
    one = sufficient(trace(groups=1), cosine(trace(groups=1)), 0.99)
    assert one.value == 16
    assert np.isnan([one.low, one.high]).all()
    censored = judged(trace([0.2, 0.3, 0.4, 0.5, 0.6, 0.98, 1.0], groups=3))
    assert censored.severity is Severity.INCONCLUSIVE
    assert censored.message.startswith("detaching the state even every 32 of 50 timesteps turns")
    few = trace(groups=3)
    for limits in ({}, {"trained_with": 16.0}, {"trained_with": 4.0}):
        finding = judged(few, **limits)
        assert finding.severity is Severity.INCONCLUSIVE
        assert finding.action == "Audit at least 8 samples."


def test_no_gradient_is_not_a_pass():
    dead = trace([np.nan] * 7)
    for limits in ({}, {"trained_with": 16.0}):
        finding = judged(dead, **limits)
        assert finding.severity is Severity.INCONCLUSIVE
        assert finding.message == "the gradient of the recurrent weights is zero"
