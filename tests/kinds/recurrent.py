"""Recurrent networks whose memory is built in, so that the report can be held to it.

Shapes: B sample, T timestep, H unit, K class. Gates in the order i, f, g, o.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import analyzer
from analyzer.demo import SPECS

SAMPLES, UNITS, CLASSES = 64, 8, 4
STEPS = 30

RADIUS, GROWTH = 0.5, 1.4
"""Factor by which one step of ``vanilla_rnn`` and ``exploding_rnn`` changes the gradient."""

FORGET = 0.5
"""Forget gate of ``forgetting_lstm``."""

DELAY = 12
"""Lag of the only input that ``delay_lstm`` reads [timestep]."""


class LastState(nn.Module):
    """A recurrent layer, and a linear reading of its last output."""

    def __init__(self, layer: nn.RNNBase, outputs: int = 1) -> None:
        super().__init__()
        self.layer = layer
        width = layer.hidden_size * (2 if layer.bidirectional else 1)
        self.head = nn.Linear(width, outputs)

    def forward(self, x_BTC: Tensor) -> Tensor:
        y_BTH, _ = self.layer(x_BTC)
        out: Tensor = self.head(y_BTH[:, -1])
        return out


class BothEnds(LastState):
    """As above, with the last state of each direction in its own order."""

    def forward(self, x_BTC: Tensor) -> Tensor:
        _, (h_LBH, _) = self.layer(x_BTC)
        out: Tensor = self.head(torch.cat([h_LBH[-2], h_LBH[-1]], 1))
        return out


def regression(model: nn.Module, scale: float = 1.0, steps: int = STEPS) -> analyzer.Subject:
    """Subject with random inputs, whose targets the model meets but for a little noise."""
    inputs = scale * torch.randn(SAMPLES, steps, 1)
    with torch.no_grad():
        outputs = model(inputs)
    targets = outputs + 0.1 * outputs.std() * torch.randn(SAMPLES, 1)
    return analyzer.Subject(model, [(inputs, targets)], loss="mse_loss")


def _rnn(radius: float) -> LastState:
    """Vanilla network whose recurrent weights scale a rotation by ``radius``."""
    model = LastState(nn.RNN(1, UNITS, batch_first=True, bias=False))
    nn.init.orthogonal_(model.layer.weight_hh_l0, radius)
    return model


def vanilla_rnn() -> analyzer.Subject:
    """Vanilla network with a small spectral radius: its gradient vanishes over time."""
    return regression(_rnn(RADIUS), 0.1)


def exploding_rnn() -> analyzer.Subject:
    """Vanilla network with a large spectral radius, on inputs so small that it stays linear."""
    return regression(_rnn(GROWTH), 1e-6)


def gate_bias(layer: nn.LSTM, forget: float, suffix: str) -> None:
    """Hold one direction's forget gate at ``forget``, its others half open, nothing fed back."""
    units = layer.hidden_size
    with torch.no_grad():
        for kind in ("weight_hh", "bias_ih", "bias_hh"):
            getattr(layer, f"{kind}_{suffix}").zero_()
        weight = getattr(layer, f"weight_ih_{suffix}")
        weight.zero_()[2 * units : 3 * units].uniform_(0.2, 0.6)  # the candidate alone is driven
        bias = torch.logit(torch.tensor(forget))
        getattr(layer, f"bias_ih_{suffix}")[units : 2 * units] = bias


def forgetting_lstm() -> analyzer.Subject:
    """LSTM that forgets half of its cell with every step, and is not judged by a loss."""
    model = LastState(nn.LSTM(1, UNITS, batch_first=True))
    gate_bias(model.layer, FORGET, "l0")
    return analyzer.Subject(model, [0.1 * torch.randn(SAMPLES, STEPS, 1)])


def remembering_lstm() -> analyzer.Subject:
    """LSTM that keeps all of its cell."""
    model = LastState(nn.LSTM(1, UNITS, batch_first=True))
    gate_bias(model.layer, 0.9999, "l0")
    return regression(model, 0.1)


class DelayLine(LastState):
    """LSTM whose units hand their value on like a bucket brigade, the last one to the output."""

    def __init__(self) -> None:
        super().__init__(nn.LSTM(1, DELAY + 1, batch_first=True))
        units, layer = DELAY + 1, self.layer
        with torch.no_grad():
            for weight in self.parameters():
                weight.zero_()
            layer.bias_ih_l0[:units] = layer.bias_ih_l0[3 * units :] = 12.0
            layer.bias_ih_l0[units : 2 * units] = -12.0
            layer.weight_ih_l0[2 * units] = 1.0
            layer.weight_hh_l0[2 * units + 1 : 3 * units, :-1] = torch.eye(DELAY)
            self.head.weight[0, -1] = 1.0


