"""Field rules against hand-made traces: both sides of each limit, and what is undefined."""

from math import nan

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import EffectiveFieldLimits, ReceptiveFieldLimits
from analyzer.rules.effective_field import effective_field
from analyzer.rules.field_growth import another, growth
from analyzer.rules.receptive_field import receptive_field


def theoretical(
    sizes: list[float], inputs: float, status: str = "EXACT", **attrs: object
) -> xr.Dataset:
    """A chain of kernel-3 convolutions along time, with a linear layer at the end."""
    count = len(sizes) + 1
    values = np.array([*sizes, inputs], float)[:, None]
    return xr.Dataset(
        {
            "size": (("layer", "axis"), values),
            "size_without_gates": (("layer", "axis"), values.copy()),
            "minimal": (("layer", "axis"), values.copy()),
            "minimal_input": (("layer", "axis"), values - 2),
            "jump": (("layer", "axis"), np.where(np.arange(count) < count - 1, 1.0, nan)[:, None]),
            "status": ("layer", ["EXACT"] * (count - 2) + [status, "WHOLE_INPUT"]),
            "reason": ("layer", [""] * (count - 2) + ["sort is not known", "it is linear"]),
            "input_size": ("axis", [inputs]),
        },
        coords={
            "layer": [f"conv{index}" for index in range(count - 1)] + ["head"],
            "kind": ("layer", ["Conv1d"] * (count - 1) + ["Linear"]),
            "axis": ["time"],
        },
        attrs={"recurrent": ""} | attrs,
    )


def found(trace: xr.Dataset, code: str, **limits: float) -> Finding:
    (finding,) = (
        finding
        for finding in receptive_field(trace, ReceptiveFieldLimits(**limits))
        if finding.code == code
    )
    return finding


def test_a_field_smaller_than_the_input():
    coverage, unproductive = receptive_field(theoretical([3, 5, 7], 28), ReceptiveFieldLimits())
    assert coverage.severity is Severity.INFO
    assert coverage.message == (
        "a unit of the last convolution (conv2) sees 25% of the input: 7 of 28 positions"
    )
    assert coverage.value == 7
    assert coverage.meaning == "No unit of a convolution can use what lies outside of its field."
    assert unproductive.severity is Severity.PASS
    assert unproductive.value == 0
    assert unproductive.meaning == (
        "Every convolution adds context, and would with inputs down to 6."
    )


def test_the_axis_that_sees_least_is_named():
    trace = theoretical([3, 5], 10)
    trace = xr.concat([trace.assign_coords(axis=[name]) for name in "yx"], "axis", data_vars="all")
    for name in ("status", "reason"):
        trace[name] = trace[name].isel(axis=0)
    trace["input_size"] = ("axis", [5.0, 20.0])
    message = found(trace, "theoretical-field").message
    assert message == (
        "a unit of the last convolution (conv1) sees 25% of the input along x: 5 x 5 of 5 x 20 "
        "positions"
    )


def test_sizes_in_seconds_where_the_rate_is_known():
    message = found(theoretical([3, 5, 7], 28, sample_rate=100.0), "theoretical-field").message
    assert message.endswith("7 of 28 positions (0.07 s)")


def test_hybrids_point_to_the_memory_horizon():
    meaning = found(theoretical([3, 5, 7], 28, recurrent="a.lstm, b"), "theoretical-field").meaning
    assert meaning == (
        "No unit of a convolution can use what lies outside of its field. Behind it recurrent "
        "layers (a.lstm, b) reach further along the sequence: see Memory horizon for the whole "
        "network."
    )


def test_layers_past_the_input_are_named():
    trace = theoretical([5, 7, 9, 11], 7)
    assert "covers the input: 11 of 7 positions" in found(trace, "theoretical-field").message
    unproductive = found(trace, "unproductive-layers")
    assert unproductive.severity is Severity.WARN
    assert unproductive.where == ("conv2", "conv3")
    assert unproductive.message == (
        "2 of 4 convolutions read maps that already cover the whole input (7 positions): conv2, "
        "conv3"
    )
    assert unproductive.meaning == (
        "They cannot add context; whether they add anything else, ablation has to show. Inputs of "
        "more than 9 positions would use every convolution."
    )
    assert unproductive.action == (
        "Use larger inputs, or compare with a network of the 2 convolutions that add context, cut "
        "after conv1."
    )


