"""Width judged on hand-made traces, each limit from both sides."""

from dataclasses import replace
from math import isnan, nan

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import WidthLimits
from analyzer.rules.redundancy import twin_groups
from analyzer.rules.width import filled, short, untrained, width

LIMITS = WidthLimits()
GROUPS, UNITS = 10, 20


def layered(
    directions: list[float],
    change: float | None = 0.0,
    samples: int = 400,
    jitter: float = 0.0,
    **changes: object,
) -> xr.Dataset:
    """Layers of 20 units that fill so many directions, and an output layer."""
    rng = np.random.default_rng(4)
    count = len(directions) + 1
    values = np.array([*directions, 3.0])
    without = values + jitter * rng.normal(size=(GROUPS, count))
    losses = rng.uniform(0.5, 1.5, samples if change is not None else 0)
    layers = [f"conv{at}" for at in range(count - 1)] + ["head"]
    trace = xr.Dataset(
        {
            "directions": ("layer", values),
            "directions_without": (("group", "layer"), without),
            "independent": ("layer", np.full(count, 900.0)),
            "rank": ("layer", np.where(np.isnan(values), nan, 20.0)),
            "copies": ("layer", np.zeros(count)),
            "copies_without": (("group", "layer"), np.zeros((GROUPS, count))),
            "constant": (("layer", "unit"), np.zeros((count, UNITS))),
            "twin": (("layer", "unit"), np.tile(np.arange(UNITS), (count, 1))),
            "parameters": ("layer", np.full(count, 100.0)),
            "kept_parameters": ("layer", np.full(count, 60.0)),
            "untrained_directions": (("copy", "layer"), np.full((2, count), 16.0)),
            "active": (("group", "response", "response_unit"), np.empty((GROUPS, 0, 0))),
            "at_end": (("group", "response", "end", "response_unit"), np.empty((GROUPS, 0, 2, 0))),
            "seen": (("group", "response"), np.empty((GROUPS, 0))),
            "intact_loss": ("sample", losses),
            "loss_change": ("sample", (change or 0.0) * losses),
        },
        {
            "layer": layers,
            "width": ("layer", [UNITS] * count),
            "kind": ("layer", ["Conv1d"] * count),
            "most": ("layer", [UNITS] * count),
            "read": ("layer", [1] * (count - 1) + [0]),
            "response_layer": ("response", np.array([], dtype=str)),
            "response": np.array([], dtype=str),
            "end": ["low", "high"],
        },
        {
            "power": 10, "level": 0.99, "correlated": 0.99, "samples": samples,
            "restricted": ", ".join(layers[:-1]) if change is not None else "",
        },
    )  # fmt: skip
    return trace.assign(changes)


def responses(trace: xr.Dataset, active: np.ndarray | None, ends: np.ndarray | None) -> xr.Dataset:
    """Put one ReLU (active: group, unit) or one tanh (ends: group, end, unit) behind conv0."""
    some = active if active is not None else ends
    assert some is not None
    units = some.shape[-1]
    nothing = np.full((GROUPS, 1, units), nan), np.full((GROUPS, 1, 2, units), nan)
    samples = int(trace.attrs["samples"])
    return trace.drop_dims("response").assign(
        {
            "active": (
                ("group", "response", "response_unit"),
                nothing[0] if active is None else active[:, None],
            ),
            "at_end": (
                ("group", "response", "end", "response_unit"),
                nothing[1] if ends is None else ends[:, None],
            ),
            "seen": (("group", "response"), np.full((GROUPS, 1), samples / GROUPS)),
        }
    ).assign_coords(
        {
            "response": ["relu after conv0" if ends is None else "tanh after conv0"],
            "response_layer": ("response", ["conv0"]),
        }
    )  # fmt: skip


def judged(trace: xr.Dataset, code: str, limits: WidthLimits = LIMITS) -> Finding:
    (found,) = [one for one in width(trace, limits) if one.code == code]
    return found


def test_width_in_use_is_told_beside_untrained_copies() -> None:
    finding = judged(layered([5.0, 8.0, 16.0]), "width-use")
    assert finding.severity is Severity.INFO
    assert finding.message == (
        "40% of the directions that its weights allow hold 99% of the variance of what a layer "
        "returns (median of 3 layers; untrained copies 80%): least in conv0, 5 of 20, most in "
        "conv2, 16 of 20"
    )
    assert finding.value == 0.4


