"""Decades over time against traces whose decay is known, and against decades over depth."""

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Severity
from analyzer.limits import LayersOrTimeLimits, TimestepGradientLimits
from analyzer.rules.layers_or_time import layers_or_time
from analyzer.rules.timestep_gradient import entrance, time_decades, timestep_gradient
from analyzer.rules.verdicts import Estimate

RNG = np.random.default_rng(1)
STEPS = 19  # so short that 5 % of it is one step


def decaying(decades: float, samples: int = 30) -> np.ndarray:
    """(sample, timestep) gradients that lose ``decades`` from the last step to the first."""
    size = 10 ** RNG.uniform(-2, 0, (samples, 1))
    return size * 10 ** np.linspace(-decades, 0, STEPS)


def trace(cells: dict[str, np.ndarray], *, cell: bool = True) -> xr.Dataset:
    """One layer per entry; without a cell the values are those of the hidden state."""
    values = np.stack([*cells.values()], axis=1)
    undefined = np.full_like(values, np.nan)
    dims = ("sample", "layer", "timestep")
    hidden, kept = (values * 7, values) if cell else (values, undefined)
    return xr.Dataset(
        {
            "hidden_gradient_final": (dims, hidden),
            "cell_gradient_final": (dims, kept),
            "length": ("sample", np.full(len(values), STEPS)),
        },
        coords={"layer": [*cells]},
    )


def judged(dataset: xr.Dataset):
    (finding,) = timestep_gradient(dataset, TimestepGradientLimits())
    return finding


@pytest.mark.parametrize("cell", [True, False])
@pytest.mark.parametrize("decades", [-1.0, 0.25, 5.0])
def test_the_decay_is_exact(decades, cell):
    losses = time_decades(trace({"lstm.l0": decaying(decades)}, cell=cell))
    assert losses["lstm.l0"].value == pytest.approx(decades, abs=1e-9)
    assert losses["lstm.l0"].samples == 30


def test_a_reverse_layer_is_followed_in_its_own_time():
    losses = time_decades(trace({"lstm.l0.reverse": decaying(2.0)[:, ::-1]}))
    assert losses["lstm.l0.reverse"].value == pytest.approx(2.0, abs=1e-9)


def test_short_samples_end_where_they_end():
    values = np.full((30, STEPS), np.nan)
    values[:, :10] = decaying(3.0)[:, -10:]
    losses = time_decades(trace({"lstm.l0": values}))
    assert losses["lstm.l0"].value == pytest.approx(3.0 * 9 / (STEPS - 1), abs=1e-9)


@pytest.mark.parametrize(
    ("decades", "severity", "verb"),
    [
        (3.9, Severity.PASS, "shrinks"),
        (4.1, Severity.WARN, "shrinks"),
        (-3.9, Severity.PASS, "grows"),
        (-4.1, Severity.WARN, "grows"),
    ],
)
def test_both_sides_of_the_limit(decades, severity, verb):
    finding = judged(trace({"lstm.l0": decaying(decades), "lstm.l1": decaying(0.1)}))
    assert finding.severity is severity
    assert finding.where == ("lstm.l0",)
    assert f"of lstm.l0 {verb} by a factor of" in finding.message
    assert finding.value == pytest.approx(abs(decades), abs=1e-6)


def test_layers_above_may_lose_more():
    finding = judged(trace({"lstm.l0": decaying(1.0), "lstm.l1": decaying(6.0)}))
    assert finding.severity is Severity.PASS
    assert finding.message.endswith("; most in lstm.l1, 1e+06")


def test_the_input_enters_a_stack_in_either_direction():
    layers = {"a.l0": 5.0, "a.l0.reverse": 2.0, "a.l1": 9.0, "b.l0": 1.0, "b.l0.reverse": 0.5}
    losses = {name: Estimate(value, value, value, 9) for name, value in layers.items()}
    assert entrance(losses) == "a.l0.reverse"
    assert entrance({"a.l0": Estimate()}) == ""


