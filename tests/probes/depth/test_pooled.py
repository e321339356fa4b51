"""Averages over positions, wherever samples and channels are, and tables of samples."""

import pytest
import torch

from probes.depth.edits import _pooled
from probes.depth.passes import _columns


@pytest.mark.parametrize(
    ("dim", "channel", "order"),
    [
        (0, 1, "bcyx->bc"),
        (0, -1, "byxc->bc"),
        (1, 2, "ybcx->bc"),
        (1, -1, "ybxc->bc"),
        (1, 1, "ybxc->bc"),  # where both are one axis, the last one holds the channels
        (3, 3, "cyxb->bc"),
        (3, -1, "cyxb->bc"),
    ],
)
def test_positions_are_averaged_for_each_sample_and_channel(
    dim: int, channel: int, order: str
) -> None:
    values = torch.randn(2, 3, 4, 5)
    count = values.numel() / torch.einsum(order, values).numel()
    torch.testing.assert_close(_pooled(values, dim, channel), torch.einsum(order, values) / count)


def test_no_removal_is_no_column() -> None:
    assert _columns([], 4).shape == (4, 0)
    assert _columns([torch.arange(4), torch.zeros(4)], 4).tolist() == [[at, 0] for at in range(4)]
