from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from probes import PROBES, probe_class
from probes.base import Batch, Subject, call, first_tensor, variable
from probes.errors import AnalyzerError


def packed() -> PackedSequence:
    return pack_padded_sequence(torch.randn(3, 5, 2), torch.tensor([2, 5, 4]), True, False)


def test_a_batch_is_read_from_what_loaders_yield() -> None:
    x, y = torch.randn(3, 2), torch.arange(3)
    batch = Batch(x, y, torch.tensor([1, 2, 2]))
    assert Batch.of(batch) is batch
    assert Batch.of(x).inputs is x
    assert Batch.of((x, y)).targets is y
    assert Batch.of([x, y]).inputs is x
    assert Batch.of({"inputs": x, "lengths": y}).lengths is y
    keywords = Batch.of({"input_ids": x, "labels": y})
    assert isinstance(keywords.inputs, dict)
    assert list(keywords.inputs) == ["input_ids"]
    assert keywords.targets is y
    sequence = packed()
    assert Batch.of(sequence).inputs is sequence


@pytest.mark.parametrize(("item", "kind"), [((1, 2, 3), "tuple"), ("text", "str")])
def test_anything_else_is_refused(item: Any, kind: str) -> None:
    with pytest.raises(AnalyzerError) as caught:
        Batch.of(item)
    assert str(caught.value) == (
        f"a batch is a {kind}: expected a tensor, (inputs, targets), a mapping of keyword "
        "arguments, or probes.base.Batch"
    )


def test_floating_values_take_the_precision_of_the_model_and_integers_stay() -> None:
    lengths = torch.tensor([2, 3])
    batch = Batch((torch.ones(2), torch.arange(2), "text"), {"y": torch.zeros(2)}, lengths)
    moved = batch.to(torch.device("cpu"), torch.float64)
    assert isinstance(moved.inputs, tuple)
    assert [getattr(part, "dtype", None) for part in moved.inputs] == [
        torch.float64,
        torch.int64,
        None,
    ]
    assert moved.targets["y"].dtype == torch.float64
    assert moved.lengths is lengths
    sequence = Batch(packed()).to(torch.device("cpu"), torch.float64).inputs
    assert isinstance(sequence, PackedSequence)
    assert sequence.data.dtype == torch.float64


def test_a_subject_iterates_in_the_precision_of_its_model_as_often_as_asked() -> None:
    def once() -> Iterator[Tensor]:
        yield torch.randn(2, 3)
        yield torch.randn(1, 3)

    subject = Subject(nn.Linear(3, 1).double(), once())
    for _ in range(2):
        assert [first_tensor(batch.inputs).dtype for batch in subject] == [torch.float64] * 2
    assert [subject.batch_size(batch) for batch in subject] == [2, 1]
    assert subject.device == torch.device("cpu")


def test_one_batch_needs_no_list() -> None:
    x = torch.randn(4, 3)
    assert [b.inputs.shape for b in Subject(nn.Identity(), x)] == [(4, 3)]  # type: ignore[union-attr]
    assert Subject(nn.Identity(), packed()).batch_size(Batch(packed())) == 3
    assert Subject(nn.Identity(), x, batch_axis=1).batch_size(Batch(x)) == 3


def test_the_precision_is_that_of_the_floating_parameters() -> None:
    model = nn.Module()
    model.index = nn.Parameter(torch.arange(3), requires_grad=False)
    model.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    assert Subject(model, []).dtype == torch.float64
    assert Subject(nn.ReLU(), []).dtype == torch.float32


def test_random_choices_of_one_seed_are_the_same() -> None:
    draws = [torch.rand(3, generator=Subject(nn.ReLU(), [], seed=s).generator()) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_models_are_called_as_the_inputs_say() -> None:
    class Sum(nn.Module):
        def forward(self, a: Any, b: Any = 0) -> Any:
            return (a, b)

    sequence = packed()
    assert call(Sum(), {"b": 2, "a": 1}) == (1, 2)
    assert call(Sum(), (1, 2)) == (1, 2)
    assert call(Sum(), torch.tensor(3)) == (torch.tensor(3), 0)
    assert call(Sum(), sequence)[0] is sequence


def test_inputs_without_a_tensor_are_refused() -> None:
    with pytest.raises(AnalyzerError) as caught:
        first_tensor({"text": "no"})
    assert str(caught.value) == "the inputs of a batch hold no tensor"


def test_measured_values_are_labelled_doubles_on_the_cpu() -> None:
    values = torch.tensor([1.5, 2.5], requires_grad=True)
    labelled = variable(values, ("sample",), "size", "m")
    assert labelled.dtype == "float64"
    assert labelled.dims == ("sample",)
    assert labelled.attrs == {"long_name": "size", "units": "m"}
    assert labelled.to_numpy().tolist() == [1.5, 2.5]


def test_every_probe_goes_by_the_name_of_its_module() -> None:
    for name, kind in PROBES.items():
        assert probe_class(name).__name__ == kind
        assert probe_class(name).name == name  # type: ignore[attr-defined]
