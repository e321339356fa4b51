"""Memory against closed forms, the graph itself, and the peak of a process."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from analyzer.rules.memory_growth import Growth
from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.footprint.batches import repeated, shortened
from probes.memory_footprint import MemoryFootprint

FLOAT = 4


def measured(model: nn.Module, *shape: int, **settings: Any) -> xr.Dataset:
    x = torch.randn(shape)
    targets = torch.arange(shape[0]) % 3
    subject = Subject(model, [(x, targets)], "cross_entropy")
    return MemoryFootprint(**settings)(subject)


def row(trace: xr.Dataset, name: str, layer: str) -> list[float]:
    values = trace[name].sel(layer=layer).to_numpy()
    return values.reshape(-1).tolist()


def test_linear_layers_in_closed_form() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    trace = measured(model, 6, 5, samples=8)
    assert trace["layer"].to_numpy().tolist() == ["0", "1", "2", "(loss)"]
    assert trace["kind"].to_numpy().tolist() == ["Linear", "ReLU", "Linear", "loss"]
    first, last = FLOAT * (5 * 7 + 7), FLOAT * (7 * 3 + 3)
    for name, times in (("parameters", 1), ("gradients", 1), ("moments", 2), ("buffers", 0)):
        assert trace[name].to_numpy().tolist() == [times * first, 0, times * last, 0]
    # The output of the ReLU is the input of the next layer: one storage, of whom saves it first.
    assert row(trace, "saved", "1") == [7 * FLOAT * count for count in (2, 4, 8)]
    assert row(trace, "saved", "0") == row(trace, "saved", "2") == [0, 0, 0]
    # Output and input of the ReLU, both with a gradient; the input of the first layer has none.
    assert row(trace, "passing", "1") == [2 * 7 * FLOAT * count for count in (2, 4, 8)]
    assert row(trace, "passing", "0") == [7 * FLOAT * count for count in (2, 4, 8)]
    assert trace["inputs"].to_numpy().tolist() == [5 * FLOAT * count for count in (2, 4, 8)]
    assert trace["module"].to_numpy().tolist() == ["0", "1", "2"]
    assert trace["serving_live"].to_numpy().tolist() == [
        [7 * FLOAT * n, 14 * FLOAT * n, 10 * FLOAT * n] for n in (2, 4, 8)
    ]
    # The output of the ReLU is kept; what the first layer returned is not.
    assert trace["forward_live"].to_numpy().tolist() == [
        [7 * FLOAT * n, 14 * FLOAT * n, 10 * FLOAT * n] for n in (2, 4, 8)
    ]
    assert Growth(trace).place(8) == "1"
    assert trace.attrs["step"] == 2 * FLOAT * 5 * 7
    assert trace.attrs["mode"] == "train"
    assert trace.attrs["optimizer"] == (
        "assumed 2 values for each parameter, as Adam keeps (no state of the optimizer: save "
        "optimizer.state_dict() beside the weights)"
    )


def saved_in_graph(loss: Tensor, ignored: list[Tensor]) -> int:
    """Bytes of all storages that the nodes of a graph hold, found by walking it."""
    known = {tensor.untyped_storage().data_ptr() for tensor in ignored}
    found: dict[int, int] = {}
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            value = getattr(node, name) if name.startswith("_saved_") else None
            for tensor in value if isinstance(value, tuple) else [value]:
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
        nodes += [following for following, _ in node.next_functions]
    return sum(size for key, size in found.items() if key not in known)


class Block(nn.Module):
    """A convolution with normalization beside a shortcut, in place where it can be."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.norm(self.conv(x)) + x).sigmoid()


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), Block(), nn.MaxPool2d(2), nn.Dropout(0.4), Block(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def signals() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.GELU(), nn.Conv1d(8, 8, 3, padding=1),
        nn.Softmax(1), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.GRU, layers: int = 2) -> None:
        super().__init__()
        self.rnn = kind(3, 16, layers, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor | PackedSequence) -> Tensor:
        states = self.rnn(x)[1]
        y: Tensor = self.head((states[0] if isinstance(states, tuple) else states)[-1])
        return y