def test_a_gradient_that_is_zero_at_the_first_steps_is_lost():
    values = decaying(1.0)
    values[:, : STEPS // 2] = 0
    finding = judged(trace({"lstm.l0": values}))
    assert finding.severity is Severity.WARN
    assert "shrinks to nothing (by 30 decades or more, " in finding.message
    # Without a gradient at the end nothing is known of a sample.
    values[:10, -1] = 0
    assert judged(trace({"lstm.l0": values})).samples == 20


def test_cells_that_are_called_once_are_left_to_depth():
    finding = judged(
        trace({"cells.0.l0": decaying(0.0)[:, :1], "cells.1.l0": decaying(1.0)[:, :1]})
    )
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.message == "every recurrent layer is called with one timestep"


def test_no_gradient_is_not_a_pass():
    finding = judged(trace({"lstm.l0": np.zeros((3, STEPS))}))
    assert finding.severity is Severity.INCONCLUSIVE
    assert finding.message == "no sample has a non-zero gradient at the last timestep"


def flow(decades: float) -> xr.Dataset:
    gradient = 10 ** RNG.uniform(-2, 0, (30, 1)) * 10 ** np.linspace(-decades, 0, 4)
    return xr.Dataset(
        {
            "activation_gradient": (("sample", "layer"), gradient),
            "elements": (("sample", "layer"), np.full_like(gradient, 8)),
        },
        coords={
            "layer": ["lstm.l0", "lstm.l1", "lstm.l2", "head"],
            "kind": ("layer", ["LSTM", "LSTM", "LSTM", "Linear"]),
            "weighted": ("layer", [1, 1, 1, 1]),
        },
    )


def stacked(depth: float, time: float) -> xr.Dataset:
    """Three layers, the gradient losing ``depth`` decades from the last to the first."""
    top = decaying(time)
    return trace({f"lstm.l{index}": top * 10 ** (depth * (index / 2 - 1)) for index in range(3)})


@pytest.mark.parametrize(
    ("depth", "time", "meaning"),
    [
        (0.2, 5.0, "Time is the bottleneck, not depth"),
        (4.0, 1.5, "Depth is the bottleneck, not time"),
        (0.2, 0.5, "Neither layers nor time is a bottleneck"),
    ],
)
def test_the_bottleneck_is_named(depth, time, meaning):
    (finding,) = layers_or_time({"timestep_gradient": stacked(depth, time)}, LayersOrTimeLimits())
    assert finding.severity is Severity.INFO
    assert finding.meaning.startswith(meaning)
    assert finding.value == pytest.approx(time - depth, abs=1e-6)
    assert "over 3 recurrent layers" in finding.message


def test_one_recurrent_layer_is_compared_with_the_depth_of_the_network():
    traces = {
        "gradient_flow": flow(0.2),
        "timestep_gradient": trace({"lstm.l0": decaying(5.0)}),
    }
    (finding,) = layers_or_time(traces, LayersOrTimeLimits())
    assert finding.meaning.startswith("Time is the bottleneck, not depth")
    assert finding.value == pytest.approx(5.0 - 0.2, abs=1e-6)
    assert "over 4 layers" in finding.message


def test_intervals_that_overlap_name_nothing():
    mixed = np.concatenate([decaying(0.0, 15), decaying(8.0, 16)])
    flows = xr.concat(
        [flow(0.5).isel(sample=slice(15)), flow(7.0).isel(sample=slice(16))], "sample"
    )
    traces = {"gradient_flow": flows, "timestep_gradient": trace({"lstm.l0": mixed})}
    (finding,) = layers_or_time(traces, LayersOrTimeLimits())
    assert finding.severity is Severity.INCONCLUSIVE


def test_without_time_there_is_nothing_to_compare():
    assert [*layers_or_time({"gradient_flow": flow(1.0)}, LayersOrTimeLimits())] == []


def test_without_depth_there_is_nothing_to_compare():
    alone = {"timestep_gradient": trace({"lstm.l0": decaying(3.0)})}
    assert [*layers_or_time(alone, LayersOrTimeLimits())] == []


def test_what_is_lost_in_each_step_and_layer_is_told() -> None:
    (finding,) = layers_or_time({"timestep_gradient": stacked(3.0, 9.0)}, LayersOrTimeLimits())
    assert f"over {STEPS} timesteps" in finding.message
    assert ", 0.5 a step" in finding.message
    assert finding.message.endswith(", 1.5 a layer")


def test_the_deepest_stack_is_compared_without_samples_that_have_no_gradient():
    deep, other = stacked(4.0, 1.5), trace({"other.l0": decaying(1.5)})
    both = xr.concat([other, deep], "layer", data_vars="minimal")
    both["cell_gradient_final"][:3] = 0
    (finding,) = layers_or_time({"timestep_gradient": both}, LayersOrTimeLimits())
    assert "over 3 recurrent layers" in finding.message
    assert ", 2 a layer" in finding.message


def test_the_ends_are_the_means_of_a_twentieth_of_the_timesteps():
    steps = 100
    values = np.tile(10 ** np.linspace(-4.0, 0, steps), (30, 1))
    dataset = trace({"lstm.l0": values})
    assert time_decades(dataset)["lstm.l0"].value == pytest.approx(4.0 * (1 - 4 / (steps - 1)))


def test_two_timesteps_are_enough_and_one_is_not():
    two, one = decaying(3.0)[:, [0, -1]], decaying(3.0)[:, -1:]
    assert time_decades(trace({"rnn.l0": two}))["rnn.l0"].value == pytest.approx(3.0)
    assert np.isnan(time_decades(trace({"rnn.l0": one}))["rnn.l0"].value)


def test_a_gradient_that_grows_has_an_interval_too():
    values = np.concatenate([decaying(-3.0, 15), decaying(-4.0, 16)])
    finding = judged(trace({"lstm.l0": values}))
    assert (finding.low, finding.value, finding.high) == pytest.approx((3.0, 4.0, 4.0))


@pytest.mark.parametrize(("decades", "acts"), [(0.0, False), (9.0, True)])
def test_an_action_follows_a_warning_only(decades, acts):
    finding = judged(trace({"lstm.l0": decaying(decades)}))
    assert (finding.severity is Severity.WARN) is (finding.action != "None.") is acts


@pytest.mark.parametrize(("more", "told"), [(0.4, False), (0.6, True)])
def test_another_layer_is_named_where_it_loses_clearly_more(more, told):
    cells = {"lstm.l0": decaying(1.0), "lstm.l1": decaying(1.0 + more)}
    assert ("most in lstm.l1" in judged(trace(cells)).message) is told


def test_the_direction_that_keeps_more_is_the_entrance_whatever_its_sign():
    losses = {
        "lstm.l0": Estimate(-2.0, -2.0, -2.0, 9), "lstm.l0.reverse": Estimate(1.0, 1.0, 1.0, 9)
    }  # fmt: skip
    assert entrance(losses) == "lstm.l0.reverse"


def test_the_entrance_of_a_stack_and_of_several():
    def named(**layers):
        losses = {name.replace("_", "."): Estimate(v, v, v, 9) for name, v in layers.items()}
        return entrance(losses)

    assert named(a_l0=1.0, a_l0_reverse=-2.0) == "a.l0"
    assert named(a_l0=1.0, a_l0_reverse=1.0) == "a.l0"
    assert named(a_l0=-5.0, b_l0=1.0) == "a.l0"


def test_a_long_reverse_layer_is_followed_through_every_timestep():
    values = np.tile(10 ** np.linspace(0, -4.0, 100), (30, 1))
    losses = time_decades(trace({"lstm.l0.reverse": values}))
    assert losses["lstm.l0.reverse"].value == pytest.approx(4.0 * (1 - 4 / 99))


def test_the_cell_counts_although_some_samples_are_short():
    dataset = trace({"lstm.l0": decaying(2.0)})
    dataset["hidden_gradient_final"][:] = decaying(5.0)[:, None]
    for name in ("hidden_gradient_final", "cell_gradient_final"):
        dataset[name][:10, :, 15:] = np.nan
    losses = time_decades(dataset.isel(sample=slice(10, None)))
    assert losses["lstm.l0"].value == pytest.approx(2.0)
    assert time_decades(dataset)["lstm.l0"].value == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("first", "decades"), [(1e-37, 37), (1e-39, 38), (0.0, 38), (3e-38, 37.5229)]
)
def test_the_smallest_gradient_in_single_precision_ends_the_scale(first, decades):
    values = decaying(0.0)
    values[:] = 1.0
    values[:, 0] = first
    losses = time_decades(trace({"lstm.l0": values}))
    assert losses["lstm.l0"].value == pytest.approx(decades, abs=1e-4)


