"""Budgets worked out by hand, and the verdicts on them."""

from collections.abc import Callable
from dataclasses import replace
from math import inf, isnan, nan
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analyzer.findings import Finding, Severity
from analyzer.limits import MemoryFootprintLimits
from analyzer.rules.memory_footprint import memory_footprint, size
from analyzer.rules.memory_growth import GIB, Growth

MIB = 2.0**20
LIMITS = MemoryFootprintLimits()


def trace(steps: bool = True, power: int = 1, **attrs: Any) -> xr.Dataset:
    """Two layers: with n samples of t timesteps the first saves n t^power MiB, the second 2 n."""
    samples = np.array([4, 8, 16, 4, 4][: 5 if steps else 3], float)
    timesteps = np.array([8, 8, 8, 4, 6][: samples.size], float)
    saved = np.stack([samples * timesteps**power, 2 * samples, 0 * samples], 1)
    passing = np.stack([3 * samples, samples, 0 * samples], 1)
    held = {
        "parameters": [10, 30, 0], "gradients": [10, 30, 0], "moments": [20, 60, 0],
        "buffers": [1, 0, 0],
    }  # fmt: skip
    live = [2 * n + 40 for n in samples]
    inputs = samples * timesteps / 4
    peak = np.maximum(saved.cumsum(1) + np.array([40, 30, 0]) + passing, 0).max(1)
    variables: dict[str, Any] = {
        name: (("layer",), np.array(values) * MIB) for name, values in held.items()
    }
    variables |= {
        "saved": (("pass", "layer"), saved * MIB),
        "passing": (("pass", "layer"), passing * MIB),
        "saved_per_timestep": (("layer",), [nan, nan, nan]),
        "inputs": (("pass",), inputs * MIB),
        "training_live": (("pass",), peak * MIB),
        "training_allocated": (("pass",), np.full(samples.size, nan)),
        "forward_live": (("pass", "module"), samples[:, None] * [1.0, 2.0] * MIB),
        "serving_live": (("pass", "module"), np.stack([live, samples + 1], 1) * MIB),
        "serving_allocated": (("pass",), np.full(samples.size, nan)),
    }
    facts = {
        "mode": "train", "optimizer": "in the checkpoint: exp_avg and exp_avg_sq", "step": 5 * MIB,
        "batch": 32, "not_shortened": "" if steps else "images",
        "device": "cpu", "dtype": "float32", "gib": 16.0,
    }  # fmt: skip
    return xr.Dataset(
        variables,
        {
            "layer": ["first", "second", "(loss)"],
            "module": ["first", "second"],
            "kind": ("layer", ["Conv1d", "Linear", "loss"]),
            "samples": ("pass", samples),
            "timesteps": ("pass", timesteps if steps else np.full(samples.size, nan)),
        },
        facts | attrs,
    )


def training(samples: float, timesteps: float, power: int = 1) -> float:
    """Budget of training by hand [MiB]."""
    first, second = samples * timesteps**power, 2 * samples
    backward = max(first + 40 + 3 * samples, first + second + 30 + samples)
    return 40 + 1 + 80 + samples * timesteps / 4 + max(backward, 40 + 5)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(("samples", "timesteps"), [(1, 8), (16, 8), (500, 8), (32, 100)])
def test_budgets_of_any_size_are_those_by_hand(samples: int, timesteps: int, power: int) -> None:
    growth = Growth(trace(power=power))
    assert growth.degrees == (1, power)
    found = growth.training(samples, timesteps).total / MIB
    assert found == pytest.approx(training(samples, timesteps, power))


def test_the_step_of_the_optimizer_is_the_peak_where_it_takes_more() -> None:
    parts = Growth(trace(step=500 * MIB)).training(1)
    assert (parts.activations, parts.gradients, parts.passing) == (0, 40 * MIB, 500 * MIB)
    assert Growth(trace(step=500 * MIB)).error() == pytest.approx(0)


def test_forward_is_the_peak_where_it_holds_more_than_it_saves() -> None:
    measured = trace()
    measured["forward_live"] += 300 * MIB
    parts = Growth(measured).training(16)
    assert (parts.gradients, parts.activations / MIB, parts.passing) == (0, pytest.approx(332), 0)


