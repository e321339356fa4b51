"""Attribution of traces in which the places that decide are known."""

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import AttributionLimits
from analyzer.rules.attribution import (
    area,
    attribution,
    completeness,
    cumulative,
    holding,
    overlap,
    rank_correlation,
    window_contributions,
)

PLACES = 40
EDGES = [0, 1, 2, 4, 8, 16, 24, 32, 40]


def trace(
    decay: float = 0.8,
    samples: int = 40,
    missed: float = 0.01,
    agree: float = 1.0,
    dim: str = "lag",
) -> xr.Dataset:
    """Contributions that decay with the place; occlusion sees them mixed with something else."""
    rng = np.random.default_rng(2)
    size = rng.uniform(0.5, 1.5, (samples, PLACES)) * decay ** np.arange(PLACES)
    signs = rng.choice([-1, 1], (samples, PLACES))
    summed = np.pad(size * signs, ((0, 0), (1, 0))).cumsum(1)
    windows = np.diff(summed[:, EDGES])
    other = rng.permuted(windows, axis=1)
    difference = (size * signs).sum(1)
    return xr.Dataset(
        {
            "contribution": (("sample", dim), size * signs),
            "magnitude": (("sample", dim), size),
            "positions": (("sample", dim), np.ones((samples, PLACES))),
            "occlusion": (("sample", "window"), agree * windows + (1 - agree) * other),
            "delta": ("sample", missed * difference * rng.uniform(0.5, 1.5, samples)),
            "difference": ("sample", difference),
        },
        {
            dim: np.arange(PLACES),
            "start": ("window", EDGES[:-1]),
            "stop": ("window", EDGES[1:]),
        },
        {"baseline": "mean", "steps": 64, "extent": PLACES},
    )


def judged(dataset: xr.Dataset, **limits: float) -> tuple[Finding, Finding]:
    extent, reliability = attribution(dataset, AttributionLimits(**limits))
    return extent, reliability


def test_the_place_that_holds_a_share_is_the_first_up_to_which_it_lies() -> None:
    dataset = trace().isel(sample=slice(2))
    dataset["magnitude"][:] = 0
    dataset["magnitude"][0, 3] = 6
    dataset["magnitude"][0, 9] = 2
    dataset["magnitude"][1, 20] = 2
    assert [holding(dataset, share).value for share in (0.5, 0.6, 0.61, 0.8, 0.81)] == [
        *(3, 3, 9, 9),
        20,
    ]
    assert cumulative(dataset)[0][[2, 3, 9, 20, 39]].tolist() == [0, 0.6, 0.8, 1, 1]


def test_the_interval_holds_the_value_and_shrinks_with_samples() -> None:
    few, many = holding(trace(0.9, 20), 0.9), holding(trace(0.9, 400), 0.9)
    assert few.low <= few.value <= few.high
    assert many.high - many.low <= few.high - few.low
    value, low, high = cumulative(trace(0.9, 20))
    assert ((low <= value + 1e-12) & (value <= high + 1e-12)).all()
    assert (high - low)[10] > 0


def test_samples_that_are_not_finite_are_left_out() -> None:
    dataset = trace()
    expected = holding(dataset.isel(sample=slice(1, None)), 0.9)
    dataset["magnitude"][0, 3] = np.nan
    assert holding(dataset, 0.9) == expected


def test_windows_are_sums_of_contributions() -> None:
    dataset = trace()
    integrated, occlusion = window_contributions(dataset)
    expected = dataset["contribution"][:, 4:8].sum("lag")
    assert integrated[:, 3] == pytest.approx(expected.to_numpy())
    assert integrated == pytest.approx(occlusion)
    assert overlap(dataset) == pytest.approx(1)
    assert rank_correlation(dataset).value == pytest.approx(1)


def test_windows_that_a_short_sample_does_not_have_are_worth_nothing_to_both() -> None:
    dataset = trace()
    dataset["contribution"][0, 32:] = 0
    dataset["occlusion"][0, 7] = np.nan
    integrated, occlusion = window_contributions(dataset)
    assert len(integrated) == 40
    assert occlusion[0, 7] == 0


def test_rank_correlation_is_spearman() -> None:
    dataset = trace().isel(sample=[0])
    dataset["occlusion"][0] = -dataset["occlusion"][0]
    assert rank_correlation(dataset).value == pytest.approx(-1)
    dataset["occlusion"][0] = 3.0
    assert np.isnan(rank_correlation(dataset).value)


def test_completeness_weighs_samples_by_what_they_explain() -> None:
    dataset = trace().isel(sample=slice(2))
    dataset["delta"][:] = [0.1, -0.1]
    dataset["difference"][:] = [-3.0, 1.0]
    assert completeness(dataset).value == pytest.approx(0.05)