def test_one_last_step_without_gradient_leaves_a_sample_out():
    values = np.tile(10 ** np.linspace(-4.0, 0, 100), (30, 1))
    values[:12, 97] = 0
    assert time_decades(trace({"lstm.l0": values}))["lstm.l0"].samples == 18


def test_two_timesteps_without_gradient_are_not_called_one():
    finding = judged(trace({"lstm.l0": np.zeros((3, 2))}))
    assert finding.message == "no sample has a non-zero gradient at the last timestep"


def test_a_layer_without_gradient_is_not_the_one_that_loses_most():
    cells = {"a.l1": np.zeros((30, STEPS)), "a.l0": decaying(1.0), "a.l2": decaying(4.0)}
    assert judged(trace(cells)).message.endswith("; most in a.l2, 1e+04")


@pytest.mark.parametrize(
    ("last", "text"),
    [
        (0.5, "of lstm.l0 grows by a factor of 2 (0.017 decades a step)"),
        (1.0, "of lstm.l0 shrinks by a factor of 1 (0 decades a step)"),
        (2.0, "of lstm.l0 shrinks by a factor of 2 (0.017 decades a step)"),
        (1e29, "of lstm.l0 shrinks by a factor of 1e+29 (1.6 decades a step)"),
        (1e30, "of lstm.l0 shrinks to nothing (by 30 decades or more, 1.7 decades a step)"),
    ],
)
def test_small_changes_none_and_nothing_are_put_into_words(last, text):
    values = np.ones((30, STEPS))
    values[:, -1] = last
    assert judged(trace({"lstm.l0": values})).message == (
        f"from the last to the first of 19 timesteps the state gradient {text}"
    )
