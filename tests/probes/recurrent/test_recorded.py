"""What is recorded under which name, what is refused, and that the model never notices."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode
from torch.utils.checkpoint import checkpoint

from probes.errors import AnalyzerError, NotApplicable
from probes.recurrent.watching.split import recorded


class Tagger(nn.Module):
    """Integers in, an embedding, two kinds of recurrent layer with dropout, one output a step."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.encoder = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True, dropout=0.4)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.GRU(10, 3, batch_first=True))

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens))[0])[0]


class Failing(nn.Module):
    def forward(self, x):
        raise ZeroDivisionError


def tokens():
    return torch.randint(11, (3, 7))


def labels(recordings):
    return [segment.site.label for segment in recordings.segments]


def snapshot(model):
    parts = [(id(value), value.clone()) for value in model.state_dict(keep_vars=True).values()]
    modules = [
        (set(vars(m)), m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
        for m in model.modules()
    ]
    flags = [(weight.requires_grad, weight.grad) for weight in model.parameters()]
    return parts, modules, flags, torch.get_rng_state()


def assert_same(before, after):
    for (old_id, old), (new_id, new) in zip(before[0], after[0], strict=True):
        assert old_id == new_id
        assert torch.equal(old, new)
    assert before[1:3] == after[1:3]
    assert torch.equal(before[3], after[3])


def test_every_layer_and_direction_is_named_and_the_model_is_untouched():
    model, batch = Tagger().eval(), tokens()
    before = snapshot(model)
    with recorded(model, keep="all") as recordings:
        y = model(batch)
    found = recordings.gradients(y.square().sum())
    assert [site.site.label for site in found] == [
        "encoder.l0",
        "encoder.l0.reverse",
        "encoder.l1",
        "encoder.l1.reverse",
        "head.1.l0",
    ]
    assert all(site.measured.hidden.all() for site in found)
    assert_same(before, snapshot(model))


def test_the_model_is_untouched_after_an_exception():
    model, batch = Tagger().eval(), tokens()
    model.head.append(Failing())
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), recorded(model):
        model(batch)
    assert _get_current_function_mode() is None
    assert_same(before, snapshot(model))


def test_several_losses_of_one_forward_pass_are_measured_apart():
    model = Tagger().eval()
    with recorded(model) as recordings:
        y = model(tokens())
    whole = recordings.gradients(y.square())
    last = recordings.gradients(y[:, -1].square())
    again = recordings.gradients(y.square())
    for a, b, c in zip(whole, last, again, strict=True):
        assert torch.equal(a.measured.hidden, c.measured.hidden)
        assert not torch.equal(a.measured.hidden, b.measured.hidden)
    assert all(site.measured.trajectory is None for site in whole)


def test_samples_do_not_mix():
    model, batch = Tagger().eval().double(), tokens()
    with recorded(model) as recordings:
        y = model(batch)
    together = recordings.gradients(y.square())
    for b in range(len(batch)):
        with recorded(model) as recordings:
            y = model(batch[b : b + 1])
        for whole, alone in zip(together, recordings.gradients(y.square()), strict=True):
            expected = alone.measured.hidden[:, 0]
            torch.testing.assert_close(whole.measured.hidden[:, b], expected, rtol=1e-12, atol=0)


def test_no_gradient_of_a_weight_is_formed_unless_asked_for():
    model = Tagger().eval()
    for weights in (False, True):
        with recorded(model, weights=weights) as recordings:
            y = model(tokens())
        gradients = torch.autograd.grad(y.sum(), model.parameters(), allow_unused=True)
        names = [name for name, _ in model.named_parameters()]
        formed = {
            name.split(".")[0]
            for name, gradient in zip(names, gradients, strict=True)
            if gradient is not None
        }
        assert formed == ({"embed", "encoder", "head"} if weights else {"embed"})
    assert recordings.segments


def test_a_replay_that_does_not_fit_shows():
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        module = kind(3, 4)
        with recorded(module) as recordings:
            y, _ = module(torch.randn(5, 2, 3))
        y_tampered = y.detach().clone()
        assert recordings.gradients(y.sum())[0].measured.residual < 1e-6
        saved = y.grad_fn.next_functions[0][0].saved_tensors[3]
        saved.data.add_(0.1)
        assert recordings.gradients(y.sum())[0].measured.residual > 1e-2
        assert torch.equal(y, y_tampered)


