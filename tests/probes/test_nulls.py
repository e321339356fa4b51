"""Re-initialised copies: drawn as torch draws them, named where they are not."""

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from probes.errors import NotApplicable
from probes.model.nulls import untrained


def trained() -> nn.Sequential:
    """A network that went through a step of training."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(24, 2))
    model(torch.randn(5, 2, 10)).square().sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_weights_are_those_that_the_modules_draw():
    (twin,) = untrained(trained(), [7])
    expected = trained()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for module in (expected[0], expected[1], expected[3]):
            module.reset_parameters()
    assert twin.kept == ()
    assert twin.kept_share == 0
    for name, value in expected.state_dict().items():
        assert torch.equal(twin.model.state_dict()[name], value), name


def test_the_original_and_the_random_states_stay():
    model = trained()
    before, state_of_torch, state_of_python = state(model), torch.get_rng_state(), random.getstate()
    for twin in untrained(model, range(3)):
        assert not torch.equal(twin.model[0].weight, model[0].weight)
        assert torch.equal(torch.get_rng_state(), state_of_torch)
        assert random.getstate() == state_of_python
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_every_seed_draws_other_weights_into_the_same_copy():
    model, drawn, copies = trained(), [], set()
    for twin in untrained(model, [0, 1, 0]):
        drawn.append(twin.model[3].weight.clone())
        copies.add(id(twin.model))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert len(copies) == 1


class Scaled(nn.Module):
    """A module that does not know how to initialise its own parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(3, 3, bias=False), nn.Parameter(torch.full((3,), 2.0))


def test_parameters_that_nobody_draws_are_named():
    (twin,) = untrained(Scaled(), [0])
    assert twin.kept == ("scale",)
    assert twin.kept_share == 3 / 12
    assert torch.equal(twin.model.scale, torch.full((3,), 2.0))


def test_parametrized_weights_are_not_drawn():
    """Resetting writes to the product of the factors, which is then computed again."""
    model = parametrizations.weight_norm(nn.Linear(3, 2))
    (twin,) = untrained(model, [0])
    assert set(twin.kept) == {
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    }


def test_attention_is_drawn_though_it_hides_how():
    model = nn.MultiheadAttention(4, 2)
    before = state(model)
    (twin,) = untrained(model, [0])
    assert twin.kept == ()
    assert not torch.equal(twin.model.in_proj_weight, before["in_proj_weight"])


class Replacing(nn.Module):
    """Initialises by making a new parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.weight = nn.Parameter(torch.randn(2))


def test_replaced_parameters_count_as_drawn():
    (twin,) = untrained(Replacing(), [0])
    assert twin.kept == ()


def test_modes_flags_and_precision_are_copied():
    model = trained().double().eval().requires_grad_(False)
    (twin,) = untrained(model, [0])
    assert not twin.model.training
    assert not twin.model[0].weight.requires_grad
    assert twin.model[0].weight.dtype == torch.float64


class Singular(nn.Linear):
    """Refuses to be initialised."""

    def reset_parameters(self, strict: bool = False) -> None:
        if getattr(self, "built", False):
            raise ValueError("call me with a gain\nor not at all")
        super().reset_parameters()
        self.built = True


def test_a_module_that_refuses_is_named():
    with pytest.raises(NotApplicable) as raised:
        list(untrained(nn.Sequential(Singular(2, 2)), [0]))
    assert str(raised.value) == "reset_parameters of 0 fails (ValueError: call me with a gain)"


def test_a_model_that_cannot_be_copied_is_not_applicable():
    model = nn.Linear(2, 2)
    model.last = model(torch.zeros(1, 2))
    with pytest.raises(NotApplicable) as raised:
        list(untrained(model, [0]))
    assert str(raised.value).startswith("the model cannot be copied (RuntimeError: Only Tensors ")