def test_layers_in_between_cannot_be_cut_off():
    trace = theoretical([5, 7, 9, 11], 7)
    trace["minimal_input"][2:4, 0] = [9, 3]
    assert found(trace, "unproductive-layers").action == (
        "Use larger inputs, or compare with a network of the 3 convolutions that add context."
    )


def test_an_input_of_one_position_has_no_depth_that_fits():
    trace = theoretical([5, 7], 2)
    trace["minimal_input"][:2, 0] = 2
    assert found(trace, "unproductive-layers").action == "Use larger inputs."


def test_more_such_layers_can_be_allowed():
    finding = found(theoretical([5, 7, 9, 11], 7), "unproductive-layers", unproductive=2)
    assert finding.severity is Severity.PASS


def test_convolutions_of_a_pooled_vector_are_not_counted():
    """Squeeze-excitation: they see everything, and slide over nothing."""
    trace = theoretical([5, 7, 9, 11], 40)
    trace["jump"][1, 0] = nan
    trace["minimal_input"][1, 0] = 40
    assert found(trace, "unproductive-layers").message.startswith("0 of 3 convolutions")


def test_convolutions_behind_a_global_operation_are_not_blamed():
    trace = theoretical([5, 7, 40, 40], 40)
    trace["minimal_input"][2:4, 0] = 40
    trace["status"][2:4] = "WHOLE_INPUT"
    finding = found(trace, "unproductive-layers")
    assert finding.severity is Severity.PASS
    assert finding.message.startswith("0 of 4 convolutions")
    trace["minimal_input"][:4, 0] = 40
    trace["status"][:4] = "WHOLE_INPUT"
    assert found(trace, "unproductive-layers").meaning == (
        "All of them read what a global operation has spread over the whole map."
    )


@pytest.mark.parametrize(("own", "names"), [(19, None), (20, ("conv2",))])
def test_windows_wider_than_their_map(own, names):
    trace = theoretical([3, 5, 7], 20)
    trace["minimal"][2, 0] = trace["minimal_input"][2, 0] + own
    wide = [
        finding
        for finding in receptive_field(trace, ReceptiveFieldLimits())
        if finding.code == "window-wider-than-map"
    ]
    assert [finding.where for finding in wide] == ([names] if names else [])
    for finding in wide:
        assert finding.severity is Severity.INFO
        assert finding.message == (
            "1 of 3 convolutions have a window wider than the map it slides over: conv2"
        )


def test_an_unknown_field_is_inconclusive():
    trace = theoretical([3, 5], 28, "UNKNOWN")
    trace["size_without_gates"][1, 0] = nan
    unknown = found(trace, "field-unknown")
    assert unknown.severity is Severity.INCONCLUSIVE
    assert unknown.message == "the field of 1 layers is unknown from conv1 on: sort is not known"
    coverage = found(trace, "theoretical-field")
    assert coverage.severity is Severity.INCONCLUSIVE
    assert coverage.message == "the field of the last convolution (conv1) is unknown"


def effective(
    diameter: list[float],
    half: float = 1.0,
    reach: list[float] | None = None,
    inputs: float = 140.0,
    **attrs: object,
) -> xr.Dataset:
    """Fields of a chain of convolutions; ``half`` scales those of half of the samples."""
    values = np.array(diameter)
    count = len(values)
    sigma = values[:, None] / 4
    factors = np.linspace(0.95, 1.05, 41)
    sizes = np.full(count, 61.0) if reach is None else 1 + np.array(reach)
    return xr.Dataset(
        {
            "diameter": ("layer", values),
            "diameter_low": ("layer", values - 2),
            "diameter_high": ("layer", values + 3),
            "sigma": (("layer", "axis"), sigma),
            "half_sample_sigma": (("layer", "axis"), sigma * half),
            "resampled_sigma": (("layer", "resample", "axis"), sigma[:, None] * factors[:, None]),
            "theoretical": (("layer", "axis"), sizes[:, None]),
            "jump": (("layer", "axis"), np.ones((count, 1))),
            "input_size": ("axis", [inputs]),
            "anisotropy": ("layer", np.full(count, nan)),
            "anisotropy_low": ("layer", np.full(count, nan)),
            "anisotropy_high": ("layer", np.full(count, nan)),
            "outside": ("layer", np.zeros(count)),
        },
        coords={
            "layer": [f"conv{index}" for index in range(count)],
            "axis": ["time"],
            "number": ("layer", np.arange(count) + 1),
        },
        attrs={
            "samples": 16,
            "layers_total": count,
            "layers_measured": count,
            "null_kept": "",
            "null_absent": "",
            "recurrent": "",
            "global_statistics": "",
        }
        | attrs,
    )


