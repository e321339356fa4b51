"""Models run on the rest of their inputs alone, against whole runs; and those that cannot be."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from probes.base import Batch, Subject
from probes.lag_profile import LagProfile
from probes.loss.objective import final_results
from probes.loss.replacement import Replacement
from probes.loss.rest import usable_starts
from probes.memory_horizon import MemoryHorizon
from probes.recurrent.watching import resumption
from probes.recurrent.watching.resumption import Resumption
from probes.samples.timeline import Sequences

TIMESTEPS, SAMPLES, FEATURES = 37, 4, 3


class Sequential(nn.Module):
    """Something before recurrent layers, and something after them."""

    def __init__(
        self,
        rnn: nn.Module,
        after: Callable[[Tensor], Any] = lambda y: y,
        before: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        self.rnn, self.before, self.after = rnn, before, after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.rnn(self.before(x))[0])


def gru(**settings: Any) -> nn.GRU:
    return nn.GRU(FEATURES, 5, **{"batch_first": True, **settings})


class Hybrid(nn.Module):
    """A network for every frame, recurrent layers of two kinds beside each other, and heads."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = nn.Sequential(nn.Linear(FEATURES, 6), nn.LayerNorm(6), nn.Tanh())
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True, proj_size=2)
        self.rnn = nn.RNN(6, 2)
        self.head = nn.Linear(2, 6)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        x = self.frame(x)
        y, (h, _) = self.lstm(x)
        z = self.rnn(x.transpose(0, 1))[0].transpose(0, 1)
        logits = self.head(y * scale[:, None, None] + z).transpose(1, 2)
        return {"states": h, "logits": logits, "count": torch.tensor(3)}


@dataclass
class Known:
    """A model, what it is given, and the loss."""

    model: nn.Module
    batch: Batch
    loss: Any = None
    axis: int = 1
    batch_axis: int = 0

    def subject(self) -> Subject:
        batches = [self.batch]
        axes = {"time_axis": self.axis, "batch_axis": self.batch_axis}
        return Subject(self.model.double().eval(), batches, self.loss, **axes)


def x(*shape: int) -> Tensor:
    return torch.randn(*(shape or (SAMPLES, TIMESTEPS, FEATURES)), dtype=torch.float64)


def classes(*shape: int) -> Tensor:
    return torch.randint(6, shape)


def last_of(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, -1] - targets[:, -1]).square().sum(1)


USABLE: dict[str, Callable[[], Known]] = {
    "states": lambda: Known(nn.LSTM(FEATURES, 5, 2, batch_first=True), Batch(x())),
    "time first": lambda: Known(nn.GRU(FEATURES, 5), Batch(x(TIMESTEPS, SAMPLES, 3)), None, 0, 1),
    "last state": lambda: Known(Sequential(gru(), lambda y: y[:, -1]), Batch(x())),
    "named loss": lambda: Known(
        Hybrid(), Batch((x(), x(SAMPLES)), classes(SAMPLES, TIMESTEPS)), "cross_entropy"
    ),
    "own choice": lambda: Known(Hybrid(), Batch((x(), x(SAMPLES))), "cross_entropy"),
    "own loss": lambda: Known(Sequential(gru()), Batch(x(), x(SAMPLES, TIMESTEPS, 5)), last_of),
    "lengths": lambda: Known(
        Sequential(gru()), Batch(x(), None, torch.full((SAMPLES,), TIMESTEPS))
    ),
    "one target": lambda: Known(
        Sequential(gru(), lambda y: y[:, -1]), Batch(x(), x(SAMPLES, 5)), "mse_loss"
    ),
}


def usable(known: Known) -> tuple[list[int], Resumption, Sequences]:
    subject = known.subject()
    run, own = Resumption(known.model), Sequences.of(subject, known.batch, known.axis)
    with torch.no_grad():
        outputs = run(known.batch.inputs, keep="whole")
        intact = final_results(subject, outputs, known.batch)
        return usable_starts(subject, run, "whole", own, outputs, intact), run, own


