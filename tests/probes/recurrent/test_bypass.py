"""Layers of recurrent modules, watched and replaced."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from probes.recurrent.watching.bypass import Layers, Reading

torch.manual_seed(0)

MODULES: dict[str, Callable[[], nn.RNNBase]] = {
    "lstm": lambda: nn.LSTM(3, 4, 3),
    "batch first": lambda: nn.LSTM(3, 4, 2, batch_first=True, bias=False),
    "bidirectional": lambda: nn.LSTM(3, 4, 2, bidirectional=True),
    "projection": lambda: nn.LSTM(3, 5, 2, proj_size=2, bidirectional=True),
    "gru": lambda: nn.GRU(3, 4, 2, bidirectional=True, batch_first=True),
    "tanh": lambda: nn.RNN(3, 4, 2),
    "relu": lambda: nn.RNN(3, 4, 2, nonlinearity="relu", bidirectional=True),
}


def leaves(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("packed", [None, True, False])
def test_watching_changes_no_bit(kind: str, packed: bool | None) -> None:
    module = MODULES[kind]().double()
    x: Any = torch.randn(5, 5, 3, dtype=torch.float64)
    if packed is not None:
        lengths = torch.tensor([5, 4, 4, 2, 1] if packed else [2, 5, 1, 4, 4])
        first = module.batch_first
        x = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=packed)
    seen: list[Reading] = []
    with torch.no_grad():
        expected = leaves(module(x))
        with Layers(module, watch=seen.append):
            found = leaves(module(x))
    assert all(map(torch.equal, found, expected))
    assert [reading.label for reading in seen] == [
        f"l{layer}" for layer in range(module.num_layers)
    ]


@pytest.mark.parametrize("ordered", [True, False])
def test_readings_are_in_the_order_of_samples_and_data(ordered: bool) -> None:
    module = nn.GRU(3, 4, 2, bidirectional=True, batch_first=True)
    lengths = torch.tensor([5, 3, 2] if ordered else [3, 5, 2])
    x = torch.randn(3, 5, 3)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=ordered)
    seen: list[Reading] = []
    with torch.no_grad(), Layers(module, watch=seen.append):
        y, _ = pad_packed_sequence(module(packed)[0])
    first, second = seen
    for row, length in enumerate(lengths):
        assert torch.equal(first.x[:length, row], x[row, :length])
    assert torch.equal(second.x, first.y)
    assert torch.equal(second.y, y)
    assert torch.equal(first.lengths, lengths)
    assert [weight.shape for weight in second.weights] == [
        w.shape for w in module.all_weights[2] * 2
    ]


class Stack(nn.Module):
    """Three layers of one kind, one module each, with something in the place of the middle one."""

    def __init__(self, module: nn.RNNBase, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        sizes = [module.input_size, *[self.width(module)] * 2]
        kind: Any = type(module)
        rest = {"bidirectional": module.bidirectional, "proj_size": module.proj_size}
        if kind is not nn.LSTM:
            del rest["proj_size"]
        self.parts = nn.ModuleList(kind(size, module.hidden_size, **rest) for size in sizes)
        self.middle = middle
        for layer, part in enumerate(self.parts):
            weights = module.all_weights
            count = 2 if module.bidirectional else 1
            own = [w for side in weights[layer * count : (layer + 1) * count] for w in side]
            for mine, theirs in zip(part.parameters(), own, strict=True):
                mine.data = theirs.data

    @staticmethod
    def width(module: nn.RNNBase) -> int:
        return (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.parts[2](self.middle(self.parts[0](x)[0]))[0]
        return y


MAKES = [
    lambda: nn.LSTM(3, 4, 3),
    lambda: nn.LSTM(3, 5, 3, proj_size=2, bidirectional=True),
    lambda: nn.GRU(3, 4, 3, bidirectional=True),
    lambda: nn.RNN(3, 4, 3),
]


@pytest.mark.parametrize("make", MAKES)
def test_a_replaced_layer_is_as_if_it_were_another_module(make: Callable[[], nn.RNNBase]) -> None:
    module = make().double()
    width = Stack.width(module)
    linear = nn.Linear(width, width).double()
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    for middle in (linear, lambda h: h):
        with torch.no_grad(), Layers(module, {"l1": middle}):
            found, ends = module(x)
        expected = Stack(module, middle).double()(x)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        hidden = ends[0] if isinstance(ends, tuple) else ends
        units = module.proj_size or module.hidden_size
        with torch.no_grad():
            between = middle(Stack(module, middle).double().parts[0](x)[0])
        count = 2 if module.bidirectional else 1
        torch.testing.assert_close(hidden[count], between[-1, :, :units])
        if module.bidirectional:
            torch.testing.assert_close(hidden[3], between[0, :, units:])
        if isinstance(ends, tuple):
            assert (ends[1][count : 2 * count] == 0).all()


def halved(h: Tensor) -> Tensor:
    """Move states to a line, differently in every unit."""
    return h.mean(-1, keepdim=True) * torch.arange(1, h.shape[-1] + 1).to(h) + 0.1


@pytest.mark.parametrize("make", MAKES)
def test_what_a_layer_passes_on_is_changed_and_its_recurrence_is_not(
    make: Callable[[], nn.RNNBase],
) -> None:
    module, x = make().double(), torch.randn(6, 2, 3, dtype=torch.float64)
    stack = Stack(module, lambda h: h).double()
    with torch.no_grad():
        between = halved(stack.parts[1](stack.parts[0](x)[0])[0])
        stack.middle = lambda _: between
        expected = stack(x)
        with Layers(module, passed={"l1": halved}):
            found, ends = module(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    hidden = ends[0] if isinstance(ends, tuple) else ends
    units = module.proj_size or module.hidden_size
    count = 2 if module.bidirectional else 1
    torch.testing.assert_close(hidden[count], between[-1, :, :units])
    if module.bidirectional:
        torch.testing.assert_close(hidden[3], between[0, :, units:])


def test_a_layer_of_ragged_data_ends_in_what_it_passes_on() -> None:
    module, x = nn.GRU(3, 4, 2, batch_first=True).double(), torch.randn(3, 4, 3).double()
    lengths = torch.tensor([2, 4, 3])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    with torch.no_grad(), Layers(module, passed={"l0": halved, "l1": halved}):
        _, h = module(packed)
        alone = [module(x[row : row + 1, :length])[1] for row, length in enumerate(lengths)]
    torch.testing.assert_close(h, torch.cat(alone, 1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_state_that_comes_back_goes_on_unchanged(kind: Any) -> None:
    module, x = kind(3, 4, 2).double(), torch.randn(6, 2, 3, dtype=torch.float64)
    with torch.no_grad(), Layers(module, passed={"l0": halved, "l1": halved}):
        whole, _ = module(x)
        first, state = module(x[:4])
        second, _ = module(x[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-12, atol=1e-14)


def test_the_end_of_a_replaced_layer_in_ragged_data_is_that_of_each_sample() -> None:
    module = nn.LSTM(3, 3, 2, batch_first=True)
    lengths = torch.tensor([2, 4, 3])
    x = torch.randn(3, 4, 3)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    c0 = torch.randn(2, 3, 3)
    with torch.no_grad(), Layers(module, {"l0": lambda h: 2 * h}):
        _, (h, c) = module(packed, (torch.zeros(2, 3, 3), c0))
    torch.testing.assert_close(h[0], 2 * x[range(3), lengths - 1])
    assert torch.equal(c[0], c0[0])


def test_what_a_replaced_layer_reads_is_not_handed_on_as_it_is() -> None:
    module, x = nn.GRU(4, 4), torch.randn(3, 2, 4)
    before = x.clone()
    with torch.no_grad(), Layers(module, {"l0": lambda h: h}):
        module(x)[0].mul_(0)
    assert torch.equal(x, before)


class Cells(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.below, self.above = kind(3, 4), kind(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        lower: Any = None
        upper: Any = None
        found = []
        for x_BI in x:
            lower = self.below(x_BI, lower)
            h = lower[0] if isinstance(lower, tuple) else lower
            upper = self.above(h, upper)
            found.append(upper[0] if isinstance(upper, tuple) else upper)
        return torch.stack(found)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_are_layers_of_one_timestep(kind: type) -> None:
    model, x = Cells(kind), torch.randn(5, 2, 3)
    seen: list[Reading] = []
    with torch.no_grad():
        expected = model(x)
        with Layers(model, watch=seen.append):
            assert torch.equal(model(x), expected)
        with Layers(model, {"above.l0": lambda h: 3 * h}):
            replaced = model(x)
    assert [reading.label for reading in seen[:3]] == ["below.l0", "above.l0", "below.l0"]
    lower = [reading.y[0] for reading in seen if reading.label == "below.l0"]
    torch.testing.assert_close(replaced, 3 * torch.stack(lower))


def stepped(cell: nn.RNNCellBase, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """One timestep of a cell, written out."""
    h = state[0] if isinstance(state, tuple) else state
    a = x @ cell.weight_ih.T + cell.bias_ih
    b = h @ cell.weight_hh.T + cell.bias_hh
    if isinstance(cell, nn.LSTMCell):
        i, f, g, o = (a + b).chunk(4, 1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, (h, c)
    if isinstance(cell, nn.GRUCell):
        (ar, az, an), (br, bz, bn) = a.chunk(3, 1), b.chunk(3, 1)
        n = (an + (ar + br).sigmoid() * bn).tanh()
        h = (1 - (az + bz).sigmoid()) * n + (az + bz).sigmoid() * h
    else:
        h = (a + b).tanh()
    return h, h


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_pass_on_changed_states_and_go_on_with_their_own(kind: type) -> None:
    model, x = Cells(kind).double(), torch.randn(5, 2, 3, dtype=torch.float64)
    with torch.no_grad(), Layers(model, passed={"below.l0": halved, "above.l0": halved}):
        found = model(x)
    zeros = torch.zeros(2, 4, dtype=torch.float64)
    lower = upper = (zeros, zeros) if kind is nn.LSTMCell else zeros
    expected = []
    for x_BI in x:
        h, lower = stepped(model.below, x_BI, lower)
        h, upper = stepped(model.above, halved(h), upper)
        expected.append(halved(h))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-14)