@pytest.mark.parametrize(
    ("make", "shape"),
    [(images, (4, 2, 9, 9)), (signals, (4, 3, 12)), (Recurrent, (4, 9, 3))],
)
def test_saved_is_what_the_graph_holds(make: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    model = make()
    trace = measured(model, *shape, samples=4)
    x = torch.randn(shape)
    outputs = model.train()(x)
    loss = nn.functional.cross_entropy(outputs, torch.arange(4) % 3, reduction="none").mean()
    held = [*model.parameters(), *model.buffers(), x]
    assert float(trace["saved"][2].sum()) == pytest.approx(saved_in_graph(loss, held), abs=64)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (images, (4, 2, 40, 40)),
        (signals, (4, 3, 200)),
        (lambda: Recurrent(nn.LSTM), (4, 120, 3)),
        (lambda: Recurrent(nn.GRU), (4, 120, 3)),
    ],
)
def test_the_estimate_is_close_to_the_most_that_was_alive(make: Any, shape: Any) -> None:
    torch.manual_seed(2)
    assert Growth(measured(make(), *shape)).error() < 0.1


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_what_a_fused_lstm_keeps_for_itself_is_seen() -> None:
    trace = measured(Recurrent(nn.LSTM, 1), 8, 50, 3, samples=8)
    output = 8 * 50 * 16 * FLOAT
    # Four gates, cell state and output; hidden and cell states before and after; the input turned.
    expected = 6 * output + 4 * 8 * 16 * FLOAT + 8 * 50 * 3 * FLOAT
    assert row(trace, "saved", "rnn")[2] == pytest.approx(expected, rel=0.02)
    assert row(trace, "saved_per_timestep", "rnn") == [row(trace, "saved", "rnn")[2] / (8 * 50)]
    assert row(trace, "passing", "rnn")[2] > 5 * output


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_what_a_fused_lstm_needs_while_it_serves_is_seen() -> None:
    trace = measured(Recurrent(nn.LSTM, 1), 8, 50, 3, samples=8)
    outputs = [n * t * 16 * FLOAT for n, t in ((2, 50), (4, 50), (8, 50), (2, 25), (2, 37))]
    # The output, states of all timesteps as large, the input turned, and states before and after.
    expected = [2 * size + size // 16 * 3 for size in outputs]
    expected = [
        size + 4 * n * 16 * FLOAT for size, n in zip(expected, (2, 4, 8, 2, 2), strict=True)
    ]
    assert trace["serving_live"].sel(module="rnn").to_numpy().tolist() == expected
    assert Growth(trace).place(8) == "rnn"


@pytest.mark.parametrize(("kind", "layers", "outputs"), [(nn.GRU, 1, 3), (nn.RNN, 2, 2)])
def test_gradients_within_a_recurrent_layer_are_as_wide_as_gates_and_layers(
    kind: type[nn.RNNBase], layers: int, outputs: int
) -> None:
    trace = measured(Recurrent(kind, layers), 8, 50, 3, samples=8)
    assert row(trace, "passing", "rnn")[2] == outputs * 8 * 50 * 16 * FLOAT


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(3, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 8)
        for step in x.unbind(1):
            h = self.cell(step, h)
        y: Tensor = self.head(h)
        return y


def test_cells_in_a_loop_save_the_same_at_every_timestep() -> None:
    trace = measured(Loop(), 8, 20, 3, samples=8)
    (each,) = row(trace, "saved_per_timestep", "cell")
    # The state; that before the first timestep counts once more.
    assert each * 8 * 20 == row(trace, "saved", "cell")[2] == (20 + 1) * 8 * 8 * FLOAT
    assert trace["timesteps"].to_numpy().tolist() == [20, 20, 20, 10, 15]
    half, full = trace["saved"].sel(layer="cell").to_numpy()[[3, 0]]
    assert full - half == 10 * 2 * 8 * FLOAT


def test_sequences_that_cannot_be_shortened_say_why() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(40, 3))
    trace = measured(model, 4, 2, 10)
    assert trace.sizes["pass"] == 3
    assert trace.attrs["not_shortened"] == (
        "the model does not take shorter sequences (mat1 and mat2 shapes cannot be multiplied "
        "(4x20 and 40x3))"
    )


def test_only_what_requires_a_gradient_is_trained() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    model[0].requires_grad_(False)
    trace = measured(model, 6, 5)
    assert row(trace, "gradients", "0") == row(trace, "moments", "0") == [0]
    assert row(trace, "gradients", "2") == [FLOAT * 24]
    # The input of the last layer is all that is needed, and the last layer saves it.
    assert "1" not in trace["layer"].to_numpy()
    model.requires_grad_(False)
    assert row(measured(model, 6, 5), "gradients", "0") == [FLOAT * 42]


