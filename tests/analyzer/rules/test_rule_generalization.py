"""Generalization judged on hand-made traces, its estimates against brute force over samples."""

from math import isinf, isnan

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import GeneralizationLimits
from analyzer.rules.generalization import gap, generalization
from analyzer.rules.jackknife import jackknife_interval
from analyzer.rules.side_gradients import _direction, dimensions, null_alignment
from analyzer.rules.sides import (
    HELD_OUT,
    TRAINED,
    WHOLE,
    alignment,
    ceiling,
    coherence,
    noise_scale,
    ratio,
    reliability,
    sides,
    stiffness_across,
    stiffness_within,
)
from analyzer.rules.verdicts import Estimate

NONE = np.zeros(1)


def gradients(
    trained: np.ndarray, held: np.ndarray, null: np.ndarray | None = None
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """What a probe tells of gradients (sample, element), as one layer and as all layers."""
    absent = np.full((len(held), trained.shape[1]), np.nan)
    null = absent if null is None else null
    variables = {}
    for end, a, b in (("", trained, held), ("_null", trained, null)):
        sets = (a, b), (b, a)
        unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (a, b)]
        units = (unit[0], unit[1]), (unit[1], unit[0])
        told = {
            "square": [(own**2).sum(1) for own, _ in sets],
            "own": [own @ own.mean(0) for own, _ in sets],
            "other": [own @ other.mean(0) for own, other in sets],
            "cosine_own": [((u @ u.T).sum(1) - 1) / (len(u) - 1) for u, _ in units],
            "cosine_other": [(u @ w.T).mean(1) for u, w in units],
        }
        for name, (first, second) in told.items():
            blank = end and not name.endswith("other")
            joined = np.concatenate([np.full(len(a), np.nan) if blank else first, second])
            variables[f"{name}{end}_all"] = (("sample",), joined)
            variables[f"{name}{end}"] = (("sample", "layer"), joined[:, None])
    return variables


def made(
    trained: np.ndarray, held: np.ndarray, null: np.ndarray | None = None,
    wrong: tuple[float, float] | None = None, loss: tuple[float, float] = (0.1, 0.2),
) -> xr.Dataset:  # fmt: skip
    """A trace with gradients, losses around two means and, if wanted, two shares of wrong answers.

    With others' targets the loss is 1 on average, and half of the answers are wrong.
    """
    sizes = len(trained), len(held)
    spread = [np.linspace(0.5, 1.5, size) for size in sizes]
    side = [TRAINED] * sizes[0] + [HELD_OUT] * sizes[1]
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = gradients(trained, held, null)
    for end, means in (("", loss), ("_null", (1.0, 1.0))):
        parts = [mean * values for mean, values in zip(means, spread, strict=True)]
        variables[f"loss{end}"] = (("sample",), np.concatenate(parts))
    if wrong is not None:
        for end, means in (("", wrong), ("_null", (0.5, 0.5))):
            parts = [
                (np.arange(size) >= round(mean * size)).astype(float)
                for size, mean in zip(sizes, means, strict=True)
            ]
            variables[f"score{end}"] = (("sample",), np.concatenate(parts))
    return xr.Dataset(
        variables,
        {"side": ("sample", side), "layer": ["fc"], "dimensions": ("layer", [0])},
        {"refusal": "", "not_measured": "", "without_gradient": ""},
    )


def noisy(count: int, direction: np.ndarray, noise: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    found: np.ndarray = direction + noise * random.normal(size=(count, direction.size))
    return found


FORWARD, SIDEWAYS = np.eye(12)[0], np.eye(12)[1]
A, B = noisy(60, FORWARD, 0.6, 1), noisy(41, FORWARD + SIDEWAYS, 0.9, 2)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.mean(0) @ b.mean(0) / np.sqrt((a.mean(0) ** 2).sum() * (b.mean(0) ** 2).sum()))


def size_ratio(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt((b**2).sum(1).mean() / (a**2).sum(1).mean()))


def within(values: np.ndarray) -> float:
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    alike = unit @ unit.T
    return float(alike[~np.eye(len(unit), dtype=bool)].mean())


def across(a: np.ndarray, b: np.ndarray) -> float:
    units = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (a, b)]
    return float((units[0] @ units[1].T).mean())


def without(values: np.ndarray) -> list[np.ndarray]:
    return [np.delete(values, row, 0) for row in range(len(values))]


