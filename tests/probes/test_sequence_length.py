"""Loss at other lengths, by hand and by closed forms; what is refused, and every layout of data."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.sequence_length import SequenceLength

T = 24


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def measured(model: nn.Module, batches: Any, loss: Any = None, **settings: Any) -> xr.Dataset:
    axes = {key: settings.pop(key) for key in ("time_axis", "batch_axis") if key in settings}
    batches = batches if isinstance(batches, list) else [batches]
    subject = Subject(model.eval(), batches, loss, **{"time_axis": 1, **axes})
    return SequenceLength(**settings)(subject)


class Weighed(nn.Module):
    """Inputs, those of lag k times ``decay ** k``, summed."""

    def __init__(self, decay: float, mean: bool = False) -> None:
        super().__init__()
        self.decay, self.mean = decay, mean
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        weights_T = self.decay ** torch.arange(x.shape[1] - 1.0, -1, -1).to(x)
        total = self.scale * (x * weights_T).sum(1, keepdim=True)
        return total / x.shape[1] if self.mean else total


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_a_leaky_sum_loses_what_its_past_still_weighs(decay: float) -> None:
    x = double(7, T)
    trace = measured(Weighed(decay).double(), x)
    assert trace["length"].to_numpy().tolist() == [3, 6, 12, 24, 48, 96]
    lag = torch.arange(T - 1.0, -1, -1).double()
    donor = torch.from_numpy(trace["donor"].to_numpy())
    for length in (3, 6, 12):
        old = lag >= length
        left_out = (x * decay**lag * old).sum(1)
        other = left_out - (x[donor] * decay**lag * old).sum(1)
        at = trace.sel(length=length)
        assert at["excess_loss"].to_numpy() == pytest.approx(0.5 * left_out.square().numpy())
        assert at["replaced_loss"].to_numpy() == pytest.approx(0.5 * other.square().numpy())
    for length in (48, 96):
        front = x[donor].repeat(1, 3)[:, -(length - T) :]
        lags = torch.arange(length - 1.0, T - 1, -1).double()
        added = (front * decay**lags).sum(1)
        found = trace["excess_loss"].sel(length=length).to_numpy()
        assert found == pytest.approx(0.5 * added.square().numpy(), abs=1e-12)
        assert trace["replaced_loss"].sel(length=length).isnull().all()
    assert (trace["excess_loss"].sel(length=T) == 0).all()
    whole = ((x - x[donor]) * decay**lag).sum(1)
    assert trace["whole_loss"].to_numpy() == pytest.approx(0.5 * whole.square().numpy())
    assert not any(trace["reason"].to_numpy())
    assert trace.attrs["sequence_length"] == T


def test_a_mean_over_time_is_drawn_to_what_stands_in_front() -> None:
    x = double(5, T)
    trace = measured(Weighed(1.0, mean=True).double(), x, shorter=1, longer=1)
    assert trace["length"].to_numpy().tolist() == [12, 24, 48]
    donor = trace["donor"].to_numpy()
    away = (x[donor].mean(1) - x.mean(1)) / 2
    found = trace["excess_loss"].sel(length=48).to_numpy()
    assert found == pytest.approx(0.5 * away.square().numpy())
    assert trace["whole_loss"].to_numpy() == pytest.approx(2 * away.square().numpy())


class Tagger(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, first: bool = True) -> None:
        super().__init__()
        self.rnn = kind(3, 5, batch_first=first)  # type: ignore[arg-type]
        self.head = nn.Linear(5, 4)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.shape[1])
        y: Tensor = self.head(self.rnn(x)[0])
        return y


def spliced(x: Tensor, donor: np.ndarray, length: int) -> Tensor:
    if length <= x.shape[1]:
        return x[:, -length:]
    return torch.cat([x[donor].repeat(1, 4, 1)[:, -(length - x.shape[1]) :], x], 1)


@pytest.mark.parametrize("targets", ["each", "last", "own", "callable"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_losses_are_those_of_sequences_made_by_hand(kind: type[nn.RNNBase], targets: str) -> None:
    model, x = Tagger(kind).double(), double(6, T, 3)
    classes = torch.randint(4, (6, T))
    own = model(x).argmax(2)
    given, loss = {
        "each": (classes, "cross_entropy"),
        "last": (classes, nn.CrossEntropyLoss()),
        "own": (None, "cross_entropy"),
        "callable": (classes, lambda out, y: functional.cross_entropy(out.mT, y)),
    }[targets]
    batches = [(x[:4], None if given is None else given[:4])]
    batches += [(x[4:], None if given is None else given[4:])]
    trace = measured(model, batches, loss)
    last = (own if given is None else classes)[:, -1]
    donor = trace["donor"].to_numpy()

    def losses(length: int) -> Tensor:
        out = model(spliced(x, donor, length))[:, -1]
        return functional.cross_entropy(out, last, reduction="none").detach()

    assert trace["intact_loss"].to_numpy() == pytest.approx(losses(T).numpy())
    for length in (3, 6, 12, 48, 96):
        expected = (losses(length) - losses(T)).numpy()
        found = trace["excess_loss"].sel(length=length).to_numpy()
        assert found == pytest.approx(expected, abs=1e-13)


def test_targets_of_every_timestep_may_be_vectors() -> None:
    model, x, wanted = Tagger().double(), double(5, T, 3), double(5, T, 4)
    trace = measured(model, [(x, wanted)], "mse_loss")
    donor = trace["donor"].to_numpy()

    def losses(length: int) -> Tensor:
        last = model(spliced(x, donor, length))[:, -1]
        return (last - wanted[:, -1]).square().mean(1).detach()

    for length in (3, 12, 48, 96):
        found = trace["excess_loss"].sel(length=length).to_numpy()
        assert found == pytest.approx((losses(length) - losses(T)).numpy(), abs=1e-13)


def test_time_first_sequences_are_cut_along_their_first_axis() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.rnn(x)[0][-1]
            return y

    model, x = Last().double(), double(T, 4, 3)
    trace = measured(model, x, time_axis=0, batch_axis=1, longer=1, shorter=1)
    donor = trace["donor"].to_numpy()
    whole = model(x)
    for length in (12, 48):
        made = x[-length:] if length < T else torch.cat([x[:, donor], x])
        expected = 0.5 * (model(made) - whole).square().mean(1)
        found = trace["excess_loss"].sel(length=length).to_numpy()
        assert found == pytest.approx(expected.detach().numpy())


LENGTHS = torch.tensor([8, 3, 5, 2])


class Ragged(nn.Module):
    """Reads what is valid alone, by the lengths or by the mask it is given."""

    def __init__(self, each: bool) -> None:
        super().__init__()
        self.rnn, self.each = nn.GRU(2, 3, batch_first=True), each

    def forward(self, x: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        assert mask.sum(1).tolist() == lengths.tolist()
        assert bool((x[mask == 0] == 9).all())
        y: Tensor = self.rnn(x)[0]
        return y if self.each else y[torch.arange(len(x)), lengths - 1]


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 3)

    def forward(self, x: PackedSequence) -> Tensor:
        y: Tensor = self.rnn(x)[1][0]
        return y


@pytest.mark.parametrize("kind", ["packed", "last", "each"])
def test_ragged_batches_keep_their_last_inputs(kind: str) -> None:
    packed = kind == "packed"
    x = double(4, 8, 2)
    mask = (torch.arange(8) < LENGTHS[:, None]).double()
    x[mask == 0] = 9
    if packed:
        model: nn.Module = Packed().double()
        trace = measured(model, pack_padded_sequence(x, LENGTHS, True, enforce_sorted=False))
    else:
        model = Ragged(kind == "each").double()
        trace = measured(model, Batch((x, LENGTHS, mask), None, LENGTHS))
    donor = trace["donor"].to_numpy()

    def final(values: Tensor) -> Tensor:
        return model.rnn(values[None] if not packed else values[:, None])[1][0, 0].detach()

    assert trace["length"].to_numpy().tolist() == [1, 2, 4, 8, 16, 32]
    assert not any(trace["reason"].to_numpy())
    for row, count in enumerate(LENGTHS.tolist()):
        own, other = x[row, :count], x[donor[row], : LENGTHS[donor[row]]]
        for length in (1, 2, 4, 16, 32):
            found = float(trace["excess_loss"].sel(length=length)[row])
            replaced = float(trace["replaced_loss"].sel(length=length)[row])
            assert np.isnan(replaced) == (length > 8 or count <= length)
            if count <= length < 8:
                assert np.isnan(found)
                continue
            front = other.repeat(33, 1)[-(length - 8) :] if length > 8 else own[:0]
            made = torch.cat([front, own[-length:] if length < 8 else own])
            expected = 0.5 * float((final(made) - final(own)).square().mean())
            assert found == pytest.approx(expected, abs=1e-14)


def test_tokens_and_what_has_no_time_go_along() -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.rnn = nn.Embedding(7, 3), nn.GRU(3, 5, batch_first=True)

        def forward(self, tokens: Tensor, scale: Tensor, speaker: Tensor) -> Tensor:
            y: Tensor = self.rnn(self.embed(tokens))[0][:, -1] * scale[:, None]
            return y + self.embed(speaker).sum(1, keepdim=True)

    model, tokens, told = Told().double(), torch.randint(7, (5, T)), (double(5), torch.arange(5))
    inputs = {"tokens": tokens, "scale": told[0], "speaker": told[1]}
    trace = measured(model, Batch(inputs), shorter=1, longer=0)
    expected = 0.5 * (model(tokens[:, 12:], *told) - model(tokens, *told)).square().mean(1)
    found = trace["excess_loss"].sel(length=12).to_numpy()
    assert found == pytest.approx(expected.detach().numpy())
    assert trace["length"].to_numpy().tolist() == [12, 24]


class Placed(nn.Module):
    """Knows so many positions."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.places, self.rnn = nn.Parameter(torch.randn(positions, 3)), nn.GRU(3, 5, 1, True, True)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > len(self.places):
            raise ValueError(f"too long: {x.shape[1]}\nno table goes so far")
        y: Tensor = self.rnn(x + self.places[: x.shape[1]])[0][:, -1]
        return y