def test_parameters_that_are_swapped_or_computed_are_still_named():
    loop = nn.ModuleDict({"read": nn.LSTMCell(3, 4), "write": nn.GRUCell(3, 4)})
    loop.forward = lambda x: loop["read"](x)[0] + loop["write"](x)
    swapped = {name: value.detach().clone() for name, value in loop.named_parameters()}
    with recorded(loop) as recordings:
        torch.func.functional_call(loop, swapped, torch.randn(2, 3))
    assert labels(recordings) == ["read.l0", "write.l0"]

    model = nn.Sequential(nn.LSTM(3, 4))
    nn.utils.parametrizations.weight_norm(model[0], "weight_hh_l0")
    with recorded(model) as recordings:
        model(torch.randn(5, 2, 3))
    assert labels(recordings) == ["0.l0"]


def test_modules_that_share_their_weights_are_told_apart():
    pair = nn.ModuleDict({"left": nn.GRU(3, 4), "right": nn.GRU(3, 4)})
    for name, weight in pair["left"].named_parameters():
        setattr(pair["right"], name, weight)
    pair.forward = lambda x: pair["right"](pair["left"](x)[0][..., :3])
    with recorded(pair) as recordings:
        pair(torch.randn(5, 2, 3))
    assert labels(recordings) == ["left.l0", "right.l0"]


def test_weights_that_are_no_recurrent_modules_are_named_by_their_owner():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList([torch.randn(4, 3), torch.randn(4, 4)])

        def forward(self, x):
            return torch.rnn_tanh_cell(x, torch.zeros(len(x), 4), *self.weights)

    model = nn.Sequential(Own())
    with recorded(model) as recordings:
        model(torch.randn(2, 3))
    assert labels(recordings) == ["0.weights.l0"]


def test_an_operation_called_without_a_module_is_named_by_its_kind():
    weights = [torch.randn(4, 3), torch.randn(4, 4)]
    with recorded(nn.Identity()) as recordings:
        x, h0 = torch.randn(5, 2, 3), torch.zeros(1, 2, 4)
        y, _ = torch.rnn_tanh(
            x, h0, weights, has_biases=False, num_layers=1, dropout=0.0,
            train=False, bidirectional=False, batch_first=False,
        )  # fmt: skip
        torch.rnn_relu_cell(x[0], h0[0], *weights)
    assert labels(recordings) == ["rnn_tanh.l0", "rnn_relu.l0"]
    assert y.shape == (5, 2, 4)


@pytest.mark.parametrize("keep", ["norms", "all"])
def test_nothing_stays_in_memory(keep):
    model = Tagger().eval()
    gc.collect()
    gc.disable()
    try:
        with recorded(model, keep=keep) as recordings:
            y = model(tokens())
        torch.autograd.grad(y.sum(), recordings.anchor, retain_graph=True, allow_unused=True)
        assert recordings._measured
        gone = [weakref.ref(recordings), weakref.ref(y)]
        del recordings, y
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


def refused(model, *inputs):
    """Message of the refusal; gradients are on and the model is as it is."""
    with pytest.raises(AnalyzerError) as caught, recorded(model):
        model(*inputs)
    return str(caught.value)


class Around(nn.Module):
    """Calls a module in a given way."""

    def __init__(self, module, way):
        super().__init__()
        self.rnn = module
        self.way = way

    def forward(self, x):
        return self.way(self.rnn, x)


def under_no_grad(module, x):
    with torch.no_grad():
        return module(x)[0]


def under_inference_mode(module, x):
    with torch.inference_mode():
        return module(x)[0]


def under_autocast(module, x):
    with torch.autocast("cpu", torch.bfloat16):
        return module(x)[0]


def checkpointed(module, x):
    return checkpoint(lambda z: module(z)[0], x, use_reentrant=False)


def checkpointed_reentrant(module, x):
    return checkpoint(lambda z: module(z)[0], x, use_reentrant=True)


CHECKPOINTING = (
    "rnn (LSTM) runs under activation checkpointing (torch.utils.checkpoint), which computes it "
    "again during the backward pass: turn checkpointing off"
)
GRADIENTS_OFF = (
    "rnn (LSTM) runs with gradients off (torch.no_grad or torch.inference_mode in the model): "
    "take that out of the forward method"
)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (checkpointed, CHECKPOINTING),
        (checkpointed_reentrant, CHECKPOINTING),
        (under_no_grad, GRADIENTS_OFF),
        (under_inference_mode, GRADIENTS_OFF),
        (
            under_autocast,
            "rnn (LSTM) runs under torch.autocast, in lower precision than its weights: turn that "
            "off in the forward method (enabled=False)",
        ),
    ],
)
def test_what_cannot_be_differentiated_is_refused(way, message):
    x = torch.randn(5, 2, 3, requires_grad=True)
    assert refused(Around(nn.LSTM(3, 4), way), x) == message


