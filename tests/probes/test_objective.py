from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from probes.base import Batch, Subject
from probes.errors import AnalyzerError
from probes.loss.objective import (
    describe,
    final_losses,
    final_outputs,
    prediction,
    sample_losses,
    with_own_targets,
)

INPUTS = torch.zeros(3, 4, 2, dtype=torch.float64)
"""(sample, timestep, feature): 3 samples of 4 timesteps."""


def subject(loss: Any = None, **rest: Any) -> Subject:
    return Subject(nn.Identity(), [INPUTS], loss, **rest)


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def message(loss: Any, outputs: Any, targets: Any, **rest: Any) -> str:
    with pytest.raises(AnalyzerError) as caught:
        sample_losses(subject(loss, **rest), outputs, Batch(INPUTS, targets))
    return str(caught.value)


def test_without_a_loss_it_is_half_the_mean_square_of_the_output() -> None:
    y = double(3, 5)
    assert torch.equal(sample_losses(subject(), y, Batch(INPUTS)), 0.5 * y.square().mean(1))
    y = double(3, 4, 5)
    by_step = 0.5 * y.square().mean(2)
    assert torch.allclose(sample_losses(subject(), y, Batch(INPUTS)), by_step.mean(1))
    assert torch.equal(final_losses(subject(), y, Batch(INPUTS)), by_step[:, -1])
    assert torch.equal(final_outputs(subject(), y, Batch(INPUTS)), y[:, -1])
    y = double(3)
    assert torch.equal(final_losses(subject(), y, Batch(INPUTS)), 0.5 * y.square())
    assert torch.equal(final_outputs(subject(), y, Batch(INPUTS)), y)


def test_cross_entropy_is_that_of_each_sample() -> None:
    y, targets = double(3, 5), torch.tensor([0, 4, 2])
    expected = functional.cross_entropy(y, targets, reduction="none")
    for loss in ("cross_entropy", nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")):
        assert torch.equal(sample_losses(subject(loss), y, Batch(INPUTS, targets)), expected)
    for other in (targets.int(), targets.to(torch.uint8), targets[:, None]):
        assert torch.equal(
            sample_losses(subject("cross_entropy"), y, Batch(INPUTS, other)), expected
        )


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss()])
@pytest.mark.parametrize("classes_last", [True, False])
def test_positions_are_averaged_and_ignored_ones_left_out(loss: Any, classes_last: bool) -> None:
    y = double(3, 4, 5)
    targets = torch.randint(5, (3, 4))
    targets[0, 3] = targets[2, 1] = -100
    by_step = -y.log_softmax(2).gather(2, targets.clamp_min(0)[..., None])[..., 0]
    valid = targets >= 0
    given = y if classes_last else y.transpose(1, 2)
    batch = Batch(INPUTS, targets)
    expected = (by_step * valid).sum(1) / valid.sum(1)
    assert torch.allclose(sample_losses(subject(loss), given, batch), expected)
    expected = torch.stack([by_step[0, 2], by_step[1, 3], by_step[2, 3]])
    assert torch.allclose(final_losses(subject(loss), given, batch), expected)


def test_a_sample_of_ignored_targets_only_has_no_loss() -> None:
    targets = torch.tensor([-100, 1, 2])
    losses = sample_losses(subject("cross_entropy"), double(3, 5), Batch(INPUTS, targets))
    assert losses[0] == 0
    assert (losses[1:] > 0).all()


def test_class_probabilities_are_targets_too() -> None:
    y, targets = double(3, 5), double(3, 5).softmax(1)
    expected = -(targets * y.log_softmax(1)).sum(1)
    losses = sample_losses(subject("cross_entropy"), y, Batch(INPUTS, targets))
    assert torch.allclose(losses, expected)


def test_without_targets_a_classifier_is_held_against_its_own_choice() -> None:
    y = double(3, 5)
    expected = -y.log_softmax(1).amax(1)
    assert torch.allclose(sample_losses(subject("cross_entropy"), y, Batch(INPUTS)), expected)
    y = double(3, 4, 5)
    expected = -y.log_softmax(2).amax(2).mean(1)
    own = subject("cross_entropy")
    assert torch.allclose(sample_losses(own, y, Batch(INPUTS)), expected)
    own = subject("cross_entropy", time_axis=1)
    assert torch.allclose(sample_losses(own, y.transpose(1, 2), Batch(INPUTS)), expected)


