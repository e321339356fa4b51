"""Which blocks are found, in networks written in different ways."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from probes.depth.survey import RECURRENT, SHAPE, Block, survey
from probes.model.taps import untouched

torch.manual_seed(0)

Join = Callable[[Tensor, Tensor], Tensor]


def blocks_of(model: nn.Module, *inputs: Tensor) -> dict[str, Block]:
    with untouched(model):
        found = survey(model, inputs)
    return {block.name: block for block in found.blocks}


def kinds(model: nn.Module, *inputs: Tensor) -> dict[str, str]:
    return {name: block.reason or block.kind for name, block in blocks_of(model, *inputs).items()}


class Basic(nn.Module):
    """Two convolutions and a shortcut, joined as ``join`` says."""

    def __init__(self, channels: tuple[int, int], join: Join, stride: int = 1) -> None:
        super().__init__()
        before, after = channels
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.short = nn.Identity()
        if before != after:
            self.short = nn.Sequential(nn.Conv2d(before, after, 1, stride), nn.BatchNorm2d(after))
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y: Tensor = self.relu(self.join(h, self.short(x)))
        return y


def added_in_place(left: Tensor, right: Tensor) -> Tensor:
    left += right
    return left


JOINS: dict[str, Join] = {
    "plus": lambda h, x: h + x,
    "swapped": lambda h, x: x + h,
    "in place": added_in_place,
    "method": lambda h, x: h.add_(x),
    "function": lambda h, x: torch.add(x, h, alpha=0.5),
    "minus": lambda h, x: x - h,
    "sum": lambda h, x: sum([h, x]),  # type: ignore[return-value]
}


@pytest.mark.parametrize("how", JOINS)
@pytest.mark.parametrize("widths", [(4, 4), (4, 6)])
def test_blocks_are_found_however_they_are_joined(how: str, widths: tuple[int, int]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), Basic(widths, JOINS[how]))
    kind = "identity" if widths[0] == widths[1] else "projection"
    found = blocks_of(model, torch.randn(2, 1, 9, 9))
    assert {name: block.reason or block.kind for name, block in found.items()} == {
        "0": SHAPE,
        "1": kind,
    }
    assert found["1"].layers == ("1.conv1", "1.conv2")


class Preactivation(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(before)
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, 2, 1), nn.Conv2d(after, after, 3, 1, 1)
        self.short = nn.Conv2d(before, after, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).relu()
        y: Tensor = self.conv2(self.conv1(h).relu()) + self.short(h)
        return y


class PaddedShortcut(nn.Module):
    """Option A of He et al. 2016: every second position, and channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        return y


def test_projections_that_share_the_preactivation_and_ones_without_weights() -> None:
    x = torch.randn(2, 2, 8, 8)
    assert kinds(nn.Sequential(Preactivation(2, 4)), x) == {"0": "projection"}
    assert kinds(nn.Sequential(PaddedShortcut()), x) == {"0.conv": "identity"}


def test_transformer_layers_have_two_blocks_each() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert [*kinds(model, torch.randn(2, 5, 8))] == [
        "layers.0.self_attn",
        "layers.0.linear1 to linear2",
        "layers.1.self_attn",
        "layers.1.linear1 to linear2",
    ]


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    SWISH = torch.jit.script(swish)
"""Computes out of sight of torch functions."""


class Scaled(nn.Module):
    """A normalized weight, a scripted function, a layer scale and a constant of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(weight_norm(nn.Linear(6, 9)), nn.Linear(9, 6))
        self.scale = nn.Parameter(torch.full((1, 6), 0.5))
        self.offset = torch.ones(6)

    def forward(self, x: Tensor) -> Tensor:
        h = SWISH(self.inner[0](x))
        y: Tensor = x + self.scale * self.inner[1](h) + self.offset
        return y


def test_weights_may_be_parametrized_and_functions_out_of_sight() -> None:
    found = blocks_of(nn.Sequential(nn.Linear(3, 6), Scaled()), torch.randn(2, 3))
    assert [*found] == ["0", "1.inner"]
    assert found["1.inner"].layers == ("1.inner.0", "1.inner.1")


def test_layers_that_keep_their_shape_can_be_left_out_with_their_normalization() -> None:
    model = nn.Sequential(
        nn.Conv1d(1, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(),
        nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(inplace=True),
        nn.Conv1d(4, 4, 3, padding=1), nn.ReLU(),
        nn.Conv1d(4, 4, 3), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip
    found = blocks_of(model, torch.randn(2, 1, 8))
    assert {name: block.reason for name, block in found.items()} == {
        "0": SHAPE, "3": "", "6": "", "8": SHAPE, "10": SHAPE,
    }  # fmt: skip
    assert [name for name, block in found.items() if block.normed] == ["0", "3"]


class Unrolled(nn.Module):
    """A recurrence written out, with the inputs projected before or at every step."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.read, self.keep = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        read = self.read(x)
        h = read[:, :1].new_zeros(len(x), 1, 4)
        h = h if self.how == "sliced" else h[:, 0]
        for t in range(x.shape[1]):
            if self.how == "before":
                now = read[:, t]
            else:
                now = self.read(x[:, t : t + 1] if self.how == "sliced" else x[:, t])
            h = torch.tanh(now + self.keep(h))
        return h


@pytest.mark.parametrize("how", ["before", "picked", "sliced"])
def test_the_steps_of_a_recurrence_are_no_blocks(how: str) -> None:
    found = kinds(Unrolled(how), torch.randn(2, 5, 3))
    assert found == {"read": SHAPE, "keep": RECURRENT}


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.layer(torch.zeros_like(x)) + self.layer(x.new_ones(x.shape))
        return y


def test_what_only_has_the_shape_of_the_input_does_not_depend_on_it() -> None:
    assert kinds(Constant(), torch.randn(2, 4)) == {}


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.layer = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).sigmoid()
        y: Tensor = gate * self.layer(x) + (1 - gate) * x
        return y


class Parallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.left(x) + self.right(x)
        return y


@pytest.mark.parametrize("make", [Gated, Parallel])
def test_gated_and_parallel_paths_are_no_residual_blocks(make: Callable[[], nn.Module]) -> None:
    assert {block.kind for block in blocks_of(make(), torch.randn(2, 4)).values()} == {"layer"}


class Shared(nn.Module):
    """One block called three times, on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(8, 2)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = x + self.block(x)
        x, z = x + self.block(x), z + self.block(z)
        y: Tensor = self.head(torch.cat([x, z], 1))
        return y


def test_what_shares_its_weights_is_one_block() -> None:
    x = torch.randn(2, 4)
    assert kinds(Shared(), x, x.clone()) == {"block.0": "identity", "head": SHAPE}


class Hourglass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv1d(2, 2, 2, 2), nn.ConvTranspose1d(2, 2, 2, 2)
        self.inner = nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(x)
        y: Tensor = x + self.up(h + self.inner(h))
        return y


def test_nested_blocks_are_both_found() -> None:
    found = blocks_of(nn.Sequential(Hourglass()), torch.randn(2, 2, 8))
    assert {name: block.layers for name, block in found.items()} == {
        "0.inner.0": ("0.inner.0",),
        "0": ("0.down", "0.up", "0.inner.0"),
    }


def test_numbers_are_counted_for_the_bound_on_memory() -> None:
    with untouched(model := nn.Sequential(nn.Linear(3, 5), nn.ReLU())):
        assert survey(model, torch.randn(7, 3)).elements == 7 * (5 + 5)
