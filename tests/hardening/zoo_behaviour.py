"""Networks that do in ``forward``, or to themselves, what most do not."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, rnn
from torch.utils.checkpoint import checkpoint
from zoo_parts import classes, classified, images, sequences, vectors

from probes.base import Batch, Subject


class Body(nn.Module):
    """A layer, something done to what it returns, a head."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 3)
        self.act = act

    def forward(self, x_BC: Tensor) -> Tensor:
        return self.head(self.act(self.body(x_BC)))


class Recurrent(nn.Module):
    """An LSTM, something done to what it reads, a head."""

    def __init__(self, act: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.act = act

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.head(self.lstm(self.act(x_BTC))[0][:, -1])


def in_place(h: Tensor) -> Tensor:
    h *= 0.5
    h[:, 0] = 0.1
    return h.add_(0.1).tanh_()


def overwritten(h: Tensor) -> Tensor:
    """Overwrite what the backward pass needs."""
    h = h.tanh()
    h *= 2
    return h


def without_gradient(h: Tensor) -> Tensor:
    with torch.no_grad():
        return h * 2


def noisy(h: Tensor) -> Tensor:
    return h + 0.1 * torch.randn_like(h)


def dropped(h: Tensor) -> Tensor:
    return nn.functional.dropout(h, 0.5, training=True)


class NoGradient(nn.Module):
    """The recurrent part is run without gradients, as a frozen feature extractor is."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x_BTC: Tensor) -> Tensor:
        with torch.no_grad():
            h_BTH, _ = self.lstm(x_BTC)
        return self.head(h_BTH[:, -1])


class AllWithoutGradient(Body):
    @torch.no_grad()
    def forward(self, x_BC: Tensor) -> Tensor:
        return super().forward(x_BC)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.body = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(inplace=True))
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x_BCT: Tensor) -> Tensor:
        h_BCT = checkpoint(self.body, x_BCT, use_reentrant=self.reentrant)
        h_BTC = h_BCT.transpose(1, 2)
        return self.head(checkpoint(self.lstm, h_BTC, use_reentrant=self.reentrant)[0][:, -1])


class Counting(nn.Module):
    """Changes a buffer, a parameter and an attribute in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("seen", torch.zeros(5), persistent=False)
        self.last: Any = None

    def forward(self, x_BC: Tensor) -> Tensor:
        self.calls += 1
        self.seen = 0.9 * self.seen + 0.1 * x_BC.detach().mean(0)
        with torch.no_grad():
            self.body.weight.clamp_(-0.3, 0.3)
        self.last = x_BC
        return self.head(torch.tanh(self.body(x_BC)))


class Guarded(nn.Module):
    """Allows no attribute to be set after it is made, and makes up those that it does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 3)
        self.made = True

    def __setattr__(self, key: str, value: Any) -> None:
        if self.__dict__.get("made") and key not in ("training",):
            raise AttributeError(f"{key} cannot be set")
        super().__setattr__(key, value)

    def __getattr__(self, key: str) -> Any:
        try:
            return super().__getattr__(key)
        except AttributeError:
            if key.startswith("_"):
                raise
            return f"no {key}"

    def forward(self, x_BC: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x_BC)))


class Odd(nn.Module):
    """Equal to everything, without a length, false."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1

    def __bool__(self) -> bool:
        raise TypeError("neither true nor false")

    def forward(self, x_BC: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x_BC)))


class Settings(nn.Module):
    """Changes settings of torch in its forward, and does not change them back."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x_BC: Tensor) -> Tensor:
        torch.manual_seed(5)
        return self.head(torch.relu(self.body(x_BC)))


def hooked() -> nn.Module:
    """A network with hooks of its user, of which some change what passes."""
    model = Body(torch.relu)
    model.body.register_forward_hook(lambda _, args, out: out * 1.5)
    model.body.register_forward_pre_hook(lambda _, args: (args[0] - 0.1,))
    model.register_full_backward_hook(lambda *_: None)
    model.head.weight.register_hook(lambda gradient: gradient * 2)
    return model


def weight_norm() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(2, 4, 3)), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), parametrizations.spectral_norm(nn.Linear(4, 3)),
    )  # fmt: skip


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


def parametrized() -> nn.Module:
    """An LSTM whose recurrent weight is made symmetric: another tensor at every call."""
    model = Recurrent()
    square = nn.Linear(4, 4)
    parametrize.register_parametrization(square, "weight", Symmetric())
    model.head = nn.Sequential(square, nn.Linear(4, 3))
    return model


def pruned() -> nn.Module:
    model = Body(torch.relu)
    prune.l1_unstructured(model.body, "weight", amount=0.5)
    return model


def old_weight_norm() -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 4)), nn.ReLU(), nn.Linear(4, 3))


def quantized() -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Body(torch.relu), {nn.Linear})


def frozen() -> nn.Module:
    model = Body(torch.relu)
    model.requires_grad_(False)
    return model


def scripted() -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(Body(torch.relu), vectors(6, 5))


class ScriptedPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.head = scripted(), nn.Linear(3, 3)

    def forward(self, x_BC: Tensor) -> Tensor:
        return self.head(self.part(x_BC))


class Packed(nn.Module):
    """Packs its padded input, and pads what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x_BTC: Tensor, lengths: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(x_BTC, lengths.cpu(), True, enforce_sorted=False)
        out_BTH, _ = rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.head(out_BTH)