def test_numbers_of_both_sides_and_their_intervals_are_those_of_brute_force() -> None:
    both = sides(made(A, B))
    for found, number, scale, back in (
        (alignment(*both, NONE), cosine, np.arctanh, np.tanh),
        (ratio(*both), size_ratio, np.log, np.exp),
        (stiffness_across(*both), across, lambda x: x, lambda x: x),
    ):
        value = scale(number(A, B))
        halves = [
            np.diff(jackknife_interval(value, [scale(number(*pair)) for pair in pairs]), axis=0) / 2
            for pairs in ([(a, B) for a in without(A)], [(A, b) for b in without(B)])
        ]
        half = np.hypot(*halves).item()
        assert found[0].value == pytest.approx(number(A, B), rel=1e-10)
        assert found[0].low == pytest.approx(back(value - half), rel=1e-8)
        assert found[0].high == pytest.approx(back(value + half), rel=1e-8)
        assert found[0].samples == 101


def test_numbers_of_one_side_and_their_intervals_are_those_of_brute_force() -> None:
    side = sides(made(A, B), WHOLE)[0]

    def helped(values: np.ndarray) -> float:
        return float(len(values) * (values.mean(0) ** 2).sum() / (values**2).sum(1).mean())

    for found, number, scale, back in (
        (coherence(side), helped, np.log, np.exp),
        (stiffness_within(side), within, lambda x: x, lambda x: x),
    ):
        low, high = jackknife_interval(scale(number(A)), [scale(number(a)) for a in without(A)])
        assert found[0].value == pytest.approx(number(A), rel=1e-10)
        assert found[0].low == pytest.approx(float(back(low)), rel=1e-8)
        assert found[0].high == pytest.approx(float(back(high)), rel=1e-8)
    noise = np.var(A, axis=0, ddof=1).sum()
    signal = (A.mean(0) ** 2).sum() - noise / len(A)
    assert noise_scale(side)[0] == pytest.approx(noise / signal, rel=1e-10)
    assert reliability(side)[0] == pytest.approx(signal / (A.mean(0) ** 2).sum(), rel=1e-10)


def test_identical_and_orthogonal_gradients() -> None:
    same, apart = np.tile(FORWARD, (8, 1)), np.eye(12)[:8]
    alike, unlike = sides(made(same, apart))
    assert coherence(alike)[0].value == pytest.approx(8)
    assert coherence(unlike)[0].value == pytest.approx(1)
    assert stiffness_within(alike)[0].value == pytest.approx(1)
    assert stiffness_within(unlike)[0].value == pytest.approx(0, abs=1e-12)
    assert noise_scale(alike)[0] == pytest.approx(0, abs=1e-12)
    assert isinf(noise_scale(unlike)[0])
    assert ceiling(alike, unlike)[0] == 0


def test_the_ceiling_is_what_two_draws_of_one_direction_reach() -> None:
    reached, told = [], []
    for seed in range(300):
        a = noisy(40, FORWARD, 0.8, 2 * seed)
        b = noisy(25, FORWARD, 0.8, 2 * seed + 1)
        reached.append(cosine(a, b))
        told.append(ceiling(*sides(made(a, b)))[0])
    assert np.mean(told) == pytest.approx(np.mean(reached), abs=0.03)


def test_intervals_of_alignment_hold_the_truth() -> None:
    """The cosine of the expected mean gradients, which noise draws towards zero."""
    held = 0
    for seed in range(200):
        a = noisy(400, FORWARD, 0.6, 2 * seed)
        b = noisy(400, FORWARD + SIDEWAYS, 0.6, 2 * seed + 1)
        found = alignment(*sides(made(a, b)), NONE)[0]
        held += found.low <= np.sqrt(0.5) <= found.high
    assert 0.9 < held / 200 < 0.99


def test_a_projection_widens_the_interval() -> None:
    both = sides(made(A, B))
    exact, rough = alignment(*both, NONE)[0], alignment(*both, np.array([100.0]))[0]
    error = 1.96 * (1 - exact.value**2) / 10
    assert rough.value == exact.value
    assert exact.value - rough.low == pytest.approx(np.hypot(exact.value - exact.low, error))
    assert rough.high - exact.value == pytest.approx(np.hypot(exact.high - exact.value, error))


def judged(trace: xr.Dataset, **limits: float) -> dict[str, Finding]:
    found = [*generalization(trace, GeneralizationLimits(**limits))]
    return {finding.code: finding for finding in found}


