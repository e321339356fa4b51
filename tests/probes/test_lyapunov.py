"""Exponents of layers whose gates are set by hand, and the labels of the trace."""

import numpy as np
import pytest
import torch
from torch import nn

from probes.base import Batch, Subject
from probes.errors import AnalyzerError
from probes.lyapunov import Lyapunov

INPUTS = 3


def leaky(keep):
    """An LSTM that is leaky integrators: constant gates, no recurrence but the cell."""
    lstm = nn.LSTM(INPUTS, len(keep), batch_first=True).double()
    for weight in lstm.parameters():
        weight.data.zero_()
    lstm.weight_ih_l0.data[2 * len(keep) : 3 * len(keep)] = 0.3
    lstm.bias_ih_l0.data[len(keep) : 2 * len(keep)] = torch.tensor(
        keep, dtype=torch.float64
    ).logit()
    return lstm


def inputs(samples, timesteps):
    return torch.randn(samples, timesteps, INPUTS, dtype=torch.float64)


def test_leaky_integrators_fade_by_what_they_forget():
    keep = [0.5, 0.95, 0.8]
    trace = Lyapunov(count=3)(Subject(leaky(keep), inputs(3, 400)))
    assert trace["exponents"].dims == ("sample", "layer", "exponent")
    expected = np.log(sorted(keep, reverse=True))
    for sample in range(3):
        np.testing.assert_allclose(trace["exponents"][sample, 0], expected, atol=1e-3)
    assert trace["steps"].values.tolist() == [[300]] * 3
    np.testing.assert_allclose(trace["first_half"], np.full((3, 1), expected[0]), atol=2e-3)


def test_what_grows_has_a_positive_exponent():
    rnn = nn.RNN(INPUTS, 16, batch_first=True).double()
    rnn.weight_hh_l0.data = 3 * torch.randn(16, 16).double() / 4
    found = Lyapunov(samples=3)(Subject(rnn, inputs(5, 300)))["exponents"]
    assert found.sizes == {"sample": 3, "layer": 1, "exponent": 8}
    assert (found.sel(exponent=1) > 0.05).all()
    assert (found.sel(exponent=8) < 0).all()
    assert (found.diff("exponent") <= 0).all()


def test_ragged_samples_end_where_they_end():
    model, x = leaky([0.5, 0.9]), inputs(3, 40)
    batch = Batch(x, None, torch.tensor([40, 9, 1]))
    trace = Lyapunov(count=9, transient=0.5)(Subject(model, batch, time_axis=1))
    assert trace["steps"].values.tolist() == [[20], [4], [0]]
    assert trace["exponents"].isnull().sum("exponent").values.tolist() == [[0], [0], [4]]
    assert trace["exponent"].values.tolist() == [1, 2, 3, 4]


def test_labels_and_units():
    model = nn.GRU(INPUTS, 3, 2, bidirectional=True, batch_first=True).double()
    trace = Lyapunov(count=2, samples=4)(Subject(model, [inputs(3, 6), inputs(3, 5)]))
    assert trace.sizes == {"sample": 4, "layer": 4, "exponent": 2}
    assert trace["layer"].values.tolist() == ["l0", "l0.reverse", "l1", "l1.reverse"]
    assert trace["units"].values.tolist() == [3] * 4
    assert trace["direction"].values.tolist() == ["forward", "reverse"] * 2
    assert trace["exponents"].attrs == {
        "long_name": "Lyapunov exponent",
        "units": "1 / timestep",
    }
    assert trace.attrs.pop("replay_residual") < 1e-12
    assert trace.attrs == {"not_called": "", "not_per_sample": ""}


def test_initial_states_as_inputs_keep_the_whole_batch_and_count_few():
    model, x = nn.GRU(INPUTS, 3, batch_first=True).double(), inputs(5, 7)
    state = torch.zeros(1, 5, 3, dtype=torch.float64)
    given, alone = Subject(model, [((x, state), None)]), Subject(model, [x])
    found, expected = (Lyapunov(samples=2)(one)["exponents"] for one in (given, alone))
    assert found.sizes["sample"] == 2
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("setting", [{"count": 0}, {"samples": 0}, {"transient": 1.0}])
def test_misuse_is_said(setting):
    settings = {"count": 8, "samples": 8, "transient": 0.25} | setting
    with pytest.raises(AnalyzerError) as error:
        Lyapunov(**setting)(Subject(leaky([0.5]), inputs(2, 3)))
    assert str(error.value) == (
        "lyapunov needs count >= 1, samples >= 1 and transient in [0, 1): they are "
        f"{settings['count']}, {settings['samples']} and {settings['transient']:g}"
    )
