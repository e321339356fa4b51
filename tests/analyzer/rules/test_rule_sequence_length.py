"""Verdicts on other lengths, from hand-made traces."""

from dataclasses import replace
from math import isnan, nan

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import SequenceLengthLimits
from analyzer.rules.sequence_length import lost, reason, sequence_length, warmed

OWN = 140
LENGTHS = [17, 35, 70, 140, 280, 560]
DEFAULT = SequenceLengthLimits()


def trace(
    excess: dict[int, float],
    replaced: dict[int, float] | None = None,
    samples: int = 200,
    worth: float = 2.0,
    spread: float = 0.1,
) -> xr.Dataset:
    """Mean excess at some lengths as a share of what the inputs are worth; 0 at the others."""
    random = np.random.default_rng(0)

    def noise() -> np.ndarray:
        values = random.normal(0, spread, samples)
        return values - values.mean()

    excess_BL = np.stack([worth * (excess.get(at, 0.0) + noise()) for at in LENGTHS], 1)
    beside_BL = np.full((samples, len(LENGTHS)), nan)
    for place, at in enumerate(LENGTHS[:3]):
        beside_BL[:, place] = worth * ((replaced or {}).get(at, 0.0) + noise())
    excess_BL[:, 3] = 0
    return xr.Dataset(
        {
            "excess_loss": (("sample", "length"), excess_BL),
            "replaced_loss": (("sample", "length"), beside_BL),
            "whole_loss": (("sample",), worth + noise()),
            "taken": (("length",), np.ones(len(LENGTHS), bool)),
            "reason": (("length",), np.full(len(LENGTHS), "", dtype="<U40")),
        },
        {"length": LENGTHS},
        {"sequence_length": OWN},
    )


def judged(given: xr.Dataset, **limits: float) -> tuple[Finding, Finding]:
    shorter, longer = sequence_length(given, replace(DEFAULT, **limits))
    assert (shorter.code, longer.code) == ("shorter-sequences", "longer-sequences")
    assert (shorter.probe, longer.probe) == ("sequence_length",) * 2
    return shorter, longer


def test_without_a_need_both_sides_are_told_and_not_judged() -> None:
    shorter, longer = judged(trace({70: 0.3, 280: 0.4}, {70: 0.5}))
    assert shorter.severity is longer.severity is Severity.INFO
    assert shorter.value == pytest.approx(0.3)
    assert shorter.low < 0.3 < shorter.high
    assert longer.value == pytest.approx(0.4)
    assert isnan(shorter.limit)
    assert shorter.relation == shorter.limit_source == ""
    assert shorter.message == (
        "from the last 70 of 140 inputs alone the final loss rises by 30.0% of what all inputs are "
        "worth; where others stand in place of the older ones it rises by 50.0%"
    )
    assert longer.message == (
        "with 140 inputs of another sample in front, 280 timesteps in all, the final loss rises by "
        "40.0% of what all inputs are worth"
    )
    assert shorter.action == "Set the limit sequence_length.shortest to have it judged."
    assert longer.action == "Set the limit sequence_length.longest to have it judged."
    assert shorter.samples == longer.samples == 200


def test_a_loss_that_falls_or_hardly_changes_is_worded_so() -> None:
    shorter, longer = judged(trace({70: -0.2, 280: 0.0009}, {70: 0.0011}))
    assert "loss falls by 20.0% of what" in shorter.message
    assert shorter.message.endswith("it rises by 0.1%")
    assert "loss changes by less than 0.1% of what all inputs are worth" in longer.message


@pytest.mark.parametrize(
    ("needed", "length"), [(139, 70), (70, 70), (69, 35), (35, 35), (20, 17), (17, 17)]
)
def test_the_first_length_as_short_as_needed_is_judged(needed: int, length: int) -> None:
    given = trace({17: 0.17, 35: 0.35, 70: 0.7})
    shorter, longer = judged(given, shortest=needed)
    assert shorter.value == pytest.approx({17: 0.17, 35: 0.35, 70: 0.7}[length])
    assert shorter.severity is Severity.WARN
    assert (shorter.limit, shorter.relation) == (0.05, "<=")
    assert "ours" in shorter.limit_source
    assert longer.severity is Severity.INFO