def test_the_own_choice_can_be_fixed() -> None:
    y = double(3, 4, 5)
    batch = with_own_targets(subject("cross_entropy"), y, Batch(INPUTS))
    assert torch.equal(batch.targets, y.argmax(2))
    own = subject("cross_entropy", batch_axis=1)
    batch = with_own_targets(own, y.transpose(0, 1), Batch(INPUTS.transpose(0, 1)))
    assert torch.equal(batch.targets, y.argmax(2).t())
    given = Batch(INPUTS, torch.arange(3))
    assert with_own_targets(subject("cross_entropy"), y, given) is given
    assert with_own_targets(subject("mse_loss"), y, given) is given
    assert with_own_targets(subject(), y, given) is given


def test_lengths_leave_padding_out() -> None:
    y = double(3, 4, 5)
    lengths = torch.tensor([4, 1, 3])
    batch = Batch(INPUTS, None, lengths)
    by_step = 0.5 * y.square().mean(2)
    expected = torch.stack([by_step[b, :n].mean() for b, n in enumerate(lengths)])
    assert torch.allclose(sample_losses(subject(), y, batch), expected)
    expected = torch.stack([by_step[b, n - 1] for b, n in enumerate(lengths)])
    assert torch.equal(final_losses(subject(), y, batch), expected)
    expected = torch.stack([y[b, n - 1] for b, n in enumerate(lengths)])
    assert torch.equal(final_outputs(subject(), y, batch), expected)
    batch = Batch(INPUTS, None, torch.tensor([4, 2, 3]))
    half = final_losses(subject(time_axis=1), y[:, :2], batch)
    assert torch.equal(half, torch.stack([by_step[0, 1], by_step[1, 0], by_step[2, 1]]))
    one = double(3, 1, 5)
    assert torch.equal(final_outputs(subject(), one, batch), one[:, 0])


def test_packed_outputs_and_inputs_bring_their_lengths() -> None:
    lengths = torch.tensor([2, 4, 3])
    packed = pack_padded_sequence(double(3, 4, 5), lengths, True, False)
    y = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0]
    by_step = 0.5 * y.square().mean(2)
    expected = torch.stack([by_step[b, :n].mean() for b, n in enumerate(lengths)])
    for outputs in (packed, (packed, double(1, 3, 5))):
        assert torch.allclose(sample_losses(subject(), outputs, Batch(INPUTS)), expected)
    last = torch.stack([y[b, n - 1] for b, n in enumerate(lengths)])
    assert torch.equal(final_outputs(subject(), packed, Batch(INPUTS)), last)
    assert torch.equal(final_outputs(subject(), y, Batch(packed)), last)
    assert torch.equal(prediction(subject(), {"y": packed}), y)


def test_time_is_where_its_size_is() -> None:
    y = double(3, 5, 4)
    timed = subject(time_axis=1)
    expected = 0.5 * y.square().mean(1)
    assert torch.equal(final_losses(timed, y, Batch(INPUTS)), expected[:, -1])
    assert torch.equal(final_outputs(timed, y, Batch(INPUTS)), y[:, :, -1])
    y = double(3, 4)
    assert torch.equal(final_losses(timed, y, Batch(INPUTS)), 0.5 * y[:, -1].square())
    assert torch.equal(final_outputs(timed, y, Batch(INPUTS)), y[:, -1])
    assert torch.equal(final_outputs(subject(), y, Batch(INPUTS)), y)


