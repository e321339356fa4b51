"""The theoretical field: status, axes, inputs and outputs of all kinds, honest refusals."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, rnn

from probes.base import Batch, Subject
from probes.errors import AnalyzerError, NotApplicable
from probes.receptive_field import ReceptiveField


def measure(model: nn.Module, *batches, **settings):
    return ReceptiveField()(Subject(model.eval(), batches, **settings))


def column(trace, name: str, axis: int = 0) -> dict[str, float]:
    """Values of a variable along one axis, by layer."""
    values = trace[name].to_numpy()
    values = values[:, axis] if values.ndim == 2 else values
    return dict(zip(trace["layer"].to_numpy().tolist(), values.tolist(), strict=True))


def test_a_stack_of_three_has_closed_form_numbers():
    model = nn.Sequential(nn.Conv2d(1, 2, (5, 3), 2), nn.ReLU(), nn.Conv2d(2, 2, 3, dilation=2))
    trace = measure(model, torch.rand(3, 1, 24, 22))
    assert trace["axis"].to_numpy().tolist() == ["y", "x"]
    assert trace["kind"].to_numpy().tolist() == ["Conv2d", "ReLU", "Conv2d"]
    assert trace["input_size"].to_numpy().tolist() == [24, 22]
    assert column(trace, "size", 0) == {"0": 5, "1": 5, "2": 5 + 2 * 4}
    assert column(trace, "size", 1) == {"0": 3, "1": 3, "2": 3 + 2 * 4}
    assert column(trace, "jump", 0) == {"0": 2, "1": 2, "2": 2}
    assert column(trace, "minimal", 0) == {"0": 5, "1": 5, "2": 13}
    assert column(trace, "minimal_input", 0) == {"0": 1, "1": 5, "2": 5}
    # The first map has 10 rows, its centre is row 5; the second has 6, its centre reads 3, 5, 7.
    assert column(trace, "start", 0) == {"0": 10, "1": 10, "2": 6}
    assert column(trace, "stop", 0) == {"0": 14, "1": 14, "2": 18}
    assert column(trace, "status") == {"0": "EXACT", "1": "EXACT", "2": "EXACT"}
    assert column(trace, "reason") == {"0": "", "1": "", "2": ""}
    assert trace.attrs["tensors"] == "symbolic"
    for variable in trace.data_vars.values():
        assert variable.attrs["long_name"]
        assert variable.attrs["units"]


def test_sizes_are_those_of_an_infinite_canvas():
    model = nn.Sequential(*(nn.Conv1d(1, 1, 9, padding=4) for _ in range(4)))
    trace = measure(model, torch.rand(1, 1, 10))
    assert column(trace, "size") == {"0": 9, "1": 17, "2": 25, "3": 33}
    assert column(trace, "start") == {"0": 1, "1": 0, "2": 0, "3": 0}
    assert column(trace, "stop") == {"0": 9, "1": 9, "2": 9, "3": 9}


@pytest.mark.parametrize(("dims", "names"), [(1, ["time"]), (3, ["z", "y", "x"])])
def test_axes_are_named_by_how_many_there_are(dims, names):
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    trace = measure(conv(1, 1, 3), torch.rand(1, 1, *(5, 6, 7)[:dims]))
    assert trace["axis"].to_numpy().tolist() == names
    assert trace["layer"].to_numpy().tolist() == [""]


def test_transposed_convolution_depends_on_the_position():
    model = nn.Sequential(nn.Conv1d(1, 1, 5), nn.ConvTranspose1d(1, 1, 3, 2))
    trace = measure(model, torch.rand(1, 1, 20))
    # Outputs read one or two of the elements before; these are a step of one apart.
    assert column(trace, "reason") == {"0": "", "1": "depends on the position: 5 to 6"}
    assert column(trace, "minimal") == {"0": 5, "1": 5}
    assert column(trace, "jump") == {"0": 1, "1": 0.5}


def test_space_to_depth_is_a_stride():
    model = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 1, 3, padding=1))
    trace = measure(model, torch.rand(1, 1, 4, 6))
    assert column(trace, "size") == {"0": 2, "1": 6}
    assert column(trace, "jump", 1)["1"] == 2


class Gated(nn.Module):
    """Squeeze-excitation between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = (
            nn.Conv2d(1, 2, 3),
            nn.Conv2d(2, 2, 1),
            nn.Conv2d(2, 1, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())


def test_global_gates_are_told_apart_from_the_map():
    trace = measure(Gated(), torch.rand(1, 1, 16, 12))
    reason = "reduction of the whole map (mean) in the model itself"
    whole = "WHOLE_INPUT"
    assert column(trace, "status") == {"first": "EXACT", "gate": whole, "last": whole}
    assert column(trace, "reason") == {"first": "", "gate": reason, "last": reason}
    assert column(trace, "size", 0) == {"first": 3, "gate": 16, "last": 16}
    assert column(trace, "size_without_gates", 0) == {"first": 3, "gate": 16, "last": 5}
    assert column(trace, "minimal", 1) == {"first": 3, "gate": 12, "last": 5}
    np.testing.assert_equal(column(trace, "jump"), {"first": 1, "gate": np.nan, "last": 1})


class Standardized(nn.Module):
    """Center and scale with statistics of the whole input first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv((x - x.mean(2, keepdim=True)) / x.std(2, keepdim=True))


def test_statistics_count_as_gates():
    trace = measure(Standardized(), torch.rand(1, 2, 30))
    assert column(trace, "size") == {"conv": 30}
    assert column(trace, "size_without_gates") == {"conv": 7}


def test_one_axis_can_be_whole_alone():
    class Lines(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 2, 3), nn.Conv1d(2, 1, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(x).amax(2))

    trace = measure(Lines(), torch.rand(1, 1, 9, 20))
    last = trace.sel(layer="last")
    assert str(last["status"].item()) == "WHOLE_INPUT"
    assert str(last["reason"].item()) == "y: reduction of the whole map (amax) in the model itself"
    assert last["size"].to_numpy().tolist() == [9, 7]


class Recurrent(nn.Module):
    """Convolution, a recurrent layer, and a convolution behind it."""

    def __init__(self, layer: nn.Module, features: int) -> None:
        super().__init__()
        self.conv, self.layer = nn.Conv1d(1, 3, 5, 2), layer
        self.last = nn.Conv1d(features, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).transpose(1, 2)
        h = (
            self.layer(h)[0]
            if self.layer.batch_first
            else self.layer(h.transpose(0, 1))[0].transpose(0, 1)
        )
        return self.last(h.transpose(1, 2))


@pytest.mark.parametrize(
    "layer",
    [nn.LSTM(3, 4, 2, batch_first=True), nn.GRU(3, 4), nn.RNN(3, 4, nonlinearity="relu")],
    ids=["lstm", "gru", "rnn"],
)
def test_recurrent_layers_see_all_that_came_before(layer):
    trace = measure(Recurrent(layer, 4), torch.rand(2, 1, 41))
    reason = "recurrence over every earlier position (causal prefix) in layer"
    assert column(trace, "status") == {
        "conv": "EXACT", "layer": "WHOLE_INPUT", "last": "WHOLE_INPUT"
    }  # fmt: skip
    assert column(trace, "reason") == {"conv": "", "layer": reason, "last": reason}
    assert column(trace, "size") == {"conv": 5, "layer": 41, "last": 41}
    # 19 steps, the centre is step 9, whose convolution reads 18 to 22.
    assert column(trace, "start") == {"conv": 18, "layer": 0, "last": 0}
    assert column(trace, "stop") == {"conv": 22, "layer": 22, "last": 24}
    assert trace.attrs["tensors"] == "symbolic"


def test_bidirectional_layers_see_all():
    trace = measure(Recurrent(nn.LSTM(3, 2, bidirectional=True), 4), torch.rand(2, 1, 41))
    reason = "recurrence over every earlier and later position in layer"
    assert column(trace, "reason")["layer"] == reason
    assert column(trace, "start")["layer"] == 0
    assert column(trace, "stop")["layer"] == 40


class Stepped(nn.Module):
    """A cell that is called once for each step, on features that a convolution made."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.conv, self.cell = nn.Conv1d(1, 3, 3), cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.conv(x).unbind(2):
            state = self.cell(step, state)
        return state


@pytest.mark.parametrize("cell", [nn.LSTMCell(3, 4), nn.GRUCell(3, 4)], ids=["lstm", "gru"])
def test_cells_see_all_that_came_before(cell):
    trace = measure(Stepped(cell), torch.rand(2, 1, 30))
    reason = "recurrence over every earlier position (causal prefix) in cell"
    reasons = column(trace, "reason")
    assert reasons["cell"] == ""
    assert reasons["cell#2"] == reason
    assert column(trace, "size")["cell"] == 3
    assert column(trace, "stop")["cell#5"] == 6
    assert column(trace, "start")["cell#5"] == 0
    assert trace.sizes["layer"] == 1 + 8
    assert trace.attrs["calls_left_out"] == 28 - 8


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 2, 2)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.conv(x).flatten(2).transpose(1, 2))