def packing() -> Subject:
    lengths = torch.tensor([8, 5, 3, 8, 1, 6])
    batch = Batch((sequences(6, 8, 3), lengths), classes(6, 8), lengths)
    return Subject(Packed(), [batch], "cross_entropy")


class PackedInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, packed: rnn.PackedSequence) -> Tensor:
        return self.head(self.gru(packed)[1][-1])


def packed_input() -> Subject:
    rows = [sequences(length, 3) for length in (8, 7, 5, 5, 2, 1)]
    return Subject(PackedInput(), [Batch(rnn.pack_sequence(rows), classes(6))], "cross_entropy")


BEHAVIOUR: dict[str, Callable[[], Subject]] = {
    "in place": lambda: classified(Body(in_place), vectors(6, 5)),
    "input in place": lambda: classified(Recurrent(in_place), sequences(6, 8, 3)),
    "not to be differentiated": lambda: classified(Body(overwritten), vectors(6, 5)),
    "part without gradient": lambda: classified(Body(without_gradient), vectors(6, 5)),
    "recurrence without gradient": lambda: classified(NoGradient(), sequences(6, 8, 3)),
    "all without gradient": lambda: classified(AllWithoutGradient(torch.relu), vectors(6, 5)),
    "checkpointed": lambda: classified(Checkpointed(False), sequences(6, 2, 12)),
    "checkpointed, reentrant": lambda: classified(Checkpointed(True), sequences(6, 2, 12)),
    "hooks of the user": lambda: classified(hooked(), vectors(6, 5)),
    "weight norm": lambda: classified(weight_norm(), sequences(6, 2, 12)),
    "old weight norm": lambda: classified(old_weight_norm(), vectors(6, 5)),
    "parametrized": lambda: classified(parametrized(), sequences(6, 8, 3)),
    "pruned": lambda: classified(pruned(), vectors(6, 5)),
    "lazy": lambda: classified(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3)), vectors(6, 5)),
    "lazy normalisation": lambda: classified(
        nn.Sequential(nn.Linear(5, 4), nn.LazyBatchNorm1d(), nn.Linear(4, 3)), vectors(6, 5)
    ),
    "quantised": lambda: classified(quantized(), vectors(6, 5)),
    "training mode": lambda: classified(
        nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)).train(),
        vectors(6, 5),
    ),
    "frozen": lambda: classified(frozen(), vectors(6, 5)),
    "attributes guarded": lambda: classified(Guarded(), vectors(6, 5)),
    "odd object": lambda: classified(Odd(), vectors(6, 5)),
    "buffers changed": lambda: classified(Counting(), vectors(6, 5)),
    "seeds torch": lambda: classified(Settings(), vectors(6, 5)),
    "random": lambda: classified(Body(noisy), vectors(6, 5)),
    "random recurrence": lambda: classified(Recurrent(dropped), sequences(6, 8, 3)),
    "scripted": lambda: classified(scripted(), vectors(6, 5)),
    "scripted part": lambda: classified(ScriptedPart(), vectors(6, 5)),
    "data parallel": lambda: classified(nn.DataParallel(Body(torch.relu)), vectors(6, 5)),
    "packs": packing,
    "packed input": packed_input,
    "instance norm": lambda: classified(
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3), nn.ReLU(), nn.Flatten(1),
                      nn.Linear(108, 3)), images(6, 1, 8),
    ),
}  # fmt: skip
"""Name of each network -> the subject of its audit."""
