"""Symbolic results that are made up: only where nothing depends on values."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from probes.base import Subject
from probes.field import mode as modes
from probes.field.shortcut import shortcut
from probes.receptive_field import ReceptiveField


def norms() -> nn.Sequential:
    """Batch norms of all kinds around a convolution, one with the statistics of the batch."""
    return nn.Sequential(
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3, affine=False),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.Conv2d(3, 1, 3),
    ).eval()


class Compared(TorchDispatchMode):
    """Sets what the shortcut makes up beside what torch returns."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        real, made = func(*args, **(kwargs or {})), shortcut(func, args, kwargs or {})
        if made is not None:
            self.taken += 1
            first = (made[0].shape, made[0].stride(), made[0].dtype, made[0].device)
            assert [part.shape for part in made[1:]] == [part.shape for part in real[1:]]
            assert first == (real[0].shape, real[0].stride(), real[0].dtype, real[0].device)
        return real


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_made_up_is_what_torch_returns(layout: torch.memory_format) -> None:
    model, compared = norms(), Compared()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad(), compared:
        model(fake.from_tensor(torch.zeros(1, 2, 9, 9).contiguous(memory_format=layout)))
    assert compared.taken == 2


def test_tensors_with_values_keep_them() -> None:
    compared = Compared()
    with torch.no_grad(), compared:
        norms()(torch.zeros(1, 2, 9, 9))
    assert compared.taken == 0


def test_it_changes_no_field(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(norms(), [torch.zeros(1, 2, 9, 9)])
    quick = ReceptiveField()(subject)
    monkeypatch.setattr(modes, "shortcut", lambda *_: None)
    assert ReceptiveField()(subject).identical(quick)


class Choosing(nn.Module):
    """Control flow on normalized values: the pass falls back to real tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm1d(1), nn.Conv1d(1, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.conv(y) if y.sum() > 1 else y


def test_values_behind_a_norm_are_real_where_they_are_needed() -> None:
    model = Choosing().eval()
    nn.init.constant_(model.norm.bias, 2.0)
    trace = ReceptiveField()(Subject(model, [torch.zeros(1, 1, 9)]))
    assert trace["layer"].to_numpy().tolist() == ["norm", "conv"]