def test_attention_sees_the_whole_input():
    trace = measure(Attention(), torch.rand(1, 1, 8, 12))
    reasons = column(trace, "reason")
    assert reasons["conv"] == ""
    said = reasons["attention.linear2"]
    assert said.startswith("attention over all positions")
    assert said.endswith("in attention.self_attn")
    assert column(trace, "size", 1)["attention.linear2"] == 12
    assert "UNKNOWN" not in trace["status"]


def test_flattening_before_a_dense_layer_sees_the_whole_map():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 4, 3))
    trace = measure(model, torch.rand(1, 1, 8, 6))
    assert column(trace, "status") == {"0": "EXACT", "1": "EXACT", "2": "WHOLE_INPUT"}
    assert column(trace, "reason")["2"] == "dense product over all positions (addmm) in 2"
    assert column(trace, "size", 1) == {"0": 3, "1": 3, "2": 6}


def test_positions_are_found_wherever_they_are_in_the_input():
    class TimeBeforeFeatures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.permute(1, 2, 0))

    trace = measure(TimeBeforeFeatures(), torch.rand(17, 4, 2), batch_axis=1)
    assert trace["input_size"].to_numpy().tolist() == [17]
    assert column(trace, "size") == {"conv": 3}


class Several(nn.Module):
    """Reads a mask, a series, and a number; the series goes through the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.conv = nn.Linear(3, 2), nn.Conv1d(2, 2, 5)

    def forward(self, mask: Tensor, series: Tensor, factor: float) -> dict[str, object]:
        y = self.conv(series * mask[:, None]) + self.scale(series.new_ones(1, 3))[:, :, None]
        return {"nothing": None, "y": (factor * y,)}


@pytest.mark.parametrize("keywords", [True, False], ids=["mapping", "tuple"])
def test_inputs_may_be_several(keywords):
    values = {"mask": torch.ones(2, 12) > 0, "series": torch.rand(2, 2, 12), "factor": 2.0}
    inputs = values if keywords else tuple(values.values())
    trace = measure(Several(), Batch(inputs))
    assert column(trace, "size") == {"conv": 5}
    assert trace["input_size"].to_numpy().tolist() == [12]


def test_integer_inputs_pass_through_an_embedding():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.conv = nn.Embedding(9, 3), nn.Conv1d(3, 2, 3, dilation=3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.conv(self.embed(tokens).transpose(1, 2))

    trace = measure(Tokens(), torch.randint(9, (4, 20)))
    assert column(trace, "size") == {"embed": 1, "conv": 7}


def test_one_hot_inputs_pass():
    class Letters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(9, 2, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.conv(functional.one_hot(tokens, 9).mT.float())

    trace = measure(Letters(), torch.randint(9, (4, 20)))
    assert column(trace, "size") == {"conv": 3}
    assert column(trace, "status") == {"conv": "EXACT"}


class Choosing(nn.Module):
    """Control flow that depends on the data: no symbolic pass can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.often = nn.Conv1d(1, 1, 3), nn.Conv1d(1, 1, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.often(x) if x.abs().sum() > 0 else x


def test_control_flow_on_data_falls_back_to_real_tensors():
    trace = measure(Choosing(), torch.rand(5, 1, 40))
    assert column(trace, "size") == {"conv": 3, "often": 11}
    assert trace.attrs["tensors"].startswith("real (DataDependentOutputException: ")


def test_computed_positions_need_values():
    class Reordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            order = torch.arange(x.shape[2] - 1, -1, -1)
            return self.conv(x)[:, :, order[2:]]

    trace = measure(nn.Sequential(Reordered(), nn.ReLU()), torch.rand(1, 1, 30))
    reason = "ValuesNeededError: positions are computed in the forward"
    assert trace.attrs["tensors"] == f"real ({reason})"
    # 28 positions in reverse; the centre of the result, 14, is 27 - 14 = 13.
    assert column(trace, "start")["1"] == 13
    assert column(trace, "jump") == {"0.conv": 1, "1": 1}


def test_packing_and_padding_keep_the_time_axis():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lstm = nn.Conv1d(1, 2, 3), nn.LSTM(2, 3, batch_first=True)
            self.head = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x).transpose(1, 2)
            packed = rnn.pack_padded_sequence(
                h, torch.tensor([len(h[0])] * len(h)), batch_first=True
            )
            return self.head(rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0])

    trace = measure(Packed(), torch.rand(3, 1, 20))
    assert column(trace, "size") == {"conv": 3, "lstm": 20, "head": 20}
    assert column(trace, "stop")["head"] == 9 + 2