@pytest.mark.parametrize(("needed", "length"), [(141, 280), (280, 280), (281, 560), (560, 560)])
def test_the_first_length_as_long_as_needed_is_judged(needed: int, length: int) -> None:
    shorter, longer = judged(trace({280: 0.28, 560: 0.56}), longest=needed)
    assert longer.value == pytest.approx(length / 1000)
    assert longer.severity is Severity.WARN
    assert shorter.severity is Severity.INFO


@pytest.mark.parametrize(
    ("share", "spread", "severity"),
    [
        (0.01, 0.1, Severity.PASS),
        (-0.2, 0.1, Severity.PASS),
        (0.09, 0.1, Severity.WARN),
        (0.05, 0.1, Severity.INCONCLUSIVE),
        (0.01, 1.0, Severity.INCONCLUSIVE),
    ],
)
def test_the_whole_interval_decides(share: float, spread: float, severity: Severity) -> None:
    given = trace({70: share, 280: share}, spread=spread)
    for finding in judged(given, shortest=70, longest=280):
        assert finding.severity is severity
        if severity is Severity.PASS:
            assert finding.action == "None."
        if severity is Severity.INCONCLUSIVE:
            assert "uncertain" in finding.meaning
            assert finding.action == "Audit more samples."


def test_a_start_that_is_missed_is_told_from_inputs_that_are_missed() -> None:
    shorter, _ = judged(trace({70: 0.4}, {70: 0.1}), shortest=70)
    assert "counts on a state that the start of a sequence does not give" in shorter.meaning
    assert "train on shorter sequences too" in shorter.action
    for beside in (0.4, 0.9, 0.36):
        shorter, _ = judged(trace({70: 0.4}, {70: beside}), shortest=70)
        assert shorter.meaning == "It misses what the older inputs tell, not their number."
        assert shorter.action == "Give it more than 70 timesteps."


def test_a_longer_past_that_harms_is_told() -> None:
    _, longer = judged(trace({280: 0.4}), longest=200)
    assert longer.meaning.startswith("A longer past harms it")
    assert longer.action == "Start anew every 140 timesteps, or train on longer sequences."


@pytest.mark.parametrize(("shortest", "longest"), [(140, 140), (200, 100)])
def test_what_is_needed_within_what_was_audited_passes(shortest: int, longest: int) -> None:
    for finding in judged(trace({70: 1, 280: 1}), shortest=shortest, longest=longest):
        assert finding.severity is Severity.PASS
        assert (finding.low, finding.value, finding.high, finding.limit) == (0, 0, 0, 0.05)


def test_a_need_beyond_what_was_tried_is_not_judged() -> None:
    shorter, longer = judged(trace({}), shortest=16, longest=561)
    assert shorter.severity is longer.severity is Severity.INCONCLUSIVE
    assert shorter.message == (
        "no sequences shorter than 140 timesteps were tried that are of 16 or shorter"
    )
    assert longer.message == (
        "no sequences longer than 140 timesteps were tried that are of 561 or longer"
    )
    assert shorter.action == "Raise the setting sequence_length.shorter."
    assert longer.action == "Raise the setting sequence_length.longer."
    assert isnan(shorter.value)


def test_a_side_that_was_not_tried_is_told() -> None:
    shorter, longer = judged(trace({}).sel(length=[140]))
    assert shorter.severity is longer.severity is Severity.INFO
    assert shorter.message == "no sequences shorter than 140 timesteps were tried"
    assert longer.message == "no sequences longer than 140 timesteps were tried"