def judged(trace: xr.Dataset, code: str = "effective-field", **limits: float) -> Finding:
    (finding,) = (
        finding
        for finding in effective_field(trace, EffectiveFieldLimits(**limits))
        if finding.code == code
    )
    return finding


def test_without_a_requirement_the_field_is_reported():
    finding = judged(effective([10.0, 20.0]))
    assert finding.severity is Severity.INFO
    assert finding.message == (
        "the centre unit of conv1 draws on a diameter of 20 positions; its theoretical field is "
        "61, the input 140"
    )
    assert finding.meaning == (
        "What lies further out hardly moves this unit, whatever the theoretical field."
    )
    assert (finding.value, finding.low, finding.high, finding.samples) == (20, 18, 23, 16)
    assert finding.relation == ""


def test_seconds_selection_and_the_way_on_are_told():
    trace = effective(
        [10.0, 20.0],
        sample_rate=100.0,
        layers_total=300,
        recurrent="lstm",
        null_absent="it is copied by nobody",
    )
    finding = judged(trace)
    assert "a diameter of 20 positions (0.2 s); its" in finding.message
    assert finding.message.endswith("(2 of 300 convolutions were measured, evenly spaced)")
    assert finding.meaning.endswith(
        "There is no untrained copy to compare with: it is copied by nobody. Behind it recurrent "
        "layers (lstm) reach further along the sequence: see Memory horizon for the whole network."
    )


def test_an_unknown_theoretical_field_is_said():
    trace = effective([20.0])
    trace["theoretical"][:] = nan
    assert "its theoretical field is unknown, the input 140" in judged(trace).message


@pytest.mark.parametrize(
    ("required", "severity"),
    [(17.0, Severity.PASS), (20.0, Severity.INCONCLUSIVE), (24.0, Severity.WARN)],
)
def test_both_sides_of_a_requirement(required, severity):
    assert judged(effective([20.0]), required=required).severity is severity


@pytest.mark.parametrize(
    ("half", "severity"), [(0.92, Severity.PASS), (0.85, Severity.INCONCLUSIVE)]
)
def test_a_field_that_has_not_converged_is_inconclusive(half, severity):
    assert judged(effective([20.0], half), required=10.0).severity is severity


def test_one_sample_is_inconclusive():
    trace = effective([20.0], nan, samples=1)
    trace["diameter_low"][:] = trace["diameter_high"][:] = nan
    finding = judged(trace, required=10.0)
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.action == "Audit 8 samples or more of the same size."


def test_the_deepest_measured_layer_counts():
    assert judged(effective([10.0, 20.0, nan])).where == ("conv1",)


def test_dead_centre_units_are_not_a_pass():
    finding = judged(effective([nan, nan]), required=1.0)
    assert finding.severity is Severity.INCONCLUSIVE


NULLS = {
    "wider": (15.0, 0.1, "Training widened the field: it is 1.3 times that of 3 untrained"),
    "barely wider": (
        17.0,
        0.1,
        "Whether training changed its size is not certain: it is 1.2 times",
    ),
    "uneven copies": (
        15.0,
        3.0,
        "Whether training changed its size is not certain: it is 1.4 time",
    ),
    "same": (20.5, 0.1, "Training hardly changed its size: it is 0.98 times that of 3 untrained"),
    "narrower": (26.0, 0.1, "Training narrowed the field: it is 0.77 times that of 3 untrained"),
}