def test_the_module_that_takes_most_depends_on_the_batch() -> None:
    measured = trace(steps=False)
    # A copy of weights of 40 MiB in the one, 9 MiB a sample in the other.
    measured["serving_live"][:, 1] = 9 * MIB * measured["samples"]
    growth = Growth(measured)
    assert growth.place(5) == "first"
    assert growth.place(6) == "second"
    assert growth.serving(100).activations == pytest.approx(900 * MIB)
    assert growth.serving(4).activations == pytest.approx(48 * MIB)


def test_what_does_not_grow_with_the_batch_does_not_with_time() -> None:
    measured = trace()
    by_pass = measured["samples"] * measured["timesteps"]
    measured["serving_live"][:, 0] = (40 + by_pass) * MIB
    assert Growth(measured).serving(50, 80).activations == pytest.approx((40 + 50 * 80) * MIB)


def test_serving_needs_neither_gradients_nor_moments() -> None:
    parts = Growth(trace()).serving(100)
    assert parts.total / MIB == pytest.approx(40 + 1 + 100 * 8 / 4 + 240)


@pytest.mark.parametrize("gib", [0.5, 8.0, 24.0])
def test_the_largest_that_fits_fits_and_one_more_does_not(gib: float) -> None:
    growth, budget = Growth(trace(power=2)), gib * GIB
    for kind in ("training", "serving"):
        batch = growth.largest_batch(budget, kind)
        run = getattr(growth, kind)
        assert run(batch).total <= budget < run(batch + 1).total
    steps = growth.longest(budget)
    assert growth.training(32, steps).total <= budget < growth.training(32, steps + 1).total


def test_nothing_fits_and_everything_fits() -> None:
    growth = Growth(trace())
    assert growth.largest_batch(100 * MIB) == 0
    still = trace()
    for name in ("saved", "passing", "inputs", "forward_live"):
        still[name] = 0 * still[name]
    assert Growth(still).largest_batch(GIB) == inf


def test_a_length_that_was_not_varied_has_no_longest() -> None:
    growth = Growth(trace(steps=False))
    assert isnan(growth.longest(GIB))
    assert growth.degrees == (1, 0)
    assert growth.training(16).total / MIB == pytest.approx(training(16, 8))


def test_the_error_is_the_largest_over_the_passes() -> None:
    measured = trace()
    assert Growth(measured).error() == pytest.approx(0)
    measured["training_live"][1] += 100 * MIB
    whole = training(8, 8) + 100
    assert Growth(measured).error() == pytest.approx(1 - training(8, 8) / whole)


def test_the_allocator_is_believed_where_there_is_one() -> None:
    measured = trace()
    measured["training_allocated"] = measured["training_live"] + 20 * MIB
    assert Growth(measured).measured(2) / MIB == pytest.approx(training(16, 8) + 20)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 KiB"),
        (MIB - 1, "1024 KiB"),
        (123.4 * 1024, "123 KiB"),
        (1536, "1.5 KiB"),
        (3 * MIB, "3 MiB"),
        (2.5 * GIB, "2.5 GiB"),
    ],
)
def test_sizes_are_in_powers_of_1024(count: float, text: str) -> None:
    assert size(count) == text


def judged(measured: xr.Dataset, **limits: float) -> tuple[Finding, Finding]:
    first, second = memory_footprint(measured, replace(LIMITS, **limits))
    return first, second


def _most(total: Callable[[int], float]) -> int:
    """Count up to the last that fits into 16 GiB."""
    return next(n for n in range(1, 10**5) if total(n + 1) > 16 * 1024)


def test_without_a_budget_it_is_information() -> None:
    found, serving = judged(trace())
    assert found.severity is serving.severity is Severity.INFO
    assert found.code == "training-memory"
    assert found.value == pytest.approx(training(32, 8) / 1024)
    assert (found.low, found.high) == pytest.approx((0.9 * found.value, 1.1 * found.value))
    assert isnan(found.limit)
    assert found.where == ("first",)
    batch, steps = _most(lambda n: training(n, 8)), _most(lambda t: training(32, t))
    assert found.message == (
        "training with batches of 32 sequences of 8 timesteps takes 577 MiB: parameters 40 MiB, "
        "moments of the optimizer 80 MiB, gradients of parameters 40 MiB, activations 256 MiB, "
        "gradients of activations or the optimizer's step 96 MiB, buffers and inputs 65 MiB; into "
        f"16 GiB fit batches of {batch}, or sequences of {steps} timesteps; the estimate is "
        "within 0.0% of the peak in 5 measured passes"
    )
    assert found.action == "Set the limit memory_footprint.budget_gib to have it judged."
    assert serving.message == (
        "serving batches of 32 sequences of 8 timesteps takes 209 MiB: parameters and buffers "
        "41 MiB, activations at most 104 MiB at once, in first; into 16 GiB fit batches of 4075, "
        "or sequences of 2029 timesteps"
    )