def test_a_count_is_never_surer_than_half_a_direction() -> None:
    found = filled(layered([5.0]))
    assert {*found} == {"conv0"}
    assert (found["conv0"].low, found["conv0"].high) == (4.5 / 20, 5.5 / 20)
    spread = filled(layered([5.0], jitter=0.3))["conv0"]
    assert spread.low < 4.4 / 20
    assert spread.high > 5.6 / 20


def test_too_few_positions_are_inconclusive_and_say_how_many_are_needed() -> None:
    trace = layered([nan, nan])
    trace["independent"][:] = [150, 60, 900]
    finding = judged(trace, "width-use")
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.action == "Audit more samples."
    assert finding.meaning.endswith(
        "Too few independent positions for 2: conv0 (150 of 200), conv1 (60 of 200), that is 10 "
        "for each unit."
    )
    assert [one.code for one in width(trace, LIMITS)] == ["width-use", "redundant-units"]


@pytest.mark.parametrize(
    ("directions", "change", "severity"),
    [
        ([5.0, 5.0, 18.0], 0.01, Severity.WARN),
        ([5.0, 5.0, 18.0], 0.2, Severity.INFO),
        ([5.0, 5.0, 18.0], None, Severity.INFO),
        ([5.0, 18.0, 18.0], 0.01, Severity.PASS),
        ([5.0, 10.0, 18.0], 0.01, Severity.INCONCLUSIVE),
    ],
)
def test_width_is_wasted_where_most_layers_are_wide_and_the_loss_does_not_mind(
    directions: list[float], change: float | None, severity: Severity
) -> None:
    finding = judged(layered(directions, change), "width-wasted")
    assert finding.severity is severity
    if severity is Severity.WARN:
        assert finding.where == ("conv0", "conv1")
        assert finding.message == (
            "2 of 3 layers fill less than 50% of the directions that their weights allow: conv0 "
            "(25%), conv1 (25%); with all 3 layers before the output restricted to these "
            "directions at once the loss changes by +1.0% [+1.0%, +1.0%]"
        )


def test_the_recurrence_of_a_wide_layer_was_not_restricted() -> None:
    trace = layered([5.0, 5.0, 5.0, 18.0], 0.01)
    said = "their recurrence kept all of the state, and may need it."
    assert said not in judged(trace, "width-wasted").meaning
    # Without it half of the layers are narrow, which is not most of them.
    trace["kind"][1] = "LSTM"
    finding = judged(trace, "width-wasted")
    assert finding.severity is Severity.INFO
    assert finding.meaning == (
        "What reads these layers needs no more than their directions. Of recurrent layers what "
        f"they pass on was restricted: {said}"
    )
    assert finding.action == "Train a narrower network and compare."
    wide = layered([5.0, 5.0, 5.0, 5.0, 18.0], 0.01)
    wide["kind"][1] = "GRUCell"
    finding = judged(wide, "width-wasted")
    assert finding.severity is Severity.WARN
    assert finding.meaning.endswith(said)


def test_a_loss_that_may_rise_leaves_waste_open_and_few_samples_too() -> None:
    trace = layered([5.0, 5.0], 0.05)
    trace["loss_change"] = trace["loss_change"] * np.random.default_rng(0).normal(1, 4, 400)
    assert judged(trace, "width-wasted").severity is Severity.INCONCLUSIVE
    few = judged(layered([5.0, 5.0], 0.01, samples=20), "width-wasted")
    assert few.severity is Severity.INCONCLUSIVE
    assert few.action == "Audit at least 32 samples."


def test_directions_that_weights_do_not_allow_are_no_waste() -> None:
    trace = layered([5.0, 5.0]).assign_coords(most=("layer", [5, 5, 20]))
    assert judged(trace, "width-wasted").severity is Severity.PASS


def test_parameters_of_unused_width_are_counted() -> None:
    finding = judged(layered([5.0]), "unused-parameters")
    assert finding.value == pytest.approx(0.4)
    assert finding.message.startswith("40% of the 200 parameters of the layers would go if each")


@pytest.mark.parametrize(
    ("copies", "severity"), [(10, Severity.WARN), (8, Severity.PASS), (0, Severity.PASS)]
)
def test_redundant_units(copies: int, severity: Severity) -> None:
    trace = layered([10.0])
    trace["copies"][0] = copies
    trace["copies_without"][:, 0] = copies
    trace["twin"][0, 4 : 4 + copies] = 2
    finding = judged(trace, "redundant-units")
    assert finding.severity is severity
    if copies == 10:
        assert twin_groups(trace, "conv0") == [[2, *range(4, 14)]]
        assert finding.message == (
            "10 of 20 units in conv0 (2 = 4 = 5 = 6 = 7 = 8 ...) repeat another unit of the layer "
            "(correlation above 0.99 in magnitude)"
        )


