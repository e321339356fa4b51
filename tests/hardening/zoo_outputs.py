"""Inputs, outputs, targets and losses that are not one number for each sample."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from zoo_parts import classes, classified, drawn, images, sequences, vectors

from probes.base import Batch, Subject


class Then(nn.Module):
    """A linear layer, then a function."""

    def __init__(self, act: Callable[[Tensor], Any], inputs: int = 5, outputs: int = 3) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(inputs, outputs), act

    def forward(self, x: Tensor) -> Any:
        return self.act(self.linear(x))


class Spectrum(nn.Module):
    """Complex numbers inside and outside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64) / 2)

    def forward(self, x_BC: Tensor) -> Tensor:
        return torch.fft.fft(self.linear(x_BC)) @ self.weight


class View(nn.Module):
    """Returns a view of what it was given, beside what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x_BC: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x_BC), x_BC[:, :2]


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.1, 0.2, 0.3]))

    def forward(self, x_BC: Tensor) -> Tensor:
        return self.bias.expand(len(x_BC), 3)


class Mask(nn.Module):
    """Reads floats and a boolean mask."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        h_BTH, _ = self.rnn(x_BTC.masked_fill(~mask_BT[:, :, None], 0))
        return self.head(h_BTH[:, -1])


class Pixels(nn.Module):
    """Reads bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 3)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return self.head(self.conv(x_BCYX.float() / 255).relu().mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru = nn.Embedding(7, 4), nn.GRU(4, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.head(self.gru(self.embed(tokens_BT))[0][:, -1])


class OneHot(nn.Module):
    """Reads integers that no embedding looks up."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(7, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        one_BTK = nn.functional.one_hot(tokens_BT, 7).float()
        return self.head(self.lstm(one_BTK)[0][:, -1])


def integers(count: int, steps: int) -> Tensor:
    return torch.arange(count * steps).reshape(count, steps) * 5 % 7


def poisoned(model: nn.Module, value: float) -> nn.Module:
    """Put a value that is no number into the first weight."""
    with torch.no_grad():
        next(model.parameters()).view(-1)[1] = value
    return model


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def recurrent() -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x_BTC: Tensor) -> Tensor:
            return self.head(self.lstm(x_BTC)[0][:, -1])

    return Last()


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(3, 3),
    )  # fmt: skip


def with_loss(loss: Any, targets: Any = None, model: Callable[[], nn.Module] = network) -> Subject:
    return Subject(model(), [Batch(vectors(6, 5), targets)], loss)


def broken_data(value: float) -> Subject:
    x_BTC = sequences(6, 8, 3).clone()
    x_BTC[1, 3, 2] = value
    return classified(recurrent(), x_BTC)


def ragged() -> Subject:
    """Padded sequences of unequal length, in batches of unequal length."""
    first = Batch(sequences(4, 8, 3), classes(4), torch.tensor([8, 3, 1, 5]))
    second = Batch(sequences(2, 5, 3), classes(2), torch.tensor([5, 4]))
    return Subject(recurrent(), [first, second], "cross_entropy")


def negative(outputs: Tensor, targets: Tensor) -> Tensor:
    return -outputs.square().sum(1) - 1


