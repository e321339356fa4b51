"""Losses and gradients of both sides of a split, read back from hand-made traces."""

from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyzer.rules.sides import HELD_OUT, TRAINED, alignment, ratio, sides
from reports import style
from reports.figures.generalization import alignments, distribution, ratios, scores, section

SIZES = (30, 20)
MEASURED = ("square", "own", "other", "cosine_own", "cosine_other")


def told(layers: int = 3, scored: bool = True, gradients: bool = True) -> xr.Dataset:
    """Gradients that are larger and less alike in later layers; unequal samples."""
    rng = np.random.default_rng(8)
    count = sum(SIZES)
    side = np.array([TRAINED] * SIZES[0] + [HELD_OUT] * SIZES[1])
    held = side == HELD_OUT
    trace = xr.Dataset(coords={"side": ("sample", side)}, attrs={"refusal": "", "not_measured": ""})
    trace["loss"] = "sample", rng.lognormal(np.where(held, -1, -3), 1)
    trace["loss_null"] = "sample", rng.lognormal(1, 0.3, count)
    if scored:
        trace["score"] = "sample", (rng.uniform(size=count) < np.where(held, 0.8, 1)).astype(float)
        trace["score_null"] = "sample", rng.uniform(0, 0.5, count)
    if not gradients:
        return trace
    names = [f"block{at}.conv" for at in range(layers)]
    trace = trace.assign_coords(layer=names, dimensions=("layer", np.arange(layers) % 2 * 4096))
    size = np.where(held[:, None], 2.0 + np.arange(layers), 1) * rng.lognormal(0, 0.2, (count, 1))
    alike = {
        "square": size**2, "own": 0.6 * size**2, "other": (0.5 - 0.8 * np.arange(layers) / layers)
        * size, "cosine_own": 0.5 + 0 * size, "cosine_other": 0.3 + 0 * size,
    }  # fmt: skip
    for name, values in alike.items():
        null = np.where(held[:, None] | name.endswith("other"), 0.2 * values, np.nan)
        trace[name] = ("sample", "layer"), values
        trace[f"{name}_null"] = ("sample", "layer"), null
        trace[f"{name}_all"] = "sample", values.sum(1)
        trace[f"{name}_null_all"] = "sample", null.sum(1)
    return trace


@pytest.fixture
def ax() -> Iterator[Axes]:
    with style.sheet():
        yield Figure(figsize=(6, 2)).subplots()


def words(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_every_side_has_its_distribution_and_its_mean(ax: Axes) -> None:
    trace = told()
    distribution(ax, trace)
    curves, means = ax.lines[::2], ax.lines[1::2]
    losses = trace["loss"].to_numpy()
    expected = losses[: SIZES[0]], losses[SIZES[0] :], trace["loss_null"].to_numpy()[SIZES[0] :]
    for curve, mean, values in zip(curves, means, expected, strict=True):
        np.testing.assert_allclose(curve.get_xdata(), np.sort(values))
        np.testing.assert_allclose(curve.get_ydata()[[0, -1]], [1 / len(values), 1])
        assert mean.get_xdata()[0] == pytest.approx(values.mean())
    assert ax.get_xscale() == "log"
    assert words(ax) == ["trained on", "held out", "held out, targets exchanged"]


def test_losses_of_zero_and_unknown_ones_can_be_drawn(ax: Axes) -> None:
    trace = told()
    trace["loss"] = 0 * trace["loss"]
    trace["loss_null"] = np.nan * trace["loss_null"]
    distribution(ax, trace)
    assert ax.get_xscale() == "linear"
    assert words(ax) == ["trained on", "held out"]


def test_right_answers_are_bars(ax: Axes) -> None:
    trace = told()
    scores(ax, trace)
    right = trace["score"].to_numpy()
    heights = [patch.get_height() for patch in ax.patches]
    null = trace["score_null"].to_numpy()[SIZES[0] :].mean()
    np.testing.assert_allclose(heights, [1, right[SIZES[0] :].mean(), null])
    assert words(ax)[0] == "100\u202f%"


def test_ratios_and_cosines_are_those_that_are_told(ax: Axes) -> None:
    trace = told()
    ratios(ax, trace, 1)
    found = [one.value for one in ratio(*sides(trace))]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), found)
    assert found[0] < found[1] < found[2]
    axes = Figure().subplots()
    alignments(axes, trace, 1)
    _, measured, most, chance = axes.lines
    estimates = alignment(*sides(trace), trace["dimensions"].to_numpy())
    np.testing.assert_allclose(measured.get_ydata(), [one.value for one in estimates])
    assert (np.diff(measured.get_ydata()) < 0).all()
    assert (most.get_ydata() <= 1).all()
    assert len(chance.get_ydata()) == 3


@pytest.mark.parametrize("layers", [1, 3, 130])
def test_the_section_is_complete(layers: int) -> None:
    trace = told(layers)
    laid_out = section(trace, [])
    assert [plate.name for plate in laid_out.plates] == [
        "generalization-losses", "generalization-layers"
    ]  # fmt: skip
    for plate in laid_out.plates:
        with style.sheet():
            figure = style.canvas(plate.height)
            plate.draw(figure)
            style.svg(figure)
        assert any(character.isdigit() for character in plate.alt)
    assert set(laid_out.layers) == {"Gradient held out / trained on", "Alignment"}
    assert list(laid_out.layers["Alignment"]) == [f"block{at}.conv" for at in range(layers)]
    assert [tile.label for tile in laid_out.tiles] == [
        "Lost of what was learnt", "Loss, trained on", "Loss, held out", "Right, held out"
    ]  # fmt: skip


def test_without_classes_or_gradients_there_is_less_to_show() -> None:
    laid_out = section(told(scored=False, gradients=False), [])
    (plate,) = laid_out.plates
    figure = style.canvas(plate.height)
    plate.draw(figure)
    assert len(figure.axes) == 1
    assert len(laid_out.tiles) == 3
    assert not laid_out.tables