@pytest.mark.parametrize("name", NULLS)
def test_the_field_is_held_against_untrained_copies(name):
    """A diameter of 20 in [19, 21.5], against where a fourth copy would lie, and 10 %."""
    middle, step, meaning = NULLS[name]
    trace = effective([10.0, 20.0])
    trace["diameter_low"][1], trace["diameter_high"][1] = 19.0, 21.5
    copies = np.array([[9.0, middle + place * step] for place in (-1, 0, 1)])
    trace["null_diameter"] = ("null", "layer"), copies
    assert meaning in judged(trace).meaning


def test_the_range_of_one_more_copy():
    """Of a normal distribution, one more value lies in it 95 times of 100."""
    random = np.random.default_rng(1)
    draws = random.normal(3.0, 2.0, (4000, 4))
    inside = [low <= row[3] <= high for row in draws for low, high in [another(row[:3])]]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)
    assert np.isnan(another(np.array([1.0]))).all()


@pytest.mark.parametrize(
    ("copies", "meaning"),
    [
        ([nan, 10.0], "Whether training changed its size is not certain: it is 2 times that of 1"),
        ([nan, nan], "Untrained copies have no field at this layer to compare with."),
    ],
)
def test_dead_copies_are_no_evidence(copies, meaning):
    trace = effective([10.0, 20.0])
    trace["null_diameter"] = ("null", "layer"), np.array([[9.0, copy] for copy in copies])
    assert meaning in judged(trace).meaning


def test_what_copies_keep_is_told():
    trace = effective([20.0], null_kept="scale")
    trace["null_diameter"] = ("null", "layer"), [[20.0]]
    assert judged(trace).meaning.endswith("1 untrained copy (which keeps scale as trained).")


DEPTH = np.arange(1, 13)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_power_of_depth_is_found(power):
    trace = effective([*(2.0 * DEPTH**power)], reach=[*(4.0 * DEPTH)])
    found = growth(trace, EffectiveFieldLimits())
    assert found.exponent.value == pytest.approx(power)
    assert (found.exponent.low, found.exponent.high) == pytest.approx((power, power))
    assert (found.layers, found.reason) == (12, "")


def test_the_power_of_depth_is_that_along_both_axes():
    trace = effective([*(2.0 * DEPTH**0.5)], reach=[*(4.0 * DEPTH)])
    found = growth(trace.isel(axis=[0, 0]), EffectiveFieldLimits())
    assert found.exponent.value == pytest.approx(0.5)


def test_its_interval_is_that_of_the_resamples():
    """Each resample has its own power, between 0.4 and 0.6."""
    trace = effective([*(4.0 * DEPTH**0.5)], reach=[*(4.0 * DEPTH)])
    powers = np.linspace(0.4, 0.6, 41)
    trace["resampled_sigma"] = (
        ("layer", "resample", "axis"),
        DEPTH[:, None, None] ** powers[:, None],
    )
    exponent = growth(trace, EffectiveFieldLimits()).exponent
    assert (exponent.low, exponent.high) == pytest.approx((0.405, 0.595))


WITHOUT_LAW = {
    "few layers": (
        effective([2.0, 3.0, 4.0], reach=[2.0, 4.0, 8.0]),
        "strides and the borders of the input leave 3 of the measured convolutions to fit one to",
    ),
    "near the borders": (
        effective([20.0, 30.0, 60.0, 106.0], reach=[10.0, 20.0, 30.0, 40.0]),
        "strides and the borders of the input leave 3 of the measured convolutions to fit one to",
    ),
    "small range": (
        effective([*(2.0 * DEPTH**0.5)], reach=[*(10.0 + DEPTH)]),
        "the theoretical field grows by less than 4 times over the 12 convolutions of one stride "
        "whose field is well inside the input",
    ),
    "doubled dilations": (
        effective([2.0, 4.0, 8.0, 16.0, 32.0], reach=[2.0, 6.0, 14.0, 30.0, 62.0]),
        "dilations or kernels make the theoretical field grow faster in the second half of the "
        "convolutions than in the first",
    ),
    "small kernels last": (
        effective([*DEPTH.astype(float)], reach=[*(20.0 * np.log1p(DEPTH * 2) - 20)]),
        "dilations or kernels make the theoretical field grow more slowly in the second half of "
        "the convolutions than in the first",
    ),
}


