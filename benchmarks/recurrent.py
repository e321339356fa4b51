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
from probes.base import Batch, Subject, silent
from probes.loss.replacement import Replacement, grid
from probes.recurrent.reach.jacobian import linearized, random_rows, reach
from probes.recurrent.shares.collected import collect
from probes.recurrent.shares.outer import inner
from probes.recurrent.watching.interception import Interception, LayerCall
from probes.recurrent.watching.resumption import Resumption
from probes.recurrent.watching.split import recorded
from probes.recurrent.watching.watch import read

CLASSES = 10
LENGTHS = 9


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

    def forward(self) -> None:
        """Forward pass alone, without a graph."""
        with torch.no_grad():
            self.model(self.x)

    def layer_by_layer(self) -> None:
        """Forward pass alone, with the layers told apart."""
        with torch.no_grad(), Interception(self.model, LayerCall.computed, refusing=False):
            self.model(self.x)

    def state_norms(self) -> None:
        """Norms of the gradients of one loss by all states, without the gradients of weights."""
        with recorded(self.model) as recordings:
            outputs = self.model(self.x)
        recordings.gradients(functional.cross_entropy(outputs, self.y))

    def weight_map(self) -> None:
        """Measure what every timestep adds to the gradients of the weights: norm, and cosine."""
        found = collect(self.subject, list(range(len(self.x))), 2**31, silent)
        for site in found.sites():
            for names in found.bundles(site):
                timesteps = found.terms(site, names).by_time()
                inner(timesteps, timesteps)
                timesteps.against(timesteps.total())

    def lag_profile(self) -> Function:
        """Norms by lag alone, of layers that are linearized already."""
        readings = read(self.subject, Batch(self.x)).readings
        timesteps, samples, units = readings[-1].hidden.shape
        lags = min(timesteps, 400)
        layers = [linearized(reading, lags)[0] for reading in readings]
        rows = random_rows(samples, 8, layers[-1].slopes, units, self.subject.generator())
        return lambda: reach(layers, rows)

    def lengths_kept(self) -> Function:
        """Excess loss for some lengths kept, given the whole runs of samples and donors."""
        run = Resumption(self.model)
        intact = Replacement.of(self.subject, 1, len(self.x), run).intact()
        intact.excess([range(intact.timesteps)])
        kept = grid(intact.timesteps, LENGTHS + 2)[1:-1]
        lags = [range(length, intact.timesteps) for length in kept]
        return lambda: intact.excess(lags)

    def unrolled(self) -> None:
        """Norms of all state gradients by autograd on a loop, the input's product taken at once."""
        self._norms(self._loop(indexed=False))

    def unrolled_twice(self) -> None:
        """Likewise, of the loss of all timesteps and of that of the last one."""
        outputs_BCT = self._loop(indexed=False)
        self._norms(outputs_BCT, retain_graph=True)
        for state in self._states:
            state.grad = None
        self._norms(outputs_BCT[:, :, -1:])

    def indexed(self) -> None:
        """Likewise, with one timestep after the other cut out of the input's product."""
        self._norms(self._loop(indexed=True))

    def _loop(self, *, indexed: bool) -> Tensor:
        """Unroll the layers one by one."""
        below_TBH = self.x.transpose(0, 1)
        self._states: list[Tensor] = []
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
                for values in (gates, c, h):
                    values.retain_grad()
                    self._states.append(values)
                outputs.append(h)
            below_TBH = torch.stack(outputs)
        outputs_BCT: Tensor = self.model.head(below_TBH).permute(1, 2, 0)
        return outputs_BCT

    def _norms(self, outputs_BCT: Tensor, *, retain_graph: bool = False) -> None:
        """Run backwards from the last timesteps, and measure every state's gradient."""
        self.model.zero_grad()
        targets_BT = self.y[:, -outputs_BCT.shape[2] :]
        loss = functional.cross_entropy(outputs_BCT, targets_BT)
        loss.backward(retain_graph=retain_graph)
        for state in self._states:
            assert state.grad is not None
            state.grad.norm(dim=1)

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