@pytest.mark.parametrize("case", USABLE)
def test_the_rest_ends_as_the_whole_does(case: str, computed: list[int]) -> None:
    known = USABLE[case]()
    starts, _, own = usable(known)
    tail = {TIMESTEPS - start for start in starts}
    assert starts == sorted(starts)
    # No rest is as long as another axis.
    assert 1 not in tail
    assert tail.isdisjoint({SAMPLES, FEATURES})
    assert len(starts) > 20
    replacement = Replacement.of(known.subject(), 1, 99, Resumption(known.model)).intact()
    assert replacement.starts == [starts]
    plain = Replacement.of(known.subject(), 1, 99, Resumption(known.model)).intact()
    plain.starts[0].clear()
    lags = [range(TIMESTEPS), *(range(kept, TIMESTEPS) for kept in (1, 2, 7, 20, 36))]
    lags += [range(0, 1), range(2, 9), range(11, 30), range(20, 36)]
    expected = plain.excess(lags)
    computed.clear()
    found = replacement.excess(lags)
    assert torch.allclose(found, expected, rtol=1e-11, atol=1e-13)
    assert (expected.abs().amax(0) > 1e-9).sum() > 5
    layers = computed.count(max(computed))
    # Besides one run of the donors: 1, 2, 7, 20, 36 and 1, 9, 30, 36 timesteps, and a few more.
    assert sum(computed) / layers < TIMESTEPS + 142 + 45
    assert own.lengths.tolist() == [TIMESTEPS] * SAMPLES


def conv(x: Tensor) -> Tensor:
    kernel = torch.ones(FEATURES, 1, 3).to(x)
    found: Tensor = nn.functional.conv1d(x.transpose(1, 2), kernel, padding=1, groups=FEATURES)
    return found.transpose(1, 2)


def placed(x: Tensor) -> Tensor:
    return x + torch.linspace(0, 1, TIMESTEPS).to(x)[: x.shape[1], None]


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.cell = gru(), nn.GRUCell(FEATURES, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x[:, -1])
        y: Tensor = self.gru(x)[0] + state[:, None]
        return y


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = gru()

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.full((len(x),), x.shape[1])
        h: Tensor = self.gru(pack_padded_sequence(x, lengths, batch_first=True))[1]
        return h[0]


class Translating(nn.Module):
    """An encoder, and a decoder that runs for as many timesteps as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = gru(), nn.GRU(5, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, h = self.encoder(x)
        out: Tensor = self.decoder(y[:, -1:].expand(-1, 6, -1), h)[0]
        return out


class Downsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = gru()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gru(x[:, ::2])[0]
        return y[:, -1]


class Selfish(nn.Module):
    """A loop that no layer of torch is part of beside one that is."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = gru()

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x[:, 0])
        for step in x.unbind(1):
            state = (0.9 * state + step).tanh()
        y: Tensor = self.gru(x)[0]
        return y[:, -1] + state.sum(1, keepdim=True)