@pytest.mark.parametrize(
    ("wrong", "severity"),
    [
        ((0.0, 0.05), Severity.PASS),
        ((0.0, 0.2), Severity.WARN),
        ((0.0, 0.48), Severity.FAIL),
        ((0.0, 0.125), Severity.INCONCLUSIVE),
        ((0.2, 0.2), Severity.PASS),
    ],
)
def test_the_share_lost_is_held_against_its_limits(
    wrong: tuple[float, float], severity: Severity
) -> None:
    many = noisy(400, FORWARD, 1, 0)
    finding = judged(made(many, many, wrong=wrong))["generalization-gap"]
    assert finding.severity is severity
    assert finding.value == pytest.approx(1 - (1 - 2 * wrong[1]) / (1 - 2 * wrong[0]))
    assert finding.low < finding.value < finding.high
    assert finding.samples == 800


def test_a_loss_is_judged_where_there_are_no_classes() -> None:
    many = noisy(400, FORWARD, 1, 0)
    learnt, lost = gap(made(many, many, loss=(0.1, 0.55)))
    assert learnt.value == pytest.approx(0.9)
    assert lost.value == pytest.approx(0.5)
    finding = judged(made(many, many, loss=(0.1, 0.55)))["generalization-gap"]
    assert finding.severity is Severity.WARN
    assert finding.message == (
        "the loss is 0.1 on data that the network was trained on and 0.55 on data held out (5.5 "
        "times): 50 % of what was learnt is lost"
    )
    assert finding.limit == 0.25
    assert finding.limit_source.startswith("ours, calibrated: ")


def test_nothing_learnt_is_no_pass() -> None:
    many = noisy(60, FORWARD, 1, 0)
    finding = judged(made(many, many, wrong=(0.5, 0.5)))["generalization-gap"]
    assert finding.severity is Severity.INCONCLUSIVE
    assert isnan(finding.value)
    assert finding.action == (
        "Check that these are the data it was trained on, prepared in the same way."
    )


def test_a_gap_that_cannot_be_held_against_anything_is_told() -> None:
    many = noisy(60, FORWARD, 1, 0)
    alone = made(many, many)
    alone["loss_null"] = alone["loss_null"] * np.nan
    flawless = made(many, many)
    flawless["loss_null"] = flawless["loss_null"] * 0
    for trace in (alone, flawless, made(many, many, loss=(-0.3, 0.2))):
        finding = judged(trace)["generalization-gap"]
        assert finding.severity is Severity.INFO
        assert isnan(finding.value)
    assert finding.message == (
        "the loss is -0.3 on data that the network was trained on and 0.2 on data held out"
    )


def test_few_samples_are_said() -> None:
    found = judged(made(A[:31], B))
    assert {finding.severity for finding in found.values()} == {Severity.INCONCLUSIVE}
    assert found["generalization-gap"].action == "Give at least 32 samples of each side."
    assert found["gradient-alignment"].message == (
        "31 samples trained on and 41 held out: 32 of each are needed"
    )
    assert judged(made(A[:31], B), min_samples=31)["gradient-alignment"].severity is Severity.INFO


def meaning(a: np.ndarray, b: np.ndarray, null: np.ndarray | None = None) -> str:
    return judged(made(a, b, null))["gradient-alignment"].meaning.split(" It is about")[0]


def test_directions_are_put_into_words() -> None:
    a, b = noisy(60, FORWARD, 0.4, 1), noisy(60, FORWARD, 0.4, 2)
    chance, away = noisy(60, SIDEWAYS, 0.4, 3), noisy(60, -FORWARD, 0.4, 4)
    lowers = (
        "A step that lowers the loss of the training data lowers that of the data held out, too"
    )
    assert meaning(a, b) == lowers + "."
    assert meaning(a, b, chance) == (
        lowers + ", and because of their targets: it is more than with each other's."
    )
    assert meaning(a, b, b) == (
        lowers + "; with each other's targets it is not clearly less, so that it tells nothing of "
        "what was learnt."
    )
    assert meaning(a, away) == (
        "A step that lowers the loss of the training data raises that of the data held out: "
        "training further over-fits."
    )
    assert meaning(a, chance).startswith("What the training data still ask for has little to do")
    # Gradients of mean zero, so that there is no direction.
    noise = np.concatenate([b - b.mean(0), b.mean(0) - b])
    assert meaning(a, noise + 1e-6 * SIDEWAYS).startswith("The gradients of samples cancel so far")
    few = np.concatenate([chance, 30 * FORWARD[None], -30 * FORWARD[None]])
    assert meaning(a, few).startswith("A few samples make up so much of the mean gradients")