def test_redundancy_that_rests_on_a_few_samples_is_open() -> None:
    trace = layered([10.0])
    trace["copies"][0] = 8
    trace["copies_without"][:, 0] = [8] * 8 + [0, 1]
    assert judged(trace, "redundant-units").severity is Severity.INCONCLUSIVE


def test_exact_dependence_is_told() -> None:
    trace = layered([10.0])
    trace["rank"][0] = 12
    assert judged(trace, "redundant-units").message.endswith(
        "; exact linear dependence: conv0 varies in 12 directions of 20 that its weights allow"
    )


def test_constant_units() -> None:
    trace = layered([10.0])
    assert not [one for one in width(trace, LIMITS) if one.code == "constant-units"]
    trace["constant"][0, :10] = 1
    assert judged(trace, "constant-units").severity is Severity.INFO
    trace["constant"][0, :11] = 1
    finding = judged(trace, "constant-units")
    assert finding.severity is Severity.WARN
    assert finding.message == (
        "11 of 20 units in conv0 return one and the same number in all 400 samples"
    )
    assert "fewer than 0.75% of such samples" in finding.meaning


@pytest.mark.parametrize(
    ("dead", "severity"),
    [(10, Severity.PASS), (11, Severity.WARN), (16, Severity.WARN), (17, Severity.FAIL)],
)
def test_dead_units(dead: int, severity: Severity) -> None:
    active = np.full((GROUPS, 20), 7.0)
    active[:, :dead] = 0
    finding = judged(responses(layered([9.0]), active, None), "dead-units")
    assert finding.severity is severity
    assert finding.message == (
        f"{dead} of 20 behind relu after conv0 are never above zero in 400 samples"
    )
    assert "fewer than 0.75% of such samples" in finding.meaning


def test_dead_units_need_samples_and_every_group() -> None:
    active = np.full((GROUPS, 20), 1.0)
    active[:, :15] = 0
    few = judged(responses(layered([9.0], samples=50), active, None), "dead-units")
    assert few.severity is Severity.INCONCLUSIVE
    assert few.action == "Audit at least 60 samples."
    assert judged(
        responses(layered([9.0], samples=60), active, None), "dead-units"
    ).severity is Severity.WARN  # fmt: skip
    # Alive in one group of samples alone: without it they would be dead.
    active[:, :9] = 5
    active[0, :8] = 3
    active[1:, :8] = 0
    assert judged(responses(layered([9.0]), active, None), "dead-units").severity is not (
        Severity.WARN
    )


@pytest.mark.parametrize(("stuck", "severity"), [(10, Severity.PASS), (11, Severity.WARN)])
def test_saturated_units(stuck: int, severity: Severity) -> None:
    ends = np.full((GROUPS, 2, 20), 12.0)
    ends[:, 0, :stuck] = 40
    trace = responses(layered([9.0]), None, ends)
    finding = judged(trace, "saturated-units")
    assert finding.severity is severity
    assert finding.message == (
        f"{stuck} of 20 behind tanh after conv0 are at an end of the function for 99% of the time"
    )
    trace = trace.assign_coords(read=("layer", [0, 0]))
    assert not [one for one in width(trace, LIMITS) if one.code == "saturated-units"]


def test_limits_can_be_moved() -> None:
    trace = layered([5.0, 5.0])
    assert judged(trace, "width-wasted", replace(LIMITS, filled=0.2)).severity is Severity.PASS


def test_groups_that_were_not_kept_leave_an_interval_open() -> None:
    trace = layered([5.0])
    trace["directions_without"][1:] = nan
    assert isnan(filled(trace)["conv0"].low)
    assert judged(trace, "width-wasted").severity is Severity.INCONCLUSIVE


def test_shares_of_directions_end_at_nothing_and_at_all() -> None:
    found = filled(layered([0.25, 19.75, 12.0]))
    ends = {layer: (one.low, one.high) for layer, one in found.items()}
    assert ends["conv0"] == (0, 0.75 / 20)
    assert ends["conv1"] == (19.25 / 20, 1)
    assert ends["conv2"] == (11.5 / 20, 12.5 / 20)


