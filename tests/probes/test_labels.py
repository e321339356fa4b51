"""Names of modules may hold the sign that tells calls of one module apart."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from probes import probe_class
from probes.base import Subject
from probes.model.labels import label_of, module_of


def test_a_label_leads_back_to_its_module() -> None:
    names = {"a", "a#2", "#"}
    assert [label_of("a", call) for call in (1, 2)] == ["a", "a#2"]
    assert module_of("a#3", names) == "a"
    # A module that is called so is meant before the second call of another.
    assert module_of("a#2", names) == "a#2"
    assert module_of("#", names) == "#"
    assert module_of("##2", names) == "#"


@pytest.mark.parametrize(
    "name", ["layer_conductance", "effective_field", "receptive_field", "gradient_flow", "width"]
)
def test_probes_find_modules_with_such_names(name: str) -> None:
    layers = {"#": nn.Conv1d(2, 3, 3), "b#": nn.ReLU(), "c#d": nn.Conv1d(3, 3, 3)}
    model = nn.Sequential(OrderedDict([*layers.items(), ("flat", nn.Flatten())])).eval()
    targets = torch.arange(24) % 3
    subject = Subject(model, [(torch.randn(24, 2, 5), targets)], "cross_entropy", time_axis=2)
    trace = probe_class(name)()(subject)
    assert {"#", "c#d"} <= {*trace["layer"].to_numpy().astype(str)}
