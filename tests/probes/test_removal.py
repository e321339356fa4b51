"""What a removal changes, by hand: losses, distances, decisions, and signs at random."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from probes.base import Batch, Subject
from probes.loss.removal import Intact

BEFORE, AFTER = torch.randn(2, 5, 3, dtype=torch.float64)


def intact(loss: str | None, outputs: Tensor, targets: Tensor | None = None, **facts) -> Intact:
    batch = Batch(torch.zeros(len(outputs), 3, 2), targets)
    return Intact.of(Subject(nn.Identity(), [batch], loss, **facts), outputs, batch)


def test_without_a_loss_it_is_half_the_mean_square_distance() -> None:
    found = intact(None, BEFORE).change(AFTER)
    torch.testing.assert_close(found, 0.5 * (AFTER - BEFORE).square().mean(1))


def test_with_a_loss_it_is_what_the_loss_rises_by() -> None:
    targets = torch.randint(3, (5,))
    found = intact("cross_entropy", BEFORE, targets).change(AFTER)
    losses = [
        functional.cross_entropy(outputs, targets, reduction="none") for outputs in (AFTER, BEFORE)
    ]
    torch.testing.assert_close(found, losses[0] - losses[1])


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 4)])
def test_decisions_are_counted_over_timesteps(shape: tuple[int, ...]) -> None:
    before, after = torch.randn(2, *shape)
    changed = (before.argmax(-1) != after.argmax(-1)).double().reshape(5, -1).mean(1)
    assert 0 < changed.mean() < 1
    found = intact("cross_entropy", before).decisions(after)
    torch.testing.assert_close(found.double(), changed)


@pytest.mark.parametrize("shape", [(4, 5, 3), (5, 3), (5,)])
def test_samples_on_the_second_axis_of_the_inputs(shape: tuple[int, ...]) -> None:
    """What the model returns has them there too, or has lost the axis of time."""
    before, after = torch.randn(2, *shape, dtype=torch.float64)
    batch = Batch(torch.zeros(4, 5, 2))
    removed = Intact.of(Subject(nn.Identity(), [batch], batch_axis=1), before, batch)
    by_sample = (after - before).transpose(0, 1) if len(shape) == 3 else after - before
    expected = 0.5 * by_sample.reshape(5, -1).square().mean(1)
    torch.testing.assert_close(removed.change(after), expected)
    signs = torch.randint(2, shape, generator=torch.Generator().manual_seed(7)) * 2 - 1
    signed = (after * signs).transpose(0, 1) if len(shape) == 3 else after * signs
    signed = signed.reshape(5, -1)
    found = removed.sensitive(after, torch.Generator().manual_seed(7))
    torch.testing.assert_close(found, signed.sum(1) / signed.shape[1] ** 0.5)


@pytest.mark.parametrize("shape", [(4, 5, 3), (5, 3)])
def test_decisions_of_samples_on_the_second_axis(shape: tuple[int, ...]) -> None:
    before, after = torch.randn(2, *shape)
    batch = Batch(torch.zeros(4, 5, 2))
    own = Subject(nn.Identity(), [batch], "cross_entropy", batch_axis=1)
    changed = (before.argmax(-1) != after.argmax(-1)).double()
    expected = changed.mean(0) if len(shape) == 3 else changed
    assert 0 < expected.mean() < 1
    found = Intact.of(own, before, batch).decisions(after)
    torch.testing.assert_close(found.double(), expected)


def test_without_classes_no_decision_is_known() -> None:
    assert intact(None, BEFORE).decisions(AFTER).isnan().all()


def test_random_signs_are_those_of_the_generator() -> None:
    found = intact(None, BEFORE).sensitive(AFTER, torch.Generator().manual_seed(7))
    signs = torch.randint(2, AFTER.shape, generator=torch.Generator().manual_seed(7)) * 2 - 1
    assert {*signs.unique().tolist()} == {-1, 1}
    torch.testing.assert_close(found, (AFTER * signs).sum(1) / 3**0.5)


def test_with_a_loss_the_loss_is_differentiated() -> None:
    targets = torch.randint(3, (5,))
    found = intact("cross_entropy", BEFORE, targets)
    torch.testing.assert_close(
        found.sensitive(AFTER, torch.Generator()), found.change(AFTER) + found.loss
    )