def test_layers_with_larger_gradients_than_the_others_are_named() -> None:
    trace = made(A, B)
    wide = xr.concat([trace, trace, trace], "layer", data_vars="minimal").assign_coords(
        layer=["stem", "body", "head"], dimensions=("layer", [0, 0, 0])
    )
    held = wide["side"].to_numpy() == HELD_OUT
    wide["square"] = wide["square"].transpose("sample", "layer").copy()
    wide["square"].to_numpy()[np.flatnonzero(held), 1] *= 100
    finding = judged(wide)["gradient-ratio"]
    assert finding.where == ("body",)
    assert finding.value == pytest.approx(size_ratio(A, B))
    assert "clearly above the whole network in body" in finding.message
    assert f"most in body ({10 * size_ratio(A, B):.3g})" in finding.message


def test_coherence_is_told_of_both_sides() -> None:
    finding = judged(made(A, B, noisy(41, SIDEWAYS, 0.9, 5)))["gradient-coherence"]
    assert finding.severity is Severity.INFO
    assert finding.value == pytest.approx(across(A, B))
    assert f"{within(A):.2f} within the training data" in finding.message
    chance = across(A, noisy(41, SIDEWAYS, 0.9, 5))
    assert f"({chance:.2f} with each other's targets)" in finding.message


def test_what_was_learnt_rests_on_the_trained_side_alone() -> None:
    few, many = made(A, B[:7], loss=(0.1, 0.2)), made(A, B, loss=(0.1, 0.9))
    assert gap(few).learnt.samples == len(A) + 7
    assert gap(few).lost.samples == len(A) + 7
    assert (gap(few).learnt.low, gap(few).learnt.high) == (
        gap(many).learnt.low,
        gap(many).learnt.high,
    )


def test_what_is_right_is_told_in_percents() -> None:
    finding = judged(made(A, B, wrong=(0.1, 0.2)))["generalization-gap"]
    assert "; right are 90 % and 80.5 %" in finding.message


def split(trace: xr.Dataset, factors: list[float]) -> xr.Dataset:
    """Layers whose gradients held out are so many times those of all layers together."""
    names = [f"layer{at}" for at in range(len(factors))]
    wide = xr.concat([trace] * len(factors), "layer", data_vars="minimal").assign_coords(
        layer=names, dimensions=("layer", [0] * len(factors))
    )
    held = (wide["side"] == HELD_OUT).to_numpy()[:, None]
    square = wide["square"].transpose("sample", "layer")
    wide["square"] = square * np.where(held, np.square(factors), 1.0)
    return wide


def test_the_alignment_is_told_in_full() -> None:
    null = noisy(41, SIDEWAYS, 0.9, 5)
    finding = judged(made(A, B, null))["gradient-alignment"]
    found, chance = alignment(*sides(made(A, B)), NONE)[0], null_alignment(made(A, B, null))
    most = ceiling(*sides(made(A, B)))[0]
    assert chance.value == pytest.approx(cosine(A, null))
    alone = (
        f"the mean gradients of both sides have a cosine of {cosine(A, B):.2f} [{found.low:.2f}, "
        f"{found.high:.2f}]; at these numbers of samples two of one direction would reach "
        f"{most:.2f}"
    )
    assert finding.message == (
        f"{alone}, and with each other's targets those held out have one of {cosine(A, null):.2f} "
        f"[{chance.low:.2f}, {chance.high:.2f}]"
    )
    assert judged(made(A, B))["gradient-alignment"].message == alone
    assert (finding.value, finding.samples) == (pytest.approx(cosine(A, B)), 101)


def test_checkpoints_from_before_are_advised_where_training_over_fits() -> None:
    a = noisy(60, FORWARD, 0.4, 1)
    for b, stop in ((-FORWARD, True), (FORWARD, False), (0.3 * FORWARD + SIDEWAYS, False)):
        finding = judged(made(a, noisy(60, b, 0.4, 4)))["gradient-alignment"]
        assert finding.action.startswith("Compare with checkpoints from before") is stop
        assert (finding.action == "None.") is not stop
    barely = judged(made(a, noisy(60, SIDEWAYS - 0.3 * FORWARD, 0.4, 4)))["gradient-alignment"]
    assert -1 < barely.high < 0
    assert barely.action != "None."


