"""Good checkpoints of every format, and ways to damage them."""

import random
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from zipfile import ZipFile

import torch
from safetensors.torch import save
from torch import Tensor, nn

FORMS = ("zip", "legacy", "safetensors", "lightning", "legacy lightning", "torchscript")

ZIPPED = ("zip", "lightning", "torchscript")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3))
        self.lstm = nn.LSTM(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.conv(x).transpose(1, 2))[0])


@cache
def good(form: str) -> bytes:
    """A file of each of FORMS, a few kilobytes long."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
        if form == "safetensors":
            return save(dict(net.state_dict()))
        if form == "torchscript":
            return _scripted(net)
        held = net.state_dict() if "lightning" not in form else _lightning(net)
        return saved(held, zipped="legacy" not in form)


def saved(held: object, *, zipped: bool = True) -> bytes:
    stream = BytesIO()
    torch.save(held, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _scripted(net: nn.Module) -> bytes:
    stream = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(net), stream)
    return stream.getvalue()


def _lightning(net: nn.Module) -> dict[str, object]:
    """What a trainer keeps: weights under a prefix, the optimizer, counters, settings."""
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 2, 9)).sum().backward()
    optimizer.step()
    return {
        "state_dict": {f"model.{key}": value for key, value in net.state_dict().items()},
        "optimizer_states": [optimizer.state_dict()],
        "epoch": 3,
        "pytorch-lightning_version": "2.2.0",
        "hyper_parameters": {"lr": 1e-3, "layers": (3, 4)},
        "lr_schedulers": [],
    }


def cuts(data: bytes, share: float = 0.05) -> Iterator[bytes]:
    """Cut off after every so many per cent of the length."""
    for step in range(round(1 / share)):
        yield data[: max(1, int(step * share * len(data)))]


def damaged(data: bytes, seed: int) -> bytes:
    """Change some bytes in one of several ways, which the seed chooses."""
    chance = random.Random(seed)
    broken = bytearray(data)
    chance.choice(DAMAGES)(broken, chance)
    return bytes(broken)


def damaged_within(data: bytes, seed: int) -> bytes:
    """Damage one entry of a zip archive, whose checksums then are right all the same."""
    chance = random.Random(seed)
    stream = BytesIO()
    with ZipFile(BytesIO(data)) as old, ZipFile(stream, "w") as new:
        entries = {name: old.read(name) for name in old.namelist()}
        told = [name for name in entries if "/data/" not in name and entries[name]]
        pickle = next(name for name in entries if name.endswith("/data.pkl"))
        chosen = chance.choice([pickle, pickle, *told])
        for name, held in entries.items():
            new.writestr(name, damaged(held, seed) if name == chosen else held)
    return stream.getvalue()


Chance = random.Random


def _flip(data: bytearray, chance: Chance) -> None:
    for _ in range(chance.choice([1, 1, 3])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _overwrite(data: bytearray, chance: Chance) -> None:
    for _ in range(chance.choice([3, 30])):
        extremes = [0, 0x7F, 0x80, 0xFF, chance.randrange(256)]
        data[chance.randrange(len(data))] = chance.choice(extremes)


def _delete(data: bytearray, chance: Chance) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.randrange(1, 60)]


def _insert(data: bytearray, chance: Chance) -> None:
    at = chance.randrange(len(data))
    data[at:at] = chance.randbytes(chance.randrange(1, 40))


def _repeat(data: bytearray, chance: Chance) -> None:
    at, other = chance.randrange(len(data)), chance.randrange(len(data))
    data[at : at + 40] = data[other : other + 40]


def _clear(data: bytearray, chance: Chance) -> None:
    at = chance.randrange(len(data))
    hole = len(data[at : at + chance.randrange(1, 200)])
    data[at : at + hole] = bytes(hole)


def _cut(data: bytearray, chance: Chance) -> None:
    del data[chance.randrange(len(data)) :]


DAMAGES: list[Callable[[bytearray, Chance], None]] = [
    *(_flip, _overwrite, _delete, _insert, _repeat, _clear, _cut)
]