@pytest.mark.parametrize("name", WITHOUT_LAW)
def test_there_is_not_always_a_law(name):
    trace, reason = WITHOUT_LAW[name]
    finding = judged(trace, "field-growth")
    assert finding.severity is Severity.NOT_APPLICABLE
    assert finding.message == f"no power of depth describes the field: {reason}"


def test_strides_end_a_run_of_layers():
    """Of 12 layers the stride doubles behind the fifth: the later seven are the longer run."""
    trace = effective([*(2.0 * DEPTH**0.5)], reach=[*(1.0 * DEPTH)])
    trace["jump"][5:, 0] = 2
    assert growth(trace, EffectiveFieldLimits(growth_range=2)).layers == 7
    # Where it falls back, as behind the bottom of a U-Net, a new run begins.
    trace["jump"][:, 0] = [1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1]
    assert growth(trace, EffectiveFieldLimits()).layers == 4


GROWTH = {
    "more": ([0.3, 0.31], "Here depth pays with more context than in untrained copies."),
    "as much": ([0.49, 0.52], "It does not differ for certain from the power in untrained copies."),
    "less": ([0.69, 0.7], "Here depth pays with less context than in untrained copies."),
    "no copies": ([], "It does not differ for certain from the power with random weights."),
}


@pytest.mark.parametrize("name", GROWTH)
def test_growth_is_held_against_that_of_untrained_copies(name):
    powers, meaning = GROWTH[name]
    trace = effective([*(4.0 * DEPTH**0.5)], reach=[*(4.0 * DEPTH)])
    if powers:
        copies = np.array([3.0 * DEPTH**power for power in powers])
        trace["null_diameter"] = ("null", "layer"), copies
    finding = judged(trace, "field-growth")
    assert finding.severity is Severity.INFO
    assert finding.value == pytest.approx(0.5)
    ends = f" (untrained copies: {powers[0]:.2f} to {powers[1]:.2f})" if powers else ""
    assert finding.message == (
        f"over 12 convolutions the field grows with the power 0.50 of depth{ends}"
    )
    assert finding.meaning.endswith(meaning)


@pytest.mark.parametrize(("measured", "told"), [([0, 5, 11], True), ([0, 11], False)])
def test_copies_need_not_be_measured_at_every_layer(measured, told):
    trace = effective([*(4.0 * DEPTH**0.5)], reach=[*(4.0 * DEPTH)])
    copies = np.full((2, 12), nan)
    copies[:, measured] = 3.0 * DEPTH[measured] ** 0.3
    trace["null_diameter"] = ("null", "layer"), copies
    message = judged(trace, "field-growth").message
    assert message.endswith("power 0.50 of depth (untrained copies: 0.30)") == told
    assert message.endswith("power 0.50 of depth") != told


def two_axes(low: float) -> xr.Dataset:
    trace = effective([20.0])
    trace = xr.concat([trace.assign_coords(axis=[name]) for name in "yx"], "axis", data_vars="all")
    per_layer = [name for name in trace if name not in ("sigma", "half_sample_sigma", "jump")]
    for name in set(per_layer) - {"theoretical", "input_size", "resampled_sigma"}:
        trace[name] = trace[name].isel(axis=0)
    trace["sigma"] = ("layer", "axis"), [[3.0, 6.0]]
    trace["half_sample_sigma"] = trace["sigma"]
    trace["theoretical"] = ("layer", "axis"), [[50.0, 60.0]]
    trace["input_size"] = "axis", [100.0, 150.0]
    for end, value in (("", 2.0), ("_low", low), ("_high", 2.2)):
        trace["anisotropy" + end] = "layer", [value]
    return trace