def test_samples_of_exchanged_targets_count_where_they_are_known() -> None:
    null = noisy(41, SIDEWAYS, 0.9, 5)
    for known, told in ((1, False), (2, True), (3, True)):
        some = null.copy()
        some[known:] = np.nan
        trace = made(A, B, null)
        gone = np.flatnonzero((trace["side"] == HELD_OUT).to_numpy())[known:]
        for name in trace.data_vars:
            if "_null" in str(name):
                trace[name][gone] = np.nan
        assert isnan(null_alignment(trace).value) is not told
        found = judged(trace)
        for code in ("gradient-alignment", "gradient-coherence"):
            assert ("with each other's targets" in found[code].message) is told


def test_the_coarsest_projection_counts() -> None:
    trace = split(made(A, B), [1.0, 1.0, 1.0])
    for kept, fewest in (
        ([0, 64, 32], 32),
        ([0, 0, 0], 0),
        ([9, 1, 4], 1),
        ([64, 16, 32], 16),
        ([0, 1, 0], 1),
    ):
        assert dimensions(trace.assign_coords(dimensions=("layer", kept))) == fewest


def test_gradients_by_layer_are_told_the_largest_first() -> None:
    finding = judged(split(made(A, B), [0.5, 5.0, 9.0]))["gradient-ratio"]
    size = size_ratio(A, B)
    assert finding.message == (
        f"the gradient of a sample held out is {size:.3g} times that of one trained on: least in "
        f"layer0 ({0.5 * size:.3g}), most in layer2 ({9 * size:.3g}); clearly above the whole "
        "network in layer2, layer1"
    )
    assert finding.where == ("layer2", "layer1")
    two = judged(split(made(A, B), [1.0, 0.5]))["gradient-ratio"]
    assert two.message.endswith(
        f": least in layer1 ({0.5 * size:.3g}), most in layer0 ({size:.3g})"
    )
    alone = f"the gradient of a sample held out is {size:.3g} times that of one trained on"
    assert judged(made(A, B))["gradient-ratio"].message == alone


def test_layers_without_gradients_have_no_ratio() -> None:
    trace = split(made(A, B), [1.0, 2.0, 0.5])
    trace["square"][:, 1] = 0
    message = judged(trace)["gradient-ratio"].message
    assert f"least in layer2 ({0.5 * size_ratio(A, B):.3g}), most in layer0" in message
    trace["square"][:] = 0
    assert judged(trace)["gradient-ratio"].message.endswith("times that of one trained on")


def test_coherence_is_told_in_full() -> None:
    finding = judged(made(A, B))["gradient-coherence"]
    helped = [
        len(values) * (values.mean(0) ** 2).sum() / (values**2).sum(1).mean() for values in (A, B)
    ]
    noise = np.var(A, axis=0, ddof=1).sum()
    scale = noise / ((A.mean(0) ** 2).sum() - noise / len(A))
    text = (
        f"the gradients of two samples have a cosine of {within(A):.2f} within the training data, "
        f"{within(B):.2f} within those held out and {across(A, B):.2f} across; a sample helps "
        f"{helped[0]:.3g} of 60 and {helped[1]:.3g} of 41 on average, itself included; "
    )
    assert finding.message == (
        f"{text}a batch of {scale:.3g} training samples has as much noise as signal"
    )
    cancelling = np.concatenate([A - A.mean(0), A.mean(0) - A]) + 0.01 * FORWARD
    unclear = judged(made(cancelling, B))["gradient-coherence"]
    assert unclear.message.endswith("no common direction of the training data is to be seen")


@pytest.mark.parametrize(
    ("refusal", "absent", "message"),
    [
        ("the loss is not known", "", "the loss is not known"),
        ("", "the layers have no weights", "the layers have no weights"),
        ("the loss is not known", "the layers have no weights", "the loss is not known"),
        ("", "", "no gradient reaches a weight"),
    ],
)
def test_why_there_are_no_gradients(refusal: str, absent: str, message: str) -> None:
    trace = made(A, B).drop_vars("square").assign_attrs(refusal=refusal, not_measured=absent)
    finding = judged(trace)["gradient-alignment"]
    assert finding.severity is Severity.INCONCLUSIVE
    assert (finding.message, finding.action, finding.samples) == (message, "None.", 101)