def test_a_sound_attribution_is_reported_and_passes() -> None:
    extent, reliability = judged(trace())
    assert extent.severity is Severity.INFO
    assert extent.code == "decision-lag"
    assert extent.message == (
        "90 % of the decision comes from the last 11 of 40 inputs, half of it from the last 4 "
        "(against the mean baseline)"
    )
    assert (extent.value, extent.unit, extent.samples) == (10, "timesteps", 40)
    assert reliability.severity is Severity.PASS
    assert reliability.code == "attribution-unreliable"
    assert reliability.message == (
        "contributions miss 0.95 % of what they explain; their rank correlation with occlusion is "
        "1.00 in the median sample, and 100% of both lies in the same parts of the input"
    )
    assert reliability.value == pytest.approx(1)
    assert reliability.limit == 0.3


def test_images_are_reported_by_distance_and_area() -> None:
    dataset = trace(dim="distance")
    dataset["positions"][:] = 1 + np.arange(PLACES)
    extent, _ = judged(dataset)
    assert extent.code == "decision-radius"
    assert area(dataset)[10] == pytest.approx(66 / 820)
    assert extent.message == (
        "90 % of the decision comes from within 11 positions of the centre (8% of the input), half "
        "of it from within 4 (1%; against the mean baseline)"
    )
    assert extent.unit == "positions"


@pytest.mark.parametrize(
    ("missed", "sound"), [(0.03, True), (0.05, False), (0.08, False), (np.nan, False)]
)
def test_both_sides_of_the_tolerance(missed: float, sound: bool) -> None:
    dataset = trace(missed=missed)
    extent, reliability = judged(dataset)
    assert extent.severity is (Severity.INFO if sound else Severity.INCONCLUSIVE)
    assert reliability.severity is (Severity.PASS if sound else Severity.INCONCLUSIVE)
    if not sound:
        advice = "Raise the setting attribution.steps, which is 64, to 256."
        assert extent.action == advice
        assert reliability.action == (
            "Check the model's output on these data." if np.isnan(missed) else advice
        )


@pytest.mark.parametrize(
    ("agree", "severity", "meaning"),
    [
        (0.7, Severity.PASS, "Two methods, one by gradients and one without, find the same."),
        (
            0.0,
            Severity.INCONCLUSIVE,
            "Two methods disagree: parts of the input stand in for one another, or interact.",
        ),
    ],
)
def test_both_sides_of_the_agreement(agree: float, severity: Severity, meaning: str) -> None:
    _, reliability = judged(trace(agree=agree, samples=200))
    assert reliability.severity is severity
    assert reliability.meaning == meaning


@pytest.mark.parametrize(("samples", "severity"), [(15, False), (16, True)])
def test_both_sides_of_the_smallest_number_of_samples(samples: int, severity: bool) -> None:
    extent, reliability = judged(trace(samples=samples))
    assert extent.severity is (Severity.INFO if severity else Severity.INCONCLUSIVE)
    assert reliability.severity is (Severity.PASS if severity else Severity.INCONCLUSIVE)
    if not severity:
        assert extent.action == "Audit at least 16 samples."


def test_nothing_to_attribute_is_not_a_pass() -> None:
    dataset = trace()
    for name in ("contribution", "magnitude", "occlusion", "delta", "difference"):
        dataset[name][:] = 0
    extent, reliability = judged(dataset)
    assert extent.severity is reliability.severity is Severity.INCONCLUSIVE
    assert extent.message == (
        "no sample's decision owes anything to the difference between it and the mean baseline"
    )
    assert reliability.message == "the attributions are zero or undefined in every sample"


def test_a_trace_of_nan_is_not_a_pass() -> None:
    dataset = trace()
    for name in ("contribution", "magnitude", "occlusion", "delta", "difference"):
        dataset[name][:] = np.nan
    assert [finding.severity for finding in judged(dataset)] == [Severity.INCONCLUSIVE] * 2


def test_where_attribution_lies_does_not_depend_on_its_size() -> None:
    dataset = trace()
    small = dataset.assign(magnitude=dataset["magnitude"] * 1e-6)
    assert holding(small, 0.9) == holding(dataset, 0.9)


def test_two_samples_have_an_interval() -> None:
    found = holding(trace().isel(sample=slice(2)), 0.9)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize(
    ("dim", "said"),
    [("lag", "the memory horizon what it keeps"), ("distance", "theoretical field")],
)
def test_the_meaning_is_of_time_or_of_space(dim: str, said: str) -> None:
    assert said in judged(trace(dim=dim))[0].meaning


@pytest.mark.parametrize("samples", [31, 32])
def test_as_many_samples_as_the_limit_asks_for_are_enough(samples: int) -> None:
    finding = judged(trace(samples=samples), min_samples=32.0)[1]
    assert ("too few" in finding.meaning) is (samples < 32)