def test_an_operator_without_a_rule_is_named():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv1d(1, 2, 3), nn.Conv1d(2, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.renorm(self.first(x), 2, 1, 1.0))

    trace = measure(Odd(), torch.rand(1, 1, 20))
    reason = "an operator without a rule (renorm) in the model itself"
    assert column(trace, "status") == {"first": "EXACT", "last": "UNKNOWN"}
    assert column(trace, "reason") == {"first": "", "last": reason}
    np.testing.assert_equal(column(trace, "size"), {"first": 3, "last": np.nan})
    np.testing.assert_equal(column(trace, "size_without_gates"), {"first": 3, "last": np.nan})


def test_what_leaves_torch_is_unknown():
    class Outside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor(x.tolist())

    trace = measure(nn.Sequential(nn.Conv1d(1, 1, 3), Outside(), nn.ReLU()), torch.rand(1, 1, 20))
    assert column(trace, "status") == {"0": "EXACT", "1": "UNKNOWN", "2": "UNKNOWN"}
    assert column(trace, "reason")["2"] == "computed outside of torch's operators"
    assert trace.attrs["tensors"].startswith("real (")


def test_parametrized_layers_are_layers():
    conv = parametrizations.weight_norm(nn.Conv1d(1, 1, 3))
    trace = measure(nn.Sequential(conv, nn.Conv1d(1, 1, 3)), torch.rand(1, 1, 20))
    assert trace["kind"].to_numpy().tolist() == ["Conv1d", "Conv1d"]
    assert column(trace, "size") == {"0": 3, "1": 5}