def test_signal_below_zero_by_chance_is_none() -> None:
    values = np.array([[1.0], [-1.0], [1.0], [-1.0], [0.5]])
    side = sides(made(values, B[:, :1]))[0]
    assert reliability(side)[0] < 0
    assert isinf(noise_scale(side)[0])
    assert ceiling(side, side)[0] == 0


def test_two_samples_have_a_cosine_without_an_interval_and_three_have_one() -> None:
    two, three = (stiffness_within(sides(made(A[:count], B))[0])[0] for count in (2, 3))
    assert two.value == pytest.approx(within(A[:2]))
    assert np.isnan([two.low, two.high]).all()
    low, high = jackknife_interval(within(A[:3]), [within(a) for a in without(A[:3])])
    assert (three.low, three.high) == pytest.approx((float(low), float(high)))


@pytest.mark.parametrize("count", [1, 2])
def test_few_samples_of_one_side(count: int) -> None:
    both = sides(made(A, B).isel(sample=slice(len(A) + count)))
    found = stiffness_across(*both)[0]
    assert (isnan(found.low), isnan(ratio(*both)[0].low)) == (count == 1, count == 1)
    if count == 2:
        halves = [
            np.diff(jackknife_interval(0.0, rest), axis=0).item() / 2
            for rest in (
                [np.delete(both[0].cosine_other, row).mean() for row in range(len(A))],
                [*both[1].cosine_other[::-1, 0]],
            )
        ]
        assert found.high - found.value == pytest.approx(np.hypot(*halves))


def test_a_sample_is_known_where_its_gradient_is() -> None:
    trace = made(A, B)
    trace["cosine_other"][3] = trace["cosine_other"][70] = np.nan
    assert [side.samples for side in sides(trace)] == [60, 41]


@pytest.mark.parametrize("sign", [1, -1])
def test_intervals_of_cosines_end_at_one(sign: int) -> None:
    a, b = noisy(60, FORWARD, 0.3, 1), noisy(60, sign * FORWARD, 0.3, 2)
    found = alignment(*sides(made(a, b)), np.array([1.0]))[0]
    inner = alignment(*sides(made(a, b)), NONE)[0]
    assert abs(inner.value) + 1.96 * (1 - inner.value**2) > 1
    assert (found.high if sign > 0 else found.low) == sign
    assert abs(found.low if sign > 0 else found.high) < 1


@pytest.mark.parametrize(
    ("ends", "chance", "most", "start"),
    [
        ((-0.5, 0.0), np.nan, 0.9, "What the training data still ask for"),
        ((-0.5, -0.01), np.nan, 0.9, "A step that lowers the loss of the training data raises"),
        ((0.0, 0.5), np.nan, 0.9, "What the training data still ask for"),
        ((0.01, 0.5), np.nan, 0.9, "A step that lowers the loss of the training data lowers"),
        ((-0.5, 0.25), np.nan, 0.3, "What the training data still ask for"),
        ((-0.5, 0.25), np.nan, 0.29, "The gradients of samples cancel so far"),
        ((-0.25, 0.75), np.nan, 0.9, "What the training data still ask for"),
        ((-0.25, 0.875), np.nan, 0.9, "A few samples make up so much"),
        ((0.25, 0.5), 0.25, 0.9, "A step that lowers the loss of the training data lowers that of "
         "the data held out, too; with each other's targets it is not clearly less"),
        ((0.25, 0.5), 0.24, 0.9, "A step that lowers the loss of the training data lowers that of "
         "the data held out, too, and because of their targets"),
    ],
)  # fmt: skip
def test_directions_at_their_limits(
    ends: tuple[float, float], chance: float, most: float, start: str
) -> None:
    found, by_chance = Estimate(sum(ends) / 2, *ends, 64), Estimate(chance, chance, chance, 64)
    assert _direction(found, by_chance, most).startswith(start)


def test_sides_that_are_certain_to_have_nothing_in_common_are_not_opposed() -> None:
    found = judged(made(np.tile(FORWARD, (32, 1)), np.tile(2 * SIDEWAYS, (32, 1))))
    alignment_, sizes = found["gradient-alignment"], found["gradient-ratio"]
    assert (alignment_.low, alignment_.high, alignment_.action) == (0, 0, "None.")
    # Nor is a layer that is certain to be as the whole network above it.
    assert (sizes.low, sizes.high, sizes.where) == (pytest.approx(2), pytest.approx(2), ())
