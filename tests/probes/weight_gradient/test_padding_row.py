"""The row of an embedding that is not trained, counted from either end."""

import pytest
import torch

from probes.weight_gradient.linear import embedding


@pytest.mark.parametrize(
    ("given", "row"), [(None, None), (0, 0), (3, 3), (-1, 6), (-2, 5), (-7, 0)]
)
def test_a_row_counted_from_the_end_is_found(given: int | None, row: int | None) -> None:
    use = embedding(torch.tensor([[0, 1]]), torch.randn(7, 2), padding_idx=given)
    assert use.operation.padding == row