def test_lengths_that_a_model_does_not_take_are_named() -> None:
    trace = measured(Placed(50).double(), double(4, T, 3))
    assert trace["reason"].to_numpy().tolist() == [""] * 5 + ["ValueError: too long: 96"]
    assert trace["taken"].to_numpy().tolist() == [True] * 5 + [False]
    known = trace["excess_loss"].notnull().all("sample")
    assert known.to_numpy().tolist() == [True] * 5 + [False]

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3 * T, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x.flatten(1))
            return y

    trace = measured(Flat().double(), double(4, T, 3))
    reasons = trace["reason"].to_numpy().tolist()
    assert reasons.pop(3) == ""
    assert all(reason.startswith("RuntimeError: mat1 and mat2") for reason in reasons)
    assert trace["excess_loss"].notnull().sum() == 4
    assert trace["replaced_loss"].notnull().sum() == 12
    assert (trace["whole_loss"] > 0).all()


def test_an_error_without_a_message_is_named() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] != T:
                raise RuntimeError
            return x.sum(1)

    trace = measured(Fixed(), torch.randn(3, T, 2), shorter=1)
    none = "RuntimeError: no message"
    assert trace["reason"].to_numpy().tolist() == [none, "", none, none]


def test_an_error_at_the_own_length_is_none_of_the_length() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measured(Broken(), torch.randn(3, T, 2))


