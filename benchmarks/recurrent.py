"""Probes of recurrent networks, beside unrolled loops and other tools.

Shapes: B sample, C class, G gate, H hidden unit, T timestep.
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from benchmarks.timing import BARE, Function, Row, compare, installed
from probes import probe_class
from probes.base import Batch, Subject

CLASSES = 10


class Tagger(nn.Module):
    """A recurrent layer, or several, and a linear layer that decides at every timestep."""

    def __init__(self, kind: type[nn.RNNBase], inputs: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.rnn = kind(inputs, hidden, layers, batch_first=True)  # type: ignore[arg-type]
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0]).transpose(1, 2)
        return y


class Classifier(Tagger):
    """The same, that decides at the last state; for packed sequences."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[1][0][-1])
        return y


class Case:
    """A network with a batch, and everything that is timed on it."""

    def __init__(
        self,
        samples: int,
        timesteps: int,
        hidden: int,
        layers: int = 1,
        kind: type[nn.RNNBase] = nn.LSTM,
        *,
        ragged: bool = False,
    ) -> None:
        x = torch.randn(samples, timesteps, hidden)
        self.x, self.y = x, torch.randint(CLASSES, (samples, timesteps))
        if ragged:
            lengths = torch.linspace(timesteps / 4, timesteps, samples).long()
            self.x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            self.y = self.y[:, 0]
        self.model = (Classifier if ragged else Tagger)(kind, hidden, hidden, layers).eval()
        self.subject = Subject(self.model, [Batch(self.x, self.y)], "cross_entropy", time_axis=1)

    def bare(self) -> None:
        """Forward, backward, and the gradients of all parameters, fused."""
        self.model.zero_grad()
        functional.cross_entropy(self.model(self.x), self.y).backward()

    def probe(self, name: str, **settings: int | str) -> Function:
        """Return the call of a probe."""
        probe = probe_class(name)(**settings)
        return lambda: probe(self.subject)

    def unrolled(self) -> None:
        """Norms of all state gradients by autograd on a loop, the input's product taken at once."""
        self._loop(indexed=False)

    def indexed(self) -> None:
        """Likewise, with one timestep after the other cut out of the input's product."""
        self._loop(indexed=True)

    def _loop(self, *, indexed: bool) -> None:
        """Unroll the layers one by one."""
        self.model.zero_grad()
        below_TBH, states = self.x.transpose(0, 1), []
        for w_ih, w_hh, b_ih, b_hh in self.model.rnn.all_weights:
            gates_TBG = functional.linear(below_TBH, w_ih, b_ih + b_hh)
            h = c = below_TBH.new_zeros(len(self.x), w_hh.shape[1])
            steps = range(len(gates_TBG)) if indexed else gates_TBG.unbind(0)
            outputs = []
            for step in steps:
                gates = (gates_TBG[step] if indexed else step) + h @ w_hh.t()
                i, f, g, o = gates.chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                c.retain_grad()
                h.retain_grad()
                states.append((h, c))
                outputs.append(h)
            below_TBH = torch.stack(outputs)
        outputs_BCT = self.model.head(below_TBH).permute(1, 2, 0)
        functional.cross_entropy(outputs_BCT, self.y).backward()
        for h, c in states:
            assert h.grad is not None
            assert c.grad is not None
            h.grad.norm(dim=1)
            c.grad.norm(dim=1)

    def detached(self) -> None:
        """Gradient for every truncation length, by one training pass with detached states each."""
        timesteps = self.x.shape[1]
        length = 1
        while length < 2 * timesteps:
            self.model.zero_grad()
            state, outputs = None, []
            for chunk in self.x.split(length, 1):
                output, state = self.model.rnn(chunk, state)
                outputs.append(output)
                state = tuple(part.detach() for part in state)
            outputs_BCT = self.model.head(torch.cat(outputs, 1)).transpose(1, 2)
            functional.cross_entropy(outputs_BCT, self.y).backward()
            length *= 2

    def occlusion(self) -> None:
        """Change of the score without one timestep after the other, by captum."""
        from captum.attr import Occlusion

        window = (1, self.x.shape[2])
        last = self.y[:, -1]
        Occlusion(lambda x: self.model(x)[:, :, -1]).attribute(self.x, window, target=last)

    def backpack(self) -> Function:
        """Gradients of every sample by BackPACK, on a model made ready for it; then squared."""
        from backpack import backpack, extend
        from backpack.extensions import BatchGrad

        model = extend(copy.deepcopy(self.model).train(), use_converter=True)
        loss = extend(nn.CrossEntropyLoss(reduction="sum"))

        def run() -> None:
            model.zero_grad()
            with backpack(BatchGrad()):
                loss(model(self.x), self.y).backward()
            for weight in model.parameters():
                weight.grad_batch.flatten(1).square().sum(1)

        return run


PROBES = (
    ("timestep_gradient", "h and c, every layer, timestep and sample"),
    ("timestep_contribution", "every weight by timestep: norm, share, cosine"),
    ("truncation", "every power of two at once"),
    ("gradient_flow", "layers and parameters, every sample"),
    ("gates", "saturation and timescale of every unit"),
    ("state_reach", "400 lags, 8 combinations; 32 samples"),
    ("lyapunov", "8 exponents of 8 samples"),
    ("memory_capacity", "100 lags"),
    ("memory_horizon", "24 lengths kept"),
    ("lag_profile", "16 windows of lags"),
)
NOTES = dict(PROBES) | {
    "unrolled autograd": "state gradients only, retained",
    "unrolled autograd, xg[t]": "the same; each step cut out of the input's product",
    "detached training passes": "one for every truncation length",
    "captum Occlusion": "every timestep on its own",
    "BackPACK BatchGrad": "parameters, every sample",
}


def _probes(case: Case, names: Iterable[str]) -> dict[str, Function]:
    """List the plain pass and probes."""
    return {BARE: case.bare} | {name: case.probe(name) for name in names}


def rows(rounds: int, large: bool) -> list[Row]:
    """Time everything on every network."""
    every = [name for name, _ in PROBES]
    first = Case(32, 400, 128)
    others: dict[str, Function] = {
        "unrolled autograd": first.unrolled,
        "detached training passes": first.detached,
        "captum Occlusion": first.occlusion,
        "BackPACK BatchGrad": installed("backpack", first.backpack),
    }
    if large:
        others["unrolled autograd, xg[t]"] = first.indexed
    found = compare("LSTM 128, 32 x 400", _probes(first, every) | others, rounds, NOTES)
    for name, case in (
        ("LSTM 2 x 128, 32 x 400", Case(32, 400, 128, 2)),
        ("LSTM 512, 32 x 100", Case(32, 100, 512)),
        ("GRU 128, 32 x 400", Case(32, 400, 128, kind=nn.GRU)),
        ("RNN 128, 32 x 400", Case(32, 400, 128, kind=nn.RNN)),
    ):
        found += compare(name, _probes(case, every[:8]), rounds, NOTES)
    ragged = Case(32, 400, 128, ragged=True)
    found += compare("LSTM 128, 32 x 100 to 400 packed", _probes(ragged, every[:4]), rounds, NOTES)
    if large:
        long = Case(4, 5000, 128, 2)
        found += compare("LSTM 2 x 128, 4 x 5000", _probes(long, every), min(rounds, 2), NOTES)
    return found
