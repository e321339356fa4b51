"""What is read off for each layer: closed forms of the centre unit."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from probes.base import Batch, Subject
from probes.field.survey import LayerField, Survey, survey

nan = float("nan")


def layers(model: nn.Module, *shape: int, max_calls: int = 8) -> tuple[Survey, dict]:
    found = survey(Subject(model.eval(), [torch.rand(*shape)]), max_calls)
    return found, {layer.name: layer for layer in found.layers}


def assert_layer(layer: LayerField, **expected: object) -> None:
    told = asdict(layer)
    for name, value in expected.items():
        np.testing.assert_array_equal(told[name], value, name)


def test_layers_of_a_classifier_have_closed_form_numbers():
    model = nn.Sequential(
        nn.Conv2d(1, 2, (3, 4), 2), nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten(), nn.Linear(6, 2)
    )
    found, told = layers(model, 3, 1, 12, 15)
    assert (found.place.leaf, found.place.dims, found.input_size) == (0, (2, 3), (12, 15))
    assert (found.axes, found.unlisted, found.fallback) == (("y", "x"), 0, "")
    # 5 rows, row 2 reads 4 to 6; 6 columns, column 3 reads 6 to 9.
    assert_layer(told["0"], positions=30, size=[3, 4], start=[4, 6], stop=[6, 9], centre=[5, 7.5])
    assert_layer(told["0"], minimal=[3, 4], minimal_input=[1, 1], status="EXACT", jump=[2, 2])
    # All rows, of which the convolution reads 0 to 10; two columns, 2 and 3.
    pooled = told["1"]
    assert_layer(pooled, positions=3, size=[12, 6], start=[0, 4], stop=[10, 9], centre=[5.5, 6.5])
    assert_layer(pooled, minimal=[12, 6], minimal_input=[3, 4], jump=[nan, 4])
    assert_layer(pooled, status="WHOLE_INPUT", size_without_gates=[12, 6])
    # Its columns are features now: the fourth of six is the first column of the second channel.
    assert_layer(told["2"], positions=6, start=[0, 0], stop=[10, 5], centre=[5.5, 2.5])
    assert_layer(told["3"], positions=1, size=[12, 15], stop=[10, 13], centre=[5.5, 7])
    assert_layer(told["3"], minimal_input=[12, 6])
    assert told["3"].reason == (
        "y: global pooling (_adaptive_avg_pool2d) in 1; "
        "x: dense product over all positions (addmm) in 3"
    )


def test_the_centre_of_what_sees_all_is_that_of_the_cell_it_covers():
    class Scanned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv1d(1, 1, 1), nn.Conv1d(1, 1, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(x).cumsum(2))

    _, told = layers(Scanned(), 1, 1, 12)
    # The middle one of 4 cells of 3 positions, number 2 from 0, covers 6 to 8.
    assert_layer(told["last"], centre=[7], start=[0], stop=[6], size=[12], positions=4)


def test_channels_that_run_along_the_axes_are_no_positions():
    _, told = layers(nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 2, 3)), 1, 1, 12, 16)
    assert_layer(told["0"], positions=48, size=[2, 2], start=[6, 8], stop=[7, 9])
    assert_layer(told["1"], positions=24, size=[6, 6], jump=[2, 2], start=[4, 6], stop=[9, 11])


class Repeated(nn.Module):
    """One convolution ten times, then one with a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv1d(1, 1, 3, padding=1), nn.ConvTranspose1d(1, 1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(10):
            x = self.conv(x)
        return self.last(x)


@pytest.mark.parametrize("limit", [1, 8, 10])
def test_further_calls_are_counted_and_followed(limit):
    found, told = layers(Repeated(), 2, 1, 9, max_calls=limit)
    assert [*told] == ["conv", *(f"conv#{call}" for call in range(2, limit + 1)), "last"]
    assert found.unlisted == 10 - limit
    assert_layer(told["last"], size=[21], minimal=[21], minimal_input=[21], positions=28)
    assert told["last"].reason == "depends on the position: 21 to 22"


def test_what_reads_padding_alone_sees_nothing():
    model = nn.Sequential(nn.Conv1d(1, 1, 1, padding=4), nn.Conv1d(1, 1, 2, dilation=6))
    _, told = layers(model, 1, 1, 3)
    # Five outputs; the middle one, 2, reads 2 and 8 of eleven, of which 4 to 6 are inputs.
    assert_layer(told["1"], start=[nan], stop=[nan], size=[7], centre=[1])


def test_outputs_that_lost_their_input_are_unknown_along_each_axis():
    class Outside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor(x.tolist())

    found, told = layers(nn.Sequential(nn.Conv2d(1, 1, 3), Outside()), 1, 1, 6, 9)
    assert found.fallback
    assert_layer(told["1"], status="UNKNOWN", size=[nan, nan], start=[0, 0], stop=[5, 8])
    assert_layer(told["1"], minimal=[6, 9], minimal_input=[3, 3], jump=[nan, nan])
    assert told["1"].reason == "computed outside of torch's operators"
    assert told["1"].centre.tolist() == [2.5, 4]


def test_axes_are_those_of_the_first_convolution_in_its_order():
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, (3, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.mT[:, None])

    found, told = layers(Turned(), 2, 12, 15)
    assert found.place.dims == (2, 1)
    assert found.input_size == (15, 12)
    assert_layer(told["conv"], size=[3, 5], start=[6, 4], stop=[8, 8])


def test_axes_that_run_along_one_dimension_alone_come_first():
    class Patches(nn.Module):
        """Rows and columns cut into patches, whose number runs along both axes."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.unfold(1, 4, 2).transpose(1, 2))

    found, told = layers(Patches(), 2, 16)
    assert found.place.dims == (1,)
    assert_layer(told["conv"], size=[8], minimal_input=[1])


class Added(nn.Module):
    """Sum of two maps, as a layer."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Two(nn.Module):
    """A layer that reads a map and what a window made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 5, padding=2)
        self.sum = Added()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.sum(self.second(x), x)


def test_the_shortest_path_to_a_layer_is_that_of_its_nearest_input():
    _, told = layers(Two(), 1, 1, 20)
    assert_layer(told["sum"], minimal_input=[3], minimal=[3], size=[7])


class Crossed(nn.Module):
    """Products of all pairs of two series."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, (3, 5))

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.conv((rows[:, :, None] * columns[:, None])[:, None])


def test_of_two_inputs_the_one_of_the_first_dimension_counts():
    inputs = Batch((torch.rand(2, 12), torch.rand(2, 15)))
    found = survey(Subject(Crossed().eval(), [inputs]), 8)
    assert (found.place.leaf, found.place.dims, found.input_size) == (0, (1,), (12,))
    assert_layer(found.layers[0], size=[3])


class Uneven(nn.Module):
    """One channel as it is, and one of which every second element is a mean of three."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv1d(1, 1, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        mixed = x.clone()
        mixed[..., ::2] = nn.functional.avg_pool1d(x, 3, 1, 1)[..., ::2]
        return self.last(torch.cat([x, mixed], 1))


def test_sizes_that_depend_on_the_position_are_told_over_all_channels():
    _, told = layers(Uneven(), 1, 1, 16)
    assert told["last"].reason == "depends on the position: 1 to 3"
