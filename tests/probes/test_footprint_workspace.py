"""Memory within operations: against closed forms of columns, and of what is written in place."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import profiler

from analyzer.rules.memory_growth import Growth
from probes.base import Subject
from probes.footprint.allocator import Record, _by_module, peaks
from probes.footprint.passes import serving, training
from probes.footprint.workspace import Workspaces
from probes.memory_footprint import MemoryFootprint

DOUBLE = 8
SIDE = 20
IMAGE = 4 * SIDE * SIDE * DOUBLE
"""Of four channels in float64, which a convolution lays out in columns."""


def subject(model: nn.Module, *shape: int) -> Subject:
    torch.manual_seed(1)
    model = model.double()
    inputs = torch.randn(shape, dtype=torch.float64)
    return Subject(model, [(inputs, torch.arange(shape[0]) % 3)], "cross_entropy")


class Convolution(nn.Module):
    """Four channels to four, and the mean of each."""

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.first = kind(4, 4, 3, padding=1, bias=False)
        self.second = kind(4, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).mean((2, 3))


def test_columns_of_a_convolution_are_alive_beside_what_it_reads_and_returns() -> None:
    case = subject(Convolution(), 6, 4, SIDE, SIDE)
    found = serving(case, next(iter(case)))
    image = 6 * IMAGE
    # Nine copies of the input, one for each weight of the kernel.
    assert found.peaks["first"] == (1 + 9) * image
    assert found.peaks["second"] == (2 + 9) * image
    assert found.peak == 11 * image


def test_columns_in_backward_count_for_the_module_whose_gradient_they_make() -> None:
    case = subject(Convolution(), 6, 4, SIDE, SIDE)
    found = training(case, next(iter(case)))
    image = 6 * IMAGE
    assert found.running.spare == {"first": 9 * image, "second": 9 * image}
    # Beside the columns, the gradient of its output, and of its input if that needs one.
    assert found.running.passing["first"] == 10 * image
    assert found.running.passing["second"] == 11 * image
    assert found.forward["second"] == 11 * image


@pytest.mark.parametrize("samples", [1, 16, 200])
def test_a_budget_of_any_batch_holds_the_columns(samples: int) -> None:
    trace = MemoryFootprint()(subject(Convolution(), 6, 4, SIDE, SIDE))
    # What little is there beside: the means, and gradients of them.
    assert Growth(trace).serving(samples).activations == pytest.approx(11 * samples * IMAGE)
    parts = Growth(trace).training(samples)
    assert parts.passing + parts.activations == pytest.approx(12 * samples * IMAGE, rel=1e-3)


def test_a_kind_of_call_is_measured_once() -> None:
    work, function = Workspaces(), torch.ops.aten.convolution.default
    x, weight = torch.randn(2, 4, SIDE, SIDE).double(), torch.randn(4, 4, 3, 3).double()
    args = (x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    first, within = work.run(function, args, {})
    with profiler.profile(use_kineto=True):
        again, known = work.run(function, args, {})
        other, unknown = work.run(function, (x[:1], *args[1:]), {})
    assert torch.equal(first, again)
    assert torch.equal(first[:1], other)
    # Another size is not measured beside a profiler of the caller.
    assert (within, known, unknown) == (9 * 2 * IMAGE, 9 * 2 * IMAGE, 0)
    assert work.run(function, (x[:1], *args[1:]), {})[1] == 9 * IMAGE
    assert work.run(torch.ops.aten.exp.default, (x,), {})[1] == 0


def test_layouts_of_onednn_are_the_copies_that_the_allocator_sees() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("needs oneDNN")
    x, layer = torch.randn(8, 64, 32, 32), nn.Conv2d(64, 64, 3, padding=1, bias=False)
    args = (x, layer.weight.detach(), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    _, within = Workspaces().run(torch.ops.aten.convolution.default, args, {})
    # The input, or the output, and the weight: none of them where oneDNN takes plain layouts.
    size = 4 * x.numel()
    assert within in (0, pytest.approx(size + 4 * layer.weight.numel(), rel=0.05))


class Turned(nn.Module):
    """A linear layer over a sequence that is not contiguous: its bias is added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 50)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.transpose(0, 1)).mean(0)


def test_a_bias_that_is_added_in_place_takes_no_second_output() -> None:
    case = subject(Turned(), 6, 30, 4)
    found = serving(case, next(iter(case)))
    inputs, output = 6 * 30 * 4 * DOUBLE, 6 * 30 * 50 * DOUBLE
    assert found.peaks["linear"] in (output, output + inputs)
    with profiler.profile(use_kineto=True):
        watched = serving(case, next(iter(case)))
    assert watched.peaks["linear"] >= 2 * output


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 1) + torch.cat([x, x, x])[: len(x)]


def test_allocations_count_for_the_innermost_module() -> None:
    model, x = Nested(), torch.randn(4, 250)
    size = 4 * 250 * 4
    with torch.no_grad():
        found = peaks(model, x)
    # In the model its argument is given up, and the output of the inner one is alive: with three
    # copies, and then the sum.
    assert found == {"inner": 2 * size, "(model)": 5 * size}
    assert not model._forward_hooks
    assert not model.inner._forward_pre_hooks


def test_frees_before_the_first_module_do_not_count_for_it() -> None:
    record = Record(
        [
            ("[memory]", 70), ("module enters: a", 0), ("[memory]", 30), ("[memory]", -100),
            ("module enters: b", 0), ("[memory]", 5), ("module leaves", 0), ("[memory]", 20),
            ("module leaves", 0), ("[memory]", 500),
        ]
    )  # fmt: skip
    assert _by_module(record) == {"a": 100, "b": 5}
    assert record.changes() == [70, 30, -100, 5, 20, 500]


QUIET = """
import torch
from probes.footprint.allocator import recorded
with recorded() as record:
    torch.ones(1000)
print(record.changes())
"""


def test_torchs_profiler_writes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, check=True, text=True)
    assert done.stdout == "[4000, -4000]\n"
    assert done.stderr == ""