@pytest.mark.parametrize(("low", "said"), [(1.19, False), (1.21, True)])
def test_an_elongated_field_is_told_where_it_is_clear(low, said):
    findings = [*effective_field(two_axes(low), EffectiveFieldLimits())]
    elongated = [finding for finding in findings if finding.code == "field-elongation"]
    assert len(elongated) == said
    for finding in elongated:
        assert finding.severity is Severity.INFO
        assert finding.message == (
            "the field of conv0 is 2 times as long along x as along y (theoretical field: 1.2 "
            "times, input: 1.5 times)"
        )


@pytest.mark.parametrize(("share", "said"), [(9e-7, False), (2e-6, True)])
def test_gradients_outside_of_the_theoretical_field(share, said):
    trace = effective([10.0, 20.0])
    trace["outside"][1] = share
    findings = [*effective_field(trace, EffectiveFieldLimits())]
    outside = [finding for finding in findings if finding.code == "field-mismatch"]
    assert len(outside) == said
    for finding in outside:
        assert finding.severity is Severity.INCONCLUSIVE
        assert finding.where == ("conv1",)
        assert finding.message == (
            "up to 2e-06 of the gradient's energy lies outside of the theoretical field, at 1 "
            "convolution: conv1"
        )


def test_statistics_of_the_map_explain_them():
    trace = effective([10.0, 20.0], global_statistics="norm1, norm2")
    trace["outside"][:] = [0.1, 0.2]
    finding = judged(trace, "field-mismatch")
    assert finding.severity is Severity.INFO
    assert finding.meaning == (
        "Statistics of the whole map carry it, which by convention do not count: norm1, norm2."
    )


def on_two_axes(trace: xr.Dataset) -> xr.Dataset:
    """Make a chain along time one along two axes."""
    whole = ("status", "reason")
    both = xr.concat([trace.assign_coords(axis=[name]) for name in "yx"], "axis", data_vars="all")
    return both.assign({name: both[name].isel(axis=0) for name in whole})


def test_a_layer_that_slides_along_one_axis_is_a_convolution():
    trace = on_two_axes(theoretical([3, 5], 28))
    trace["jump"][1, 0] = nan
    assert found(trace, "theoretical-field").where == ("conv1",)


def test_a_field_that_is_unknown_along_one_axis_is_unknown():
    trace = on_two_axes(theoretical([3, 5], 28))
    trace["size_without_gates"][1, 0] = nan
    finding = found(trace, "theoretical-field")
    assert finding.severity is Severity.INCONCLUSIVE
    assert (finding.samples, finding.where) == (1, ("conv1",))


@pytest.mark.parametrize(
    ("inputs", "covered", "meaning"),
    [
        (8, "sees 88% of the input", "No unit of a convolution can use what lies outside of its"),
        (7, "covers the input", "Units of the last convolution can use the whole input."),
        (4, "covers the input", "Units of the last convolution can use the whole input."),
    ],
)
def test_both_sides_of_the_whole_input(inputs, covered, meaning):
    finding = found(theoretical([3, 5, 7], inputs), "theoretical-field")
    assert finding.message == (
        f"a unit of the last convolution (conv2) {covered}: 7 of {inputs} positions"
    )
    assert finding.meaning.startswith(meaning)


def test_the_smallest_side_of_a_field_is_its_value():
    trace = on_two_axes(theoretical([3, 5], 28))
    trace["size_without_gates"][1] = [9, 4]
    assert found(trace, "theoretical-field").value == 4


def test_a_theory_is_one_sample():
    trace = theoretical([5, 7, 9, 11], 7, "UNKNOWN")
    trace["minimal"][2, 0] = 99
    findings = [*receptive_field(trace, ReceptiveFieldLimits())]
    assert {finding.code: finding.samples for finding in findings} == {
        "theoretical-field": 1,
        "unproductive-layers": 1,
        "window-wider-than-map": 1,
        "field-unknown": 1,
    }


def test_what_covers_one_axis_is_still_of_use_along_the_other():
    trace = on_two_axes(theoretical([5, 7, 9], 40))
    trace["input_size"][:] = [7, 40]
    unproductive = found(trace, "unproductive-layers")
    assert unproductive.value == 0
    assert unproductive.message.startswith("0 of 3 convolutions")
    # Behind what sees everything along one axis only, a layer still counts.
    trace["status"][2] = "WHOLE_INPUT"
    assert trace["minimal_input"][2].to_numpy().tolist() == [7, 7]
    assert found(trace, "unproductive-layers").meaning == (
        "Every convolution adds context, and would with inputs down to 7 x 8."
    )
    trace["minimal"][1] = trace["minimal_input"][1] + [7, 7]
    codes = [finding.code for finding in receptive_field(trace, ReceptiveFieldLimits())]
    assert "window-wider-than-map" not in codes


