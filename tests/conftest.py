"""What every test shares: one thread, seeded."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