def test_the_batch_axis_may_be_the_second() -> None:
    y, targets = double(4, 3, 5), torch.randint(5, (4, 3))
    own = subject("cross_entropy", batch_axis=1)
    batch = Batch(INPUTS.transpose(0, 1), targets)
    by_step = -y.log_softmax(2).gather(2, targets[..., None])[..., 0]
    assert torch.allclose(sample_losses(own, y, batch), by_step.mean(0))
    assert torch.allclose(final_losses(own, y, batch), by_step[-1])
    assert torch.allclose(
        final_losses(subject(), double(2, 3, 1), Batch(INPUTS)) > 0, torch.ones(3) > 0
    )


def test_regression_targets_take_the_shape_and_type_of_the_output() -> None:
    y, targets = double(3, 1), torch.tensor([1, 0, 1])
    expected = (y[:, 0] - targets).square()
    for loss in ("mse_loss", nn.MSELoss()):
        assert torch.allclose(sample_losses(subject(loss), y, Batch(INPUTS, targets)), expected)
    y, targets = double(3, 5), double(3, 5)
    expected = (y - targets).square().mean(1)
    assert torch.allclose(sample_losses(subject("mse_loss"), y, Batch(INPUTS, targets)), expected)


def test_a_function_may_return_one_loss_per_sample() -> None:
    y, targets = double(3, 5), double(3, 5)
    losses = sample_losses(subject(lambda o, t: (o - t).abs().sum(1)), y, Batch(INPUTS, targets))
    assert torch.equal(losses, (y - targets).abs().sum(1))


def test_a_function_that_returns_one_number_is_called_for_each_sample() -> None:
    outputs = {"y": double(3, 5), "state": double(2, 3, 5), "note": 1.5, "scale": torch.tensor(2.0)}
    targets = double(3, 5)

    def loss(o: Any, t: Tensor) -> Tensor:
        mean: Tensor = ((o["y"] - t).square() * o["scale"]).mean() + o["state"].mean() * o["note"]
        return mean

    losses = sample_losses(subject(loss), outputs, Batch(INPUTS, targets))
    expected = 2 * (outputs["y"] - targets).square().mean(1) + 1.5 * outputs["state"].mean((0, 2))
    assert torch.allclose(losses, expected)
    alone = {key: v[:1] if key == "y" else v for key, v in outputs.items()}
    alone["state"] = outputs["state"][:, :1]
    one = sample_losses(subject(loss), alone, Batch(INPUTS[:1], targets[:1]))
    assert torch.allclose(one, expected[:1])


def test_a_function_judges_the_last_position_alone() -> None:
    y, targets = double(3, 4, 5), torch.randint(5, (3, 4))
    lengths = torch.tensor([4, 1, 3])

    def loss(o: Tensor, t: Tensor) -> Tensor:
        return functional.cross_entropy(o.flatten(0, 1), t.flatten())

    by_step = -y.log_softmax(2).gather(2, targets[..., None])[..., 0]
    own = subject(loss, time_axis=1)
    assert torch.allclose(final_losses(own, y, Batch(INPUTS, targets)), by_step[:, -1])
    expected = torch.stack([by_step[b, n - 1] for b, n in enumerate(lengths)])
    assert torch.allclose(final_losses(own, y, Batch(INPUTS, targets, lengths)), expected)
    assert torch.allclose(sample_losses(own, y, Batch(INPUTS, targets)), by_step.mean(1))
    own = subject(lambda o, t: functional.cross_entropy(o.mean(1), t), time_axis=1)
    losses = final_losses(own, y, Batch(INPUTS, targets[:, 0]))
    whole = -y.mean(1).log_softmax(1).gather(1, targets[:, :1])[:, 0]
    assert torch.allclose(losses, whole)


def test_the_part_that_is_judged_can_be_named() -> None:
    y = double(3, 2)
    other = double(3, 2)
    assert prediction(subject(output=1), (other, y)) is y
    assert prediction(subject(output="y"), {"x": other, "y": y}) is y
    assert prediction(subject(), {"x": other, "logits": y}) is y
    assert prediction(subject(), (torch.arange(3), [y, other])) is y
    assert prediction(subject(output="z"), {"z": {"a": torch.arange(3), "b": y}}) is y