def test_what_the_forward_keeps_is_taken_back():
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv1d(1, 1, 3), None

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y = y if self.last is None else y + self.last
            self.last = y
            return y

    model, x = Remembering(), torch.rand(1, 1, 20)
    measure(model, x)
    assert model.last is None
    assert type(model(x)) is Tensor


def test_the_mode_of_the_model_does_not_matter():
    model = nn.Sequential(nn.Conv1d(1, 1, 3), nn.BatchNorm1d(1), nn.Dropout(0.5))
    before = model[1].running_mean.clone()
    trace = ReceptiveField()(Subject(model.train(), [torch.rand(3, 1, 20)]))
    assert column(trace, "size") == {"0": 3, "1": 3, "2": 3}
    assert model.training
    assert torch.equal(model[1].running_mean, before)


def test_no_convolution_is_not_applicable():
    with pytest.raises(NotApplicable) as raised:
        measure(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.rand(4, 3))
    assert str(raised.value) == (
        "the model has no convolution: only layers that slide over their input see just a part of "
        "it"
    )


def test_a_convolution_of_constants_is_not_applicable():
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.conv(torch.ones(1, 1, 3)).sum()

    with pytest.raises(NotApplicable) as raised:
        measure(Constant(), torch.rand(4, 3))
    assert str(raised.value) == "no convolution reads the inputs position by position"


def test_packed_inputs_are_not_applicable():
    packed = rnn.pack_sequence([torch.rand(3, 2), torch.rand(2, 2)])
    with pytest.raises(NotApplicable) as raised:
        measure(nn.LSTM(2, 2), Batch(packed))
    assert str(raised.value) == "the inputs are packed sequences, which this probe does not read"


def test_no_data_is_an_error():
    with pytest.raises(AnalyzerError) as raised:
        measure(nn.Conv1d(1, 1, 3))
    assert str(raised.value) == "there is no batch to measure on: the data is empty"


def test_an_error_of_the_model_is_the_users_to_see():
    with pytest.raises(RuntimeError, match="expected input"):
        measure(nn.Conv1d(2, 1, 3), torch.rand(1, 3, 20))
