"""The probe against the loop of a trainer that detaches the state between chunks."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.recurrent.backward.bptt import Factor
from probes.recurrent.truncation.comparison import Gradients, compared
from probes.truncation import Truncation

INPUTS, UNITS, CLASSES = 3, 4, 5


class Net(nn.Module):
    """A recurrent layer and a linear head, at every step or at the last one."""

    def __init__(self, kind="LSTM", *, every_step=True, units=UNITS, **options):
        super().__init__()
        self.rnn = getattr(nn, kind)(INPUTS, units, batch_first=True, **options)
        self.head = nn.Linear(units * (1 + self.rnn.bidirectional), CLASSES)
        self.every_step = every_step
        self.double()
        for weight in self.rnn.parameters():
            weight.data.mul_(1.5)

    def forward(self, x, lengths=None):
        if lengths is not None:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])
        y = self.rnn(x)[0]
        return self.head(y if self.every_step else y[:, -1])


def inputs(samples, timesteps):
    return torch.randn(samples, timesteps, INPUTS, dtype=torch.float64)


def classes(*shape):
    return torch.randint(CLASSES, shape)


def trained(model, batches, starts):
    """Gradients of the sum over samples with the state detached at ``starts``, by layer: (X,)."""
    total = None
    for x, y in batches:
        state, outputs = None, []
        for start, stop in zip(starts, [*starts[1:], x.shape[1]], strict=True):
            if start < x.shape[1]:
                out, state = model.rnn(x[:, start:stop], state)
                state = tuple(s.detach() for s in state) if type(state) is tuple else state.detach()
                outputs.append(out)
        logits = model.head(torch.cat(outputs, 1))
        if model.every_step:
            losses = functional.cross_entropy(logits.movedim(2, 1), y, reduction="none").mean(1)
        else:
            losses = functional.cross_entropy(logits[:, -1], y, reduction="none")
        gradients = torch.autograd.grad(losses.sum(), [*model.rnn.parameters()])
        own = [g.flatten() for g in gradients]
        total = own if total is None else [a + b for a, b in zip(total, own, strict=True)]
    each = len(total) // model.rnn.num_layers
    return [torch.cat(total[at : at + each]) for at in range(0, len(total), each)]


def numbers(cut, whole):
    cosine = functional.cosine_similarity(cut, whole, 0)
    return float(cosine), float((cut - whole).norm() / whole.norm())


def compare(trace, model, batches, starts):
    """Check cosines and errors, layer by layer and of all, with and without each sample."""
    longest = max(x.shape[1] for x, _ in batches)
    whole = trained(model, batches, [0])
    singles = [(x[b : b + 1], y[b : b + 1]) for x, y in batches for b in range(len(x))]
    for place, size in enumerate(trace["chunk_length"].values):
        at = trace.isel(chunk_length=place)
        cut = trained(model, batches, starts(size, longest))
        for layer, pair in enumerate(zip(cut, whole, strict=True)):
            expected = numbers(*pair)
            assert float(at["cosine"][layer]) == pytest.approx(expected[0], abs=1e-12)
            assert float(at["error"][layer]) == pytest.approx(expected[1], abs=1e-12)
        cosine, error = numbers(torch.cat(cut), torch.cat(whole))
        assert float(at["cosine_all"]) == pytest.approx(cosine, abs=1e-12)
        assert float(at["error_all"]) == pytest.approx(error, abs=1e-12)
        for b, single in enumerate(singles):
            own_cut = trained(model, [single], starts(size, longest))
            own_whole = trained(model, [single], [0])
            pairs = [
                (a - b, c - d) for a, b, c, d in zip(cut, own_cut, whole, own_whole, strict=True)
            ]
            for layer, pair in enumerate(pairs):
                expected = numbers(*pair)
                found = at["cosine_without"].isel(group=b, layer=layer)
                assert float(found) == pytest.approx(expected[0], abs=1e-10)
                found = at["error_without"].isel(group=b, layer=layer)
                assert float(found) == pytest.approx(expected[1], abs=1e-10)
            together = [torch.cat(parts) for parts in zip(*pairs, strict=True)]
            expected = numbers(*together)
            assert float(at["cosine_without_all"][b]) == pytest.approx(expected[0], abs=1e-10)
            assert float(at["error_without_all"][b]) == pytest.approx(expected[1], abs=1e-10)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_detaching_at_every_step_of_a_trainer(kind):
    model = Net(kind, num_layers=2)
    batches = [(inputs(3, 11), classes(3, 11)), (inputs(2, 11), classes(2, 11))]
    trace = Truncation()(Subject(model, batches, "cross_entropy"))
    assert trace["chunk_length"].values.tolist() == [1, 2, 4, 8, 16]
    assert trace["layer"].values.tolist() == ["rnn.l0", "rnn.l1"]
    compare(trace, model, batches, lambda size, longest: [*range(0, longest, size)])
    assert trace["group_size"].values.tolist() == [1, 1, 1, 1, 1]
    assert trace["gradient"].values[1] == pytest.approx(
        float(trained(model, batches, [0])[1].norm()) / 5
    )
    assert trace.attrs == {
        "sequence_length": 11,
        "samples": 5,
        "counted_from": "start",
        "objective": "cross_entropy, per sample",
        "not_called": "",
        "without_gradient": "",
        "not_per_sample": "",
        "one_pass_each": "",
    }


@pytest.mark.parametrize("used", [3, 6, 7])
def test_the_chunk_length_of_training_is_measured_too(used):
    model = Net("LSTM", num_layers=2)
    batches = [(inputs(3, 7), classes(3, 7)), (inputs(2, 11), classes(2, 11))]
    trace = Truncation(trained_with=used)(Subject(model, batches, "cross_entropy"))
    assert trace["chunk_length"].values.tolist() == sorted([1, 2, 4, 8, 16, used])
    assert trace.attrs["trained_with"] == used
    compare(trace, model, batches, lambda size, longest: [*range(0, longest, size)])


@pytest.mark.parametrize("used", [1, 4, 11, 13, 100])
def test_a_chunk_length_that_is_measured_anyway_or_cuts_nothing_changes_nothing(used):
    model, data = Net("GRU"), (inputs(3, 11), classes(3, 11))
    subject = Subject(model, [data], "cross_entropy")
    trace, plain = Truncation(trained_with=used)(subject), Truncation()(subject)
    assert trace["chunk_length"].values.tolist() == [1, 2, 4, 8, 16]
    assert trace["cosine_all"].values == pytest.approx(plain["cosine_all"].values, abs=1e-12)
    with pytest.raises(AnalyzerError) as caught:
        Truncation(trained_with=-1)(subject)
    assert str(caught.value) == ("truncation needs trained_with >= 0, or 0 if unknown: it is -1")


def test_batches_of_other_lengths_in_either_order():
    model = Net("LSTM", num_layers=2)
    for lengths in ([6, 12], [12, 6], [1, 3]):  # not 5, the number of classes
        batches = [(inputs(2, count), classes(2, count)) for count in lengths]
        trace = Truncation()(Subject(model, batches, "cross_entropy"))
        compare(trace, model, batches, lambda size, longest: [*range(0, longest, size)])


@pytest.mark.parametrize("counted_from", ["auto", "end", "start"])
def test_one_output_per_sequence_is_counted_from_its_end(counted_from):
    model = Net("GRU", every_step=False)
    data = inputs(4, 11), classes(4)
    trace = Truncation(counted_from=counted_from)(Subject(model, [data], "cross_entropy"))

    def starts(size, longest):
        if counted_from == "start":
            return [*range(0, longest, size)]
        return sorted({0, *range(longest % size, longest, size)})

    compare(trace, model, [data], starts)
    assert trace.attrs["counted_from"] == ("start" if counted_from == "start" else "end")


def test_ragged_samples_are_counted_from_their_start():
    model, x, y = Net("GRU"), inputs(3, 6), classes(3, 6)
    lengths = torch.tensor([6, 2, 4])
    y[1, 2:] = y[2, 4:] = -100
    batch = Batch({"x": x, "lengths": lengths}, y, lengths)
    trace = Truncation()(Subject(model, batch, "cross_entropy"))
    whole, cut = 0, 0
    for b, length in enumerate(lengths):
        single = [(x[b : b + 1, :length], y[b : b + 1, :length])]
        whole = whole + trained(model, single, [0])[0]
        cut = cut + trained(model, single, [*range(0, int(length), 2)])[0]
    found = trace.sel(chunk_length=2)
    assert float(found["cosine_all"]) == pytest.approx(numbers(cut, whole)[0], abs=1e-12)
    assert float(found["error_all"]) == pytest.approx(numbers(cut, whole)[1], abs=1e-12)
    assert trace.attrs["counted_from"] == "start"


def test_sequences_that_end_at_other_times_are_counted_from_their_start():
    class Last(Net):
        def forward(self, x, lengths):
            return (
                super()
                .forward(x, lengths)
                .gather(1, (lengths - 1)[:, None, None].expand(-1, 1, CLASSES))[:, 0]
            )

    x, y = inputs(3, 6), classes(3)
    same, other = torch.tensor([6, 6, 6]), torch.tensor([6, 2, 4])
    for lengths, expected in ((same, "end"), (other, "start")):
        batch = Batch({"x": x, "lengths": lengths}, y)
        trace = Truncation()(Subject(Last("GRU"), batch, "cross_entropy"))
        assert trace.attrs["counted_from"] == expected


def test_without_truncation_nothing_is_lost_and_a_gradient_of_zero_is_undefined():
    model = Net("LSTM")
    data = inputs(3, 9), classes(3, 9)
    trace = Truncation()(Subject(model, [data], "cross_entropy"))
    assert float(trace["cosine_all"][-1]) == pytest.approx(1, abs=1e-12)
    assert float(trace["error_all"][-1]) == 0
    assert (trace["error_without"].isel(chunk_length=-1) == 0).all()
    model.head.weight.data.zero_()
    dead = Truncation()(Subject(model, [data], "cross_entropy"))
    assert dead["cosine_all"].isnull().all()
    assert dead["error"].isnull().all()


def test_samples_in_groups():
    model, x, y = Net("GRU"), inputs(7, 6), classes(7, 6)
    trace = Truncation(groups=3)(Subject(model, [(x, y)], "cross_entropy"))
    assert trace["group_size"].values.tolist() == [3, 2, 2]
    keep = [1, 2, 4, 5]  # the first group is samples 0, 3 and 6
    rest = [(x[keep], y[keep])]
    expected = numbers(trained(model, rest, [0, 2, 4])[0], trained(model, rest, [0])[0])
    found = trace.sel(chunk_length=2).isel(group=0)
    assert float(found["cosine_without_all"]) == pytest.approx(expected[0], abs=1e-10)
    assert float(found["error_without_all"]) == pytest.approx(expected[1], abs=1e-10)
    few = Truncation(samples=4)(Subject(model, [(x, y)], "cross_entropy"))
    chosen = [(x[[0, 1, 3, 5]], y[[0, 1, 3, 5]])]
    compare(few, model, chosen, lambda size, longest: [*range(0, longest, size)])


def test_wide_layers_keep_exact_values_and_sketches_move_them_about_right():
    torch.manual_seed(5)
    model, x, y = Net("LSTM", units=60), inputs(6, 16), classes(6, 16)
    trace = Truncation()(Subject(model, [(x, y)], "cross_entropy"))
    whole, cut = (trained(model, [(x, y)], starts)[0] for starts in ([0], [*range(16)]))
    at = trace.sel(chunk_length=1)
    assert float(at["cosine_all"]) == pytest.approx(numbers(cut, whole)[0], abs=1e-12)
    moves, expected = [], []
    for b in range(6):
        keep = [sample for sample in range(6) if sample != b]
        rest = [(x[keep], y[keep])]
        own = numbers(trained(model, rest, [*range(16)])[0], trained(model, rest, [0])[0])
        expected.append(own[0] - float(at["cosine_all"]))
        moves.append(float(at["cosine_without_all"][b] - at["cosine_all"]))
    assert np.std(moves) == pytest.approx(np.std(expected), rel=0.3)
    assert np.corrcoef(moves, expected)[0, 1] > 0.8


def test_sketches_keep_inner_products_on_average():
    left, right = torch.randn(5, 2, 300).double(), torch.randn(5, 2, 200).double()
    exact = torch.einsum("tbg,tbi->bgi", left, right).flatten(1)
    ratios = []
    for seed in range(30):
        gradients = Gradients(torch.Generator().manual_seed(seed))
        gradients.begin(2, 1)
        gradients.add(("", 0, False), (Factor("weight_ih", left, right),))
        gradients.next()
        gradients.end()
        _, sketched, _ = gradients.products(("", 0, False))
        ratios.append(float(sketched[0, 2] / exact.sum(0).square().sum()))
    assert np.mean(ratios) == pytest.approx(1, abs=0.06)
    assert np.std(ratios) < 0.25
    (layer,), whole = compared(gradients, gradients.layers)
    assert float(layer.norm) == pytest.approx(float(exact.sum(0).norm()))
    assert float(whole.error) == 0


class Twice(nn.Module):
    """Reads two sequences with the same layer, each from a state of zeros."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(INPUTS, UNITS, batch_first=True)
        self.double()

    def forward(self, x):
        return self.rnn(x[:, :5])[0][:, -1] * self.rnn(x[:, 5:])[0][:, -1]


