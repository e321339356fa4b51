"""Every way to the norms against gradients that are formed."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from probes.weight_gradient import contribution as contributions
from probes.weight_gradient.contribution import Contribution, Formed, measured, together
from probes.weight_gradient.linear import linear
from probes.weight_gradient.lookup import Lookup
from probes.weight_gradient.operation import Arrived
from probes.weight_gradient.product import Product
from probes.weight_gradient.window import Geometry, Window

SAMPLES = 5

WAYS = (measured, contributions._measured_far)
"""As the CPU and as other devices do."""


def double(*shape: int) -> Tensor:
    scale = torch.arange(1, shape[0] + 1).reshape(-1, *(1,) * (len(shape) - 1))
    return torch.randn(*shape, dtype=torch.float64) * scale


GEOMETRIES: dict[str, tuple[tuple[int, ...], int, int, tuple[int, ...], dict[str, Any]]] = {
    "signal": ((9,), 3, 2, (3,), {"stride": (2,), "padding": (1,), "dilation": (2,)}),
    "image": ((6, 5), 3, 4, (3, 2), {"padding": (1, 0)}),
    "stride": ((7, 8), 2, 4, (3, 3), {"stride": (2, 3), "padding": (2, 1)}),
    "dilation": ((8, 7), 2, 3, (2, 3), {"dilation": (3, 2)}),
    "volume": ((4, 5, 3), 2, 3, (2, 3, 1), {"stride": (1, 2, 1), "padding": (0, 1, 1)}),
    "pointwise": ((5, 6), 4, 3, (1, 1), {}),
    "pointwise stride": ((5, 6), 4, 3, (1, 1), {"stride": (2, 3), "padding": (1, 0)}),
    "groups": ((5, 6), 4, 6, (3, 2), {"groups": 2}),
    "depthwise": ((5, 6), 4, 8, (3, 2), {"groups": 4, "padding": (1, 1)}),
}


def window(name: str) -> tuple[Window, Tensor]:
    """A gradient of a convolution, and what autograd finds for each sample."""
    sizes, channels, outputs, kernel, options = GEOMETRIES[name]
    axes = len(sizes)
    groups = options.get("groups", 1)
    x = double(SAMPLES, channels, *sizes)
    weight = double(outputs, channels // groups, *kernel).requires_grad_()
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
    settings = {"stride": (1,) * axes, "padding": (0,) * axes, "dilation": (1,) * axes} | options
    output = convolve(x, weight, None, **settings)
    gradient = double(*output.shape)
    expected = [
        torch.autograd.grad((output[b] * gradient[b]).sum(), weight, retain_graph=True)[0]
        for b in range(SAMPLES)
    ]
    geometry = Geometry(*(settings[key] for key in ("stride", "padding", "dilation")), groups)
    return Window(gradient, x, geometry, tuple(weight.shape)), torch.stack(expected)


def check(contribution: Contribution, expected: Tensor) -> None:
    """Norms, explicit gradient and total agree; ``expected`` has the batch axis first."""
    assert contribution.size == expected[0].numel()
    torch.testing.assert_close(contribution.explicit(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(contribution.total(), expected.sum(0), rtol=1e-12, atol=1e-12)
    for measure in WAYS:
        norms, total = measure(contribution)
        torch.testing.assert_close(norms, expected.flatten(1).norm(dim=1), rtol=1e-12, atol=0)
        torch.testing.assert_close(total, expected.sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolutions(name: str) -> None:
    check(*window(name))


@pytest.mark.parametrize("name", [name for name in GEOMETRIES if "groups" not in name])
@pytest.mark.parametrize("workspace", [1, 2**20])
def test_products_of_positions_give_the_norms_of_convolutions(
    name: str, workspace: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, expected = window(name)
    if found.geometry.groups > 1:
        assert found.squared_norms() is None
        return
    monkeypatch.setattr("probes.weight_gradient.window.GRAM", workspace)
    monkeypatch.setattr(Window, "cheaper", lambda _: True)
    squares = found.squared_norms()
    assert squares is not None
    torch.testing.assert_close(squares.sqrt(), expected.flatten(1).norm(dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("step", [1, 2, 7])
@pytest.mark.parametrize("name", ["image", "depthwise"])
def test_the_samples_formed_together_do_not_matter(
    name: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Window, "cheaper", lambda _: False)
    monkeypatch.setattr(contributions, "MOST", step)
    assert together(1) == step
    check(*window(name))


def test_as_many_samples_are_formed_as_fit() -> None:
    assert together(2**21) == together(2**22) == 1
    assert together(2**19) == 4
    assert together(8) == together(0) == 16


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "products"),
    [
        (512, 4, 3, True),
        (256, 8, 3, True),
        (256, 8, 1, True),
        (128, 16, 3, False),
        (64, 32, 3, False),
    ],
)
def test_small_maps_of_many_channels_are_measured_by_products(
    channels: int, size: int, kernel: int, products: bool
) -> None:
    x = torch.empty(2, channels, size, size)
    geometry = Geometry((1, 1), (kernel // 2,) * 2, (1, 1), 1)
    assert Window(x, x, geometry, (channels, channels, kernel, kernel)).cheaper() == products


@pytest.mark.parametrize(("positions", "outputs", "inputs"), [(1, 3, 4), (3, 6, 5), (40, 2, 3)])
def test_matrix_products(positions: int, outputs: int, inputs: int) -> None:
    gradient, x = double(SAMPLES, positions, outputs), double(SAMPLES, positions, inputs)
    product = Product(gradient, x)
    assert (product.squared_norms() is None) == (positions == 40)
    check(product, torch.einsum("bto,bti->boi", gradient, x))


def test_lookups() -> None:
    gradient, index = double(SAMPLES, 6, 3), torch.randint(4, (SAMPLES, 6))
    chosen = functional.one_hot(index, 4).double()
    check(Lookup(gradient, index, 4), torch.einsum("btv,bte->bve", chosen, gradient))


def test_gradients_that_are_there() -> None:
    gradient = double(SAMPLES, 3)
    check(Formed(gradient), gradient)


def test_one_sample_alone() -> None:
    gradient, x = double(1, 2, 3), double(1, 2, 4)
    check(Formed(gradient), gradient)
    check(Product(gradient, x), torch.einsum("bto,bti->boi", gradient, x))


@pytest.mark.parametrize("measured", WAYS)
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_norms_of_any_size_are_exact_in_single_precision(scale: float, measured: Any) -> None:
    gradient, x = double(SAMPLES, 1, 3), double(SAMPLES, 1, 4)
    gradient[2] = 0
    expected = scale * torch.einsum("bto,bti->boi", gradient, x).flatten(1).norm(dim=1)
    norms, _ = measured(Product((gradient * scale).float(), x.float()))
    assert norms.dtype == torch.float64
    torch.testing.assert_close(norms, expected, rtol=1e-6, atol=0)


def test_what_is_undefined_stays_so() -> None:
    gradient = torch.tensor([[1.0], [torch.nan], [torch.inf], [0.0]])
    norms, _ = measured(Formed(gradient))
    assert norms.tolist()[::3] == [1, 0]
    assert norms[1].isnan()
    assert norms[2].isinf()


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_come_first_in_single_precision_at_least(dim: int, dtype: torch.dtype) -> None:
    values = torch.randn(2, 3, 4).to(dtype)
    found = Arrived(values, values, None, (), dim).first(values)
    assert found.dtype is torch.float32
    assert torch.equal(found, values.movedim(dim, 0).float())


def test_samples_of_a_linear_layer_are_where_the_batch_axis_says() -> None:
    operation = linear(torch.empty(4, 5, 3), torch.empty(2, 3)).operation
    x = torch.empty(5, 5, 3)
    assert [operation.batch_dim(x, 5, axis) for axis in (0, 1)] == [0, 1]
    assert operation.batch_dim(torch.empty(4, 5, 5), 5, 0) == 1
    assert operation.batch_dim(torch.empty(4, 3, 5), 5, 0) is None
