"""Energy maps of linear networks: the squares of their kernels, put at the centre."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from probes.base import Batch, Subject
from probes.errors import NotApplicable
from probes.field.maps import FoldedBatchError, Mapper, centres, dimensions
from probes.field.samples import Place

KERNEL = torch.arange(1.0, 13.0, dtype=torch.float64).view(2, 2, 3)
"""Two channels of the output, two of the input, three positions."""


def conv(kernel: Tensor = KERNEL, **settings) -> nn.Conv1d:
    layer = nn.Conv1d(*kernel.shape[1::-1], kernel.shape[2], **settings, bias=False).double()
    layer.weight.data.copy_(kernel)
    return layer.requires_grad_(False)


def mapper(model: nn.Module, leaf: int = 0, dims: tuple[int, ...] = (2,), axis: int = 0) -> Mapper:
    subject = Subject(model, [], batch_axis=axis)
    return Mapper(subject, Place(leaf, dims), torch.Generator().manual_seed(0))


def placed(squares: list[float], start: int, size: int) -> list[float]:
    found = [0.0] * size
    found[start : start + len(squares)] = squares
    return found


def test_dimensions_are_those_of_convolutions():
    kinds = (nn.Conv1d, nn.ConvTranspose2d, nn.Conv3d)
    assert [dimensions(kind(1, 1, 1)) for kind in kinds] == [1, 2, 3]
    assert dimensions(nn.Linear(1, 1)) == 0


def test_the_centre_is_behind_the_middle_of_each_axis():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.ReLU())
    model[0].weight.data.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
    nn.init.zeros_(model[0].bias)
    x = torch.arange(20.0).view(1, 1, 4, 5)
    with centres(model, ["0", "2"]) as seen:
        model(x)
    # Row 2 of 4, column 2 of 5.
    assert seen["0"].tolist() == [[12, 24]]
    assert seen["2"].shape == (1, 40)
    assert not model[0]._forward_hooks


def test_only_the_calls_that_are_asked_for_are_kept():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(KERNEL[:, :, :1])

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    model, x = Twice(), torch.ones(1, 2, 3, dtype=torch.float64)
    with centres(model, ["conv#2"]) as seen:
        expected = model(x)[:, :, 1]
    assert [*seen] == ["conv#2"]
    assert torch.equal(seen["conv#2"], expected)


def test_energy_is_the_sum_of_squares_over_channels_of_the_input():
    one = conv(KERNEL[:1])
    x = torch.rand(3, 2, 7, dtype=torch.float64)
    found = mapper(one).energies(Batch(x), [""])[""]
    squares = [1 + 16, 4 + 25, 9 + 36]
    # Five outputs, the middle one reads 2 to 4.
    np.testing.assert_allclose(found, [placed(squares, 2, 7)] * 3)


def test_channels_of_the_output_are_added_with_random_signs():
    draws = mapper(conv())
    batch = Batch(torch.rand(1, 2, 3, dtype=torch.float64))
    found = np.array([draws.energies(batch, [""])[""].numpy()[0] for _ in range(40)])
    kernel = KERNEL.numpy()
    same, other = ((kernel[0] + sign * kernel[1]) ** 2 for sign in (1, -1))
    matches = [np.allclose(row, same.sum(0)) + 2 * np.allclose(row, other.sum(0)) for row in found]
    assert {*matches} == {1, 2}


def test_of_layers_in_a_row_each_has_its_own_map():
    model = nn.Sequential(conv(KERNEL[:1]), nn.Identity(), conv(KERNEL[:1, :1] * 2))
    x = torch.rand(2, 2, 9, dtype=torch.float64)
    found = mapper(model).energies(Batch(x), ["0", "2"])
    np.testing.assert_allclose(found["0"], [placed([17, 29, 45], 3, 9)] * 2)
    # Correlation with two kernels is that with their convolution.
    both = np.array([np.convolve(kernel, [2, 4, 6]) for kernel in KERNEL[0].numpy()])
    np.testing.assert_allclose(found["2"], [placed([*(both**2).sum(0)], 2, 9)] * 2)


def test_layers_without_a_gradient_have_no_map():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = conv(KERNEL[:1]), conv(KERNEL[:1, :1])

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).detach())

    batch = Batch(torch.rand(1, 2, 9, dtype=torch.float64))
    assert [*mapper(Cut()).energies(batch, ["first", "last"])] == ["first"]


def test_positions_may_be_anywhere_and_samples_too():
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(KERNEL[:1])

        def forward(self, weight: Tensor, x: Tensor) -> Tensor:
            return self.conv(x.permute(1, 2, 0) * weight.t()[:, None])

    weight = torch.full((5, 3), 2.0, dtype=torch.float64)
    inputs = (weight, torch.rand(5, 3, 2, dtype=torch.float64))
    found = mapper(TimeFirst(), 1, (0,), 1).energies(Batch(inputs), ["conv"])["conv"]
    np.testing.assert_allclose(found, [placed([4 * 17, 4 * 29, 4 * 45], 1, 5)] * 3)


def test_inputs_without_channels_have_maps_too():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(KERNEL[:1, :1])

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x[:, None])

    x = torch.rand(2, 5, dtype=torch.float64)
    found = mapper(Plain(), 0, (1,)).energies(Batch(x), ["conv"])["conv"]
    np.testing.assert_allclose(found, [placed([1, 4, 9], 1, 5)] * 2)


class Folded(nn.Module):
    """Puts pieces of a sample into the batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(KERNEL[:1, :1])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(-1, 1, 3))