UNUSABLE: dict[str, Callable[[], Known]] = {
    "no recurrence": lambda: Known(nn.Linear(FEATURES, 2), Batch(x())),
    "convolution": lambda: Known(Sequential(gru(), before=conv), Batch(x())),
    "positions": lambda: Known(Sequential(gru(), before=placed), Batch(x())),
    "mean over time": lambda: Known(Sequential(gru(), lambda y: y.mean(1)), Batch(x())),
    "largest over time": lambda: Known(Sequential(gru(), lambda y: y.amax(1)), Batch(x())),
    "all states": lambda: Known(
        Sequential(gru(), lambda y: y.reshape(SAMPLES, TIMESTEPS * 5)), Batch(x())
    ),
    "both directions": lambda: Known(Sequential(gru(bidirectional=True)), Batch(x())),
    "packed within": lambda: Known(Packing(), Batch(x())),
    "a cell": lambda: Known(Cells(), Batch(x())),
    "another loop": lambda: Known(Selfish(), Batch(x())),
    "a decoder": lambda: Known(Translating(), Batch(x())),
    "every other": lambda: Known(Downsampled(), Batch(x())),
    "ragged": lambda: Known(
        Sequential(gru(), lambda y: y[:, -1]), Batch(x(), None, torch.tensor([TIMESTEPS, 3, 9, 20]))
    ),
    "packed": lambda: Known(
        Sequential(nn.GRU(3, 5), lambda y: y),
        Batch(pack_padded_sequence(x(), torch.tensor([TIMESTEPS, 30, 20, 9]), batch_first=True)),
    ),
    "loss of the whole": lambda: Known(
        Sequential(gru()), Batch(x(), x(SAMPLES)), lambda out, y: (out.sum((1, 2)) - y).square()
    ),
    "another end": lambda: Known(
        Sequential(gru(), lambda y: (y[:, -1], y[:, :, None] * y[:, None])), Batch(x())
    ),
    "parts that come and go": lambda: Known(
        Sequential(gru(), lambda y: (y, *([y] if y.shape[1] == TIMESTEPS else []))), Batch(x())
    ),
    "nan": lambda: Known(Sequential(gru(), lambda y: y * torch.nan), Batch(x())),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_needs_more_than_states_is_run_whole(case: str) -> None:
    starts, _, _ = usable(UNUSABLE[case]())
    assert starts == []


@pytest.mark.parametrize("more", [True, False])
def test_layers_that_are_called_otherwise_later_are_run_whole(more: bool) -> None:
    class Moody(nn.Module):
        """Calls a layer twice, or another one not at all, if a rest begins with positive values."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = gru(), gru()

        def forward(self, x: Tensor) -> Tensor:
            moody = x.shape[1] < TIMESTEPS and float(x[0, 0, 0]) > 0
            y: Tensor = self.second(x)[0] if moody and not more else self.first(x)[0]
            if not moody:
                y = y + self.second(x)[0]
            elif more:
                y = y + self.second(x)[0] + self.second(x)[0]
            return y[:, -1]

    inputs = x().abs()
    inputs[0] *= -1
    known = Known(Moody(), Batch(inputs))
    found = Replacement.of(known.subject(), 1, 99, Resumption(known.model)).intact()
    assert found.starts[0]
    plain = Replacement.of(known.subject(), 1, 99, Resumption(known.model)).intact()
    plain.starts[0].clear()
    # The rest begins with a timestep of the donor, which is positive.
    lags = [range(TIMESTEPS), range(9, TIMESTEPS), range(2, 12), range(3, 12)]
    assert torch.allclose(found.excess(lags), plain.excess(lags), rtol=1e-11, atol=1e-13)


def test_states_alone_are_kept_of_what_can_be_run_from_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = USABLE["last state"]()
    # A state of 4 samples after each of 37 timesteps; beside them input and output of one run.
    states, data = 8 * 4 * 5 * 37, 8 * 4 * 37 * (5 + 3)
    rooms = {2 * states + data - 1: False, 2 * states + data: True, 3 * states + data: True}
    for room, both in rooms.items():
        monkeypatch.setattr(resumption, "BYTES", room)
        run = Resumption(known.model)
        replacement = Replacement.of(known.subject(), 1, 99, run).intact()
        assert run.starts(("intact", 0))
        lags = [range(TIMESTEPS), range(7, TIMESTEPS), range(20, TIMESTEPS)]
        found = replacement.excess(lags)
        assert bool(run.starts(("donor", 0, 0))) is both
        # Both runs are released: of a third there is room for as much as was there at first.
        run(known.batch.inputs, keep="another")
        assert bool(run.starts("another")) is (room == 3 * states + data)
        plain = Replacement.of(known.subject(), 1, 99, Resumption(known.model)).intact()
        plain.starts[0].clear()
        assert torch.allclose(found, plain.excess(lags), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("probe", [MemoryHorizon, LagProfile])
@pytest.mark.parametrize("case", ["states", "named loss", "time first"])
def test_horizons_are_the_same_without(
    probe: type, case: str, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = USABLE[case]().subject()
    found = probe(donors=2)(subject)
    fewer = sum(computed)
    monkeypatch.setattr(resumption, "BYTES", 0)
    computed.clear()
    plain = probe(donors=2)(subject)
    assert fewer < 0.6 * sum(computed)
    assert found["excess_loss"].shape == plain["excess_loss"].shape
    difference = abs(found["excess_loss"] - plain["excess_loss"]).max()
    assert float(difference) < 1e-12 * float(abs(plain["excess_loss"]).max()) + 1e-15


class Told:
    """A run that returns what it is told."""

    def __init__(self, rest: Any) -> None:
        self.returned = rest

    def __call__(self, inputs: Any, *, like: Any = None, keep: Any = None) -> Any:
        raise NotImplementedError

    def starts(self, like: Any) -> list[int]:
        return [3, 7]

    def rest(self, inputs: Any, *, like: Any, start: int) -> Any:
        assert (inputs.shape, like, start) == ((2, 4, 3), "whole", 7)
        return self.returned

    def release(self, name: Any) -> None:
        raise NotImplementedError


Y, NUMBER = torch.randn(2, 11, 5, dtype=torch.float64) - 3, torch.tensor([[4, 5], [6, 7]])
LAST = Y[:, -1]


def moved(by: float, scale: float = 1.0, at: int = -1) -> tuple[Tensor, Tensor]:
    rest = scale * Y[:, 7:].clone()
    rest[0, at, 2] += by * scale * float(LAST.abs().max())
    return scale * Y, rest


@pytest.mark.parametrize(
    ("outputs", "alike"),
    [
        (moved(0), True),
        (moved(1e-13), True),
        (moved(-1e-13), True),
        (moved(1e-11), False),
        (moved(-1e-11), False),
        (moved(1e-13, 1e6), True),
        (moved(1e-11, 1e6), False),
        (moved(1e-13, 1e-6), True),
        (moved(1e-11, 1e-6), False),
        # Positions before the last one may read what is missing.
        (moved(1, at=-2), True),
        ((Y, Y[:, 6:]), False),
        ((Y, Y[:, 8:]), False),
        ((Y, Y[:, 7:].float()), False),
        ((Y, Y[:, 7:].flatten(1)), False),
        (((LAST, Y), (LAST, Y[:, 7:])), True),
        (((LAST, Y), (LAST, Y[:, 7:, 1:])), False),
        (((LAST, Y), (LAST, LAST)), False),
        (((LAST, NUMBER), (LAST, NUMBER)), True),
        (((LAST, NUMBER), (LAST, NUMBER + 1)), False),
        (((LAST, NUMBER), (LAST, NUMBER.double())), False),
        (((LAST, NUMBER[:0]), (LAST, NUMBER[:0])), True),
        (((LAST, LAST[:0]), (LAST, LAST[:0])), True),
        (((LAST, Y), (LAST,)), False),
        (((LAST, "text", None), (LAST, "another", 3)), True),
    ],
)
def test_ends_are_compared_up_to_rounding(outputs: tuple[Any, Any], alike: bool) -> None:
    whole, rest = outputs
    batch = Batch(x(2, 11, 3))
    subject = Subject(nn.Linear(1, 1).double(), [batch], time_axis=1)
    own = Sequences.of(subject, batch, 1)
    intact = final_results(subject, whole, batch)
    found = usable_starts(subject, Told(rest), "whole", own, whole, intact)
    assert found == ([3, 7] if alike else [])
