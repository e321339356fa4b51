"""Truncated gradients of cells in loops of every kind, against loops that detach their states."""

import pytest
import torch
from torch import Tensor, nn

from probes.recurrent.truncation.loops import plain_loops, stepwise
from probes.recurrent.truncation.truncated import truncated
from probes.recurrent.watching.split import recorded

INPUTS, UNITS, SAMPLES, TIMESTEPS = 3, 4, 2, 11


class Net(nn.Module):
    """``forward(x, size)`` detaches the states of its cells every ``size`` timesteps."""

    plain: tuple[str, ...] = ()
    """Loops that are differentiated together, upper ones first."""

    def __init__(self, kind: str = "LSTM") -> None:
        super().__init__()
        cell, module = getattr(nn, f"{kind}Cell"), getattr(nn, kind)
        self.first = cell(INPUTS, UNITS)
        self.second = cell(UNITS, UNITS)
        self.module = module(INPUTS, UNITS)
        self.between = nn.Linear(UNITS, UNITS)
        self.start = nn.Parameter(torch.randn(SAMPLES, UNITS))
        self.double()
        for weight in self.parameters():
            weight.data.mul_(1.5)

    def starting(self, h: Tensor | None = None) -> tuple[Tensor, ...]:
        h = torch.zeros_like(self.start) if h is None else h
        return (h, h.cos()) if isinstance(self.first, nn.LSTMCell) else (h,)

    def step(self, cell, x, states, t, size, cut=True):
        if cut and t and t % size == 0:
            states = tuple(state.detach() for state in states)
        after = cell(x, states if len(states) == 2 else states[0])
        return after if isinstance(after, tuple) else (after,)

    def loop(self, cell, xs, size, states=None):
        states, outputs = self.starting() if states is None else states, []
        for t, x in enumerate(xs):
            states = self.step(cell, x, states, t, size)
            outputs.append(states[0])
        return torch.stack(outputs), states

    def through(self, x, size):
        """Run the module in chunks."""
        outputs, state = [], None
        for piece in x.split(size):
            y, state = self.module(piece, state)
            outputs.append(y)
            state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        return torch.cat(outputs)


class Single(Net):
    plain = ("first",)

    def forward(self, x, size):
        return self.loop(self.first, x.sin(), size)[0]


class LastOnly(Net):
    plain = ("first",)

    def forward(self, x, size):
        return self.loop(self.first, x, size)[1][-1]


class CutShort(Net):
    """The loss depends on nothing after the seventh timestep."""

    plain = ("first",)

    def forward(self, x, size):
        states, outputs = self.starting(), []
        for t, x_BI in enumerate(x):
            states = self.step(self.first, x_BI, states, t, size)
            outputs += [states[0]] * (t < 7)
        return torch.stack(outputs)


class Stacked(Net):
    """One cell above another in the same loop, and something nonlinear between them."""

    plain = ("second", "first")

    def forward(self, x, size):
        lower, upper, outputs = self.starting(), self.starting(), []
        for t, x_BI in enumerate(x):
            lower = self.step(self.first, x_BI, lower, t, size)
            upper = self.step(self.second, self.between(lower[0]).tanh(), upper, t, size)
            outputs.append(upper[0] + lower[-1])
        return torch.stack(outputs)


class StartsFromLoop(Net):
    """The upper loop begins with what the lower one ends with."""

    plain = ("second", "first")

    def forward(self, x, size):
        y, last = self.loop(self.first, x[:6], size)
        start = tuple(state.sin() for state in last)
        return self.loop(self.second, self.between(y[1:]).flip(0), size, start)[0]


class Learnt(Net):
    plain = ("first",)

    def forward(self, x, size):
        return self.loop(self.first, x, size, self.starting(self.start))[0]


class AboveModule(Net):
    """Reads what a module returns, which has to be differentiated in time."""

    def forward(self, x, size):
        return self.loop(self.second, self.through(x, size), size)[0]


class BelowModule(Net):
    """A module reads what the loop returns."""

    plain = ("first",)

    def forward(self, x, size):
        return self.through(self.loop(self.first, x, size)[0][..., :INPUTS], size)


class Feedback(Net):
    """Reads its own output again, which is not cut."""

    def forward(self, x, size):
        states, outputs = self.starting(), []
        for t, x_BI in enumerate(x):
            states = self.step(self.first, x_BI + states[0][:, :INPUTS], states, t, size)
            outputs.append(states[0])
        return torch.stack(outputs)