def test_outputs_that_cannot_be_judged_are_named() -> None:
    y = torch.zeros(3, 2)
    for part, outputs, shape in (
        (2, (y, y), "((3, 2) float32, (3, 2) float32)"),
        ("z", {"y": y}, "{y: (3, 2) float32}"),
        ("z", None, "NoneType"),
    ):
        with pytest.raises(AnalyzerError) as caught:
            prediction(subject(output=part), outputs)
        assert str(caught.value) == f"the model's output has no part {part!r}: it is {shape}"
    with pytest.raises(AnalyzerError) as caught:
        prediction(subject(), [torch.arange(3)])
    assert str(caught.value) == "the model returned no floating-point tensor: ((3,) int64)"


def test_losses_that_do_not_fit_say_why() -> None:
    y = torch.zeros(3, 5)
    assert message("nonsense", y, None) == (
        "no loss called 'nonsense' in torch.nn.functional: use cross_entropy, mse_loss, l1_loss, "
        "binary_cross_entropy_with_logits, ..., or pass a callable"
    )
    assert message("mse_loss", y, None) == (
        "the loss mse_loss needs targets, and the batches have none"
    )
    assert message("mse_loss", y, torch.zeros(3)) == (
        "the loss mse_loss needs outputs and targets of one shape: they are (3, 5) float32 and "
        "(3,) float32"
    )
    assert message("cross_entropy", y, torch.tensor([0, 5, 0])) == (
        "the loss cross_entropy does not fit outputs (3, 5) float32 and targets (3,) int64: "
        "Target 5 is out of bounds."
    )
    assert message("cross_entropy", torch.zeros(2, 5), torch.zeros(3).long()) == (
        "no batch axis of 3 samples in shape (2, 5): the model or the targets do not keep the "
        "samples apart"
    )
    assert message("cross_entropy", y, "labels") == (
        "the loss cross_entropy does not fit outputs (3, 5) float32 and targets str: "
        "cross_entropy_loss(): argument 'target' (position 2) must be Tensor, not str"
    )


def test_functions_that_do_not_fit_say_why() -> None:
    y = torch.zeros(3, 5)
    assert message(lambda _o, _t: 0.5, y, None) == "the loss returned a float, not a tensor"
    assert message(lambda _o, _t: torch.zeros(2, 2), y, None) == (
        "the loss returned shape (2, 2): expected one number, or one per sample (3)"
    )
    packed = pack_padded_sequence(torch.zeros(3, 4, 5), torch.tensor([4, 3, 1]), True)
    assert message(lambda o, _t: o.data.mean(), packed, None) == (
        "the loss returned one number for packed outputs, which cannot be taken apart by sample: "
        "return one loss per sample"
    )


def test_the_objective_is_described() -> None:
    def focal(outputs: Any, targets: Any) -> Tensor:
        raise NotImplementedError

    assert (
        describe(subject()) == "half the mean square of the model's own output (no loss was given)"
    )
    assert describe(subject("cross_entropy")) == (
        "cross_entropy to the model's own most probable class (no targets were given)"
    )
    given = [Batch(INPUTS, torch.arange(3))]
    assert describe(Subject(nn.Identity(), given, "mse_loss")) == "mse_loss, per sample"
    assert describe(Subject(nn.Identity(), given, nn.MSELoss())) == "MSELoss, per sample"
    assert describe(Subject(nn.Identity(), given, focal)) == "focal, per sample"


def test_losses_of_every_position_and_feature_are_averaged_over_features() -> None:
    y = double(3, 4, 5)
    own = subject(lambda output, _: output.square())
    torch.testing.assert_close(sample_losses(own, y, Batch(INPUTS)), y.square().flatten(1).mean(1))
    torch.testing.assert_close(final_losses(own, y, Batch(INPUTS)), y.square().mean(2)[:, -1])


@pytest.mark.parametrize("count", [1, 2])
def test_a_mean_over_samples_is_taken_apart_however_few_they_are(count: int) -> None:
    y, targets = double(count, 5), double(count, 5)
    own = subject(lambda output, target: (output - target).square().mean())
    found = sample_losses(own, y, Batch(INPUTS[:count], targets))
    torch.testing.assert_close(found, (y - targets).square().mean(1))