def test_a_layer_that_reads_two_sequences_is_one_layer():
    model, x = Twice(), inputs(3, 8)
    trace = Truncation(counted_from="start")(Subject(model, [x]))
    assert trace["layer"].values.tolist() == ["rnn.l0"]

    def gradient(size):
        ends = []
        for part in (x[:, :5], x[:, 5:]):
            state = None
            for piece in part.split(size, 1):
                _, state = model.rnn(piece, None if state is None else state.detach())
            ends.append(state[0])
        loss = (0.5 * (ends[0] * ends[1]).square()).mean(1).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])

    for size in (1, 2, 4, 8):
        expected = numbers(gradient(size), gradient(8))
        found = trace.sel(chunk_length=size)
        assert float(found["cosine"][0]) == pytest.approx(expected[0], abs=1e-12)
        assert float(found["error"][0]) == pytest.approx(expected[1], abs=1e-12)


@pytest.mark.parametrize("feedback", [False, True])
def test_a_loop_that_reads_its_own_output_is_named(feedback):
    class Cells(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(INPUTS, UNITS).double()

        def forward(self, x):
            h, outputs = x.new_zeros(len(x), UNITS), []
            for step in x.unbind(1):
                h = self.cell(step + h[:, :INPUTS] if feedback else step, h)
                outputs.append(h)
            return torch.stack(outputs, 1)

    trace = Truncation()(Subject(Cells(), [inputs(4, 7)]))
    assert trace.attrs["one_pass_each"] == ("cell.l0" if feedback else "")
    assert trace["chunk_length"].values.tolist() == [1, 2, 4, 8]


def test_remarks_progress_and_what_is_refused():
    class Spare(Net):
        def __init__(self):
            super().__init__("GRU", num_layers=2)
            self.unused = nn.LSTM(2, 2)
            self.side = nn.RNN(INPUTS, 2, batch_first=True).double()

        def forward(self, x):
            self.side(x)
            return super().forward(x)

    x, y = inputs(4, 3), classes(4, 3)
    seen = []
    subject = Subject(Spare(), [(x[:3], y[:3]), (x[3:], y[3:])], "cross_entropy")
    trace = Truncation()(subject, lambda done, total: seen.append((done, total)))
    assert seen == [(3, 4), (4, 4)]
    assert trace.attrs["not_called"] == "unused"
    assert trace.attrs["without_gradient"] == "side.l0"
    with pytest.raises(AnalyzerError) as caught:
        Truncation(groups=1)(subject)
    assert str(caught.value) == (
        "truncation needs samples >= 2, groups >= 2 and counted_from auto, start or end: they are "
        "64, 1 and auto"
    )
    with pytest.raises(NotApplicable):
        Truncation()(Subject(nn.Linear(3, 2), [torch.randn(4, 3)]))
    with pytest.raises(NotApplicable) as reason:
        Truncation()(Subject(Net(), [(inputs(3, 1), classes(3, 1))], "cross_entropy"))
    assert str(reason.value) == "the sequences have one timestep: there is nothing to truncate"
    with pytest.raises(AnalyzerError) as error:
        Truncation()(Subject(Net(), []))
    assert str(error.value) == "there is no batch to measure on: the data is empty"


def test_a_linear_network_loses_what_its_memory_holds_beyond_the_chunk():
    decay, timesteps = 0.9, 40
    rnn = nn.RNN(1, 1, nonlinearity="relu", bias=False, batch_first=True, dtype=torch.float64)
    rnn.weight_ih_l0.data.fill_(1.0)
    rnn.weight_hh_l0.data.fill_(decay)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = rnn

        def forward(self, x):
            # Half of the square of an output of 1 has the derivative of the output itself.
            last = self.rnn(x)[0][:, -1]
            return last / last.detach()

    x = torch.ones(3, timesteps, 1, dtype=torch.float64)
    trace = Truncation(counted_from="end")(Subject(Last(), [x]))
    lag = np.arange(timesteps)
    states = (1 - decay ** (timesteps - 1 - lag)) / (1 - decay)  # before the step of each lag
    parts = decay**lag * np.stack([np.ones(timesteps), states])
    whole = parts.sum(1)
    for size in trace["chunk_length"].values:
        kept = parts[:, :size].sum(1)
        found = trace.sel(chunk_length=size)
        error = np.linalg.norm(whole - kept) / np.linalg.norm(whole)
        assert float(found["error_all"]) == pytest.approx(error, abs=1e-12)
        cosine = whole @ kept / np.linalg.norm(whole) / np.linalg.norm(kept)
        assert float(found["cosine_all"]) == pytest.approx(cosine, abs=1e-12)