OUTPUTS: dict[str, Callable[[], Subject]] = {
    "complex output": lambda: Subject(Spectrum(), [vectors(6, 5)]),
    "complex output and loss": lambda: Subject(
        Spectrum(), [Batch(vectors(6, 5), classes(6))], lambda y, _: y.abs().square().sum(1)
    ),
    "complex input": lambda: Subject(
        nn.Linear(5, 3, dtype=torch.complex64), [torch.complex(vectors(6, 5), vectors(6, 5))]
    ),
    "no axis": lambda: Subject(Then(lambda y: y.sum()), [vectors(6, 5)]),
    "no batch axis": lambda: Subject(Then(lambda y: y.mean(0)), [vectors(6, 5)]),
    "integers out": lambda: Subject(Then(lambda y: y.argmax(1)), [vectors(6, 5)]),
    "None out": lambda: Subject(Then(lambda y: None), [vectors(6, 5)]),
    "text out": lambda: Subject(Then(lambda y: "done"), [vectors(6, 5)]),
    "empty out": lambda: Subject(Then(lambda y: y[:, :0]), [vectors(6, 5)]),
    "view of the input": lambda: classified(View(), vectors(6, 5)),
    "input returned": lambda: Subject(View(), [vectors(6, 5)], output=1),
    "constant output": lambda: classified(Constant(), vectors(6, 5)),
    "zero output": lambda: Subject(Then(lambda y: y * 0), [vectors(6, 5)]),
    "detached output": lambda: Subject(Then(lambda y: y.detach()), [vectors(6, 5)]),
    "mask": lambda: Subject(
        Mask(), [Batch((sequences(6, 8, 3), sequences(6, 8) > -1), classes(6))], "cross_entropy"
    ),
    "bytes in": lambda: classified(Pixels(), (images(6, 1, 8) * 60 + 128).byte()),
    "integers in": lambda: classified(Tokens(), integers(6, 8)),
    "32-bit integers in": lambda: classified(Tokens(), integers(6, 8).int()),
    "integers without embedding": lambda: classified(OneHot(), integers(6, 8)),
    "booleans in": lambda: Subject(Then(lambda y: y), [Batch(vectors(6, 5) > 0, classes(6))]),
    "batch of one": lambda: Subject(
        recurrent(), [Batch(sequences(1, 8, 3), classes(1))], "cross_entropy"
    ),
    "image of one": lambda: Subject(
        convolutional(), [Batch(images(1, 1, 8), classes(1))], "cross_entropy"
    ),
    "one timestep": lambda: classified(recurrent(), sequences(6, 1, 3)),
    "ragged": ragged,
    "no data": lambda: Subject(network(), []),
    "no samples": lambda: Subject(network(), [vectors(0, 5)]),
    "one empty batch": lambda: Subject(network(), [vectors(0, 5), vectors(6, 5)]),
    "no targets": lambda: Subject(recurrent(), [sequences(6, 8, 3)], "cross_entropy"),
    "no loss": lambda: Subject(recurrent(), [sequences(6, 8, 3)]),
    "targets of another length": lambda: with_loss("cross_entropy", classes(5)),
    "targets of another shape": lambda: with_loss("mse_loss", drawn(6, 4)),
    "targets out of range": lambda: with_loss("cross_entropy", classes(6) + 5),
    "targets all ignored": lambda: with_loss("cross_entropy", torch.full((6,), -100)),
    "targets that are text": lambda: with_loss("cross_entropy", ["a"] * 6),
    "unknown loss": lambda: with_loss("no_such_loss", classes(6)),
    "loss per sample": lambda: with_loss(lambda y, t: (y.sum(1) - t).square(), classes(6)),
    "loss for the batch": lambda: with_loss(lambda y, t: y.square().mean(), classes(6)),
    "loss per output": lambda: with_loss(lambda y, t: y.square(), classes(6)),
    "loss of another shape": lambda: with_loss(lambda y, t: y.square().sum(0), classes(6)),
    "loss that is a number": lambda: with_loss(lambda y, t: 1.0, classes(6)),
    "loss that is nan": lambda: with_loss(lambda y, t: y.sum(1) * float("nan"), classes(6)),
    "loss that is infinite": lambda: with_loss(lambda y, t: y.sum(1) / 0, classes(6)),
    "loss that is negative": lambda: with_loss(negative, classes(6)),
    "loss that is constant": lambda: with_loss(lambda y, t: torch.ones(len(y)), classes(6)),
    "loss of the wrong kind": lambda: with_loss("cosine_embedding_loss", classes(6)),
    "nan in the weights": lambda: classified(poisoned(network(), float("nan")), vectors(6, 5)),
    "infinity in the weights": lambda: classified(
        poisoned(recurrent(), float("inf")), sequences(6, 8, 3)
    ),
    "nan in an LSTM": lambda: classified(poisoned(recurrent(), float("nan")), sequences(6, 8, 3)),
    "nan in a convolution": lambda: classified(
        poisoned(convolutional(), float("nan")), images(6, 1, 8)
    ),
    "nan in the data": lambda: broken_data(float("nan")),
    "infinity in the data": lambda: broken_data(float("inf")),
    "zero weights": lambda: classified(zeroed(recurrent()), sequences(6, 8, 3)),
    "zero convolution": lambda: classified(zeroed(convolutional()), images(6, 1, 8)),
}
"""Name of each case -> the subject of its audit."""


def zeroed(model: nn.Module) -> nn.Module:
    """Set every weight to 0."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    return model