PROBES: dict[str, tuple[dict[str, int], str]] = {
    "timestep_gradient": ({}, "of two losses: all timesteps and the last; h and c of every sample"),
    "timestep_contribution": ({}, "the map, and shares and halves of every sample"),
    "truncation": ({}, "every power of two at once"),
    "gradient_flow": ({}, "layers and parameters, every sample"),
    "gates": ({}, "saturation and timescale of every unit"),
    "state_reach": ({}, "the profile of 32 samples, and the spectral norm of two of them"),
    "lyapunov": ({"samples": 4}, "8 exponents of 4 samples"),
    "memory_capacity": ({}, "100 lags"),
    "memory_horizon": ({}, "24 lengths kept, and the gradient by the inputs"),
    "lag_profile": ({}, "16 windows of lags"),
    "sequence_length": ({}, "from an eighth to four times the length"),
}
"""Settings, and what is measured."""

FORWARD = "forward (no graph)"
NORMS = "norms by timestep"
MAP = "weights by timestep"
PROFILE = "norms by lag"
KEPT = f"{LENGTHS} lengths kept"
NOTES = {name: note for name, (_, note) in PROBES.items()} | {
    "forward, layer by layer": "what telling the layers apart costs",
    NORMS: "of one loss: h, c and gates, every layer, timestep and sample",
    MAP: "gradients of all weights; norm and cosine of every timestep's part",
    PROFILE: "up to 400 lags, 8 combinations of rows, 32 samples; given the gates",
    KEPT: "loss with all but the last 1 to T / 2 inputs replaced, given the two whole runs",
    "unrolled autograd": "norms by timestep of one loss, of states and gates retained",
    "unrolled autograd, two losses": "what timestep_gradient measures",
    "unrolled autograd, xg[t]": "of one loss; each step cut out of the input's product",
    "detached training passes": "one for every truncation length",
    "captum Occlusion": "every timestep on its own",
    "BackPACK BatchGrad": "parameters, every sample",
}


def _probes(case: Case, names: Iterable[str]) -> dict[str, Function]:
    """List the plain passes and probes."""
    return {
        BARE: case.bare,
        FORWARD: case.forward,
        "forward, layer by layer": case.layer_by_layer,
        NORMS: case.state_norms,
        **{name: case.probe(name, **PROBES[name][0]) for name in names},
    }


def rows(rounds: int, large: bool) -> list[Row]:
    """Time everything on every network."""
    every = [*PROBES]
    first = Case(32, 400, 128)
    others: dict[str, Function] = {
        MAP: first.weight_map,
        PROFILE: first.lag_profile(),
        KEPT: first.lengths_kept(),
        "unrolled autograd": first.unrolled,
        "unrolled autograd, two losses": first.unrolled_twice,
        "detached training passes": first.detached,
        "captum Occlusion": first.occlusion,
        "BackPACK BatchGrad": installed("backpack", first.backpack),
    }
    found = compare("LSTM 128, 32 x 400", _probes(first, every) | others, rounds, NOTES)
    for name, case in (
        ("LSTM 2 x 128, 32 x 400", Case(32, 400, 128, 2)),
        ("LSTM 512, 32 x 100", Case(32, 100, 512)),
        ("GRU 128, 32 x 400", Case(32, 400, 128, kind=nn.GRU)),
        ("RNN 128, 32 x 400", Case(32, 400, 128, kind=nn.RNN)),
    ):
        parts = {MAP: case.weight_map, PROFILE: case.lag_profile(), KEPT: case.lengths_kept()}
        if isinstance(case.model.rnn, nn.LSTM):
            parts["unrolled autograd"] = case.unrolled
            parts["unrolled autograd, two losses"] = case.unrolled_twice
        found += compare(name, _probes(case, every) | parts, rounds, NOTES)
    ragged = Case(32, 400, 128, ragged=True)
    found += compare("LSTM 128, 32 x 100 to 400 packed", _probes(ragged, every[:4]), rounds, NOTES)
    if large:
        longer = Case(32, 1000, 128)
        loops = {"unrolled autograd": longer.unrolled, "unrolled autograd, xg[t]": longer.indexed}
        found += compare("LSTM 128, 32 x 1000", _probes(longer, []) | loops, min(rounds, 2), NOTES)
        long = Case(4, 5000, 128, 2)
        found += compare("LSTM 2 x 128, 4 x 5000", _probes(long, every), min(rounds, 2), NOTES)
    return found
