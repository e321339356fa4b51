"""Layers whose spectrum, copies and idle units are planted, against numpy on whole outputs."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from probes import width as module
from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.features.layers import Layer, layers_of, looked_at, recurrent
from probes.features.numbers import spread as numbers_of
from probes.features.observation import Plan, observe
from probes.features.parameters import shares
from probes.features.summary import plain
from probes.recurrent.states.features import Draw
from probes.samples.layout import Layout
from probes.width import Width

ALL = {"positions": 10_000, "null_seeds": 0, "tested": 0}
"""Every position of every sample; nothing else."""


def spread(rows, level=0.99):
    """Directions, effective rank, participation ratio: by numpy, two passes, float64."""
    rows = np.asarray(rows, np.float64).reshape(-1, rows.shape[-1])
    values = np.linalg.eigvalsh(np.cov(rows.T, bias=True).reshape(rows.shape[1], -1))[::-1]
    shares = np.clip(values, 0, None) / values.sum()
    held = np.flatnonzero(np.cumsum(shares) >= level)[0] + 1
    kept = shares[shares > 0]
    return [held, np.exp(-(kept * np.log(kept)).sum()), 1 / (shares**2).sum()]


def numbers(trace, layer):
    own = trace.sel(layer=layer)
    return [float(own[name]) for name in ("directions", "effective_rank", "participation")]


def planted(width, rank, inputs=40):
    """A linear layer that returns ``rank`` directions of unequal size."""
    torch.manual_seed(rank)
    left, _ = torch.linalg.qr(torch.randn(width, rank))
    right, _ = torch.linalg.qr(torch.randn(inputs, rank))
    layer = nn.Linear(inputs, width)
    layer.weight.data = left * torch.linspace(1, 2, rank) @ right.T
    return layer


@pytest.mark.parametrize("rank", [1, 3, 17])
def test_planted_ranks_are_recovered_whatever_the_mean(rank):
    model = nn.Sequential(planted(24, rank), nn.Linear(24, 2))
    x = torch.randn(500, 40)
    trace = Width(**ALL)(Subject(model, [x[:200], x[200:]]))
    assert float(trace["directions"][0]) == rank
    assert float(trace["rank"][0]) == rank
    with torch.no_grad():
        np.testing.assert_allclose(numbers(trace, "0"), spread(model[0](x)), rtol=1e-6)
    model[0].bias.data += 300.0
    far = Width(**ALL)(Subject(model, [x[:200], x[200:]]))
    assert float(far["directions"][0]) == rank
    np.testing.assert_allclose(numbers(far, "0"), numbers(trace, "0"), rtol=1e-5)


def test_the_saturation_of_delve_is_one_direction_below():
    values = torch.tensor([0.5, 0.3, 0.19, 0.01]).sqrt()
    base = torch.linalg.qr(torch.randn(400, 5))[0]
    base = torch.linalg.qr(base - base.mean(0))[0][:, :4] * 20
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    model[0].weight.data = torch.diag(values)
    trace = Width(**ALL, level=0.985)(Subject(model, base))
    held = trace["variance"][0].cumsum().to_numpy()
    delve = int((held < 0.985).sum())
    assert (float(trace["directions"][0]), delve) == (3.0, 2)
    np.testing.assert_allclose(trace["variance"][0], [0.5, 0.3, 0.19, 0.01], rtol=1e-4)


CONVOLUTIONS = {
    "1d": (nn.Conv1d(2, 6, 3), (60, 2, 20)),
    "2d": (nn.Conv2d(2, 6, 3, stride=2), (60, 2, 9, 8)),
    "3d": (nn.Conv3d(2, 6, 2), (60, 2, 4, 5, 3)),
    "transposed": (nn.ConvTranspose1d(2, 6, 3), (60, 2, 10)),
    "grouped": (nn.Conv1d(2, 6, 3, groups=2), (60, 2, 20)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_channels_of_convolutions_are_the_units(kind):
    layer, shape = CONVOLUTIONS[kind]
    x = torch.randn(shape) * torch.linspace(0.2, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    trace = Width(**ALL)(Subject(nn.Sequential(layer, nn.Flatten()), [x[:40], x[40:]]))
    with torch.no_grad():
        expected = spread(layer(x).movedim(1, -1).flatten(0, -2))
    np.testing.assert_allclose(numbers(trace, "0"), expected, rtol=1e-5)
    assert int(trace["most"][0]) == min(6, 2 * layer.weight[0, 0].numel())


def test_channels_last_and_random_positions_give_the_same_within_sampling():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    x = functional.avg_pool2d(torch.randn(80, 3, 26, 26), 2)
    whole = Width(**ALL)(Subject(model, x))
    last = Width(**ALL)(Subject(model, x.to(memory_format=torch.channels_last)))
    np.testing.assert_allclose(last["effective_rank"], whole["effective_rank"], rtol=1e-4)
    some = Width(**ALL | {"positions": 16})(Subject(model, x))
    assert some["independent"].max() <= 80 * 16
    np.testing.assert_allclose(some["effective_rank"], whole["effective_rank"], rtol=0.05)
    assert not np.allclose(some["effective_rank"], whole["effective_rank"], rtol=1e-6)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        h = self.layer(x)
        return self.head(self.layer(h.tanh())), {"aside": None}


def test_a_layer_that_is_called_twice_is_one_layer():
    model, x = Twice(), torch.randn(90, 5)
    trace = Width(**ALL)(Subject(model, x))
    with torch.no_grad():
        first = model.layer(x)
        both = torch.cat([first, model.layer(first.tanh())])
    np.testing.assert_allclose(numbers(trace, "layer"), spread(both), rtol=1e-5)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_both_directions_of_a_recurrent_layer_are_its_units(kind):
    rnn = getattr(nn, kind)(3, 4, 2, bidirectional=True)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = rnn, nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0])

    x = torch.randn(12, 50, 3)
    trace = Width(**ALL)(Subject(Model(), [x[:, :20], x[:, 20:]], batch_axis=1, time_axis=0))
    assert trace["layer"].values.tolist() == ["rnn.l0", "rnn.l1", "head"]
    assert trace["width"].values.tolist() == [8, 8, 2]
    with torch.no_grad():
        np.testing.assert_allclose(numbers(trace, "rnn.l1"), spread(rnn(x)[0]), rtol=1e-5)
        logits = Model()(x)
        np.testing.assert_allclose(numbers(trace, "head")[1:], spread(logits)[1:], rtol=0.5)


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 4), nn.Linear(4, 2)

    def states(self, x):
        h, found = x.new_zeros(len(x), 4), []
        for step in x.unbind(1):
            h = self.cell(step, h)
            found.append(h)
        return torch.stack(found, 1)

    def forward(self, x):
        return self.head(self.states(x)[:, -1])


def test_cells_in_a_loop_and_padding():
    model, x = Loop(), torch.randn(60, 7, 3)
    trace = Width(**ALL)(Subject(model, x, time_axis=1))
    with torch.no_grad():
        states = model.states(x)
    np.testing.assert_allclose(numbers(trace, "cell.l0"), spread(states), rtol=1e-5)
    lengths = torch.arange(60) % 6 + 2
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    padded = x * (torch.arange(7) < lengths[:, None])[..., None] + 0.0
    trace = Width(**ALL)(Subject(model, Batch(padded, None, lengths), time_axis=1))
    rows = torch.cat([model[0](x[i, : lengths[i]]) for i in range(60)]).detach()
    np.testing.assert_allclose(numbers(trace, "0"), spread(rows), rtol=1e-5)


class Folded(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(2, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        y = self.conv(x.flatten(0, 1)).mean(2)
        return self.head(y.unflatten(0, x.shape[:2]).mean(1))


def test_timesteps_folded_into_the_batch_belong_to_their_sample():
    steps = torch.linspace(-3, 3, 40).view(40, 1, 1, 1).expand(40, 6, 2, 5)
    trace = Width(**ALL)(Subject(Folded(), steps + 0.01 * torch.randn(40, 6, 2, 5), time_axis=1))
    # Alike within a sample, different between samples: one position of each counts.
    assert float(trace["independent"][0]) == pytest.approx(40, rel=0.05)


def test_independent_positions_are_between_samples_and_all_positions():
    model = nn.Sequential(nn.Conv1d(1, 3, 1), nn.Conv1d(3, 1, 1))
    free = Width(**ALL)(Subject(model, torch.randn(200, 1, 30)))
    assert 4500 < float(free["independent"][0]) <= 6000
    tied = Width(**ALL)(Subject(model, torch.randn(200, 1, 1).expand(200, 1, 30)))
    assert float(tied["independent"][0]) == pytest.approx(199, rel=0.01)


def test_too_few_positions_leave_the_numbers_undefined():
    model = nn.Sequential(nn.Linear(6, 30), nn.Linear(30, 2))
    trace = Width(**ALL)(Subject(model, torch.randn(299, 6)))
    assert trace["directions"].isnull().values.tolist() == [True, False]
    assert trace["variance"][0].isnull().all()
    assert trace["directions_without"][:, 0].isnull().all()
    enough = Width(**ALL, power=9)(Subject(model, torch.randn(299, 6)))
    assert enough["directions"].notnull().all()


def test_copies_constants_and_linear_dependence_are_named():
    layer = nn.Linear(12, 8)
    weight = torch.linalg.qr(torch.randn(12, 12))[0][:8].clone()
    weight[3], weight[6] = -2 * weight[1], 0.5 * weight[1]
    weight[4] = 0
    weight[7] = weight[0] + weight[2]
    layer.weight.data = weight
    model = nn.Sequential(layer, nn.Linear(8, 2))
    trace = Width(**ALL)(Subject(model, torch.randn(300, 12)))
    assert trace["twin"][0].values.tolist() == [0, 1, 2, 1, 4, 5, 1, 7]
    assert float(trace["copies"][0]) == 2
    assert trace["copies_without"][:, 0].values.tolist() == [2] * 10
    assert trace["constant"][0].values.tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    assert float(trace["rank"][0]) == 4


def relus(kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(1, 4, 1), nn.BatchNorm1d(4)
            self.relu = nn.ReLU(inplace=kind == "in place")
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            h = self.norm(self.conv(x))
            h = functional.relu(h) if kind == "function" else self.relu(h)
            return self.head(h.amax(2))

    model = Model()
    model.conv.weight.data = torch.tensor([1.0, 1.0, -1.0, 1.0]).view(4, 1, 1)
    model.conv.bias.data = torch.tensor([-0.5, -50.0, 0.5, -5.0])
    return model.eval()


@pytest.mark.parametrize("kind", ["module", "in place", "function"])
def test_a_unit_is_dead_only_if_no_position_of_any_sample_moves_it(kind):
    x = torch.rand(70, 1, 200)
    x[37, 0, 151] = 6.0  # the only place at which the last unit is active
    trace = Width(null_seeds=0, tested=0, positions=4)(Subject(relus(kind), [x[:32], x[32:]]))
    assert trace["response"].values.tolist() == ["relu after conv"]
    active = trace["active"].sum("group")[0].values.tolist()
    assert active == [70, 0, 70, 1]
    assert trace["seen"].sum().item() == 70
    assert trace["active"][:, 0, 3].values.tolist() == [0] * 7 + [1] + [0] * 2


def test_units_at_the_ends_of_bounded_functions():
    model = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2), nn.Sigmoid())
    model[0].weight.data = torch.tensor([[0.0], [0.0], [100.0]])
    model[0].bias.data = torch.tensor([9.0, 0.5, 0.0])
    model[2].weight.data = torch.zeros(2, 3)
    model[2].bias.data = torch.tensor([-5.0, 5.0])
    x = torch.tensor([[-1.0], [-1.0], [-1.0], [1.0]]).repeat(5, 1)
    trace = Width(**ALL)(Subject(model, x))
    share = trace["at_end"].sum("group") / 20
    assert trace["response"].values.tolist() == ["tanh after 0", "sigmoid after 2"]
    assert share[0, :, :3].values.tolist() == [[0, 0, 0.75], [1, 0, 0.25]]
    assert share[1, :, :2].values.tolist() == [[1, 0], [0, 1]]
    assert trace["read"].values.tolist() == [1, 0]


def test_numbers_without_a_group_are_those_of_the_other_samples():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    x = torch.randn(400, 6) * torch.linspace(0.3, 3, 400)[:, None] + torch.arange(6)
    trace = Width(**ALL)(Subject(model, [x[:150], x[150:]]))
    with torch.no_grad():
        y = model[0](x)
    for group in range(10):
        own = trace.isel(group=group, layer=0)
        exact = spread(y[torch.arange(400) % 10 != group])
        np.testing.assert_allclose(own["effective_rank_without"], exact[1], rtol=2e-3)
        np.testing.assert_allclose(own["participation_without"], exact[2], rtol=2e-3)
    assert len({*trace["effective_rank_without"][:, 0].values.tolist()}) == 10


class Wide(nn.Module):
    """Sixteen hidden units, of which all variance but a trace is in two directions."""

    def __init__(self, small):
        super().__init__()
        self.first, self.head = nn.Linear(3, 16), nn.Linear(16, 2)
        weight = torch.zeros(16, 3)
        weight[:, 0], weight[:, 1] = torch.linspace(-1, 1, 16), torch.linspace(1, 0.2, 16)
        weight[0, 2] = small
        self.first.weight.data = weight
        self.first.bias.data.zero_()
        # The units lie on a line but for the first: the output is how far off it is.
        self.head.weight.data.zero_()
        self.head.weight.data[:, :3] = torch.tensor([1.0, -2.0, 1.0]) * 5 / small
        self.head.weight.data[1] *= -1

    def forward(self, x):
        return self.head(self.first(x))


def test_the_loss_tells_whether_small_directions_matter():
    x = torch.randn(400, 3)
    model = Wide(0.05)
    y = model(x).argmax(1)
    trace = Width(null_seeds=0)(
        Subject(model, [(x[:100], y[:100]), (x[100:], y[100:])], "cross_entropy")
    )
    assert trace.attrs["restricted"] == "first"
    assert float(trace["directions"][0]) == 2
    assert trace.sizes["sample"] == 256
    assert float(trace["loss_change"].mean()) > 0.1
    with torch.no_grad():
        h = model.first(x)
        other = h[1::2]  # even samples are tested on what the odd ones fill
        base = torch.linalg.svd((other - other.mean(0)).double())[2][:2].T.float()
        kept = model.head((h - other.mean(0)) @ base @ base.T + other.mean(0))
        losses = functional.cross_entropy(kept, y, reduction="none")
        whole = functional.cross_entropy(model(x), y, reduction="none")
    places = trace["sample"].values.copy()
    even = places[places % 2 == 0]
    expected = (losses - whole)[even]
    np.testing.assert_allclose(trace["loss_change"].sel(sample=even), expected, atol=1e-4)
    np.testing.assert_allclose(trace["intact_loss"], whole[places], rtol=1e-4)


def test_width_that_nothing_needs_costs_nothing():
    model = nn.Sequential(planted(24, 2), nn.Linear(24, 2))
    x = torch.randn(300, 40)
    y = model(x).argmax(1)
    trace = Width(null_seeds=0)(Subject(model, [(x, y)], "cross_entropy"))
    assert abs(float(trace["loss_change"].mean())) < 1e-3
    assert float(trace["decision_change"].max()) == 0


class Reader(nn.Module):
    """Two recurrent layers, and a head that reads one unit of the second."""

    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(3, 8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def projected(states, fitted, level=0.99):
    """Nearest states in the directions that hold the variance of other ones: numpy, float64."""
    rows = fitted.reshape(-1, fitted.shape[-1])
    mean = rows.mean(0)
    values, columns = np.linalg.eigh(np.cov(rows.T, bias=True))
    held = np.cumsum(values[::-1]) / values.sum()
    base = columns[:, ::-1][:, : np.flatnonzero(held >= level)[0] + 1]
    return (states - mean) @ base @ base.T + mean


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_pass_on_their_directions_only(kind):
    torch.manual_seed(2)
    model = Reader(kind).double()
    for weight in model.rnn.parameters():
        weight.data *= 3
    x = torch.randn(120, 12, 3, dtype=torch.float64)
    y = torch.randint(2, (120,))
    trace = Width(null_seeds=0, level=0.8, tested=120)(Subject(model, [(x, y)], "cross_entropy"))
    assert trace.attrs["restricted"] == "rnn.l0, rnn.l1"
    parts = []
    for layer, reads in enumerate((3, 8)):
        parts.append(kind(reads, 8, batch_first=True).double())
        for mine, theirs in zip(parts[-1].parameters(), model.rnn.all_weights[layer], strict=True):
            mine.data = theirs.data
    with torch.no_grad():
        first = parts[0](x)[0].numpy()
        second = parts[1](torch.from_numpy(first))[0].numpy()
        whole = functional.cross_entropy(model(x), y, reduction="none")
        expected = torch.empty_like(whole)
        for half in (0, 1):
            low = torch.from_numpy(projected(first, first[1 - half :: 2], 0.8))
            high = projected(parts[1](low)[0].numpy(), second[1 - half :: 2], 0.8)
            logits = model.head(torch.from_numpy(high[:, -1]))
            losses = functional.cross_entropy(logits, y, reduction="none")
            expected[half::2] = (losses - whole)[half::2]
    assert float(expected.abs().mean()) > 0.01
    np.testing.assert_allclose(trace["loss_change"], expected, rtol=1e-6, atol=1e-9)


def test_positions_are_as_likely_as_each_other_and_differ_between_samples():
    drawn = Draw.of(4000, 64, torch.Generator().manual_seed(0))
    x = torch.arange(140.0).expand(4000, 140)[..., None]
    seen = looked_at(x, Layout(4000, 0, 140, None), drawn).values[..., 0]
    assert seen.shape == (4000, 64)
    share = torch.bincount(seen.flatten().long(), minlength=140) / seen.numel()
    assert float((share * 140 - 1).abs().max()) < 0.15
    assert len(seen.unique(dim=0)) > 100
    rows = recurrent(x.transpose(0, 1), torch.full((4000,), 70), drawn)
    assert torch.equal(rows.values[..., 0], seen)
    assert torch.equal(rows.valid, seen < 70)


def test_float32_products_are_good_for_four_digits():
    model = nn.Sequential(nn.Conv1d(6, 16, 3), nn.ReLU(), nn.Conv1d(16, 2, 1)).eval()
    model[0].bias.data += 30.0
    subject = Subject(model, torch.randn(40, 6, 50))
    layers = layers_of(model)
    groups = dict.fromkeys(layers, 1)
    exact, rough = (
        observe(subject, range(40), Plan(layers, groups, 64, 16, 0, rough), lambda _: None)
        for rough in (False, True)
    )
    for label in layers:
        variances = torch.linalg.eigvalsh(exact.layers[label].pooled().whole).flip(0)
        expected = numbers_of(variances, 0.99)[:2]
        torch.testing.assert_close(plain(rough.layers[label], 0.99), expected, rtol=1e-4, atol=1e-4)


def kept(model, x, **settings):
    trace = Width(**ALL | settings)(Subject(model, x))
    rows = zip(
        trace["layer"].values.tolist(),
        trace["directions"].values,
        trace["parameters"].values,
        trace["kept_parameters"].values,
        strict=True,
    )
    return {name: row for name, *row in rows}


def test_parameters_of_a_chain_are_those_of_the_narrow_chain():
    model = nn.Sequential(planted(24, 6), nn.ReLU(), planted(12, 3, 24), nn.Linear(12, 2))
    found = kept(model, torch.randn(400, 40))
    assert found["0"] == [6, 40 * 24 + 24, pytest.approx(40 * 6 + 6)]
    assert found["2"] == [3, 24 * 12 + 12, pytest.approx(6 * 3 + 3)]
    assert found["3"][1:] == [26, pytest.approx(3 * 2 + 2)]


class Joined(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.left, self.right = planted(12, 2), planted(12, 3)
        self.head = nn.Linear(24 if how == "beside" else 12, 2)

    def forward(self, x):
        left, right = self.left(x), self.right(x)
        return self.head(torch.cat([left, right], 1) if self.how == "beside" else left + right)


def test_sums_share_their_directions_and_concatenations_do_not():
    x = torch.randn(300, 40)
    beside, summed = kept(Joined("beside"), x), kept(Joined("summed"), x)
    assert [row[2] for row in beside.values()] == pytest.approx([82, 123, 2 * 5 + 2])
    assert [row[2] for row in summed.values()] == pytest.approx([205, 205, 2 * 5 + 2])


def test_parameters_of_flattened_maps_depthwise_and_recurrent_layers():
    first = nn.Conv1d(8, 8, 1)
    first.weight.data = torch.outer(torch.randn(8), torch.randn(8))[..., None]
    flat = nn.Sequential(first, nn.Flatten(), nn.Linear(80, 2))
    found = kept(flat, torch.randn(300, 8, 10))
    assert found["0"] == [1, 72, pytest.approx(9.0)]
    assert found["2"][1:] == [162, pytest.approx(160 / 8 + 2)]
    deep = nn.Sequential(first, nn.Conv1d(8, 8, 1, groups=8), nn.Conv1d(8, 1, 1))
    found = kept(deep, torch.randn(300, 8, 10))
    assert found["1"] == [1, 16, 2.0]
    # One number read by many units before a nonlinearity: the units are not unused for that.
    expanding = nn.Sequential(nn.Linear(1, 9), nn.ReLU(), nn.Linear(9, 2))
    assert [row[2] for row in kept(expanding, torch.randn(300, 1)).values()] == [18, 20]
    # Nobody reads the state as a layer, so that it keeps its width; what it reads gets narrower.
    model = nn.Sequential(planted(9, 1, 9), nn.GRU(9, 4, batch_first=True))
    found = kept(model, torch.randn(90, 5, 9))
    assert found["1.l0"][1:] == [12 * (9 + 4 + 2), pytest.approx(12 * (1 + 4 + 2))]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = planted(12, 2), planted(12, 2, 12), nn.Linear(12, 2)

    def forward(self, x):
        h = self.stem(x)
        return self.head(h + self.block(functional.relu(h)))


def test_a_residual_stream_keeps_the_directions_of_all_that_write_to_it():
    found = kept(Residual(), torch.randn(400, 40))
    stem, block = found["stem"][0], found["block"][0]
    both = stem + block
    assert (stem, block) == (2, 2)
    assert found["stem"][2] == pytest.approx(40 * both + both)
    assert found["block"][2] == pytest.approx(both * both + both)


def test_rounds_and_settings_do_not_change_the_numbers(monkeypatch):
    model = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 6), nn.Linear(6, 2))
    subject = Subject(model, torch.randn(120, 9))
    first = Width(**ALL)(subject)
    monkeypatch.setattr(module, "BUDGET", 8 * 64 * 4)
    second = Width(**ALL)(subject)
    for name in ("directions", "effective_rank", "twin", "active", "kept_parameters"):
        np.testing.assert_allclose(second[name], first[name], rtol=1e-9)
    assert int(second["directions_without"][:, 0].notnull().sum()) == 4
    narrow = Width(**ALL, widest=7)(subject)
    assert narrow["layer"].values.tolist() == ["2", "3"]
    assert narrow.attrs["not_called"] == ""


def test_untrained_copies_come_with_it():
    model = nn.Sequential(planted(10, 1), nn.Tanh(), nn.Linear(10, 2))
    x = torch.randn(300, 40)
    trace = Width(tested=0, null_seeds=2)(Subject(model, x))
    assert trace["untrained_directions"].dims == ("copy", "layer")
    assert trace["untrained_effective_rank"].dims == ("copy", "layer")
    assert trace["untrained_directions"][:, 0].values.tolist() == [10, 10]
    assert float(trace["directions"][0]) == 1

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.free = nn.Linear(40, 4), nn.Parameter(torch.ones(400, 4))

        def forward(self, x):
            return self.layer(x) @ self.free.T

    trace = Width(tested=0)(Subject(Bare(), x))
    assert trace.attrs["untrained"] == "no module initialises free"
    assert trace.sizes["copy"] == 0


def test_misuse_and_models_without_such_layers():
    with pytest.raises(NotApplicable) as reason:
        Width()(Subject(nn.Sequential(nn.Flatten(), nn.ReLU()), torch.randn(5, 3)))
    assert str(reason.value) == "the model has no convolution, linear or recurrent layer of torch"

    class Unused(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x

    holder = nn.Sequential(nn.Identity())
    holder[0].spare = nn.Linear(3, 3)
    with pytest.raises(NotApplicable) as reason:
        Width()(Subject(holder, torch.randn(5, 3)))
    assert str(reason.value) == (
        "the model calls none of its convolutions, linear and recurrent layers as modules"
    )
    for setting, value, message in (
        ("samples", 0, "width.samples is less than 1"),
        ("tested", -1, "width.tested is negative"),
        ("level", 1.0, "width.level is not between 0 and 1"),
        ("groups", 5, "width.groups is not an even number of 2 or more"),
    ):
        with pytest.raises(AnalyzerError) as error:
            Width(**{setting: value})
        assert str(error.value) == message


def test_progress_counts_samples():
    done = []
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    Width(null_seeds=1, tested=0, together=30)(
        Subject(model, torch.randn(60, 3)), lambda *step: done.append(step)
    )
    assert done == [(30, 120), (60, 120), (90, 120), (120, 120)]


def test_calls_of_one_pass_belong_together():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(1, 2, bias=False), nn.Linear(2, 1)
            self.layer.weight.data = torch.tensor([[1.0], [-1.0]])

        def forward(self, x):
            return self.head(self.layer(x).relu() + self.layer(-x).relu())

    x = torch.randn(64, 1)
    trace = Width(**ALL)(Subject(Model(), x))
    # Each unit is active in one of the two calls, and over both the mean of a sample is zero.
    assert trace["active"].sum("group")[0].values.tolist() == [64, 64]
    assert float(trace["independent"][0]) == 128


def test_parameters_of_recurrent_layers_shrink_with_the_square():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 6, 2, batch_first=True), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    found = kept(Model(), torch.randn(80, 20, 3))
    first, second = (found[f"rnn.l{layer}"][0] / 6 for layer in (0, 1))
    assert second < 1
    assert found["rnn.l0"][2] == pytest.approx(first * (24 * 3 + first * 24 * 6 + 48))
    assert found["rnn.l1"][2] == pytest.approx(second * (first * 24 * 6 + second * 24 * 6 + 48))
    assert found["head"][2] == pytest.approx(second * 12 + 2)


def test_layers_that_are_summed_in_turn_are_one_stream():
    layers = {name: Layer("", "Linear", 10, 10, -1, 10) for name in ("a", "b", "c", "x", "y")}
    reads = {"x": frozenset("ab"), "y": frozenset("bc")}
    features = dict.fromkeys(layers, 10)
    found = shares(layers, dict.fromkeys("abc", 2.0), reads, features)
    assert found == {
        **dict.fromkeys("abc", (1.0, pytest.approx(0.6))),
        **dict.fromkeys("xy", (pytest.approx(0.6), 1.0)),
    }