def test_the_depth_to_cut_after_is_that_of_the_last_that_adds():
    assert found(theoretical([5, 7, 9, 11, 13], 9), "unproductive-layers").action == (
        "Use larger inputs, or compare with a network of the 3 convolutions that add context, cut "
        "after conv2."
    )


def test_the_first_unknown_layer_and_its_reason_are_named():
    trace = theoretical([3, 5, 7], 28, "UNKNOWN")
    trace["status"][1] = "UNKNOWN"
    trace["reason"][1] = "topk is not known"
    unknown = found(trace, "field-unknown")
    assert unknown.message == "the field of 2 layers is unknown from conv1 on: topk is not known"
    assert unknown.where == ("conv1", "conv2")


def test_a_theoretical_field_that_is_unknown_along_one_axis_is_unknown():
    trace = two_axes(1.0)
    trace["theoretical"][0, 1] = nan
    assert "its theoretical field is unknown, the input 100 x 150" in judged(trace).message


def test_a_source_is_told_of_a_requirement_only():
    trace = effective([20.0])
    assert judged(trace).limit_source == ""
    required = judged(trace, required=10.0)
    assert required.limit_source.startswith("set by the user")
    assert (required.relation, required.action) == (">=", "None.")
    assert judged(trace, required=30.0).action == (
        "Enlarge the field: more depth, stride, dilation or larger kernels."
    )


@pytest.mark.parametrize(
    ("ends", "meaning"),
    [
        ((1.5, 2.0, 2.5), "Whether training changed its size is not certain: it is 2 times"),
        ((1.51, 2.0, 2.5), "Training widened the field: it is 2 times"),
        ((0.2, 0.4, 0.5), "Whether training changed its size is not certain: it is 0.4 times"),
        ((0.2, 0.4, 0.49), "Training narrowed the field: it is 0.4 times"),
        ((0.2, 0.5, 2.5), "Training hardly changed its size: it is 0.5 times"),
        ((0.2, 1.5, 2.5), "Training hardly changed its size: it is 1.5 times"),
        ((0.2, 1.6, 2.5), "Whether training changed its size is not certain: it is 1.6 times"),
    ],
)
def test_ratios_of_exactly_the_limit_change_nothing(ends, meaning):
    trace = effective([1.0])
    for name, value in zip(("diameter_low", "diameter", "diameter_high"), ends, strict=True):
        trace[name][0] = value
    trace["null_diameter"] = ("null", "layer"), [[1.0], [1.0]]
    assert meaning in judged(trace, untrained=0.5).meaning


def test_the_axis_that_changed_most_decides_whether_a_field_converged():
    trace = two_axes(1.0)
    trace["half_sample_sigma"] = ("layer", "axis"), [[3.0, 4.5]]
    finding = judged(trace)
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.meaning.startswith(
        "Half of the samples give a field 25% different: it has not converged."
    )
    assert judged(trace, convergence=0.25).severity is Severity.INFO


def test_two_samples_are_enough_for_an_interval():
    assert judged(effective([20.0], samples=2)).severity is Severity.INFO


def test_limits_that_are_just_met_are_not_exceeded():
    codes = [finding.code for finding in effective_field(two_axes(1.2), EffectiveFieldLimits())]
    assert "field-elongation" not in codes
    trace = effective([10.0, 20.0, 30.0])
    trace["outside"][:] = [1e-6, 3e-6, 2e-6]
    finding = judged(trace, "field-mismatch")
    assert finding.where == ("conv1", "conv2")
    assert finding.value == 3e-6
    assert finding.message == (
        "up to 3e-06 of the gradient's energy lies outside of the theoretical field, at 2 "
        "convolutions: conv1, conv2"
    )
