"""Both sides of a split: closed forms, brute force over samples, networks trained on purpose."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from analyzer.limits import Limits
from analyzer.rules.generalization import gap, generalization
from analyzer.rules.side_gradients import null_alignment
from analyzer.rules.sides import HELD_OUT, TRAINED, WHOLE, alignment, sides, stiffness_across
from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.generalization import Generalization
from probes.samples.alike import merged
from probes.sides.agreement import agreement
from probes.sides.permutation import permuted
from probes.sides.score import sample_scores
from probes.weight_gradient.contribution import Formed
from probes.weight_gradient.layers import parameters_by_layer
from probes.weight_gradient.sketch import Sketches, dimensions


def ragged(x: Tensor, y: Tensor, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return [*zip(torch.split(x, [*sizes]), torch.split(y, [*sizes]), strict=True)]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def split(seed: int = 1) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (20,), generator=generator)
    return (x[:11], y[:11]), (x[11:], y[11:])


def small(**changes: Any) -> Subject:
    (x, y), (u, v) = split()
    given = {"held_out": ragged(u, v, 2, 7), "loss": "cross_entropy"} | changes
    return Subject(net(), ragged(x, y, 4, 6, 1), **given)


def rows(trace: xr.Dataset, name: str, side: str) -> np.ndarray:
    values: np.ndarray = trace[name].to_numpy()[trace["side"].to_numpy() == side]
    return values


def single_gradients(model: nn.Module, x: Tensor, y: Tensor) -> list[np.ndarray]:
    """Of the two layers with weights: (sample, element), one autograd call for each sample."""
    layers = [model[0], model[2]]
    found: list[list[Tensor]] = [[], []]
    for one, target in zip(x, y, strict=True):
        loss = functional.cross_entropy(model(one[None]), target[None])
        for kept, layer in zip(found, layers, strict=True):
            parts = torch.autograd.grad(loss, [*layer.parameters()], retain_graph=True)
            kept.append(torch.cat([part.flatten() for part in parts]))
    return [torch.stack(kept).numpy() for kept in found]


def unit(gradient: np.ndarray) -> np.ndarray:
    return gradient / np.linalg.norm(gradient, axis=1, keepdims=True)


def test_gradients_are_those_of_each_sample_alone() -> None:
    subject = small()
    trace = Generalization()(subject)
    (x, y), (u, v) = split()
    trained, held = single_gradients(subject.model, x, y), single_gradients(subject.model, u, v)
    assert list(trace["layer"].to_numpy()) == ["0", "2"]
    assert list(trace["dimensions"].to_numpy()) == [0, 0]
    whole = [np.hstack(parts) for parts in (trained, held)]
    for column, (a, b) in enumerate([*zip(trained, held, strict=True), whole]):
        end = WHOLE if column == 2 else ""

        def of(name: str, side: str, end: str = end, column: int = column) -> np.ndarray:
            values = rows(trace, name + end, side)
            return values if end else values[:, column]

        for side, own, other in ((TRAINED, a, b), (HELD_OUT, b, a)):
            np.testing.assert_allclose(of("square", side), (own**2).sum(1), rtol=1e-10)
            np.testing.assert_allclose(of("own", side), own @ own.mean(0), atol=1e-12)
            np.testing.assert_allclose(of("other", side), own @ other.mean(0), atol=1e-12)
            cosines = unit(own) @ unit(own).T
            within = (cosines.sum(1) - 1) / (len(own) - 1)
            np.testing.assert_allclose(of("cosine_own", side), within, atol=1e-12)
            across = (unit(own) @ unit(other).T).mean(1)
            np.testing.assert_allclose(of("cosine_other", side), across, atol=1e-12)


def test_losses_scores_and_the_null_are_those_of_the_model() -> None:
    subject = small()
    trace = Generalization()(subject)
    (x, y), (u, v) = split()
    for side, inputs, targets in ((TRAINED, x, y), (HELD_OUT, u, v)):
        logits = subject.model(inputs).detach()
        loss = functional.cross_entropy(logits, targets, reduction="none")
        np.testing.assert_allclose(rows(trace, "loss", side), loss.numpy(), rtol=1e-12)
        right = (logits.argmax(1) == targets).double().numpy()
        np.testing.assert_array_equal(rows(trace, "score", side), right)
        # The mean over exchanges is one of losses with targets of the same side.
        every = torch.stack([
            functional.cross_entropy(logits, t.expand(len(logits)), reduction="none")
            for t in targets.unique()
        ])  # fmt: skip
        null = rows(trace, "loss_null", side)
        assert (null > every.amin(0).numpy() - 1e-9).all()
        assert (null < every.amax(0).numpy() + 1e-9).all()
    assert not np.allclose(rows(trace, "loss", HELD_OUT), rows(trace, "loss_null", HELD_OUT))


def test_the_null_is_the_gradient_with_targets_of_another_sample() -> None:
    subject = small()
    trace = Generalization()(subject)
    sides_ = subject.sides()
    assert sides_ is not None
    batches = merged(sides_[1], [Batch.of(item) for item in sides_[1].batches], 6)
    given = permuted(sides_[1], batches, subject.generator())
    inputs = torch.cat([batch.inputs for batch in batches])  # type: ignore[arg-type]
    targets = torch.cat([batch.targets for batch in given if batch])
    found = np.hstack(single_gradients(subject.model, inputs, targets))
    trained = np.hstack(single_gradients(subject.model, *split()[0]))
    np.testing.assert_allclose(
        rows(trace, "square_null_all", HELD_OUT), (found**2).sum(1), rtol=1e-10
    )
    for side, own, other in ((TRAINED, trained, found), (HELD_OUT, found, trained)):
        np.testing.assert_allclose(
            rows(trace, "other_null_all", side), own @ other.mean(0), atol=1e-12
        )
    assert np.isnan(rows(trace, "square_null_all", TRAINED)).all()


def test_a_linear_model_has_its_closed_form() -> None:
    torch.manual_seed(4)
    model = nn.Linear(3, 1, bias=False).double()
    x, y = torch.randn(9, 3).double(), torch.randn(9, 1).double()
    trace = Generalization()(
        Subject(model, [(x[:4], y[:4])], "mse_loss", held_out=[(x[4:], y[4:])])
    )
    gradient = (2 * (model(x) - y) * x).detach().numpy()
    np.testing.assert_allclose(trace["square"][:, 0].to_numpy(), (gradient**2).sum(1), rtol=1e-12)
    own = gradient[4:] @ gradient[4:].mean(0)
    np.testing.assert_allclose(rows(trace, "own", HELD_OUT)[:, 0], own, rtol=1e-10)
    assert "score" not in trace


def test_either_side_can_be_the_audit_data() -> None:
    (x, y), (u, v) = split()
    first = Generalization()(small())
    other = Generalization()(
        Subject(net(), ragged(u, v, 2, 7), "cross_entropy", trained_on=ragged(x, y, 4, 6, 1))
    )
    np.testing.assert_allclose(first["loss"], other["loss"])
    np.testing.assert_allclose(first["other_all"], other["other_all"], atol=1e-12)
    third = Generalization()(small(trained_on=[(u, v)], held_out=[(x, y)]))
    np.testing.assert_allclose(rows(third, "loss", TRAINED), rows(first, "loss", HELD_OUT))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"held_out": None},
            "there are no data to compare the audit data with: give data that the model was not "
            "trained on (--held-out) or, where the audit data are such, those that it was "
            "(--trained-on)",
        ),
        (
            {"loss": None},
            "no loss was given, so that nothing can be said of the targets: give one (--loss)",
        ),
        (
            {"held_out": torch.zeros(3, 4)},
            "the audit data, or those they are compared with, have no targets: the gap between "
            "them is one of how well targets are met",
        ),
    ],
)
def test_what_is_missing_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NotApplicable) as raised:
        Generalization()(small(**changes))
    assert str(raised.value) == message


def test_the_same_samples_on_both_sides_are_no_gap() -> None:
    x, y = split()[0]
    with pytest.raises(NotApplicable) as raised:
        Generalization()(small(trained_on=[(x, y)], held_out=[(x.clone(), y.clone())]))
    assert str(raised.value) == (
        "the data held out are the very samples that the model was trained on: there is no gap to "
        "measure between them"
    )
    other = y.clone()
    other[0] = (other[0] + 1) % 2
    for held_out in ([(x + 1e-6, y)], [(x, other)], [(x[1:], y[1:])]):
        found = Generalization()(small(trained_on=[(x, y)], held_out=held_out))
        assert set(found["side"].to_numpy()) == {TRAINED, HELD_OUT}


def test_settings_are_checked() -> None:
    with pytest.raises(AnalyzerError) as raised:
        Generalization(samples=1)(small())
    assert str(raised.value) == "generalization needs samples >= 2: it is 1"


def test_a_model_that_does_not_come_apart_keeps_its_losses() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            y = self.layer(x)
            (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            return y + slope.sum()

    (x, y), (u, v) = split()
    trace = Generalization()(Subject(Nested(), [(x, y)], "cross_entropy", held_out=[(u, v)]))
    assert trace.attrs["refusal"] == "the model or the loss differentiates by itself"
    assert "square" not in trace
    assert trace["loss"].notnull().all()
    found = [*generalization(trace, Limits().generalization)]
    assert [finding.code for finding in found] == ["generalization-gap", "gradient-alignment"]
    assert found[1].message == "the model or the loss differentiates by itself"


def test_layers_that_are_not_measured_are_named() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
            self.idle = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x) @ self.first.weight)
            return y

    (x, y), (u, v) = split()
    given: Any = {"loss": "cross_entropy", "held_out": [(u, v)]}
    trace = Generalization()(Subject(Mixed().double(), [(x, y)], **given))
    assert list(trace["layer"].to_numpy()) == ["second"]
    assert trace.attrs["without_gradient"] == "idle"
    assert trace.attrs["not_measured"] == (
        "first (reaches the loss through operations that are not taken apart by sample)"
    )


def test_yes_or_no_is_scored_for_every_answer() -> None:
    output = torch.tensor([[0.2, -3.0], [0.7, 2.0], [-1.0, -1.0]])
    targets = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    batch = Batch(torch.zeros(3, 1), targets)
    for loss, expected in (
        ("binary_cross_entropy_with_logits", [0.5, 1.0, 0.5]),
        (nn.BCEWithLogitsLoss(), [0.5, 1.0, 0.5]),
        (nn.BCELoss(), [0.0, 1.0, 0.5]),
        ("binary_cross_entropy", [0.0, 1.0, 0.5]),
    ):
        found = sample_scores(Subject(nn.Linear(1, 2), [], loss), output, batch)
        assert found is not None
        assert found.tolist() == expected
    assert sample_scores(Subject(nn.Linear(1, 2), [], "mse_loss"), output, batch) is None


def test_positions_that_the_loss_leaves_out_are_not_scored() -> None:
    output = torch.eye(3)[[0, 1, 2, 0]].reshape(2, 2, 3).movedim(2, 1)
    for ignored, loss in ((-100, "cross_entropy"), (7, nn.CrossEntropyLoss(ignore_index=7))):
        batch = Batch(torch.zeros(2, 2), torch.tensor([[0, 2], [2, ignored]]))
        found = sample_scores(Subject(nn.Linear(1, 2), [], loss, time_axis=1), output, batch)
        assert found is not None
        assert found.tolist() == [0.5, 1.0]


def test_neighbours_of_one_shape_go_together_and_others_stay_alone() -> None:
    subject = Subject(nn.Linear(1, 1), [])
    batches = [
        Batch({"x": torch.full((count, steps), float(at))}, torch.full((count,), at), lengths)
        for at, (count, steps, lengths) in enumerate([
            (2, 5, torch.tensor([5, 3])), (1, 5, torch.tensor([4])), (2, 5, torch.tensor([1, 2])),
            (1, 5, None), (1, 6, None), (2, 6, None),
        ])
    ]  # fmt: skip
    found = merged(subject, batches, 4)
    assert [subject.batch_size(batch) for batch in found] == [3, 2, 1, 3]
    assert found[0].inputs["x"][:, 0].tolist() == [0, 0, 1]  # type: ignore[index]
    assert found[0].targets.tolist() == [0, 0, 1]
    assert found[0].lengths is not None
    assert found[0].lengths.tolist() == [5, 3, 4]
    assert found[3].lengths is None
    constant = [
        Batch((torch.zeros(2, 3), torch.zeros(7))),
        Batch((torch.zeros(2, 3), torch.ones(7))),
    ]
    assert len(merged(subject, constant, 10)) == 2
    packed = pack_padded_sequence(torch.zeros(2, 3, 1), torch.tensor([3, 1]), batch_first=True)
    assert len(merged(subject, [Batch(packed), Batch(packed)], 10)) == 2


def test_targets_are_exchanged_between_batches_of_one_shape_only() -> None:
    subject = Subject(nn.Linear(1, 1), [])
    batches = [
        Batch(torch.zeros(2, 5, 1), torch.tensor([[1] * 5, [2] * 5]), torch.tensor([5, 2])),
        Batch(torch.zeros(1, 5, 1), torch.tensor([[3] * 5]), torch.tensor([4])),
        Batch(torch.zeros(1, 7, 1), torch.tensor([[4] * 7]), torch.tensor([7])),
    ]
    found = permuted(subject, batches, torch.Generator().manual_seed(0))
    assert found[2] is None
    assert found[0] is not None
    assert found[1] is not None
    given = torch.cat([found[0].targets, found[1].targets])[:, 0].tolist()
    assert sorted(given) == [1, 2, 3]
    assert all(new != old for new, old in zip(given, [1, 2, 3], strict=True))
    length = dict(zip([1, 2, 3], [5, 2, 4], strict=True))
    assert found[0].lengths is not None
    expected = [min(length[new], length[old]) for new, old in zip(given, [1, 2], strict=False)]
    assert found[0].lengths.tolist() == expected


def test_sketches_keep_inner_products() -> None:
    generator = torch.Generator().manual_seed(0)
    # With a mean, which would add up without signs.
    base = 1 + torch.randn(20_000, generator=generator)
    gradient = base + torch.randn(6, 20_000, generator=generator)
    weights = {"w": torch.zeros(15_000), "b": torch.zeros(5_000)}
    sketches = Sketches({"layer": weights}, 6, generator)
    sketches.add("w", Formed(gradient[:, :15_000]), 0)
    sketches.add("b", Formed(gradient[:4, 15_000:]), 0)
    sketches.add("b", Formed(gradient[4:, 15_000:]), 4)
    assert not sketches.exact("layer")
    kept = sketches.of("layer")
    assert kept.shape == (6, 4096)
    true = (gradient @ gradient.T).double()
    norms = true.diagonal().sqrt()
    error = ((kept @ kept.T - true) / (norms[:, None] * norms)).abs()
    assert float(error.max()) < 4 / 64
    assert float(error.max()) > 0


def test_the_dimensions_fit_into_the_memory() -> None:
    assert dimensions([10_000] * 4, 100) == 4096
    assert dimensions([10_000] * 64, 600) == 512
    assert dimensions([10] * 5000, 600) == 4096
    assert dimensions([10_000] * 64, 10**6) == 64


def test_a_zero_gradient_agrees_with_none() -> None:
    gradient = torch.tensor([[1.0, 0], [0, 0], [0, 2], [3, 0]], dtype=torch.float64)
    found = agreement(gradient, [slice(0, 3), slice(3, 4)])
    expected = torch.tensor([[0, 1], [0, 0], [0, 0], [1 / 3, torch.nan]], dtype=torch.float64)
    torch.testing.assert_close(found.cosine, expected, equal_nan=True)


def test_layers_are_put_together_where_they_are_many() -> None:
    model = nn.ModuleDict({
        "deep": nn.ModuleList(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)) for _ in range(5)),
        "lstm": nn.LSTM(1, 1, 2, bidirectional=True),
    })  # fmt: skip
    fine = parameters_by_layer(model)
    assert list(fine)[:2] == ["deep.0.0", "deep.0.1"]
    assert list(fine)[-4:] == ["lstm.l0", "lstm.l0.reverse", "lstm.l1", "lstm.l1.reverse"]
    assert [*fine["lstm.l1"]] == [
        f"lstm.{part}_l1" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    coarse = parameters_by_layer(model, 8)
    assert list(coarse) == [*(f"deep.{i}" for i in range(5)), "lstm.l0", "lstm.l1"]
    assert sum(map(len, coarse.values())) == sum(map(len, fine.values()))
    assert list(parameters_by_layer(model, len(fine))) == list(fine)
    assert list(parameters_by_layer(model, len(coarse))) == list(coarse)
    assert list(parameters_by_layer(model, len(coarse) - 1)) == ["deep", "lstm"]
    assert list(parameters_by_layer(model, 1)) == ["deep", "lstm"]


def fitted(random_labels: bool) -> Subject:
    """A network that memorises labels drawn at random, or learns which side of a plane it is."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1024, 20, generator=generator)
    y = (x[:, 0] + x[:, 1] > 0).long()
    if random_labels:
        y = torch.randint(2, (1024,), generator=generator)
    own = 128 if random_labels else 512
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60 if random_labels else 12):
        optimizer.zero_grad()
        functional.cross_entropy(model(x[:own]), y[:own]).backward()
        optimizer.step()
    return Subject(
        model,
        ragged(x[:own], y[:own], 100, own - 100),
        "cross_entropy",
        held_out=[(x[512:], y[512:])],
    )


def test_memorised_labels_are_told_from_learnt_ones() -> None:
    memorised = Generalization(samples=512)(fitted(random_labels=True))
    learnt = Generalization(samples=512)(fitted(random_labels=False))
    lost = [gap(trace).lost for trace in (memorised, learnt)]
    assert lost[0].low > 0.75
    assert lost[1].high < 0.25
    verdicts = [next(generalization(t, Limits().generalization)) for t in (memorised, learnt)]
    assert [finding.severity for finding in verdicts] == ["FAIL", "PASS"]
    # Learnt: both sides ask for the same, for their targets. Memorised: no more than by chance.
    none = np.zeros(1)
    aligned = [alignment(*sides(t, WHOLE), none)[0] for t in (memorised, learnt)]
    chance = [null_alignment(trace) for trace in (memorised, learnt)]
    assert aligned[1].low > max(chance[1].high, 0.5)
    assert aligned[0].low < chance[0].high
    across = [stiffness_across(*sides(trace, WHOLE))[0] for trace in (memorised, learnt)]
    assert across[1].low > across[0].high
