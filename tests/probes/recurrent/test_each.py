"""Several losses in one backward pass, and layers replayed and scanned in blocks of timesteps."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from probes.errors import AnalyzerError
from probes.recurrent.backward import layer, replay
from probes.recurrent.backward.deposit import norms
from probes.recurrent.backward.record import StateGradients
from probes.recurrent.watching.split import recorded

MODULES = {
    "lstm": ("LSTM", {"num_layers": 2}),
    "lstm both ways": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "lstm with a projection": ("LSTM", {"proj_size": 2}),
    "gru": ("GRU", {"num_layers": 2, "bidirectional": True}),
    "tanh": ("RNN", {"num_layers": 2}),
    "relu": ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
}


@pytest.fixture(params=[1, 150, 2**20])
def numbers(request, monkeypatch):
    """Blocks of one timestep, of a few, and one that is all there is."""
    monkeypatch.setattr(replay, "BLOCK", request.param)
    return request.param


def assert_same(found: tuple[StateGradients, ...], expected: tuple[StateGradients, ...]) -> None:
    """Compare the norms at every site."""
    for one, other in zip(found, expected, strict=True):
        assert (one.site, one.units, one.reached) == (other.site, other.units, other.reached)
        for name in ("hidden", "cell", "gate", "state"):
            mine, theirs = (getattr(part.measured, name) for part in (one, other))
            assert (mine is None) == (theirs is None)
            if mine is not None:
                assert theirs.any()
                torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)


def scanned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often a layer is replayed."""
    calls: list[int] = []
    backwards = layer.Backwards

    def counting(*args):
        calls.append(1)
        return backwards(*args)

    monkeypatch.setattr(layer, "Backwards", counting)
    return calls


@pytest.mark.parametrize("kind", MODULES)
def test_losses_differentiated_together_are_as_one_after_the_other(
    kind, numbers, trained, monkeypatch
):
    torch.manual_seed(0)
    name, options = MODULES[kind]
    module = trained(name, 3, 4, **options)
    with recorded(module) as recordings:
        y, final = module(torch.randn(7, 2, 3, dtype=torch.float64))
    ends = final if isinstance(final, tuple) else (final,)
    losses = [y.sin(), y[-1].square(), torch.cat([end.exp().flatten() for end in ends])]
    expected = [recordings.gradients(loss) for loss in losses]
    calls = scanned(monkeypatch)
    found = recordings.each(losses)
    assert len(calls) == len(recordings.segments)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_cells_in_a_loop_take_several_losses_too(numbers, trained):
    torch.manual_seed(1)
    cell = nn.LSTMCell(3, 4).double()
    with recorded(cell) as recordings:
        state, outputs = None, []
        for x in torch.randn(5, 2, 3, dtype=torch.float64):
            state = cell(x, state)
            outputs.append(state[0])
    y = torch.stack(outputs)
    losses = [y.sin(), y[-1].square()]
    expected = [recordings.gradients(loss) for loss in losses]
    for one, other in zip(recordings.each(losses), expected, strict=True):
        assert_same(one, other)


def test_final_states_of_ragged_batches_take_several_losses(numbers, trained, monkeypatch):
    torch.manual_seed(4)
    module = trained("LSTM", 3, 4, num_layers=2, bidirectional=True)
    x = torch.randn(6, 3, 3, dtype=torch.float64)
    with recorded(module) as recordings:
        _, (h, c) = module(pack_padded_sequence(x, torch.tensor([4, 6, 2]), enforce_sorted=False))
    losses = [h.sin(), c.cos(), h[:, 1].exp()]
    expected = [recordings.gradients(loss) for loss in losses]
    calls = scanned(monkeypatch)
    found = recordings.each(losses)
    assert len(calls) == len(recordings.segments)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