def delay_lstm() -> analyzer.Subject:
    """LSTM whose output is the input of ``DELAY`` timesteps ago."""
    inputs = 0.2 * torch.randn(SAMPLES, STEPS, 1)
    targets = inputs[:, -1 - DELAY] + 0.05
    return analyzer.Subject(DelayLine(), [(inputs, targets)], loss="mse_loss")


def heartbeat_lstm() -> analyzer.Subject:
    """Bundled LSTM of 4 layers, trained on electrocardiograms."""
    return analyzer.load_subject(replace(SPECS["ecg_lstm"], max_samples=SAMPLES)).subject


def stacked(layers: int) -> analyzer.Subject:
    """Stacked LSTM with gates half open everywhere: time is the bottleneck, not depth."""
    model = LastState(nn.LSTM(1, UNITS, layers, batch_first=True))
    with torch.no_grad():
        for name, weight in model.layer.named_parameters():
            if name.startswith("bias"):
                weight.zero_()
            elif name.startswith("weight_hh"):
                weight.mul_(0.1)
            else:
                weight.mul_(3)
    return regression(model)


def bidirectional_lstm() -> analyzer.Subject:
    """Bidirectional LSTM that forgets in reading order and remembers in reverse."""
    model = BothEnds(nn.LSTM(1, UNITS, batch_first=True, bidirectional=True))
    gate_bias(model.layer, FORGET, "l0")
    gate_bias(model.layer, 0.9999, "l0_reverse")
    return regression(model, 0.1)


class Unshared(nn.Module):
    """One cell per timestep: weights that are not shared in time."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.LSTMCell(1, UNITS) for _ in range(steps))
        self.head = nn.Linear(UNITS, 1)

    def forward(self, x_BTC: Tensor) -> Tensor:
        state = None
        for cell, x_BC in zip(self.cells, x_BTC.unbind(1), strict=True):
            state = cell(x_BC, state)
        out: Tensor = self.head(state[0])
        return out


def unshared_weights() -> analyzer.Subject:
    """One LSTM cell per timestep, each of which forgets half."""
    model = Unshared(10)
    with torch.no_grad():
        for cell in model.cells:
            cell.bias_ih.zero_()
            cell.bias_hh.zero_()
            cell.weight_hh.mul_(0.1)
    return regression(model, steps=10)


class Tagger(nn.Module):
    """Reads padded or packed sequences; a class for each at its last valid timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, CLASSES)

    def forward(self, x: Tensor | PackedSequence, lengths_B: Tensor | None = None) -> Tensor:
        y, _ = self.lstm(x)
        if isinstance(y, PackedSequence):
            y, lengths_B = pad_packed_sequence(y, batch_first=True)
        assert lengths_B is not None
        last_BH = y[torch.arange(len(y)), lengths_B - 1]
        out: Tensor = self.head(last_BH)
        return out


def _ragged() -> tuple[Tagger, Tensor, Tensor, Tensor]:
    """Model, padded sequences, their lengths and classes."""
    lengths_B = torch.randint(5, 26, (SAMPLES,))
    lengths_B[0] = 25
    x_BTC = torch.randn(SAMPLES, 25, 2)
    x_BTC[torch.arange(25) >= lengths_B[:, None]] = 0
    return Tagger(), x_BTC, lengths_B, torch.randint(CLASSES, (SAMPLES,))


def ragged_padded() -> analyzer.Subject:
    """Sequences of different lengths, padded, in two batches."""
    model, x_BTC, lengths_B, y_B = _ragged()
    batches = [
        analyzer.Batch((x_BTC[part], lengths_B[part]), y_B[part], lengths_B[part])
        for part in (slice(40), slice(40, None))
    ]
    return analyzer.Subject(model, batches, loss="cross_entropy")


def ragged_packed() -> analyzer.Subject:
    """The same sequences and network, packed."""
    model, x_BTC, lengths_B, y_B = _ragged()
    packed = [
        (pack_padded_sequence(x_BTC[part], lengths_B[part], True, enforce_sorted=False), y_B[part])
        for part in (slice(40), slice(40, None))
    ]
    return analyzer.Subject(model, packed, loss="cross_entropy")
