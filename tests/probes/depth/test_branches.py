"""What a block adds to its shortcut, however the two are joined, and what replaces the output."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from probes.depth.blocks import Site
from probes.depth.provenance import Held
from probes.depth.survey import watching

JOINS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = {
    "plus": (lambda x, h: x + h, 1, 1),
    "swapped": (lambda x, h: h + x, 1, 1),
    "minus": (lambda x, h: x - h, 1, -1),
    "from": (lambda x, h: h - x, -1, 1),
    "less": (lambda x, h: torch.sub(x, h, alpha=3), 1, -3),
    "scaled": (lambda x, h: torch.add(x, h, alpha=0.5), 1, 0.5),
    "scaled shortcut": (lambda x, h: torch.add(h, x, alpha=0.5), 0.5, 1),
    "in place": (lambda x, h: h.add_(x), 1, 1),
    "in place less": (lambda x, h: h.sub_(x, alpha=2), -2, 1),
}
"""Name -> join of shortcut and branch, and the factors it takes of both."""


class Joined(nn.Module):
    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inside = nn.Linear(3, 3)
        self.join = join
        self.made: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        h = self.inside(x)
        self.made = [h]
        return self.join(x, h)


@pytest.mark.parametrize("how", JOINS)
def test_shortcut_and_branch_are_told_with_their_factors(how: str) -> None:
    join, ours, theirs = JOINS[how]
    model, x = Joined(join), torch.randn(4, 3)
    seen: list[Site] = []

    def keep(site: Site) -> None:
        if site.branch is not None:
            seen.append(site)

    with torch.no_grad(), watching(Held.by(model), x, keep):
        output = model(x)
    (site,) = seen
    assert site.shortcut is not None
    assert site.branch is not None
    torch.testing.assert_close(site.shortcut, ours * x)
    torch.testing.assert_close(site.branch, theirs * model.inside(x))
    torch.testing.assert_close(site.shortcut + site.branch, output)


@pytest.mark.parametrize("how", JOINS)
def test_another_output_takes_the_place_of_the_one_that_the_model_holds(how: str) -> None:
    model, x = Joined(JOINS[how][0]), torch.randn(4, 3)

    def edit(site: Site) -> Tensor | None:
        return None if site.branch is None else torch.full_like(site.output, 7.0)

    with torch.no_grad(), watching(Held.by(model), x, edit):
        output = model(x)
    assert (output == 7).all()
    assert (model.made[0] is output) is how.startswith("in place")


def test_what_is_assigned_to_a_part_stays_as_it_is() -> None:
    """Only the tensor that is written to depends on more than before."""

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            buffer = self.second(x)
            buffer[:, :3] = h
            return x + h

    model, x = Written(), torch.randn(4, 3)
    found: list[Site] = []

    def keep(site: Site) -> None:
        if site.branch is not None:
            found.append(site)

    with torch.no_grad(), watching(Held.by(model), x, keep):
        model(x)
    assert [site.key[1] for site in found] == [frozenset([id(model.first.weight)])]