def test_dropout_between_layers_is_refused_in_training_mode_only():
    model = Tagger()
    assert refused(model, tokens()) == (
        "encoder (LSTM) drops states between its layers at random: put the model in eval mode"
    )
    assert refused(nn.GRU(3, 4, 2, dropout=0.1), torch.randn(5, 2, 3)) == (
        "the model (GRU) drops states between its layers at random: put the model in eval mode"
    )
    with recorded(nn.Sequential(nn.GRU(3, 4, 2))) as recordings:
        nn.GRU(3, 4, 2)(torch.randn(5, 2, 3))
    assert recordings.segments


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    model = Around(nn.GRUCell(3, 4), lambda cell, x: cell(x)).to(dtype)
    assert refused(model, torch.randn(2, 3, dtype=dtype)) == (
        f"rnn (GRUCell) computes in {dtype}: convert the model to float32"
    )


def script(model, example):
    return torch.jit.script(model)


def trace(model, example):
    return torch.jit.trace(model, example, check_trace=False)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("compile_to", [script, trace])
def test_torchscript_with_recurrent_layers_is_refused(compile_to):
    example = torch.randn(5, 2, 3)
    inner = compile_to(nn.Sequential(nn.LSTM(3, 4)), example)
    message = (
        "is TorchScript: the steps of its recurrent layers cannot be seen; give the Python module "
        "it was made from, with the same weights"
    )
    assert refused(nn.Sequential(nn.ReLU(), inner), example) == f"1 {message}"
    assert refused(inner, example) == f"the model {message}"
    harmless = compile_to(nn.Sequential(nn.Linear(3, 3)), example)
    with recorded(nn.Sequential(harmless, nn.GRU(3, 4))) as recordings:
        nn.Sequential(harmless, nn.GRU(3, 4))(example)
    assert recordings.segments


class OwnSteps(nn.GRU):
    """A recurrent layer whose steps are written out."""

    def forward(self, x):
        return torch.tanh(x @ self.weight_ih_l0[:4].T)


def test_recurrent_layers_that_run_out_of_sight_are_an_error():
    assert refused(nn.Sequential(OwnSteps(3, 4)), torch.randn(2, 3)) == (
        "0 ran without the recurrent operation of torch, so that the steps cannot be seen: a "
        "forward method of its own?"
    )


def test_recurrent_layers_that_do_not_run_and_none_at_all_are_not_applicable():
    model = nn.ModuleDict({"read": nn.LSTM(3, 4), "out": nn.GRUCell(3, 4)})
    model.forward = torch.relu
    with pytest.raises(NotApplicable) as caught, recorded(model):
        model(torch.randn(2, 3))
    assert str(caught.value) == (
        "the model has recurrent layers (read, out) but ran none of them with this data"
    )
    with pytest.raises(NotApplicable) as caught, recorded(nn.Linear(3, 4)) as recordings:
        pass
    assert str(caught.value) == (
        "the model runs no recurrent layer of torch (LSTM, GRU, RNN or their cells)"
    )
    assert not recordings.segments


@pytest.mark.parametrize("detach", [True, False])
def test_a_loss_that_the_states_cannot_reach_is_an_error(detach):
    model, x = nn.GRU(3, 4), torch.randn(5, 2, 3, requires_grad=True)
    with recorded(model) as recordings:
        y, _ = model(x)
    torch.autograd.grad(y.sum(), x, retain_graph=True)
    with pytest.raises(AnalyzerError) as caught:
        recordings.gradients(y.detach() if detach else x)
    assert str(caught.value) == (
        "the loss does not depend on the states of l0: the model detaches them, or its output or "
        "the loss does not use them"
    )


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_call_that_no_gradient_reaches_adds_nothing(kind: type[nn.RNNBase]) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            y, state = self.rnn(x[:5])
            self.rnn(x[5:], state)
            return y

    model = Unused()
    with recorded(model) as recordings:
        y = model(torch.randn(9, 2, 3))
    (site,) = recordings.gradients(y.sum())
    found = site.measured
    assert site.reached
    for norms in (found.hidden, found.gate, *([] if found.cell is None else [found.cell])):
        assert norms.shape == (9, 2)
        assert (norms[:5] > 0).all()
        assert (norms[5:] == 0).all()
    assert (found.cell is None) == (kind is nn.GRU)
    assert found.state.isnan().tolist() == [[False] * 2] * 5 + [[True] * 2] * 4