@pytest.mark.parametrize(("needed", "severity"), [(nan, Severity.INFO), (200, Severity.WARN)])
def test_a_length_that_is_not_taken_is_told(needed: float, severity: Severity) -> None:
    given = trace({})
    given["excess_loss"].loc[{"length": [280, 560]}] = nan
    given["taken"].loc[{"length": [280, 560]}] = False
    given["reason"].loc[{"length": [280, 560]}] = ["RuntimeError: shapes", "another"]
    shorter, longer = judged(given, longest=needed)
    assert longer.severity is severity
    assert longer.message == (
        "the network takes no sequences of 280 timesteps: RuntimeError: shapes"
    )
    assert longer.meaning == "It is made for sequences of 140 timesteps."
    assert longer.action == "Cut or pad sequences to 140 timesteps."
    assert isnan(longer.value)
    assert reason(given, 560) == "another"
    assert reason(given, 70) == ""
    given["taken"][:] = True
    _, longer = judged(given, longest=needed)
    assert longer.severity is (Severity.INFO if isnan(needed) else Severity.INCONCLUSIVE)
    assert longer.message == (
        "sequences of 280 timesteps have nothing to compare: RuntimeError: shapes"
    )
    assert shorter.severity is Severity.INFO


@pytest.mark.parametrize("worth", [0.0, -1.0])
def test_inputs_that_are_worth_nothing_are_no_measure(worth: float) -> None:
    given = trace({70: 0.1, 280: 0.1})
    given["whole_loss"][:] = worth + np.random.default_rng(1).normal(0, 1, 200)
    given["whole_loss"] -= given["whole_loss"].mean() - worth
    for finding in judged(given, shortest=70, longest=280):
        assert finding.severity is Severity.INCONCLUSIVE
        assert finding.message == (
            "replacing the whole input by another sample's does not raise the loss for certain "
            "(200 samples)"
        )


def test_few_samples_are_not_judged() -> None:
    for count, severity in ((63, Severity.INCONCLUSIVE), (64, Severity.WARN)):
        for finding in judged(trace({70: 0.5, 280: 0.5}, samples=count), shortest=70, longest=280):
            assert finding.severity is severity
            assert finding.samples == count
    few, _ = judged(trace({70: 0.5}, samples=20))
    assert few.action == "Audit at least 64 samples."
    assert few.meaning == "20 samples are too few to tell what other lengths cost."


def test_samples_that_are_no_longer_take_no_part() -> None:
    given = trace({70: 0.2})
    given["excess_loss"][:100, 2] = nan
    found = lost(given, 70)
    assert found.samples == 100
    excess = given["excess_loss"][100:, 2].sum() / given["whole_loss"][100:].sum()
    assert found.value == pytest.approx(float(excess))
    for few in (100, 101):
        assert isnan(lost(given.isel(sample=slice(few)), 70).value)
    assert lost(given.isel(sample=slice(102)), 70).samples == 2
    assert lost(given.isel(sample=slice(102)), 70).low > 0


def test_what_the_start_costs_is_paired() -> None:
    given = trace({70: 0.4}, {70: 0.1}, spread=1.0)
    given["replaced_loss"][:, 2] = given["excess_loss"][:, 2] - 0.6
    found = warmed(given, 70)
    assert found.value == pytest.approx(0.3)
    assert found.high - found.low < 0.3 * (lost(given, 70).high - lost(given, 70).low)


@pytest.mark.parametrize(
    ("broken", "severity"), [(1, Severity.INCONCLUSIVE), (50, Severity.WARN), (200, Severity.WARN)]
)
def test_losses_that_are_undefined_at_a_length_never_pass(broken: int, severity: Severity) -> None:
    given = trace({})
    given["excess_loss"][:broken, 4] = np.inf
    _, longer = judged(given, longest=280)
    assert longer.severity is severity
    assert longer.value == np.inf
    assert longer.message.endswith(
        "loss is infinite or undefined, beyond any share of what all inputs are worth"
    )