def test_lengths_are_halved_and_doubled_and_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    subject = Subject(Tagger().eval(), [torch.randn(4, T, 3)], time_axis=1)
    trace = SequenceLength(shorter=4, longer=3, samples=2)(
        subject, lambda done, total: told.append((done, total))
    )
    assert trace["length"].to_numpy().tolist() == [2, 3, 6, 12, 24, 48, 96, 192]
    assert told == [(done, 7) for done in range(8)]


def test_only_so_many_samples_are_read() -> None:
    model = Tagger()
    trace = measured(model, [torch.randn(4, T, 3) for _ in range(3)], samples=5, longer=0)
    assert trace.sizes["sample"] == 8


@pytest.mark.parametrize("setting", [{"shorter": -1}, {"longer": -1}, {"samples": 1}])
def test_settings_that_measure_nothing_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(AnalyzerError, match="sequence_length needs"):
        measured(Tagger(), torch.randn(4, T, 3), **setting)


def test_short_sequences_have_few_halves() -> None:
    trace = measured(Tagger(), torch.randn(4, 3, 3), longer=1)
    assert trace["length"].to_numpy().tolist() == [1, 2, 3, 6]
    with pytest.raises(NotApplicable):
        measured(Tagger(), torch.randn(4, 1, 3))


def test_what_is_padded_within_a_packed_batch_is_never_read() -> None:
    x = double(2, 5, 2)
    packed = pack_padded_sequence(x, torch.tensor([5, 2]), True)
    model = Packed().double()
    found = measured(model, packed, longer=1)["excess_loss"].to_numpy()
    other = pad_packed_sequence(packed, batch_first=True)[0]
    other[1, 2:] = 100
    again = pack_padded_sequence(other, torch.tensor([5, 2]), True)
    assert np.array_equal(found, measured(model, again, longer=1)["excess_loss"], equal_nan=True)


