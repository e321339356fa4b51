"""Updates told from the state of an optimizer, beside those that it made."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes.base import Subject
from probes.errors import NotApplicable
from probes.optimizer.state import Kept, kept_by
from probes.optimizer.updates import kind_of, update
from probes.update_ratio import UpdateRatio


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.unused = nn.Linear(2, 2)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.tanh(self.first(x)))
        return y


def net() -> Net:
    torch.manual_seed(5)
    return Net().double()


def trained(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4
) -> dict[str, Tensor]:
    """Train, and return what the last step took from each parameter."""
    generator = torch.Generator().manual_seed(1)
    before: dict[str, Tensor] = {}
    for _ in range(steps):
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        optimizer.zero_grad()
        model(torch.randn(6, 5, generator=generator).double()).square().sum().backward()
        optimizer.step()
    return {name: before[name] - weight.detach() for name, weight in model.named_parameters()}


def measured(model: nn.Module, optimizer: torch.optim.Optimizer | dict[str, Any]) -> Any:
    state = optimizer if isinstance(optimizer, dict) else optimizer.state_dict()
    return UpdateRatio()(Subject(model, [torch.randn(2, 5)], optimizer=state))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda w: torch.optim.Adam(w, 0.03), "Adam"),
        (lambda w: torch.optim.Adam(w, 0.03, (0.7, 0.9), eps=0.1, weight_decay=0.2), "Adam"),
        (lambda w: torch.optim.Adam(w, 0.03, amsgrad=True), "Adam"),
        (lambda w: torch.optim.SGD(w, 0.02, 0.8), "gradient descent with momentum"),
        (lambda w: torch.optim.SGD(w, 0.02, 0.8, 0.3, 0.1), "gradient descent with momentum"),
        (lambda w: torch.optim.RMSprop(w, 0.02, momentum=0.6), "RMSprop"),
    ],
)
def test_updates_are_those_that_the_optimizer_made(make: Any, kind: str) -> None:
    model = net()
    optimizer = make(model.parameters())
    updates = trained(model, optimizer)
    trace = measured(model, optimizer)
    names = ["first.weight", "first.bias", "last.weight", "last.bias"]
    assert trace["parameter"].to_numpy().tolist() == names
    assert trace["layer"].to_numpy().tolist() == ["first", "first", "last", "last"]
    assert trace.attrs["optimizer"] == kind
    weights = dict(model.named_parameters())
    for name in names:
        row = trace.sel(parameter=name)
        assert float(row["update"]) == pytest.approx(float(updates[name].norm()), rel=1e-9)
        assert float(row["weight"]) == pytest.approx(
            float(weights[name].detach().norm()), rel=1e-12
        )


def test_decoupled_weight_decay_is_left_out() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.03, weight_decay=0.5)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    updates = trained(model, optimizer, 1)
    trace = measured(model, optimizer)
    expected = (updates["last.weight"] - 0.03 * 0.5 * before["last.weight"]).norm()
    found = float(trace.sel(parameter="last.weight")["update"])
    assert found == pytest.approx(float(expected), rel=1e-9)


def test_rmsprop_without_momentum_moves_every_weight_by_about_the_rate() -> None:
    model = net()
    optimizer = torch.optim.RMSprop(model.parameters(), 0.02, eps=1e-12)
    trained(model, optimizer)
    found = float(measured(model, optimizer).sel(parameter="last.weight")["update"])
    assert found == pytest.approx(0.02 * 12**0.5)


def kept(moments: dict[str, float], **settings: Any) -> Kept:
    return Kept("w", {name: torch.tensor([value]) for name, value in moments.items()}, settings)


@pytest.mark.parametrize(
    ("square", "centre", "spread"), [(4.0, 0.0, 2.0), (4.0, 1.2, 2.56**0.5), (0.25, 0.6, 0.0)]
)
def test_rmsprop_divides_by_the_spread_about_the_mean(
    square: float, centre: float, spread: float
) -> None:
    moments = {"square_avg": square} | ({"grad_avg": centre} if centre else {})
    found = update(kept(moments, lr=0.02, alpha=0.9, eps=0.5))
    assert found.item() == pytest.approx(0.02 * square**0.5 / (spread + 0.5), rel=1e-6)


@pytest.mark.parametrize(
    ("moments", "settings", "kind"),
    [
        (["momentum_buffer"], ["dampening"], "gradient descent with momentum"),
        (["momentum_buffer"], ["alpha"], None),
        (["exp_avg"], ["dampening"], None),
        (["square_avg"], ["alpha"], "RMSprop"),
        (["square_avg", "grad_avg", "momentum_buffer"], ["alpha"], "RMSprop"),
        (["square_avg", "acc_delta"], ["alpha"], None),
        (["square_avg"], ["rho"], None),
        (["grad_avg"], ["alpha"], None),
        (["exp_avg", "exp_avg_sq"], ["amsgrad"], "Adam"),
        (["exp_avg", "exp_avg_sq", "max_exp_avg_sq"], ["amsgrad"], "Adam"),
        (["exp_avg", "exp_avg_sq", "other"], ["amsgrad"], None),
        (["exp_avg", "exp_avg_sq"], ["betas"], None),
        (["exp_avg"], ["amsgrad"], None),
    ],
)
def test_an_optimizer_is_known_by_what_it_keeps_and_by_its_settings(
    moments: list[str], settings: list[str], kind: str | None
) -> None:
    entry = kept(dict.fromkeys(moments, 1.0), **dict.fromkeys(settings, 0.5))
    if kind is not None:
        assert kind_of(entry) == kind
        return
    with pytest.raises(NotApplicable, match=r"^the optimizer keeps "):
        kind_of(entry)


@pytest.mark.parametrize("betas", [0.9, [0.9], (0.9, 0.99, 0.999)])
def test_adam_without_two_betas_has_no_known_update(betas: Any) -> None:
    entry = kept({"exp_avg": 1.0, "exp_avg_sq": 1.0}, amsgrad=False, lr=0.1, eps=0.0, betas=betas)
    with pytest.raises(NotApplicable, match=r"^the optimizer's settings have no two betas$"):
        update(entry)


def test_rates_and_steps_are_those_of_the_groups() -> None:
    model = net()
    groups = [
        {"params": model.first.parameters(), "lr": 0.01},
        {"params": [*model.unused.parameters(), *model.last.parameters()]},
    ]
    optimizer = torch.optim.Adam(groups, 0.4)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trained(model, optimizer, 3)
    schedule.step()
    trace = measured(model, optimizer)
    assert trace["rate"].to_numpy().tolist() == [0.005, 0.005, 0.2, 0.2]
    assert trace["initial_rate"].to_numpy().tolist() == [0.01, 0.01, 0.4, 0.4]
    assert trace["steps"].to_numpy().tolist() == [3, 3, 3, 3]


# Which parameter is which


def test_matrices_before_vectors_are_recognised_by_their_shapes() -> None:
    model = net()
    weights = [*model.parameters()]
    groups = [{"params": [w for w in weights if w.dim() > 1]}]
    groups += [{"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 0.03)
    trained(model, optimizer)
    names = [entry.name for entry in kept_by(optimizer.state_dict(), model)]
    assert names == [
        "first.weight", "unused.weight", "last.weight", "first.bias", "unused.bias", "last.bias",
    ]  # fmt: skip


def test_frozen_parameters_are_left_out_of_the_count() -> None:
    model = net()
    model.first.requires_grad_(False)
    optimizer = torch.optim.Adam([w for w in model.parameters() if w.requires_grad])
    trained(model, optimizer)
    trace = measured(model, optimizer)
    assert trace["parameter"].to_numpy().tolist() == ["last.weight", "last.bias"]


def test_names_in_the_state_decide_whatever_the_order() -> None:
    model = net()
    named = [(f"module.{name}", weight) for name, weight in model.named_parameters()][::-1]
    optimizer = torch.optim.Adam(named)
    trained(model, optimizer)
    names = [entry.name for entry in kept_by(optimizer.state_dict(), model)]
    assert names == [name.removeprefix("module.") for name, _ in named]


def test_numbers_are_not_taken_for_the_names_of_some_parameters() -> None:
    model = nn.Module()
    model.register_parameter("first", nn.Parameter(torch.zeros(4)))
    model.register_parameter("1", nn.Parameter(torch.zeros(2, 3)))
    state = torch.optim.Adam(model.parameters()).state_dict()
    assert state["param_groups"][0]["params"] == [0, 1]
    assert [entry.name for entry in kept_by(state, model)] == ["first", "1"]


@pytest.mark.parametrize("names", [None, ["last.weight"]])
def test_names_that_are_not_one_for_each_parameter_do_not_count(names: Any) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    trained(model, optimizer)
    state = optimizer.state_dict()
    state["param_groups"][0]["param_names"] = names
    assert [entry.name for entry in kept_by(state, model)] == [*dict(model.named_parameters())]


def refusal(model: nn.Module, state: dict[str, Any] | None) -> str:
    with pytest.raises(NotApplicable) as raised:
        UpdateRatio()(Subject(model, [torch.randn(2, 5)], optimizer=state))
    return str(raised.value)


def test_a_state_that_does_not_fit_is_refused_by_name() -> None:
    model, other = net(), net()
    other.last = nn.Linear(4, 7).double()
    optimizer = torch.optim.Adam(other.parameters())
    trained(other, optimizer)
    assert refusal(model, optimizer.state_dict()) == (
        "the optimizer's state does not fit the model: exp_avg of its parameter 4 has shape "
        "(7, 4), and last.weight in that place (3, 4)"
    )
    optimizer = torch.optim.Adam(other.first.parameters())
    trained(other, optimizer)
    assert refusal(model, optimizer.state_dict()) == (
        "the optimizer's state does not fit the model: it is for 2 parameters, and the model has 6"
    )


def test_what_cannot_be_told_is_said() -> None:
    model = net()
    assert refusal(model, None) == (
        "no state of the optimizer: save optimizer.state_dict() beside the weights"
    )
    plain = torch.optim.SGD(model.parameters(), 0.1)
    trained(model, plain)
    assert refusal(model, plain.state_dict()) == (
        "the optimizer keeps no moments, which would tell its updates"
    )
    nadam = torch.optim.NAdam(model.parameters())
    trained(model, nadam)
    assert refusal(model, nadam.state_dict()) == (
        "the optimizer keeps exp_avg, exp_avg_sq, mu_product: its updates can be told of Adam, "
        "AdamW, gradient descent with momentum and RMSprop as torch writes them"
    )
    radam = torch.optim.RAdam(model.parameters())
    trained(model, radam)
    assert refusal(model, radam.state_dict()).startswith("the optimizer keeps exp_avg, exp_avg_sq")
    broken = copy.deepcopy(nadam.state_dict())
    broken["param_groups"] = [{"lr": 0.1}]
    assert refusal(model, broken) == "the optimizer's state lists no parameters in its groups"