def test_short_are_layers_that_are_read_unknown_and_lack_positions() -> None:
    trace = layered([nan, nan, 8.0, nan])
    trace["directions"][4] = nan
    trace["independent"][:] = [150, 200, 150, 60, 60]
    assert short(trace) == ["conv0 (150 of 200)", "conv3 (60 of 200)"]
    assert judged(trace, "width-use").where == ("conv2",)


def test_copies_in_which_a_layer_is_unknown_do_not_count() -> None:
    trace = layered([5.0, 8.0])
    trace["untrained_directions"][:] = [[16.0, nan, 3.0], [12.0, 13.0, 3.0]]
    assert untrained(trace, ["conv0", "conv1"]) == 13 / 20
    trace["untrained_directions"][:] = nan
    assert isnan(untrained(trace, ["conv0", "conv1"]))
    assert "untrained" not in judged(trace, "width-use").message


@pytest.mark.parametrize(("directions", "share"), [([5, 8, 18], 2 / 3), ([10, 5, 18], 1 / 3)])
def test_the_value_is_the_share_of_layers_below_the_limit(
    directions: list[float], share: float
) -> None:
    finding = judged(layered(directions, 0.01), "width-wasted")
    assert finding.value == share
    assert finding.low <= finding.value <= finding.high


def test_the_narrowest_layer_is_named_first() -> None:
    finding = judged(layered([8.0, 2.0, 5.0, 18.0], None), "width-wasted")
    assert finding.message == (
        "3 of 4 layers fill less than 50% of the directions that their weights allow: conv1 (10%), "
        "conv2 (25%), conv0 (40%)"
    )
    assert finding.where == ("conv0", "conv1", "conv2")


def test_only_layers_that_were_restricted_are_judged() -> None:
    trace = layered([18.0, 5.0, nan], 0.01)
    trace.attrs["restricted"] = "conv1, conv2"
    finding = judged(trace, "width-wasted")
    assert finding.message == (
        "1 of 1 layers fill less than 50% of the directions that their weights allow: conv1 (25%); "
        "with all 2 layers before the output restricted to these directions at once the loss "
        "changes by +1.0% [+1.0%, +1.0%]"
    )
    trace.attrs["restricted"] = "conv1"
    assert "; with the layer before the output restricted to" in (
        judged(trace, "width-wasted").message
    )


def test_what_follows_from_directions_and_loss() -> None:
    needed = judged(layered([5.0, 5.0, 18.0], 0.2), "width-wasted")
    assert (needed.meaning, needed.action) == (
        "Directions with little variance carry what the output needs.", "None."
    )  # fmt: skip
    untested = judged(layered([5.0, 5.0, 18.0], None), "width-wasted")
    assert untested.meaning.startswith("Most layers are wider than the variance of their states")
    assert untested.action == "Train a narrower network and compare."
    in_use = judged(layered([18.0, 18.0, 5.0], 0.01), "width-wasted")
    assert (in_use.meaning, in_use.action) == ("Most layers use their width.", "None.")


@pytest.mark.parametrize(
    ("samples", "meaning", "action"),
    [
        (31, "31 samples are too few to judge.", "Audit at least 32 samples."),
        (32, "The intervals reach across a limit.", "Audit more samples."),
    ],
)
def test_doubt_about_width_is_explained(samples: int, meaning: str, action: str) -> None:
    finding = judged(layered([5.0, 10.0], 0.01, samples=samples), "width-wasted")
    assert finding.severity is Severity.INCONCLUSIVE
    assert (finding.meaning, finding.action) == (meaning, action)


def test_as_many_samples_as_the_limit_asks_for_are_enough_to_call_width_wasted() -> None:
    finding = judged(layered([5.0, 5.0], 0.01, samples=32), "width-wasted")
    assert finding.severity is Severity.WARN


def test_layers_that_would_lose_most_parameters_are_named() -> None:
    trace = layered([5.0, 5.0, 5.0, 5.0])
    trace["parameters"][:] = [100, 300, 200, 50, 350]
    trace["kept_parameters"][:] = [60, 290, 100, 49, 350]
    finding = judged(trace, "unused-parameters")
    assert finding.message == (
        "15% of the 1,000 parameters of the layers would go if each were as wide as its "
        "directions: conv2 100, conv0 40, conv1 10, conv3 1"
    )
    assert finding.where == ("conv2", "conv0", "conv1")
    trace["kept_parameters"][:] = [60, 300, 200, 50, 350]
    assert judged(trace, "unused-parameters").where == ("conv0",)
