"""Recurrent layers and cells: every timestep, against nan."""

import pytest
import torch
from followed import assert_clipped, fields
from torch import Tensor, nn
from torch.nn.utils import rnn

TIMES = 6
EARLIER = "recurrence over every earlier position (causal prefix) in the model itself"
BOTH = "recurrence over every earlier and later position in the model itself"


def double(module: nn.Module) -> nn.Module:
    return module.double().eval()


KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "dim", "settings"),
    [
        ((1, TIMES, 2), 1, {"batch_first": True}),
        ((TIMES, 1, 2), 0, {}),
        ((TIMES, 2), 0, {}),
        ((TIMES, 2), 0, {"batch_first": True}),
        ((TIMES, 1, 2), 0, {"num_layers": 2}),
        ((TIMES, 1, 2), 0, {"bias": False}),
    ],
)
def test_each_timestep_sees_those_before(kind, shape, dim, settings):
    layer = double(KINDS[kind](2, 3, **settings))
    found = assert_clipped(layer, torch.rand(*shape, dtype=torch.float64), [dim])
    for extended, ungated, clipped in found[:1]:
        for (span,) in (extended, ungated, clipped):
            assert span.high.ravel().tolist() == [*range(TIMES)]
            assert (span.cause, span.dims, span.known) == (EARLIER, {dim}, True)
    for (span,), _, _ in found[1:]:
        assert (span.low.item(), span.high.item(), span.cause) == (0, TIMES - 1, EARLIER)
        assert span.known


@pytest.mark.parametrize("first", [True, False])
def test_each_timestep_of_both_directions_sees_all(first):
    layer = double(nn.GRU(2, 3, bidirectional=True, batch_first=first))
    shape = (1, TIMES, 2) if first else (TIMES, 1, 2)
    sequence, _ = fields(layer, torch.rand(*shape, dtype=torch.float64), [int(first)])
    (span,) = sequence[2]
    assert ({*span.low.ravel()}, {*span.high.ravel()}) == ({0}, {TIMES - 1})
    assert (span.cause, span.dims) == (BOTH, {int(first)})