def test_a_loss_that_is_undefined_at_one_length_alone_is_infinite() -> None:
    class Diverging(nn.Module):
        """Returns the last input; in long sequences nan for those that are positive."""

        def forward(self, x: Tensor) -> Tensor:
            last = x[:, -1]
            return torch.where((last > 0) & (x.shape[1] > 2 * T), torch.nan, last)

    x = double(6, T, 1)
    x[:3, -1], x[3:, -1] = -1, 1
    trace = measured(Diverging(), x, lambda out, _: out.square().sum(1))
    assert trace["excess_loss"].sel(length=96).to_numpy().tolist() == [0] * 3 + [np.inf] * 3
    assert trace["excess_loss"].sel(length=48).to_numpy().tolist() == [0] * 6
    x[5, -1] = torch.nan
    trace = measured(Diverging(), x, lambda out, _: out.square().sum(1))
    found = trace["excess_loss"].sel(length=96).to_numpy()
    unknown = (trace["donor"].to_numpy() == 5) | (np.arange(6) == 5)
    assert np.isnan(found).tolist() == unknown.tolist()


def test_a_batch_of_shorter_sequences_gets_as_many_inputs_in_front() -> None:
    batches = [double(2, T, 1), double(2, 10, 1)]
    trace = measured(Weighed(1.0).double(), batches, shorter=0, longer=1)
    donor = trace["donor"].to_numpy()
    pool = [*batches[0], *batches[1]]
    for row in range(4):
        front = pool[donor[row]].repeat(9, 1)[-T:].sum()
        found = float(trace["excess_loss"].sel(length=2 * T)[row])
        assert found == pytest.approx(0.5 * float(front) ** 2)


def test_targets_stay_with_outputs_whose_length_is_their_own() -> None:
    class Decoder(nn.Module):
        """Answers with as many timesteps as it likes, whatever it reads."""

        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            last = self.rnn(x)[0][:, -1:]
            y: Tensor = self.head(last * torch.linspace(1, 2, T).to(x)[:, None])
            return y

    model, x, classes = Decoder().double(), double(5, T, 3), torch.randint(4, (5, T))
    trace = measured(model, [(x, classes)], "cross_entropy")
    donor = trace["donor"].to_numpy()

    def losses(length: int) -> Tensor:
        out = model(spliced(x, donor, length))[:, -1]
        return functional.cross_entropy(out, classes[:, -1], reduction="none").detach()

    assert not any(trace["reason"].to_numpy())
    for length in (3, 12, 48, 96):
        found = trace["excess_loss"].sel(length=length).to_numpy()
        assert found == pytest.approx((losses(length) - losses(T)).numpy(), abs=1e-13)


def test_outputs_that_cannot_be_compared_are_no_refusal() -> None:
    class Coarse(nn.Module):
        """Returns one number for every other input."""

        def forward(self, x: Tensor) -> Tensor:
            return x[:, ::2, 0].cumsum(1)

    trace = measured(Coarse(), torch.randn(3, T, 2), shorter=1, longer=1)
    assert trace["taken"].all()
    reasons = trace["reason"].to_numpy().tolist()
    assert reasons[1] == ""
    for told, positions in ((reasons[0], 6), (reasons[2], 24)):
        assert told == (
            f"the output has the shape (3, {positions}) and (3, 12) for the intact inputs, and no "
            "position in time to compare: give a loss and targets"
        )
    assert trace["excess_loss"].notnull().sum() == 3


def test_a_loss_that_does_not_fit_is_no_refusal() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, T - 1] - targets).square().sum(1)

    trace = measured(Tagger().double(), [(double(3, T, 3), double(3, 4))], loss)
    assert trace["taken"].all()
    told = trace["reason"].to_numpy().tolist()
    assert told[0].startswith("IndexError: index 23 is out of bounds")
    # Longer outputs have such a position, if not as their last one.
    assert told[4:] == ["", ""]
