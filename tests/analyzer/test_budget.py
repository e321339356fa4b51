"""Audits that must fit into a time or into a memory."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import xarray as xr
from torch import Tensor, nn

from analyzer import budget, pipeline
from analyzer import record as records
from analyzer.findings import Severity
from analyzer.pipeline import measure
from analyzer.rules import judge
from probes.base import Batch, Progress, Subject, silent
from probes.errors import AnalyzerError
from probes.samples.excerpt import Excerpt


@dataclass(frozen=True)
class Reader:
    """Reads all batches; it costs ten passes of at most 40 samples."""

    name: ClassVar[str] = "gates"
    passes: ClassVar[float] = 10
    samples: int = 40
    room: int = 1000

    def __call__(self, subject: Subject, progress: Progress = silent) -> xr.Dataset:
        sizes = []
        for done, batch in enumerate(subject):
            progress(done, 100)
            sizes.append(subject.batch_size(batch))
            if sizes[-1] > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return xr.Dataset({"size": ("batch", sizes)})


def subject(*sizes: int) -> Subject:
    batches = [Batch(torch.randn(size, 3), torch.arange(size) % 2) for size in sizes]
    return Subject(nn.Linear(3, 2), batches, "cross_entropy")


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "probe_class", lambda name: Reader)


def test_samples_are_left_out_evenly_so_that_the_passes_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "pass_seconds", lambda subject: 0.01)
    whole = subject(60, 40)
    sizes = {}
    for seconds in (8.5, 2.0):
        left = budget.Budget(seconds)
        left.time(whole)
        fitted = left.fitted(whole, 100, [Reader(), Reader()])
        sizes[seconds] = [fitted.batch_size(batch) for batch in fitted]
    # Twice 10 passes of 40 samples of 10 ms are 8 s, and as many of fewer samples as much less.
    assert sizes[8.5] == [60, 40]
    assert 2 * 10 * 0.01 * (sum(sizes[2.0]) - 2) < 2.0
    assert sizes[2.0] == [6, 4]


@pytest.mark.usefixtures("reader")
def test_a_time_that_one_sample_does_not_fit_into_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "pass_seconds", lambda subject: 30.0)
    record = measure(subject(60), ["gates"], seconds=200)
    assert record["gates"].attrs["outcome"] == records.STOPPED
    assert record["gates"].attrs["reason"] == (
        "the 200 s that are left of the time budget do not suffice for one sample"
    )


@pytest.mark.usefixtures("reader")
def test_a_trace_says_how_many_samples_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "pass_seconds", lambda subject: 1.0)
    record = measure(subject(60, 40), ["gates"], seconds=105)
    assert record["gates"]["size"].values.tolist() == [6, 4]
    assert record["gates"].attrs["time_budget"] == "10 of 100 samples fit into it"
    assert record.attrs["time_budget"] == "105 s"


def test_a_pass_is_timed_and_leaves_the_model_as_it_was() -> None:
    given = subject(8)
    before = given.model.weight.clone()
    assert 0 < budget.pass_seconds(given) < 10
    assert given.model.weight.grad is None
    assert torch.equal(given.model.weight, before)


@pytest.mark.usefixtures("reader")
def test_a_probe_is_stopped_at_the_deadline_and_the_rest_is_not_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(budget, "pass_seconds", lambda subject: 1e-9)
    monkeypatch.setattr(budget.time, "monotonic", lambda: next(clock))
    record = measure(subject(*[2] * 9), ["gates"], seconds=9)
    assert record["gates"].attrs["outcome"] == records.STOPPED
    finding = next(finding for finding in judge(record) if finding.probe == "gates")
    assert (finding.code, finding.severity) == ("probe-stopped", Severity.INCONCLUSIVE)
    assert finding.message == "the time budget of 9 s is used up"


@pytest.mark.usefixtures("reader")
def test_batches_are_halved_until_they_fit_into_the_memory() -> None:
    record = measure(subject(9, 4), ["gates"], {"gates": {"room": 3}})
    assert record["gates"]["size"].values.tolist() == [3, 2, 3, 1, 3, 1]
    assert record["gates"].attrs["batch_halvings"] == 2


@pytest.mark.usefixtures("reader")
def test_a_sample_that_does_not_fit_into_the_memory_is_an_error() -> None:
    record = measure(subject(5), ["gates"], {"gates": {"room": 0}})
    assert record["gates"].attrs["reason"] == (
        "out of memory with one sample at a time: OutOfMemoryError: CUDA out of memory. Tried to "
        "allocate 2.00 GiB; lower the probe's settings (--set), or run it on the CPU (--device cpu)"
    )


def test_an_excerpt_cuts_inputs_targets_and_lengths_alike() -> None:
    inputs = torch.arange(30.0).reshape(3, 10)  # time first
    batch = Batch(inputs, torch.arange(10), torch.arange(10) + 1)
    given = Subject(nn.Identity(), batch, batch_axis=1)
    parts = [*Excerpt(given, share=0.5, size=2)]
    assert [part.inputs.shape for part in parts] == [(3, 2), (3, 2), (3, 1)]
    joined: Tensor = torch.cat([part.inputs for part in parts], 1)
    assert torch.equal(joined, inputs[:, :5])
    assert torch.cat([part.targets for part in parts]).tolist() == [0, 1, 2, 3, 4]
    assert torch.cat([part.lengths for part in parts]).tolist() == [1, 2, 3, 4, 5]
    again = replace(given, batches=Excerpt(given, size=4))
    assert [again.batch_size(part) for part in Excerpt(again, size=3)] == [3, 1, 3, 1, 2]


def chain(batch: int) -> Subject:
    """A network whose pass keeps about 4 MB a sample."""
    model = nn.Sequential(nn.Linear(3, 1000), *(nn.ReLU() for _ in range(1000)), nn.Linear(1000, 2))
    return Subject(model, [(torch.randn(batch, 3), torch.arange(batch) % 2)], "cross_entropy")


def test_batches_are_divided_so_that_a_probe_fits_into_the_memory() -> None:
    # 1000 outputs of 4 kB are kept for backward, and threefold is allowed for.
    fitted = budget.Budget(memory=8 * 3 * 4e6 / 2**30).divided(chain(64))
    sizes = [fitted.batch_size(batch) for batch in fitted]
    assert sum(sizes) == 64
    assert sizes[0] in (7, 8)
    whole = chain(6)
    assert budget.Budget(memory=8 * 3 * 4e6 / 2**30).divided(whole) is whole
    assert budget.Budget().divided(whole) is whole


def test_a_sample_that_does_not_fit_into_the_memory_is_refused_before_anything_is_measured() -> (
    None
):
    with pytest.raises(AnalyzerError) as raised:
        measure(chain(2), ["gradient_flow"], memory=0.01)
    assert str(raised.value) == (
        "measuring one sample takes about 0.011 GiB, more than the memory budget of 0.01 GiB: "
        "raise --memory-budget or shorten the inputs"
    )


def test_a_record_says_its_memory_budget() -> None:
    record = measure(chain(9), ["gradient_flow"], memory=0.05)
    assert record.attrs["memory_budget"] == "0.05 GiB, batches of 4 at most"
    assert record["gradient_flow"].sizes["sample"] == 9
