import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from probes.base import Batch, call
from probes.errors import NotApplicable
from probes.model.precision import _first, exact
from probes.model.taps import (
    differentiable,
    differentiable_recurrence,
    first_float,
    leaf_modules,
    outputs,
    same_bits,
    untouched,
)

Changes = Callable[[nn.Module], Callable[[], list[str]]]


class Unruly(nn.Module):
    """Changes everything about itself that a forward pass can change."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("step", torch.zeros(()))
        self.cache: dict[str, Tensor] = {}
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.train()
        self.linear.weight.data = self.linear.weight.data * 2
        with torch.no_grad():
            self.linear.bias.add_(1)
            self.step.add_(1)  # type: ignore[operator]
        self.register_buffer("late", torch.ones(2))
        self.state = self.drop(self.norm(self.linear(x)))
        self.cache["last"] = self.state
        self.extra = nn.Linear(1, 1)
        self.note = "new"
        self.linear.weight.requires_grad_(False)
        self.linear.weight.grad = None
        self.register_forward_hook(lambda *_: None)
        np.random.rand()  # noqa: NPY002
        random.random()
        return self.state


def prepared() -> Unruly:
    model = Unruly()
    model.norm.eval()
    model.norm.bias.requires_grad_(False)
    model.linear.weight.grad = torch.full((3, 3), 7.0)
    model.linear.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("weights", [False, True])
def test_everything_is_put_back(weights: bool, changes: Changes) -> None:
    model = prepared()
    changed = changes(model)
    with untouched(model, weights=weights):
        torch.rand(1)
        model(torch.randn(4, 3)).sum()
        assert len(changed()) == 11
    assert changed() == []
    assert model.cache == {}
    assert model.state is None


def test_everything_is_put_back_after_an_exception(changes: Changes) -> None:
    model = prepared()
    changed = changes(model)

    def fail() -> None:
        with untouched(model):
            model(torch.randn(4, 3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert changed() == []


def test_buffers_that_turn_into_nan_are_put_back() -> None:
    model = nn.BatchNorm1d(2)
    with untouched(model):
        model.train()
        model(torch.full((3, 2), torch.nan))
        assert model.running_mean is not None
        assert model.running_mean.isnan().all()
    assert model.running_mean.tolist() == [0, 0]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_mode_of_scripted_parts_is_put_back() -> None:
    model = nn.Sequential(torch.jit.script(nn.Dropout(0.5)), nn.Linear(1, 1))
    with untouched(model):
        assert not model[0].training
    assert model[0].training


def test_inside_the_model_infers_with_gradients_in_full_precision() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    model[0].weight.requires_grad_(False)
    torch.backends.cudnn.benchmark = True
    try:
        with torch.no_grad(), untouched(model, weights=True):
            assert not any(module.training for module in model.modules())
            assert all(weight.requires_grad for weight in model.parameters())
            assert torch.is_grad_enabled()
            assert not torch.backends.cudnn.allow_tf32
            assert torch.backends.cudnn.deterministic
            assert not torch.backends.cudnn.benchmark
        with untouched(model):
            assert not any(weight.requires_grad for weight in model.parameters())
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False


def test_gradients_are_those_outside_even_within_inference_mode() -> None:
    model = nn.Linear(2, 1)
    x = torch.ones(1, 2)
    with torch.inference_mode(), untouched(model, weights=True):
        (gradient,) = torch.autograd.grad(model(x).sum(), [model.weight])
    assert gradient.tolist() == [[1, 1]]


def test_integer_parameters_stay_without_gradient() -> None:
    model = nn.Module()
    model.index = nn.Parameter(torch.arange(3), requires_grad=False)
    with untouched(model, weights=True):
        assert not model.index.requires_grad


FIRST: dict[str, Callable[[], None]] = {
    "default": lambda: None,
    "tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "no tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
}
SECOND: dict[str, Callable[[], None]] = {
    "mixed": lambda: setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee"),
    "both": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
}


@pytest.fixture
def clean() -> Iterator[None]:
    yield
    backends = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        backends.cuda.matmul.fp32_precision = "none"
        backends.mkldnn.matmul.fp32_precision = "none"
        backends.cudnn.conv.fp32_precision = backends.cudnn.rnn.fp32_precision = "tf32"
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("name", [*FIRST, *SECOND])
def test_precision_is_full_and_put_back_whichever_interface_set_it(
    name: str, precisions: Callable[[], list[Any]]
) -> None:
    if name in SECOND and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has one interface only")
    (FIRST | SECOND)[name]()
    before, first = precisions(), _first()
    with exact():
        inside = precisions()
        assert not {"tf32", "bf16"} & {*inside}
        if name in FIRST:
            assert not torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
    assert (precisions(), _first()) == (before, first)
    with pytest.raises(ZeroDivisionError), exact():
        raise ZeroDivisionError
    assert (precisions(), _first()) == (before, first)
    assert (first is None) == (name in SECOND)


def test_floating_inputs_become_leaves_of_which_the_model_gets_copies() -> None:
    x = torch.tensor([[1.0, 2.0]])
    batch = Batch({"x": x, "index": torch.tensor([1])})
    with differentiable(nn.Identity(), batch) as (inputs, leaves):
        assert isinstance(inputs, dict)
        inputs["x"].mul_(3)
        (gradient,) = torch.autograd.grad(inputs["x"].sum(), leaves)
    assert gradient.tolist() == [[3, 3]]
    assert x.tolist() == [[1, 2]]
    assert inputs["index"].dtype == torch.int64


def test_packed_inputs_become_leaves() -> None:
    packed = pack_padded_sequence(torch.randn(2, 3, 1), torch.tensor([1, 3]), True, False)
    with differentiable(nn.Identity(), Batch(packed)) as (inputs, leaves):
        assert isinstance(inputs, PackedSequence)
        (gradient,) = torch.autograd.grad((2 * inputs.data).sum(), leaves)
    assert gradient.tolist() == [[2], [2], [2], [2]]


def test_embeddings_stand_in_for_integer_inputs() -> None:
    model = nn.Sequential(nn.Embedding(5, 2), nn.ReLU(inplace=True), nn.Linear(2, 1))
    x = torch.tensor([[1, 4, 2]])
    with differentiable(model, Batch(x)) as (inputs, leaves):
        assert leaves == []
        output = call(model, inputs)
        (gradient,) = torch.autograd.grad(output.sum(), leaves)
    assert gradient.shape == (1, 3, 2)
    expected = (model[0](x) > 0) * model[2].weight
    assert torch.equal(gradient, expected)
    assert not model[0]._forward_hooks


def test_integers_without_an_embedding_cannot_be_differentiated() -> None:
    with (
        pytest.raises(NotApplicable) as caught,
        differentiable(nn.Linear(2, 2), Batch(torch.ones(1, 2, dtype=torch.long))),
    ):
        pass
    assert str(caught.value) == (
        "the inputs are integers and the model has no torch.nn.Embedding: there is nothing to "
        "differentiate with respect to"
    )


def test_cudnn_is_only_set_aside_for_recurrent_layers() -> None:
    enabled = torch.backends.cudnn.enabled
    with differentiable_recurrence(nn.Conv1d(1, 1, 1)):
        assert torch.backends.cudnn.enabled == enabled
    with differentiable_recurrence(nn.LSTM(1, 1)):
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled == enabled
    with pytest.raises(ZeroDivisionError), differentiable_recurrence(nn.LSTM(1, 1)):
        raise ZeroDivisionError
    assert torch.backends.cudnn.enabled == enabled


def test_the_first_floating_tensor_of_an_output_is_found() -> None:
    x, index = torch.ones(2), torch.arange(2)
    packed = pack_padded_sequence(torch.randn(2, 3, 1), torch.tensor([3, 1]), True)
    assert first_float(x) is x
    assert first_float((index, None, [x])) is x
    assert first_float({"index": index, "x": x}) is x
    assert first_float(packed) is packed.data
    assert first_float((packed, x)) is not None
    assert first_float(index) is None
    assert first_float(None) is None


def test_outputs_are_collected_by_name_and_call() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
    with outputs(model, ["0", "1"]) as seen:
        y = model(torch.randn(3, 2))
    assert [*seen] == ["0", "1"]
    assert len(seen["0"]) == 1
    assert seen["1"][1] is y
    assert not relu._forward_hooks


def test_layers_are_what_computes() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = weight_norm(nn.Conv1d(1, 1, 1, bias=False))
            self.attention = nn.MultiheadAttention(2, 1)
            self.block = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
            self.scale = nn.Parameter(torch.ones(1))

    names = ["conv", "attention", "block.0", "block.1"]
    assert leaf_modules(Part()) == names
    assert leaf_modules(nn.ModuleList([Part()])) == ["0", *(f"0.{name}" for name in names)]
    assert leaf_modules(nn.Linear(1, 1)) == [""]
    assert leaf_modules(nn.Sequential(nn.LSTM(1, 1))) == ["0"]
    assert leaf_modules(weight_norm(nn.Linear(1, 1))) == [""]


def test_only_nan_equals_nan() -> None:
    nan, one = torch.tensor([torch.nan, 1.0]), torch.tensor([1.0, 1.0])
    assert same_bits(nan, nan.clone())
    assert same_bits(one, one.clone())
    assert not same_bits(nan, one)
    assert not same_bits(one, nan)