class Changed(Net):
    """Something is done to the state between calls."""

    def forward(self, x, size):
        states, outputs = self.starting(), []
        for t, x_BI in enumerate(x):
            states = self.step(self.first, x_BI, (states[0] * 0.9, *states[1:]), t, size)
            outputs.append(states[0])
        return torch.stack(outputs)


class AboveFeedback(Feedback):
    """Reads what a loop that is not plain returns, beside one that is."""

    plain = ("first",)

    def __init__(self, kind: str = "LSTM") -> None:
        super().__init__(kind)
        self.first, self.second = self.second, self.first

    def forward(self, x, size):
        states, outputs = self.starting(), []
        for t, x_BI in enumerate(x):
            states = self.step(self.second, x_BI + states[0][:, :INPUTS], states, t, size)
            outputs.append(states[0])
        # The plain one is read by the other one's sum alone.
        own = self.loop(self.first, self.between(x.repeat(1, 1, 2)[..., :UNITS]), size)[0]
        return torch.stack(outputs) * own


class Crossed(Net):
    """Two cells that read one another."""

    def __init__(self, kind: str = "LSTM") -> None:
        super().__init__(kind)
        self.first = self.second.__class__(UNITS, UNITS).double()

    def forward(self, x, size):
        one, other, outputs = self.starting(), self.starting(), []
        for t, _ in enumerate(x):
            before = one
            one = self.step(self.first, other[0] + x[t, :, :1], one, t, size)
            other = self.step(self.second, before[0] - x[t, :, 1:2], other, t, size)
            outputs.append(one[0] * other[0])
        return torch.stack(outputs)


class TwoSequences(Net):
    """The same cell reads two sequences."""

    plain = ("first", "first")

    def forward(self, x, size):
        return (
            self.loop(self.first, x[:5], size)[0].sum(0) * self.loop(self.first, x[5:], size)[1][0]
        )


NETS = (
    *(Single, LastOnly, CutShort, Stacked, StartsFromLoop, Learnt, AboveModule, BelowModule),
    *(Feedback, Changed, AboveFeedback, Crossed, TwoSequences),
)


def objective(y):
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return (weight * torch.sin(y)).sum()


def found(model, x):
    """Gradients by weight for every chunk length, and the loops that were plain."""
    sums, steps = {}, {}

    def add(site, factors):
        for factor in factors:
            suffix = f"_l{site.layer}" if site.module == "module" else ""
            name = f"{site.module}.{factor.weight}{suffix}"
            sums[name] = sums.get(name, 0) + factor.summed()

    with recorded(model, pulses=True) as recordings:
        y = model(x, len(x))
    names = [recordings.segments[loop.keys[0]].site.module for loop in plain_loops(recordings)]
    others = {site.module for site in stepwise(recordings)}
    cells = {one.site.module for one in recordings.segments if one.site.module != "module"}
    assert others == cells - {*names}
    for size in truncated(recordings, objective(y), add):
        steps[size] = dict(sums)
    assert not recordings.given
    return steps, names


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("net", NETS)
def test_truncation_is_exact_in_any_loop_and_plain_ones_are_told(net, kind):
    torch.manual_seed(4)
    model, x = net(kind), torch.randn(TIMESTEPS, SAMPLES, INPUTS, dtype=torch.float64)
    steps, names = found(model, x)
    assert names == list(net.plain)
    recurrent = ("first", "second", "module")
    for size, gradients in steps.items():
        named = {k: v for k, v in model.named_parameters() if k.partition(".")[0] in recurrent}
        given = torch.autograd.grad(objective(model(x, size)), [*named.values()], allow_unused=True)
        used = {name: value for name, value in zip(named, given, strict=True) if value is not None}
        assert set(gradients) == set(used)
        for name, value in used.items():
            assert (gradients[name] - value).abs().max() < 1e-12 * value.abs().max().clamp_min(1e-9)


def test_the_calls_of_a_plain_loop_are_scanned_together():
    model, x = Stacked(), torch.randn(16, SAMPLES, INPUTS, dtype=torch.float64)
    scanned = {}

    def add(site, factors):
        scanned.setdefault(site.module, []).append(len(factors[0].left))

    with recorded(model, pulses=True) as recordings:
        y = model(x, 16)
    assert [*truncated(recordings, objective(y), add)] == [1, 2, 4, 8, 16]
    # What the upper loop passes on arrives at all timesteps of the lower one.
    assert scanned["second"] == [1] * 16 + [8] * 4
    assert scanned["first"][:16] == [1] * 16
    assert len(scanned["first"]) == 16 + 4