@pytest.mark.parametrize(
    ("factor", "severity", "action"),
    [
        (0.8, Severity.WARN, "Use batches of {} or fewer. {}"),
        (0.95, Severity.INCONCLUSIVE, "Use batches of {} or fewer, to be sure."),
        (1.05, Severity.INCONCLUSIVE, "Use batches of {} or fewer, to be sure."),
        (1.2, Severity.PASS, "None."),
        (0.2, Severity.WARN, "Not even one sample fits: split it. {1}"),
    ],
)
def test_training_is_judged_against_the_budget(
    factor: float, severity: Severity, action: str
) -> None:
    budget = factor * training(32, 8)
    found, _ = judged(trace(), budget_gib=budget / 1024)
    fits = [samples for samples in range(1, 99) if training(samples, 8) <= budget / 1.1]
    advice = "Save memory where the activations are: checkpoint first."
    assert (found.severity, found.action) == (severity, action.format(max(fits, default=0), advice))
    assert found.relation == "<="
    assert found.limit_source.startswith("set by the user")


def test_an_estimate_that_is_off_widens_the_interval() -> None:
    measured = trace()
    measured["training_live"] *= 2
    found, _ = judged(measured, budget_gib=1.2 * training(32, 8) / 1024)
    assert found.severity is Severity.INCONCLUSIVE
    assert found.high / found.value == pytest.approx(1 + Growth(measured).error())


def test_recurrent_layers_on_the_cpu_say_that_a_gpu_differs() -> None:
    measured = trace()
    assert not judged(measured)[0].meaning.endswith("other amounts.")
    measured["saved_per_timestep"][0] = 5.0
    assert judged(measured)[0].meaning.endswith(
        "Measured on the CPU: on a GPU recurrent layers save other amounts."
    )
    assert "CPU" not in judged(measured.assign_attrs(device="cuda"))[0].meaning


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (GIB, "1 GiB"),
        (MIB, "1 MiB"),
        (99.96 * MIB, "100 MiB"),
        (512, "0.5 KiB"),
        (99.5 * MIB, "99.5 MiB"),
    ],
)
def test_a_size_of_exactly_one_unit_is_written_in_it(count: float, text: str) -> None:
    assert size(count) == text


def test_what_fits_is_told_for_the_memory_there_is_or_the_budget() -> None:
    growth = Growth(trace())
    for limit, gib in ((nan, 16.0), (2.0, 2.0)):
        finding = judged(trace(), budget_gib=limit)[0]
        batch = growth.largest_batch(gib * GIB, "training")
        steps = growth.longest(gib * GIB, "training")
        assert f"into {gib:g} GiB fit batches of {batch:.0f}, or sequences of {steps:.0f}" in (
            finding.message
        )
    assert "sequences" not in judged(trace(steps=False))[0].message


def test_a_gpu_is_mentioned_where_a_recurrent_layer_ran_on_the_cpu() -> None:
    feedforward, on_gpu, recurrent = trace(), trace(device="cuda"), trace()
    for dataset in (on_gpu, recurrent):
        dataset["saved_per_timestep"][0] = 5.0
    told = ["on a GPU" in judged(one)[0].meaning for one in (feedforward, on_gpu, recurrent)]
    assert told == [False, False, True]


def test_the_layers_that_hold_half_are_named() -> None:
    assert judged(trace())[0].where == ("first",)
    even = trace()
    even["saved"][2] = [40 * MIB, 30 * MIB, 30 * MIB]
    assert judged(even)[0].where == ("first", "second")


def test_the_samples_are_those_of_the_largest_pass() -> None:
    assert [finding.samples for finding in judged(trace())] == [16, 16]