class Eval(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("targets are needed\nin training")
        y: Tensor = self.head(x)
        return y


def test_a_model_that_does_not_run_in_train_mode_is_measured_in_eval_mode() -> None:
    assert measured(Eval(), 6, 5).attrs["mode"] == (
        "eval, as the model does not run in train mode: targets are needed"
    )


def test_moments_are_those_in_the_checkpoint() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    model(torch.randn(2, 5)).sum().backward()
    optimizer.step()
    subject = Subject(model, [torch.randn(6, 5)], optimizer=optimizer.state_dict())
    trace = MemoryFootprint()(subject)
    assert trace["moments"].to_numpy().tolist() == trace["parameters"].to_numpy().tolist()
    assert trace.attrs["optimizer"] == "in the checkpoint: momentum_buffer"
    assert trace.attrs["step"] == 0
    adam = torch.optim.Adam(model.parameters())
    adam.step()
    trace = MemoryFootprint()(Subject(model, [torch.randn(6, 5)], optimizer=adam.state_dict()))
    # The count of the steps is a number for each of two parameters.
    expected = [2 * size + 2 * FLOAT for size in (FLOAT * 42, FLOAT * 24)]
    assert trace["moments"].to_numpy().tolist() == [*expected, 0]
    assert trace.attrs["step"] == 2 * FLOAT * 5 * 7
    subject = Subject(nn.Linear(5, 3), [torch.randn(6, 5)], optimizer=optimizer.state_dict())
    assert MemoryFootprint(moments=1)(subject).attrs["optimizer"] == (
        "assumed 1 value for each parameter, as momentum keeps (the optimizer's state does not fit "
        "the model: it is for 4 parameters, and the model has 2)"
    )


def test_buffers_and_shared_weights_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    trace = measured(model, 6, 4)
    assert float(trace["parameters"].sum()) == FLOAT * (16 + 4 + 4 + 4 + 4)
    assert row(trace, "buffers", "1") == [FLOAT * 8 + 8]


# Batches


def test_the_longest_sample_is_repeated() -> None:
    x = torch.arange(24.0).reshape(3, 4, 2)
    subject = Subject(nn.Linear(2, 2), [Batch(x, torch.tensor([5, 6, 7]), torch.tensor([2, 4, 3]))])
    batch = repeated(subject, 5)
    assert torch.equal(batch.inputs, x[[1] * 5])  # type: ignore[arg-type]
    assert batch.targets.tolist() == [6] * 5
    assert batch.lengths.tolist() == [4] * 5  # type: ignore[union-attr]
    short = shortened(subject, batch, 1, 3)
    assert torch.equal(short.inputs, x[[1] * 5, :3])  # type: ignore[arg-type]
    assert short.lengths.tolist() == [3] * 5  # type: ignore[union-attr]


def test_packed_sequences_and_targets_of_every_timestep_are_shortened() -> None:
    packed = pack_padded_sequence(torch.randn(2, 6, 3), torch.tensor([6, 4]), batch_first=True)
    subject = Subject(Recurrent(), [Batch(packed, torch.zeros(2, 6))])
    short = shortened(subject, repeated(subject, 4), 1, 3)
    assert short.inputs.batch_sizes.tolist() == [4, 4, 4]  # type: ignore[union-attr]
    assert short.targets.shape == (4, 3)
    trace = MemoryFootprint(samples=4)(Subject(Recurrent(), [Batch(packed, torch.zeros(2).long())]))
    assert trace["timesteps"].to_numpy().tolist() == [6, 6, 6, 3, 4]


# What cannot be measured


def test_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(AnalyzerError) as raised:
        measured(nn.Linear(5, 3), 6, 5, samples=3, gib=0.0)
    assert str(raised.value) == (
        "memory_footprint needs samples >= 4, moments >= 0 and gib > 0: they are 3, 2 and 0"
    )


def test_a_model_without_parameters_does_not_apply() -> None:
    with pytest.raises(NotApplicable) as raised:
        measured(nn.Flatten(), 6, 3)
    assert str(raised.value) == "the model has no parameters: there is nothing to train"


class Detached(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def test_a_loss_without_a_gradient_is_an_error() -> None:
    with pytest.raises(AnalyzerError) as raised:
        measured(Detached(5, 3), 6, 5)
    assert str(raised.value) == (
        "the loss does not depend on any parameter that requires a gradient: the model runs under "
        "torch.no_grad, or it or the loss detaches its result"
    )


COMPARE = """
import sys
from benchmarks.footprint import CASES, compared
print(*(row.ratio for row in compared(next(c for c in CASES if c.name == sys.argv[1]))))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "case",
    [
        "CNN: ResNet-18, 64 x 32x32",
        "LSTM, 64 x 250 timesteps",
        "LSTM, 64 x 500 timesteps",
        "CNN + GRU, 64 x 400 timesteps",
        "MLP, 512 x 784",
    ],
)
def test_the_estimates_are_within_a_tenth_of_the_peak_of_a_process(case: str) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, case], cwd=root, capture_output=True, check=True, text=True
    )
    _, training, _, serving = map(float, done.stdout.split())
    assert abs(training - 1) < 0.1
    assert abs(serving - 1) < 0.1