@pytest.mark.parametrize(("both", "cause"), [(False, EARLIER), (True, BOTH)])
def test_packed_sequences_run_along_their_first_dimension(both, cause):
    layer = double(nn.LSTM(2, 3, bidirectional=both, batch_first=True))

    def function(x: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(x, torch.tensor([4]), batch_first=True)
        return layer(packed)[0].data

    ((_, _, (span,)),) = fields(function, torch.rand(1, TIMES, 2, dtype=torch.float64), [1])
    assert span.high.ravel().tolist() == ([3] if both else [0, 1, 2, 3])
    assert span.cause == cause


def test_every_timestep_sees_the_initial_state():
    layer, start = double(nn.GRU(2, 3)), torch.ones(5, 1, 2, dtype=torch.float64)
    x = torch.rand(1, 1, 3, dtype=torch.float64)
    (sequence, state) = assert_clipped(lambda x: layer(start, x), x, [2])
    for field in (*sequence, *state):
        assert (field[0].low.item(), field[0].high.item(), field[0].cause) == (0, 2, EARLIER)
        assert field[0].known


def test_the_initial_state_is_added_to_what_a_timestep_sees():
    layer = double(nn.GRU(2, 3))
    x = torch.rand(TIMES, 1, 2, dtype=torch.float64)
    (sequence, _) = assert_clipped(lambda x: layer(x, x[4:5, :, :1].expand(1, 1, 3)), x, [0])
    assert sequence[2][0].high.ravel().tolist() == [4, 4, 4, 4, 4, 5]


def test_layers_of_constants_depend_on_nothing():
    layer, start = double(nn.GRU(2, 3)), torch.ones(5, 1, 2, dtype=torch.float64)
    found = fields(lambda x: [layer(start)[0], x], torch.rand(4, 2).double(), [0])
    assert found[0] is None


def test_what_is_unknown_stays_so():
    layer = double(nn.GRU(2, 3))
    x = torch.rand(TIMES, 1, 2, dtype=torch.float64)
    for found in fields(lambda x: layer(torch.renorm(x, 2, 1, 1.0)), x, [0]):
        assert all(not span.known for field in found for span in field)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_states_of_cells_see_all_steps_so_far(kind):
    cell = double(kind(2, 3))

    def function(x: Tensor) -> list:
        states, state = [], None
        for step in x.unbind(1):
            state = cell(step, state)
            states.append(state)
        return states

    x = torch.rand(1, 4, 2, dtype=torch.float64)
    found = assert_clipped(function, x, [1])
    each = 2 if kind is nn.LSTMCell else 1
    assert [extended[0].cause for extended, _, _ in found] == [""] * each + [EARLIER] * 3 * each
    assert [extended[0].minimal for extended, _, _ in found[:each]] == [1] * each


@pytest.mark.parametrize("backwards", [True, False])
def test_a_cell_that_runs_backwards_sees_what_comes_later(backwards):
    cell = double(nn.GRUCell(2, 3))

    def function(x: Tensor) -> Tensor:
        steps = x.unbind(1)
        state = cell(steps[backwards], None)
        return cell(steps[not backwards], state)

    ((extended, _, clipped),) = fields(function, torch.rand(1, 2, 2, dtype=torch.float64), [1])
    for (span,) in (extended, clipped):
        assert (span.low.item(), span.high.item(), span.cause) == (0, 1, EARLIER)


def test_a_cell_whose_features_are_the_positions_sees_them_all():
    ((extended, _, _),) = fields(double(nn.GRUCell(4, 3)), torch.rand(1, 4).double(), [1])
    assert (extended[0].high.item(), extended[0].cause) == (3, EARLIER)


def test_a_cell_with_computed_weights_is_not_lost():
    cell, step = double(nn.GRUCell(2, 3)), torch.ones(1, 2, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        state = torch.zeros(1, 3, dtype=torch.float64)
        rest = (cell.weight_hh, cell.bias_ih, cell.bias_hh)
        return torch._VF.gru_cell(step, state, x, *rest)

    ((extended, _, _),) = fields(function, torch.rand(9, 2).double(), [0])
    assert (extended[0].low.item(), extended[0].high.item(), extended[0].cause) == (0, 8, EARLIER)
    assert extended[0].low.shape == (1, 1)


def test_a_packed_sequence_sees_the_initial_state():
    layer, start = double(nn.GRU(2, 3)), torch.ones(4, 2, dtype=torch.float64)
    packed = rnn.PackedSequence(start, torch.ones(4, dtype=torch.long))
    ((extended, _, _),) = fields(
        lambda x: layer(packed, x)[0].data, torch.rand(1, 1, 3, dtype=torch.float64), [2]
    )
    assert (extended[0].high.item(), extended[0].low.shape) == (2, (1, 1))


def test_a_step_that_sees_several_positions_is_no_recurrence():
    cell = double(nn.GRUCell(2, 3))
    x = torch.rand(1, 4, 1, dtype=torch.float64)
    ((extended, _, _),) = assert_clipped(lambda x: cell(torch.cat([x[:, 1], x[:, 3]], 1)), x, [1])
    assert (extended[0].low.item(), extended[0].high.item(), extended[0].cause) == (1, 3, "")


@pytest.mark.parametrize(
    ("before", "after"), [([1, 2], [0, 3]), ([0, 1], [0, 2]), ([1, 3], [2, 3]), ([1, 0], [0, 0])]
)
def test_rows_of_a_batch_remember_each_its_own(before, after):
    cell = double(nn.GRUCell(1, 3))
    x = torch.rand(4, 1, dtype=torch.float64)
    ((extended, _, clipped),) = fields(lambda x: cell(x[after], cell(x[before])), x, [0])
    for (span,) in (extended, clipped):
        assert span.low.ravel().tolist() == [min(pair) for pair in zip(before, after, strict=True)]
        assert span.high.ravel().tolist() == [max(pair) for pair in zip(before, after, strict=True)]
        assert span.cause == EARLIER


def test_a_step_that_sees_what_its_state_saw_is_no_recurrence():
    cell = double(nn.GRUCell(2, 2))
    x = torch.rand(1, 4, 2, dtype=torch.float64)
    ((extended, _, _),) = assert_clipped(
        lambda x: cell(torch.stack([x[:, 0, 0], x[:, 3, 0]], 1), x[:, 1]), x, [1]
    )
    assert (extended[0].low.item(), extended[0].high.item(), extended[0].cause) == (0, 3, "")