def test_of_one_sample_in_pieces_the_middle_one_counts():
    x = torch.rand(1, 1, 12, dtype=torch.float64)
    found = mapper(Folded()).energies(Batch(x), ["conv"])["conv"]
    # Four pieces, the third starts at 6.
    np.testing.assert_allclose(found, [placed([1, 4, 9], 6, 12)])
    with pytest.raises(FoldedBatchError):
        mapper(Folded()).energies(Batch(x.repeat(2, 1, 1)), ["conv"])


def test_integers_without_an_embedding_are_not_applicable():
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = conv(KERNEL[:1, :1]), nn.Embedding(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x[:, None].double()) + self.other(x.new_zeros(1)).sum()

    with pytest.raises(NotApplicable) as raised:
        mapper(Counted(), 0, (1,)).energies(Batch(torch.ones(2, 5, dtype=torch.long)), ["conv"])
    assert str(raised.value) == (
        "the inputs are integers that reach the convolutions without an embedding"
    )


def test_of_two_embeddings_the_energies_are_added():
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.kinds = nn.Embedding(9, 1), nn.Embedding(9, 1)
            self.conv = conv(KERNEL[:1, :1])

        def forward(self, x: Tensor) -> Tensor:
            return self.conv((self.words(x) + 2 * self.kinds(x)).mT)

    tokens = torch.arange(5)[None]
    found = mapper(Embedded().double(), 0, (1,)).energies(Batch(tokens), ["conv"])["conv"]
    np.testing.assert_allclose(found, [placed([5, 20, 45], 1, 5)])


def test_a_convolution_may_have_no_batch():
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x[0])

    batch = Batch(torch.rand(1, 2, 3, dtype=torch.float64))
    found = mapper(Single()).energies(batch, ["conv"])["conv"].numpy()
    kernel = KERNEL.numpy()
    both = [((kernel[0] + sign * kernel[1]) ** 2).sum(0) for sign in (1, -1)]
    assert any(np.allclose(found, expected) for expected in both)


@pytest.mark.parametrize("recurrent", [True, False])
def test_recurrent_layers_are_differentiated_without_cudnn(recurrent):
    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.layer = conv(KERNEL[:1]), nn.GRU(2, 2) if recurrent else None

        def forward(self, x: Tensor) -> Tensor:
            self.seen = torch.backends.cudnn.enabled
            return self.conv(x)

    model, before = Watching(), torch.backends.cudnn.enabled
    mapper(model).energies(Batch(torch.rand(1, 2, 3, dtype=torch.float64)), ["conv"])
    assert model.seen == (before and not recurrent)
    assert torch.backends.cudnn.enabled == before