class Halved(torch.autograd.Function):
    """An operation of a user that cannot be differentiated for several losses at once."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return values / 2

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient / 2 if float(gradient.abs().sum()) >= 0 else gradient


@pytest.mark.parametrize("kind", ["custom", "packed"])
def test_what_cannot_be_differentiated_together_is_one_after_the_other(kind, trained):
    torch.manual_seed(2)
    module = trained("LSTM", 3, 4, bidirectional=True)
    x = torch.randn(6, 3, 3, dtype=torch.float64)
    with recorded(module) as recordings:
        if kind == "packed":
            y = module(pack_padded_sequence(x, torch.tensor([4, 6, 2]), enforce_sorted=False))
            y = y[0].data
        else:
            y = Halved.apply(module(x)[0])
    losses = [y.sin(), y[-1].square()]
    expected = [recordings.gradients(loss) for loss in losses]
    for one, other in zip(recordings.each(losses), expected, strict=True):
        assert_same(one, other)


def test_a_loss_that_does_not_reach_the_layers_is_refused(trained):
    module = trained("GRU", 3, 4)
    with recorded(module) as recordings:
        module(torch.randn(5, 2, 3, dtype=torch.float64))
    apart = torch.ones(3, requires_grad=True).sum()
    message = "the loss does not depend on the states of l0: the model detaches them"
    for losses in ([apart, 2 * apart], [apart.detach(), apart]):
        with pytest.raises(AnalyzerError, match=message):
            recordings.each(losses)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("keep", ["norms", "factors", "all"])
def test_blocks_give_what_a_whole_sequence_gives(kind, keep, trained, monkeypatch):
    torch.manual_seed(3)
    name, options = MODULES[kind]
    module = trained(name, 3, 4, **options)
    x = torch.randn(9, 2, 3, dtype=torch.float64)

    def found(numbers: int) -> tuple[StateGradients, ...]:
        monkeypatch.setattr(replay, "BLOCK", numbers)
        with recorded(module, keep=keep) as recordings:
            y = module(x)[0]
        return recordings.gradients(y.sin())

    whole, cut = found(2**20), found(70)
    assert_same(cut, whole)
    for one, other in zip(cut, whole, strict=True):
        assert float(one.measured.residual) < 1e-13
        tensors = [*(one.measured.trajectory or ()), *factors_of(one)]
        others = [*(other.measured.trajectory or ()), *factors_of(other)]
        assert bool(tensors) == (keep != "norms")
        for mine, theirs in zip(tensors, others, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def factors_of(state: StateGradients) -> list[Tensor | None]:
    """List both sides of the factors."""
    return [side for factor in state.measured.factors for side in factor[1:]]


@pytest.mark.parametrize("keep", ["norms", "factors"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("timestep", [0, 3, 7])
def test_the_residual_is_the_largest_of_all_blocks(timestep, kind, keep, trained, monkeypatch):
    module = trained(kind, 3, 4)
    monkeypatch.setattr(replay, "BLOCK", 1)
    gates_of = f"{kind.lower()}_gates"
    real = getattr(replay, gates_of)
    calls: list[int] = []

    def wrong_once(*args):
        gates = real(*args)
        calls.append(1)
        if len(calls) == timestep + 1:
            gates.replayed[0, 1, 2] += 0.5
        return gates

    monkeypatch.setattr(replay, gates_of, wrong_once)
    with recorded(module, keep=keep) as recordings:
        y = module(torch.randn(8, 2, 3, dtype=torch.float64))[0]
    (found,) = recordings.gradients(y.sum())
    assert len(calls) == 8
    expected = 0.5 / float(y.detach().abs().max())
    assert float(found.measured.residual) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("exponent", range(-37, 38, 5))
def test_norms_of_float32_keep_their_precision_at_any_magnitude(exponent):
    values_TBH = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(5)) + 0.5
    values_TBH[1, 1] *= 10.0**exponent
    expected = torch.linalg.vector_norm(values_TBH.double(), dim=-1)
    torch.testing.assert_close(norms(values_TBH), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(norms(values_TBH.double()), expected, rtol=1e-14, atol=0)
